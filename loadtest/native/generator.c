/* Packet generator of the bench: media-shaped bursts in, counts and latencies out, JSON on stdout.
 *
 * Strategy.  One thread does both ends, so that a packet's latency needs one clock only: it sends
 * bursts from the client sockets to the subject and receives what the subject forwards to the
 * server sockets.  It polls without sleeping: a sleeping receiver would be woken by the subject,
 * and the subject would be charged for the wake-up.
 *   closed loop (--rate 0)  at most --window packets are in flight, so loss stays bounded
 *   paced (--rate N)        bursts leave at fixed times, whatever comes back; --junk N sends N
 *                           datagrams/s of junk beside them, --junk-sources many from everywhere
 *   touch (--touch)         exactly one packet for each session; tells which sessions still work
 * The sockets are inherited: they were used to present the leases, so their addresses are known to
 * the relay.  The session file (struct session, shared with loadtest/sessions.py) is mapped and
 * written, so that the sequences of a session grow from one run to the next.
 */
#define _GNU_SOURCE
#include "junk.h"
#include "sockets.h"

#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    HEADER_BYTES = 20,
    STAMP_AT = 28, /* behind header and sequence */
    STAMP_BYTES = 16,
    CHANNEL_HEADER_BYTES = 4,
    MAX_BURST = 64, /* the kernel's UDP_MAX_SEGMENTS of older releases */
    MAX_PACKET_BYTES = 1500,
    MAX_SOCKETS = 8192,
    RECEIVE_BATCH = 16,
    EVENTS = 64,
    MAX_OPEN_IN_FLIGHT = 1 << 16
};

/* 200 ms without any packet while some are in flight: those are lost.  A subject that merely
 * pauses for less (a table sweep, another process on its core) must not be sent more meanwhile. */
static const uint64_t STALL_NS = 200000000u;

struct session {
    uint8_t id[16];
    uint64_t next_sequence;
    uint64_t received; /* in the last run */
    uint32_t client;   /* index into --client-fds */
    uint32_t server;   /* index into --server-fds */
    uint16_t channel;  /* ChannelData number, host order */
    uint8_t unused[6];
};
_Static_assert(sizeof(struct session) == 48, "loadtest/sessions.py has the same layout");

struct stamp {
    uint64_t sent_ns;
    uint32_t run;
    uint32_t session;
};
_Static_assert(sizeof(struct stamp) == STAMP_BYTES, "stamp is part of the payload");

static struct {
    struct sockaddr_in target;
    bool direct, gso, channel_data, spin, touch, junk_from_many;
    unsigned burst, window;
    size_t size;
    uint64_t duration_ns, drain_ns;
    double rate;
    uint64_t junk_per_s;
    int core;
    uint32_t session_count;
} options;

static struct session *sessions;
static int client_fds[MAX_SOCKETS], server_fds[MAX_SOCKETS];
static struct sockaddr_in server_addresses[MAX_SOCKETS];
static unsigned client_count, server_count;
static int poller;
static uint32_t run_id;

static uint64_t sent, received, foreign, send_errors, late_bursts, in_flight;
static uint64_t first_sent_ns, last_received_ns, max_gap_ns;

/* -- Latency histogram: 32 steps for each power of two, so an error of at most 3 % -- */

enum { STEPS = 32, STEP_BITS = 5, BUCKETS = (64 - STEP_BITS + 1) * STEPS };
static uint64_t histogram[BUCKETS], latency_max;

static unsigned bucket_of(uint64_t ns) {
    if (ns < STEPS) return (unsigned)ns;
    unsigned power = 63u - (unsigned)__builtin_clzll(ns);
    return (power - STEP_BITS + 1) * STEPS + (unsigned)((ns >> (power - STEP_BITS)) & (STEPS - 1));
}

/* Middle of a bucket. */
static uint64_t bucket_ns(unsigned bucket) {
    if (bucket < STEPS) return bucket;
    unsigned shift = bucket / STEPS - 1;
    uint64_t low = (uint64_t)(STEPS + bucket % STEPS) << shift;
    return low + ((uint64_t)1 << shift) / 2;
}

