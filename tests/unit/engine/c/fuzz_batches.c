/* Fuzz target over whole batches: what the kernel hands over, with its control messages, through
 * grouping, to what the kernel is given, which may refuse it.
 *
 * input: flags u8 · seed of the send errors u8 · messages
 * message: source u8 · kinds of control messages u8 · segment size u16 · bytes u16 · datagrams
 * Bits 3 and 4 of the kinds: which address of this host was written to, or that the kernel does not
 * say it.  What goes to a peer must leave from the address that its slot was at.
 * recvmmsg, sendmmsg and ppoll are ours.  The twin decides the same segments one by one from exact
 * copies; the engine must hand out the same control packets, and send to each destination the same
 * datagrams in the same order, but for those that it counts as unsent.
 */
#define _GNU_SOURCE
#include "local.h"
#include "segment_support.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/mman.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

enum {
    FUZZ_SESSIONS = 5,
    LOCALS = 3, /* of each family; address N of listen address L is number N + L * LOCALS - 1 */
    MAX_MESSAGES = 256,
    MAX_EXPECTED = 16384,
    FLAG_SESSION_RATE = 1,
    FLAG_GLOBAL_RATE = 2,
    FLAG_V6 = 4,
    FLAG_ERRORS = 8,
    FLAG_LATE = 16,
};

struct message {
    uint8_t source, kind;
    uint16_t segment_bytes, bytes;
    const uint8_t *data;
};

struct expected {
    struct wv_address to;
    const uint8_t *data;
    uint32_t bytes;
    enum wv_kind kind;
    int is_stranger;
    int done;
};

static struct test_segment segments[2];
static struct wv_engine *engine;
static struct wv_tables twin;
static uint8_t pristine[FUZZ_SESSIONS][sizeof(struct wv_session)];
static int descriptors[2];

static struct message messages[MAX_MESSAGES];
static unsigned message_count, message_at;
static struct expected expected[MAX_EXPECTED];
static unsigned expected_count, control_at[2];
static uint64_t errors, sent_datagrams;
static int receiver, failing;

static unsigned random_below(unsigned end) {
    errors ^= errors >> 12, errors ^= errors << 25, errors ^= errors >> 27;
    return (unsigned)(errors * UINT64_C(2685821657736338717) >> 33) % end;
}

/* -- What the kernel hands over ---------------------------------------------------------------- */

static size_t put_control(uint8_t *at, size_t room, int level, int type, const void *data, size_t bytes) {
    struct cmsghdr header = {.cmsg_len = CMSG_LEN(bytes), .cmsg_level = level, .cmsg_type = type};
    CHECK(CMSG_SPACE(bytes) <= room);
    memset(at, 0xa5, CMSG_SPACE(bytes));
    memcpy(at, &header, sizeof header);
    memcpy(at + CMSG_LEN(0), data, bytes);
    return CMSG_SPACE(bytes);
}

static size_t put_asked(uint8_t *at, size_t room, int listen, unsigned number) {
    struct in_pktinfo v4 = {.ipi_ifindex = 1, .ipi_spec_dst = {htonl(0x7f000000u | number)}};
    struct in6_pktinfo v6 = {.ipi6_ifindex = 1, .ipi6_addr.s6_addr[15] = (uint8_t)number};
    return listen == 0 ? put_control(at, room, IPPROTO_IP, IP_PKTINFO, &v4, sizeof v4)
                       : put_control(at, room, IPPROTO_IPV6, IPV6_PKTINFO, &v6, sizeof v6);
}

/* 0 where the kernel does not say it. */
static unsigned asked_of(const struct message *m) { return (m->kind & 7) < 6 ? m->kind >> 3 & 3 : 0; }

static struct wv_address at_local(struct wv_address peer, int listen, unsigned number) {
    peer.endpoint &= ~((uint64_t)WV_LISTEN_MASK << WV_LISTEN_SHIFT);
    const unsigned place = number == 0 ? (unsigned)listen : WV_FIRST_LOCAL + (unsigned)listen * LOCALS + number - 1;
    peer.endpoint |= (uint64_t)place << WV_LISTEN_SHIFT;
    return peer;
}

