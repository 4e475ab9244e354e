/* Unit tests of fastpath.c under sanitizers: full tables, many destinations, real sockets. */
#define _GNU_SOURCE
#include "segment_support.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

static unsigned polls;

int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask) {
    struct timespec left = *timeout;
    polls += 1;
    return (int)syscall(SYS_ppoll, fds, count, &left, mask, sizeof(uint64_t));
}

static int udp(int family, struct wv_address *at) {
    const int fd = socket(family, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    const int buffer = 4 << 20;
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    struct sockaddr *name = family == AF_INET ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
    socklen_t bytes = family == AF_INET ? sizeof v4 : sizeof v6;
    CHECK(fd >= 0);
    CHECK(bind(fd, name, bytes) == 0 && getsockname(fd, name, &bytes) == 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    *at = family == AF_INET ? test_v4(1, ntohs(v4.sin_port)) : test_v6(1, ntohs(v6.sin6_port), 1);
    return fd;
}

static void say(int fd, const uint8_t *data, size_t bytes, const struct wv_address *to) {
    struct sockaddr_in name = {.sin_family = AF_INET,
                               .sin_port = htons((uint16_t)to->endpoint),
                               .sin_addr = {htonl(INADDR_LOOPBACK)}};
    CHECK(sendto(fd, data, bytes, 0, (struct sockaddr *)&name, sizeof name) == (ssize_t)bytes);
}

static unsigned heard(int fd) {
    uint8_t data[2048];
    unsigned count = 0;
    while (recv(fd, data, sizeof data, MSG_DONTWAIT) >= 0) count++;
    return count;
}

static struct wv_engine *engine(const struct test_segment *s, const int *fds, uint32_t count) {
    enum wv_open_error error;
    struct wv_engine *made = wv_engine_new(s->base, s->bytes, 0, fds, count, -1, &error);
    CHECK(made != NULL && error == WV_OPEN_OK);
    made->frozen = 1;
    made->now = TEST_NOW;
    return made;
}

static void refuses_what_it_cannot_serve(void) {
    struct test_segment s = test_segment_new();
    enum wv_open_error error;
    int pipes[2];
    CHECK(pipe(pipes) == 0);
    CHECK(wv_engine_new(s.base, s.bytes, 0, pipes, 1, -1, &error) == NULL && errno == ENOTSOCK);
    CHECK(wv_engine_new(s.base, s.bytes, 0, pipes, WV_MAX_SOCKETS + 1, -1, &error) == NULL);
    CHECK(errno == EINVAL);
    CHECK(wv_engine_new(s.base, 64, 0, pipes, 0, -1, &error) == NULL);
    CHECK(error == WV_OPEN_NOT_A_SEGMENT);
    close(pipes[0]), close(pipes[1]);
    free(s.base);
}

static void forwards_between_families(void) {
    struct test_segment s = test_segment_new();
    struct wv_address relay4, relay6, alice_at, bob_at;
    const int fds[2] = {udp(AF_INET, &relay4), udp(AF_INET6, &relay6)};
    const int alice = udp(AF_INET, &alice_at), bob = udp(AF_INET6, &bob_at);
    struct wv_engine *e = engine(&s, fds, 2);
    CHECK(fcntl(fds[0], F_GETFL) & O_NONBLOCK); /* neither may wait for the other */
    test_session(&e->tables, 0, alice_at, bob_at);
    uint8_t data[1500];
    for (uint64_t sequence = 0; sequence < 500; sequence++) {
        say(alice, data, test_forward(data, 0, sequence, 900 + sequence % 3), &relay4);
        if (sequence % 50 == 49) CHECK(wv_run(e, 0) == WV_RUN_DONE);
    }
    CHECK(heard(bob) == 500);
    CHECK(e->tables.row[WV_COUNT_FORWARDED_PACKETS] == 500);
    wv_engine_free(e);
    close(fds[0]), close(fds[1]), close(alice), close(bob);
    free(s.base);
}

/* While datagrams flow at a lone socket no pass polls; a lull, or a run that must not wait, ends that. */
static void a_lone_socket_waits_in_its_receive(void) {
    struct test_segment s = test_segment_new();
    struct wv_address relay4, alice_at, bob_at;
    const int fd = udp(AF_INET, &relay4), alice = udp(AF_INET, &alice_at), bob = udp(AF_INET, &bob_at);
    struct wv_engine *e = engine(&s, &fd, 1);
    test_session(&e->tables, 0, alice_at, bob_at);
    uint8_t data[1500];
    polls = 0;
    for (uint64_t sequence = 0; sequence < 50; sequence++) {
        say(alice, data, test_forward(data, 0, sequence, 900), &relay4);
        CHECK(wv_run(e, 0) == WV_RUN_DONE);
    }
    CHECK(heard(bob) == 50 && polls == 1);
    CHECK(wv_run(e, 0) == WV_RUN_DONE && polls == 1 && !e->flows); /* nothing is there */
    say(alice, data, test_forward(data, 0, 50, 900), &relay4);
    CHECK(wv_run(e, 0) == WV_RUN_DONE && polls == 2 && e->flows);
    CHECK(wv_run(e, 200) == WV_RUN_DONE && polls == 3 && !e->flows); /* waits on with the poll */
    CHECK(heard(bob) == 1);
    wv_engine_free(e);
    close(fd), close(alice), close(bob);
    free(s.base);
}

/* One batch with more segments and destinations than the tables hold: flushed in between. */
static void a_batch_larger_than_the_out_tables(void) {
    struct test_segment s = test_segment_new();
    struct wv_address relay4;
    const int fd = udp(AF_INET, &relay4);
    struct wv_engine *e = engine(&s, &fd, 1);
    const struct wv_address alice = test_v4(1, 5000);
    for (unsigned number = 0; number < TEST_SESSIONS; number++)
        test_session(&e->tables, number, alice, test_v4(1, 40000 + number));
    e->fault = (struct wv_fault){.error = EPERM, .count = UINT32_MAX}; /* nothing leaves */
    uint64_t sequence = 0, sent = 0;
    for (uint32_t message = 0; message < WV_RECEIVE_MESSAGES; message++) {
        uint8_t *at = e->in_vectors[message].iov_base;
        uint32_t bytes = 0;
        while (bytes + 28 <= WV_RECEIVE_BYTES - 28) {
            bytes += (uint32_t)test_forward(at + bytes, (unsigned)(sent % TEST_SESSIONS), sequence / 16, 0);
            sequence++, sent++;
        }
        e->in[message].msg_len = bytes;
        e->in_segment_bytes[message] = 28;
        e->in_from[message] = alice;
    }
    e->batch_messages = WV_RECEIVE_MESSAGES;
    wv_process(e);
    uint64_t counted = 0;
    for (unsigned i = WV_COUNT_DROP_TOO_SHORT; i <= WV_COUNT_DROP_SEND_FAILED; i++) counted += e->tables.row[i];
    CHECK(sent > WV_OUT_SEGMENTS && counted == sent);
    CHECK(e->tables.row[WV_COUNT_DROP_SEND_FAILED] > WV_OUT_SEGMENTS);
    CHECK(e->batch_messages == 0 && e->out_groups == 0);
    wv_engine_free(e);
    close(fd);
    free(s.base);
}

/* Two full trains for one destination are more than one datagram of UDP can carry. */
static void groups_stay_below_what_udp_carries(void) {
    struct test_segment s = test_segment_new();
    struct wv_address relay4, bob_at;
    const int fd = udp(AF_INET, &relay4), bob = udp(AF_INET, &bob_at);
    struct wv_engine *e = engine(&s, &fd, 1);
    const struct wv_address alice = test_v4(1, 5000);
    test_session(&e->tables, 0, alice, bob_at);
    uint64_t sequence = 0;
    for (uint32_t message = 0; message < 2; message++) {
        uint8_t *at = e->in_vectors[message].iov_base;
        uint32_t bytes = 0;
        for (int i = 0; i < 40; i++) bytes += (uint32_t)test_forward(at + bytes, 0, sequence++, 1400);
        e->in[message].msg_len = bytes;
        e->in_segment_bytes[message] = 1428;
        e->in_from[message] = alice;
    }
    e->batch_messages = 2;
    wv_process(e);
    CHECK(heard(bob) == 80);
    CHECK(e->tables.row[WV_COUNT_FORWARDED_PACKETS] == 80);
    CHECK(e->plain_learned == 0 && (!e->sockets[0].gso || e->gso_messages == 2));
    wv_engine_free(e);
    close(fd), close(bob);
    free(s.base);
}

/* Every refusal, with many destinations: nothing is counted twice or forgotten. */
static void counts_every_datagram_once(void) {
    const int errors[] = {EIO, EINVAL, EMSGSIZE, EAGAIN, ENOBUFS, ECONNREFUSED, EPERM, EINTR};
    for (size_t which = 0; which < sizeof errors / sizeof errors[0]; which++) {
        for (uint32_t count = 1; count < 8; count += 3) {
            struct test_segment s = test_segment_new();
            struct wv_address relay4, alice_at, ends_at[8];
            const int fd = udp(AF_INET, &relay4), alice = udp(AF_INET, &alice_at);
            int ends[8];
            struct wv_engine *e = engine(&s, &fd, 1);
            uint8_t data[1500];
            for (unsigned number = 0; number < 8; number++) {
                ends[number] = udp(AF_INET, &ends_at[number]);
                test_session(&e->tables, number, alice_at, ends_at[number]);
            }
            for (uint64_t sequence = 0; sequence < 48; sequence++)
                say(alice, data, test_forward(data, (unsigned)(sequence % 8), sequence, 100), &relay4);
            e->fault = (struct wv_fault){.error = errors[which], .count = count};
            CHECK(wv_run(e, 0) == WV_RUN_DONE);
            unsigned arrived = 0;
            for (unsigned number = 0; number < 8; number++) arrived += heard(ends[number]), close(ends[number]);
            const uint64_t *row = e->tables.row;
            CHECK(row[WV_COUNT_FORWARDED_PACKETS] == arrived);
            CHECK(arrived + row[WV_COUNT_DROP_SEND_BLOCKED] + row[WV_COUNT_DROP_SEND_FAILED] == 48);
            CHECK(row[WV_COUNT_FORWARDED_BYTES] == (uint64_t)arrived * 128);
            wv_engine_free(e);
            close(fd), close(alice);
            free(s.base);
        }
    }
}

int main(void) {
    refuses_what_it_cannot_serve();
    forwards_between_families();
    a_lone_socket_waits_in_its_receive();
    a_batch_larger_than_the_out_tables();
    groups_stay_below_what_udp_carries();
    counts_every_datagram_once();
    puts("fastpath: ok");
    return 0;
}