static uint64_t quantile_ns(double share) {
    uint64_t rank = (uint64_t)(share * (double)received), seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen > rank) return bucket_ns(i) < latency_max ? bucket_ns(i) : latency_max;
    }
    return latency_max;
}

/* -- Sending -- */

static void write_u64(uint8_t *at, uint64_t value) {
    for (int i = 7; i >= 0; i--, value >>= 8) at[i] = (uint8_t)value;
}

static size_t datagram_bytes(void) {
    return options.size + (options.channel_data ? CHANNEL_HEADER_BYTES : 0);
}

static void fill(uint8_t *at, struct session *session, uint32_t index, uint64_t stamp_ns) {
    if (options.channel_data) {
        at[0] = (uint8_t)(session->channel >> 8);
        at[1] = (uint8_t)session->channel;
        at[2] = (uint8_t)(options.size >> 8);
        at[3] = (uint8_t)options.size;
        at += CHANNEL_HEADER_BYTES;
    }
    at[0] = 0x57;
    at[1] = 0x01;
    at[2] = 0x10;
    at[3] = 0;
    memcpy(at + 4, session->id, 16);
    write_u64(at + HEADER_BYTES, session->next_sequence++);
    struct stamp stamp = {stamp_ns, run_id, index};
    memcpy(at + STAMP_AT, &stamp, sizeof stamp);
}

/* True where the caller shall try again. */
static bool send_failed(int fd, unsigned packets) {
    if (errno == EINTR) return true;
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) {
        struct timespec pause = {0, 10000};
        (void)fd;
        nanosleep(&pause, NULL);
        return true;
    }
    send_errors += packets;
    return false;
}

static void send_burst(uint32_t index) {
    static uint8_t packets[MAX_BURST * MAX_PACKET_BYTES];
    static struct mmsghdr messages[MAX_BURST];
    static struct iovec vectors[MAX_BURST];
    static union {
        char bytes[CMSG_SPACE(sizeof(uint16_t))];
        struct cmsghdr align;
    } control;
    struct session *session = &sessions[index];
    struct sockaddr_in *to = options.direct ? &server_addresses[session->server] : &options.target;
    int fd = client_fds[session->client];
    size_t bytes = datagram_bytes();
    uint64_t stamp_ns = now_ns();
    unsigned burst = options.burst;

    for (unsigned i = 0; i < burst; i++) fill(packets + i * bytes, session, index, stamp_ns);
    if (first_sent_ns == 0) first_sent_ns = stamp_ns;
    if (options.gso && burst > 1) {
        struct iovec whole = {packets, burst * bytes};
        struct msghdr message = {
            .msg_name = to, .msg_namelen = sizeof *to, .msg_iov = &whole, .msg_iovlen = 1};
        set_segment(&message, &control, sizeof control, (uint16_t)bytes);
        while (sendmsg(fd, &message, 0) < 0)
            if (!send_failed(fd, burst)) return;
        sent += burst;
        in_flight += burst;
        return;
    }
    for (unsigned i = 0; i < burst; i++) {
        vectors[i] = (struct iovec){packets + i * bytes, bytes};
        messages[i].msg_hdr = (struct msghdr){
            .msg_name = to, .msg_namelen = sizeof *to, .msg_iov = &vectors[i], .msg_iovlen = 1};
    }
    for (unsigned done = 0; done < burst;) {
        int count = sendmmsg(fd, messages + done, burst - done, 0);
        if (count < 0) {
            if (!send_failed(fd, burst - done)) return;
            continue;
        }
        done += (unsigned)count;
        sent += (unsigned)count;
        in_flight += (unsigned)count;
    }
}

/* -- Receiving -- */