/* Returns the size of the train's segments that the control message says, 0 without one. */
static uint32_t write_control(const struct message *m, uint8_t *control, size_t room, size_t *used) {
    const uint32_t drops = 7;
    int size = m->segment_bytes;
    *used = asked_of(m) ? put_asked(control, room, receiver, asked_of(m)) : 0;
    switch (m->kind & 7) {
        case 0: return 0;
        case 1: case 2: break;
        case 3: size = -size; break;
        case 4: size = (int)(m->segment_bytes * 0x10001u); break;
        case 5: *used += put_control(control + *used, room - *used, SOL_SOCKET, 40, &drops, sizeof drops); break;
        case 6: { /* the kernel cuts a control message that does not fit */
            uint8_t filler[96] = {0};
            *used = put_control(control, room, SOL_SOCKET, 29, filler, sizeof filler);
            const struct cmsghdr cut = {.cmsg_len = CMSG_LEN(0), .cmsg_level = IPPROTO_UDP, .cmsg_type = UDP_GRO};
            CHECK(*used + sizeof cut == room);
            memcpy(control + *used, &cut, sizeof cut);
            *used = room;
            return 0;
        }
        default: { /* a length that lies */
            const struct cmsghdr lie = {.cmsg_len = m->segment_bytes, .cmsg_level = SOL_SOCKET, .cmsg_type = 1};
            memcpy(control, &lie, sizeof lie);
            memset(control + sizeof lie, 0, room - sizeof lie);
            *used = room;
            return 0;
        }
    }
    *used += put_control(control + *used, room - *used, IPPROTO_UDP, UDP_GRO, &size, sizeof size);
    return size > 0 ? (uint32_t)size : 0;
}

int recvmmsg(int fd, struct mmsghdr *to, unsigned count, int flags, struct timespec *timeout) {
    (void)flags, (void)timeout;
    if (fd != descriptors[receiver] || message_at == message_count) return errno = EAGAIN, -1;
    unsigned given = 0;
    for (; given < count && message_at < message_count; given++, message_at++) {
        const struct message *m = &messages[message_at];
        struct msghdr *header = &to[given].msg_hdr;
        size_t used;
        CHECK(header->msg_iovlen == 1 && header->msg_iov->iov_len >= UINT16_MAX);
        CHECK(header->msg_namelen == sizeof(struct sockaddr_storage));
        memcpy(header->msg_iov->iov_base, m->data, m->bytes);
        to[given].msg_len = m->bytes;
        write_control(m, header->msg_control, header->msg_controllen, &used);
        header->msg_controllen = used;
        if (receiver == 0) {
            struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(1000),
                                     .sin_addr = {htonl(0x7f000000u | m->source)}};
            memcpy(header->msg_name, &v4, header->msg_namelen = sizeof v4);
        } else {
            struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(1000)};
            v6.sin6_addr.s6_addr[15] = m->source;
            memcpy(header->msg_name, &v6, header->msg_namelen = sizeof v6);
        }
    }
    return (int)given;
}

int ppoll(struct pollfd *polls, nfds_t count, const struct timespec *timeout, const sigset_t *mask) {
    (void)timeout, (void)mask;
    int ready = 0;
    for (nfds_t i = 0; i < count; i++) {
        polls[i].revents = message_at < message_count && (int)i == receiver ? POLLIN : 0;
        ready += polls[i].revents != 0;
    }
    return ready;
}

int poll(struct pollfd *polls, nfds_t count, int timeout) { /* room in the send buffer, or not */
    (void)polls, (void)count, (void)timeout;
    return (int)random_below(2);
}

/* -- What the kernel is given ------------------------------------------------------------------ */