static void count_datagram(const uint8_t *at, size_t length, uint64_t when_ns) {
    struct stamp stamp;
    if (length != options.size || at[0] != 0x57 || at[2] != 0x10) {
        foreign += 1; /* acknowledgements, notices */
        return;
    }
    memcpy(&stamp, at + STAMP_AT, sizeof stamp);
    if (stamp.run != run_id || stamp.session >= options.session_count ||
        memcmp(at + 4, sessions[stamp.session].id, 16) != 0) {
        foreign += 1; /* left over from the run before */
        return;
    }
    uint64_t latency = when_ns > stamp.sent_ns ? when_ns - stamp.sent_ns : 0;
    histogram[bucket_of(latency)] += 1;
    if (latency > latency_max) latency_max = latency;
    sessions[stamp.session].received += 1;
    received += 1;
    if (in_flight > 0) in_flight -= 1;
}

static void receive_socket(int fd) {
    static uint8_t buffers[RECEIVE_BATCH][MAX_AGGREGATE_BYTES];
    static struct mmsghdr messages[RECEIVE_BATCH];
    static struct iovec vectors[RECEIVE_BATCH];
    static union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control[RECEIVE_BATCH];
    for (unsigned i = 0; i < RECEIVE_BATCH; i++) {
        vectors[i] = (struct iovec){buffers[i], MAX_AGGREGATE_BYTES};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &vectors[i],
                                              .msg_iovlen = 1,
                                              .msg_control = &control[i],
                                              .msg_controllen = sizeof control[i]};
    }
    int count = recvmmsg(fd, messages, RECEIVE_BATCH, MSG_DONTWAIT, NULL);
    if (count <= 0) return;
    uint64_t when_ns = now_ns(), before = received;
    for (int i = 0; i < count; i++) {
        size_t length = messages[i].msg_len;
        size_t segment = segment_bytes(&messages[i].msg_hdr, length);
        for (size_t at = 0; at < length; at += segment) {
            size_t left = length - at;
            count_datagram(buffers[i] + at, left < segment ? left : segment, when_ns);
        }
    }
    if (received == before) return;
    if (last_received_ns != 0 && when_ns - last_received_ns > max_gap_ns)
        max_gap_ns = when_ns - last_received_ns;
    last_received_ns = when_ns;
}

/* Takes what is there; without --spin it waits up to `wait_ms` for something. */
static void receive_ready(int wait_ms) {
    struct epoll_event events[EVENTS];
    int count = epoll_wait(poller, events, EVENTS, options.spin ? 0 : wait_ms);
    for (int i = 0; i < count; i++) receive_socket(events[i].data.fd);
}

/* -- The three loops -- */

static bool stalled(uint64_t now, uint64_t last_sent_ns) {
    uint64_t last = last_received_ns > last_sent_ns ? last_received_ns : last_sent_ns;
    return now > last && now - last > STALL_NS;
}

static void run_closed(void) {
    uint64_t end = now_ns() + options.duration_ns, last_sent_ns = 0;
    uint32_t next = 0;
    for (uint64_t now = now_ns(); now < end; now = now_ns()) {
        while (in_flight == 0 || in_flight + options.burst <= options.window) {
            send_burst(next);
            last_sent_ns = now;
            next = next + 1 == options.session_count ? 0 : next + 1;
        }
        receive_ready(1);
        if (stalled(now_ns(), last_sent_ns)) in_flight = 0;
    }
}

static void run_paced(void) {
    uint64_t start = now_ns(), end = start + options.duration_ns, next_at = start;
    uint64_t interval = (uint64_t)(1e9 * options.burst / options.rate);
    uint32_t next = 0;
    if (options.junk_per_s > 0) junk_open(options.target, options.junk_per_s, options.junk_from_many);
    for (uint64_t now = start; now < end; now = now_ns()) {
        junk_send(now, sessions[next].id);
        if (now >= next_at) {
            if (in_flight < MAX_OPEN_IN_FLIGHT) {
                send_burst(next);
                next = next + 1 == options.session_count ? 0 : next + 1;
            }
            next_at += interval;
            if (now > next_at + 10000000u) { /* the generator itself was kept from its core */
                late_bursts += (now - next_at) / (interval ? interval : 1);
                next_at = now;
            }
        }
        receive_ready(0);
    }
}

static void run_touch(void) {
    uint64_t last_sent_ns = 0;
    for (uint32_t next = 0; next < options.session_count;) {
        while (next < options.session_count && in_flight < options.window) {
            send_burst(next++);
            last_sent_ns = now_ns();
        }
        receive_ready(1);
        if (stalled(now_ns(), last_sent_ns)) in_flight = 0;
    }
}

static void drain(void) {
    uint64_t quiet_since = now_ns();
    while (received < sent) {
        uint64_t before = received, now = now_ns();
        receive_ready(1);
        if (received != before) quiet_since = now;
        if (now - quiet_since > options.drain_ns) break;
    }
}

/* -- Set-up -- */

static unsigned parse_fds(char *text, int *fds, const char *name) {
    unsigned count = 0;
    for (char *part = strtok(text, ","); part != NULL; part = strtok(NULL, ",")) {
        if (count == MAX_SOCKETS) usage_error(name);
        fds[count++] = (int)parse_number(part, name);
    }
    if (count == 0) usage_error(name);
    return count;
}

static void map_sessions(const char *path) {
    int fd = open(path, O_RDWR | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0) die(path);
    size_t bytes = (size_t)status.st_size;
    if (options.session_count == 0 || bytes < options.session_count * sizeof(struct session))
        usage_error("--count is larger than the session file");
    sessions = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (sessions == MAP_FAILED) die("mmap");
    close(fd);
    for (uint32_t i = 0; i < options.session_count; i++) {
        sessions[i].received = 0;
        if (sessions[i].client >= client_count || sessions[i].server >= server_count)
            usage_error("session file names a socket that was not given");
    }
}

static void open_poller(void) {
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0) die("epoll_create1");
    for (unsigned i = 0; i < server_count; i++) {
        int on = 1;
        socklen_t bytes = sizeof server_addresses[i];
        struct epoll_event event = {.events = EPOLLIN, .data = {.fd = server_fds[i]}};
        if (setsockopt(server_fds[i], SOL_UDP, UDP_GRO, &on, sizeof on) != 0) die("UDP_GRO");
        if (getsockname(server_fds[i], (struct sockaddr *)&server_addresses[i], &bytes) != 0)
            die("getsockname");
        if (epoll_ctl(poller, EPOLL_CTL_ADD, server_fds[i], &event) != 0) die("epoll_ctl");
    }
}