static struct wv_address address_of(const struct msghdr *header) {
    const struct sockaddr_storage *name = header->msg_name;
    unsigned number = 0;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(header); at != NULL; at = CMSG_NXTHDR((struct msghdr *)header, at)) {
        if (at->cmsg_level == IPPROTO_UDP) continue;
        uint8_t wanted[CMSG_SPACE(sizeof(struct in6_pktinfo))];
        const int listen = name->ss_family == AF_INET ? 0 : 1;
        const size_t place = listen == 0 ? offsetof(struct in_pktinfo, ipi_spec_dst) + 3 : 15;
        number = CMSG_DATA(at)[place];
        put_asked(wanted, sizeof wanted, listen, number);
        CHECK(memcmp(at, wanted, sizeof *at) == 0);
        for (size_t i = listen == 0 ? 4 : 0; i <= place; i++) CHECK(CMSG_DATA(at)[i] == wanted[CMSG_LEN(0) + i]);
    }
    if (name->ss_family == AF_INET) {
        CHECK(header->msg_namelen == sizeof(struct sockaddr_in));
        const struct sockaddr_in *v4 = (const void *)name;
        return at_local(test_v4(ntohl(v4->sin_addr.s_addr) & 255, ntohs(v4->sin_port)), 0, number);
    }
    CHECK(name->ss_family == AF_INET6 && header->msg_namelen == sizeof(struct sockaddr_in6));
    const struct sockaddr_in6 *v6 = (const void *)name;
    return at_local(test_v6(v6->sin6_addr.s6_addr[15], ntohs(v6->sin6_port), 1), 1, number);
}

static int is_same(const struct wv_address *a, const struct wv_address *b) {
    return a->high == b->high && a->low == b->low && a->endpoint == b->endpoint;
}

/* The next one for that destination; what is passed over was not sent, and then must be counted. */
static void take_expected(const struct wv_address *to, const uint8_t *data, size_t bytes) {
    for (unsigned i = 0; i < expected_count; i++) {
        struct expected *e = &expected[i];
        if (e->done || e->kind != WV_KIND_FORWARD || !is_same(&e->to, to)) continue;
        e->done = 1;
        if (e->bytes == bytes && memcmp(e->data, data, bytes) == 0) {
            sent_datagrams += 1;
            return;
        }
        CHECK(failing);
    }
    CHECK(!"a datagram that nobody expects there");
}

static void check_message(const struct msghdr *header) {
    static uint8_t flat[WV_GROUP_BYTES];
    const struct wv_address to = address_of(header);
    size_t bytes = 0, segment = 0;
    for (size_t i = 0; i < header->msg_iovlen; i++) {
        CHECK(header->msg_iov[i].iov_len <= sizeof flat - bytes);
        memcpy(flat + bytes, header->msg_iov[i].iov_base, header->msg_iov[i].iov_len);
        bytes += header->msg_iov[i].iov_len;
    }
    const struct cmsghdr *control = CMSG_FIRSTHDR(header);
    if (control != NULL && control->cmsg_level == IPPROTO_UDP) {
        uint16_t size;
        CHECK(control->cmsg_type == UDP_SEGMENT);
        CHECK(control->cmsg_len == CMSG_LEN(sizeof size));
        memcpy(&size, CMSG_DATA(control), sizeof size);
        segment = size;
        CHECK(segment > 0 && segment < bytes && bytes <= segment * WV_GROUP_SEGMENTS);
    }
    if (segment == 0) segment = bytes;
    for (size_t at = 0; at < bytes; at += segment)
        take_expected(&to, flat + at, segment < bytes - at ? segment : bytes - at);
}

int sendmmsg(int fd, struct mmsghdr *given, unsigned count, int flags) {
    static const int ways[] = {EIO, EINVAL, EMSGSIZE, EAGAIN, ENOBUFS, ECONNREFUSED, EPERM, EINTR};
    (void)flags;
    CHECK(fd == descriptors[0] || fd == descriptors[1]);
    CHECK(count > 0 && count <= WV_OUT_GROUPS);
    if (failing && random_below(3) == 0) return errno = ways[random_below(8)], -1;
    const unsigned taken = failing ? 1 + random_below(count) : count;
    for (unsigned i = 0; i < taken; i++) {
        CHECK((given[i].msg_hdr.msg_namelen == sizeof(struct sockaddr_in)) == (fd == descriptors[0]));
        check_message(&given[i].msg_hdr);
    }
    return (int)taken;
}

/* -- One input --------------------------------------------------------------------------------- */

static void start(void) {
    enum wv_open_error error;
    descriptors[0] = socket(AF_INET, SOCK_DGRAM, 0), descriptors[1] = socket(AF_INET6, SOCK_DGRAM, 0);
    for (int i = 0; i < 2; i++) segments[i] = test_segment_new();
    engine = wv_engine_new(segments[0].base, segments[0].bytes, 0, descriptors, 2, -1, &error);
    CHECK(engine != NULL);
    CHECK(wv_open(&twin, segments[1].base, segments[1].bytes, 0, 1) == WV_OPEN_OK);
    engine->frozen = 1;
    struct wv_tables *both[2] = {&engine->tables, &twin};
    for (int i = 0; i < 2; i++) {
        test_session(both[i], 0, test_v4(1, 1000), test_v4(2, 1000));
        test_session(both[i], 1, test_v4(1, 1000), test_v6(4, 1000, 1));
        test_session(both[i], 2, test_v6(5, 1000, 1), test_v6(6, 1000, 1));
        for (unsigned number = 1; number <= 2 * LOCALS; number++) {
            _Alignas(struct cmsghdr) uint8_t asked[CMSG_SPACE(sizeof(struct in6_pktinfo))];
            const int listen = number > LOCALS;
            put_asked(asked, sizeof asked, listen, listen ? number - LOCALS : number);
            CHECK(wv_local_number(both[i], (unsigned)listen, (struct cmsghdr *)asked) == WV_FIRST_LOCAL + number - 1);
        }
        test_session(both[i], 4, at_local(test_v4(1, 1000), 0, 2), at_local(test_v6(6, 1000, 1), 1, 3));
        test_session(both[i], 3, test_v4(1, 1000), test_v4(8, 1000));
    }
    memcpy(pristine, twin.sessions, sizeof pristine);
}

static void reset(uint8_t flags) {
    struct wv_tables *both[2] = {&engine->tables, &twin};
    for (int i = 0; i < 2; i++) {
        memset(both[i]->row, 0, WV_COUNTER_ROW_BYTES);
        memcpy(both[i]->sessions, pristine, sizeof pristine);
        both[i]->shared->global_bits_tat = both[i]->shared->global_packets_tat = 0;
        both[i]->control->session_kbps = flags & FLAG_SESSION_RATE ? 500 : 0;
        both[i]->control->global_pps = flags & FLAG_GLOBAL_RATE ? 200 : 0;
    }
    memset(engine->plain, 0, WV_PLAIN_DESTINATIONS * sizeof *engine->plain);
    for (int i = 0; i < 2; i++) engine->sockets[i].gso = 1, engine->sockets[i].gso_proven = 0;
    engine->now = TEST_NOW;
    if (flags & FLAG_LATE) engine->now.wall_ms = TEST_EXPIRES_MS;
}

static void read_messages(const uint8_t *at, size_t left) {
    message_count = message_at = 0;
    while (left >= 6 && message_count < MAX_MESSAGES) {
        struct message *m = &messages[message_count++];
        *m = (struct message){at[0], at[1], (uint16_t)(at[2] << 8 | at[3]), (uint16_t)(at[4] << 8 | at[5]), at + 6};
        if (m->bytes > left - 6) m->bytes = (uint16_t)(left - 6);
        at += 6 + m->bytes, left -= 6u + m->bytes;
    }
}