static void parse_arguments(int argc, char **argv, const char **session_path) {
    static const struct option known[] = {
        {"target", required_argument, NULL, 't'},     {"sessions", required_argument, NULL, 's'},
        {"count", required_argument, NULL, 'n'},      {"client-fds", required_argument, NULL, 'c'},
        {"server-fds", required_argument, NULL, 'v'}, {"burst", required_argument, NULL, 'b'},
        {"size", required_argument, NULL, 'z'},       {"duration-ms", required_argument, NULL, 'd'},
        {"drain-ms", required_argument, NULL, 'q'},   {"rate", required_argument, NULL, 'r'},
        {"window", required_argument, NULL, 'w'},     {"core", required_argument, NULL, 'k'},
        {"gso", no_argument, NULL, 'g'},              {"channel-data", no_argument, NULL, 'h'},
        {"direct", no_argument, NULL, 'x'},           {"sleep", no_argument, NULL, 'l'},
        {"touch", no_argument, NULL, 'o'},            {"junk", required_argument, NULL, 'j'},
        {"junk-sources", required_argument, NULL, 'a'}, {NULL, 0, NULL, 0}};
    options.burst = 1;
    options.size = 1200;
    options.window = 128;
    options.duration_ns = 1000000000u;
    options.drain_ns = 100000000u;
    options.spin = true;
    options.core = -1;
    bool has_target = false;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 't': options.target = parse_ipv4(optarg, "--target"); has_target = true; break;
        case 's': *session_path = optarg; break;
        case 'n': options.session_count = (uint32_t)parse_number(optarg, "--count"); break;
        case 'c': client_count = parse_fds(optarg, client_fds, "--client-fds"); break;
        case 'v': server_count = parse_fds(optarg, server_fds, "--server-fds"); break;
        case 'b': options.burst = (unsigned)parse_number(optarg, "--burst"); break;
        case 'z': options.size = parse_number(optarg, "--size"); break;
        case 'd': options.duration_ns = parse_number(optarg, "--duration-ms") * 1000000u; break;
        case 'q': options.drain_ns = parse_number(optarg, "--drain-ms") * 1000000u; break;
        case 'r': options.rate = (double)parse_number(optarg, "--rate"); break;
        case 'w': options.window = (unsigned)parse_number(optarg, "--window"); break;
        case 'k': options.core = (int)parse_number(optarg, "--core"); break;
        case 'g': options.gso = true; break;
        case 'h': options.channel_data = true; break;
        case 'x': options.direct = true; break;
        case 'l': options.spin = false; break;
        case 'j': options.junk_per_s = parse_number(optarg, "--junk"); break;
        case 'a': options.junk_from_many = strcmp(optarg, "many") == 0; break;
        case 'o': options.touch = true; options.burst = 1; break;
        default: exit(2);
        }
    }
    if (optind != argc) usage_error(argv[optind]);
    if (*session_path == NULL) usage_error("--sessions is missing");
    if (client_count == 0 || server_count == 0) usage_error("--client-fds or --server-fds missing");
    if (!has_target && !options.direct) usage_error("--target or --direct is missing");
    if (options.junk_per_s > 0 && !has_target) usage_error("--junk needs --target");
    if (options.burst < 1 || options.burst > MAX_BURST) usage_error("--burst");
    if (options.size < STAMP_AT + STAMP_BYTES ||
        options.size + CHANNEL_HEADER_BYTES > MAX_PACKET_BYTES)
        usage_error("--size");
    if (options.gso && options.burst * datagram_bytes() > 65507) usage_error("--burst with --gso");
    if (options.window < options.burst) options.window = options.burst;
}

int main(int argc, char **argv) {
    const char *session_path = NULL;
    parse_arguments(argc, argv, &session_path);
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* never outlives the bench */
    map_sessions(session_path);
    open_poller();
    if (options.core >= 0) pin_to_core(options.core);
    run_id = (uint32_t)(now_ns() ^ ((uint64_t)getpid() << 16));

    if (options.touch)
        run_touch();
    else if (options.rate > 0)
        run_paced();
    else
        run_closed();
    drain();

    uint32_t heard = 0;
    for (uint32_t i = 0; i < options.session_count; i++) heard += sessions[i].received > 0;
    uint64_t elapsed = last_received_ns > first_sent_ns ? last_received_ns - first_sent_ns : 0;
    printf("{\"sent\": %llu, \"received\": %llu, \"elapsed_ns\": %llu, \"max_gap_ns\": %llu, "
           "\"foreign\": %llu, \"send_errors\": %llu, \"late_bursts\": %llu, \"junk\": %llu, "
           "\"sessions_heard\": %u, \"cpu_ns\": %llu, \"latency_p50_ns\": %llu, "
           "\"latency_p99_ns\": %llu, \"latency_p999_ns\": %llu, \"latency_max_ns\": %llu}\n",
           (unsigned long long)sent, (unsigned long long)received, (unsigned long long)elapsed,
           (unsigned long long)max_gap_ns, (unsigned long long)foreign,
           (unsigned long long)send_errors, (unsigned long long)late_bursts,
           (unsigned long long)junk.sent, heard,
           (unsigned long long)process_cpu_ns(), (unsigned long long)quantile_ns(0.5),
           (unsigned long long)quantile_ns(0.99), (unsigned long long)quantile_ns(0.999),
           (unsigned long long)latency_max);
    return 0;
}