/* What the twin says to each segment of each message. */
static uint64_t expect(uint8_t flags) {
    uint64_t arrived = 0;
    uint8_t control[128];
    size_t used;
    expected_count = control_at[0] = control_at[1] = 0;
    for (unsigned i = 0; i < message_count; i++) {
        const struct message *m = &messages[i];
        const uint32_t train = write_control(m, control, sizeof control, &used);
        const uint32_t step = train > 0 && train < m->bytes ? train : m->bytes;
        const struct wv_address peer = flags & FLAG_V6 ? test_v6(m->source, 1000, 1) : test_v4(m->source, 1000);
        const struct wv_address from = at_local(peer, receiver, asked_of(m));
        uint32_t at = 0;
        do {
            const uint32_t bytes = step < m->bytes - at ? step : m->bytes - at;
            uint8_t *exact = malloc(bytes ? bytes : 1);
            struct wv_decision decision;
            CHECK(exact != NULL);
            memcpy(exact, m->data + at, bytes);
            const enum wv_kind kind = wv_decide(&twin, exact, bytes, &from, &engine->now, &decision);
            free(exact);
            arrived += 1;
            if (kind != WV_KIND_DROP && expected_count < MAX_EXPECTED)
                expected[expected_count++] = (struct expected){decision.to, m->data + at, bytes, kind,
                                                               decision.sender == WV_SENDER_STRANGER, 0};
            at += step;
        } while (at < m->bytes);
    }
    return arrived;
}

/* The next that is expected of live slots and proved addresses, or of strangers. */
static unsigned next_control(unsigned from, int is_stranger) {
    while (from < expected_count && (expected[from].kind == WV_KIND_FORWARD ||
                                     expected[from].is_stranger != is_stranger))
        from++;
    return from;
}

static void check_control(void) {
    const struct wv_control_packet *packet;
    while ((packet = wv_next_control(engine)) != NULL) {
        const int is_stranger = packet->sender == WV_SENDER_STRANGER;
        const unsigned at = next_control(control_at[is_stranger], is_stranger);
        CHECK(at < expected_count);
        const struct expected *e = &expected[at];
        control_at[is_stranger] = at + 1;
        CHECK(packet->kind == e->kind && packet->bytes == e->bytes);
        CHECK(memcmp(packet->datagram, e->data, e->bytes) == 0);
        CHECK(!is_stranger || engine->known.count == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes) {
    if (engine == NULL) start();
    if (bytes < 2 || bytes > 8192) return 0;
    const uint8_t flags = input[0];
    receiver = flags & FLAG_V6 ? 1 : 0;
    failing = (flags & FLAG_ERRORS) != 0;
    errors = input[1] * 2u + 1u;
    reset(flags);
    read_messages(input + 2, bytes - 2);
    sent_datagrams = 0;
    const uint64_t arrived = expect(flags);
    if (expected_count == MAX_EXPECTED) return 0;
    for (unsigned runs = 0; message_at < message_count || engine->known.count + engine->strangers.count > 0; runs++) {
        CHECK(runs < 1000);
        CHECK(wv_run(engine, 0) == WV_RUN_DONE);
        check_control();
    }
    uint64_t forwards = 0, *row = engine->tables.row;
    for (unsigned i = 0; i < expected_count; i++) forwards += expected[i].kind == WV_KIND_FORWARD;
    for (int i = 0; i < 2; i++) CHECK(next_control(control_at[i], i) == expected_count);
    CHECK(row[WV_COUNT_RECEIVED_PACKETS] == arrived);
    CHECK(row[WV_COUNT_FORWARDED_PACKETS] == sent_datagrams);
    const uint64_t unsent = row[WV_COUNT_DROP_SEND_BLOCKED] + row[WV_COUNT_DROP_SEND_FAILED];
    CHECK(sent_datagrams + unsent == forwards && (failing || unsent == 0));
    CHECK(memcmp(engine->tables.sessions, twin.sessions, sizeof pristine) == 0);
    for (unsigned i = WV_COUNT_DROP_TOO_SHORT; i < WV_COUNT_DROP_SEND_BLOCKED; i++) {
        CHECK(row[i] == twin.row[i]);
        CHECK(row[i + WV_DROP_BYTES_AHEAD] == twin.row[i + WV_DROP_BYTES_AHEAD]);
    }
    return 0;
}
