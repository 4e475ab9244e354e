/* Sends random and mutated datagrams at a relay, as fast as it takes them, from many addresses.
 *
 * Strategy.  The templates are valid datagrams of every kind; most of what is sent is one of them
 * with a few bytes changed, cut or added, some of it is noise, and one message in eight is a
 * UDP_SEGMENT train with segments of an odd size.  The relay's own counter of received datagrams, read from
 * its shared memory, is the acknowledgement: no more than --window are in flight, so the flood is
 * as fast as the relay and no socket overflows.  The ledger is a file of five 64-bit words that
 * both sides map: packets and bytes that others send to the relay meanwhile (they are
 * acknowledged by the same counter), packets and bytes that were sent from here, and packets that
 * were given up because nothing was acknowledged for STALL_NS.
 */
#define _GNU_SOURCE
#include "sockets.h"

#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MAX_TEMPLATES = 4096,
    MAX_SOURCES = 256,
    BATCH = 32,
    MAX_MESSAGE_BYTES = 16384,
    MAX_DATAGRAM_BYTES = 4096,
    MAX_SEGMENTS = 64,
    SESSION_ID_AT = 4,
    HEADER_BYTES = 20,
    SEQUENCE_BYTES = 8,
};
static const uint64_t STALL_NS = 10000000000u;

enum { OTHER_PACKETS, OTHER_BYTES, SENT_PACKETS, SENT_BYTES, GIVEN_UP, LEDGER_WORDS };

static struct {
    struct sockaddr_in target;
    struct sockaddr_in6 target6;
    bool has_target6;
    uint64_t count, window, window_bytes, rows_at, row_bytes, rows, packets_word, bytes_word;
    unsigned sources;
} options;

static const uint8_t *templates[MAX_TEMPLATES];
static uint16_t template_bytes[MAX_TEMPLATES];
static unsigned template_count;
static _Atomic uint64_t *ledger;
static const uint8_t *segment;
static int sockets[MAX_SOURCES];
static bool is_v6[MAX_SOURCES];
static uint64_t state, sent, sent_bytes, trains, errors, stalls;

static uint64_t next_random(void) { /* xorshift64* */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * UINT64_C(2685821657736338717);
}

static size_t below(size_t end) { return end ? (size_t)((next_random() >> 11) % end) : 0; }

static bool chance(unsigned percent) { return below(100) < percent; }

static void noise(uint8_t *at, size_t bytes) {
    for (size_t done = 0; done < bytes; done += 8) {
        const uint64_t word = next_random();
        memcpy(at + done, &word, bytes - done < 8 ? bytes - done : 8);
    }
}

/* -- What is sent ------------------------------------------------------------------------------ */

static size_t make_noise(uint8_t *at) {
    static const uint16_t edges[] = {0, 1, 7, 19, 20, 21, 27, 28, 1419, 1428, 1429, 1499, 1500, 1501, 3000};
    const size_t bytes = chance(50) ? edges[below(sizeof edges / sizeof edges[0])] : below(2000);
    noise(at, bytes);
    if (bytes >= SESSION_ID_AT && chance(30)) memcpy(at, "\x57\x01\x10", 4);
    return bytes;
}

static size_t make_datagram(uint8_t *at) {
    static const uint8_t types[] = {0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x10, 0x07, 0xff};
    if (chance(10)) return make_noise(at);
    const unsigned number = (unsigned)below(template_count);
    size_t bytes = template_bytes[number];
    memcpy(at, templates[number], bytes);
    if (chance(15) || bytes < HEADER_BYTES) return bytes;
    if (chance(8)) at[2] = types[below(sizeof types)];
    if (chance(8)) at[3] = (uint8_t)next_random();
    if (chance(5)) at[below(2)] = (uint8_t)next_random();
    if (chance(40)) noise(at + SESSION_ID_AT, 16);
    if (bytes >= HEADER_BYTES + SEQUENCE_BYTES && chance(30)) noise(at + HEADER_BYTES, SEQUENCE_BYTES);
    for (size_t changes = below(4); changes > 0; changes--) at[below(bytes)] = (uint8_t)next_random();
    if (chance(10)) at[below(bytes)] ^= (uint8_t)(1u << below(8));
    if (chance(12)) return below(bytes + 1);
    if (chance(8)) {
        const size_t more = below(1600);
        noise(at + bytes, more);
        bytes += more;
    }
    return bytes;
}

/* Datagrams one behind the other, and a segment size that fits them or does not.  `*packets` is
 * what arrives; the size is 0 for a lone datagram. */
static size_t make_message(uint8_t *at, unsigned *packets, uint16_t *segment_bytes) {
    size_t bytes = make_datagram(at);
    *packets = 1;
    *segment_bytes = 0;
    if (!chance(12)) return bytes;
    /* Mostly neighbours of one size, as in a real train; else sizes that fit nothing. */
    const size_t first = bytes;
    const bool regular = first > 0 && chance(85);
    for (size_t wanted = 1 + below(15); wanted > 0 && bytes + MAX_DATAGRAM_BYTES <= MAX_MESSAGE_BYTES; wanted--) {
        const size_t fresh = make_datagram(at + bytes);
        bytes += regular && wanted > 1 ? first : fresh;
    }
    size_t size = regular ? first : 1 + below(1472);
    if (size * MAX_SEGMENTS < bytes) size = (bytes + MAX_SEGMENTS - 1) / MAX_SEGMENTS;
    if (size >= bytes) return bytes;
    *segment_bytes = (uint16_t)size;
    *packets = (unsigned)((bytes + size - 1) / size);
    return bytes;
}

/* -- Flow control ------------------------------------------------------------------------------ */

static uint64_t relay_counter(uint64_t word) {
    uint64_t total = 0;
    for (uint64_t row = 0; row < options.rows; row++) {
        const uint8_t *at = segment + options.rows_at + row * options.row_bytes + word * 8;
        total += atomic_load_explicit((const _Atomic uint64_t *)at, memory_order_acquire);
    }
    return total;
}

static uint64_t base_packets, base_bytes, forgiven_packets, forgiven_bytes;

static uint64_t outstanding(uint64_t all_sent, uint64_t word, uint64_t base, uint64_t forgiven) {
    const uint64_t received = relay_counter(word) - base + forgiven;
    return all_sent > received ? all_sent - received : 0;
}

static uint64_t packets_in_flight(void) {
    return outstanding(sent + atomic_load(&ledger[OTHER_PACKETS]), options.packets_word, base_packets, forgiven_packets);
}

static uint64_t bytes_in_flight(void) {
    return outstanding(sent_bytes + atomic_load(&ledger[OTHER_BYTES]), options.bytes_word, base_bytes, forgiven_bytes);
}

static void wait_for_room(uint64_t packets, uint64_t bytes) {
    const struct timespec nap = {0, 20000};
    uint64_t progress = relay_counter(options.packets_word), since = now_ns();
    while (packets_in_flight() > packets || bytes_in_flight() > bytes) {
        nanosleep(&nap, NULL);
        const uint64_t seen = relay_counter(options.packets_word), now = now_ns();
        if (seen != progress) {
            progress = seen, since = now;
        } else if (now - since > STALL_NS) { /* overflowed, or the relay is gone: the caller decides */
            const uint64_t lost = packets_in_flight();
            atomic_fetch_add(&ledger[GIVEN_UP], lost);
            forgiven_packets += lost;
            forgiven_bytes += bytes_in_flight();
            stalls += 1;
        }
    }
}

static void send_batch(void) {
    static uint8_t buffers[BATCH][MAX_MESSAGE_BYTES + MAX_DATAGRAM_BYTES];
    static struct mmsghdr messages[BATCH];
    static struct iovec vectors[BATCH];
    static unsigned packets[BATCH];
    static union {
        char bytes[CMSG_SPACE(sizeof(uint16_t))];
        struct cmsghdr align;
    } control[BATCH];
    const unsigned source = (unsigned)below(options.sources);
    unsigned count = 0;
    for (uint64_t planned = sent; count < BATCH && planned < options.count; count++) {
        uint16_t size;
        vectors[count] = (struct iovec){buffers[count], make_message(buffers[count], &packets[count], &size)};
        messages[count].msg_hdr = (struct msghdr){.msg_iov = &vectors[count], .msg_iovlen = 1};
        if (is_v6[source]) {
            messages[count].msg_hdr.msg_name = &options.target6;
            messages[count].msg_hdr.msg_namelen = sizeof options.target6;
        } else {
            messages[count].msg_hdr.msg_name = &options.target;
            messages[count].msg_hdr.msg_namelen = sizeof options.target;
        }
        if (size > 0) set_segment(&messages[count].msg_hdr, &control[count], sizeof control[count], size);
        planned += packets[count];
    }
    for (unsigned done = 0; done < count;) {
        const int went = sendmmsg(sockets[source], messages + done, count - done, 0);
        if (went < 0) {
            if (errno == EINTR) continue;
            errors += 1;
            done += 1; /* this one the kernel does not want */
            continue;
        }
        for (int i = 0; i < went; i++, done++) {
            sent += packets[done];
            sent_bytes += vectors[done].iov_len;
            trains += messages[done].msg_hdr.msg_controllen > 0;
        }
    }
    atomic_store(&ledger[SENT_PACKETS], sent);
    atomic_store(&ledger[SENT_BYTES], sent_bytes);
}

/* -- Set-up ------------------------------------------------------------------------------------ */

static const uint8_t *map_file(const char *path, int writable, size_t *bytes) {
    const int fd = open(path, (writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    struct stat status;
    if (fd < 0 || fstat(fd, &status) != 0) die(path);
    *bytes = (size_t)status.st_size;
    void *at = mmap(NULL, *bytes, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, fd, 0);
    if (at == MAP_FAILED) die("mmap");
    close(fd);
    return at;
}

static void read_templates(const char *path) {
    size_t bytes;
    const uint8_t *at = map_file(path, 0, &bytes);
    const uint8_t *end = at + bytes;
    while (at + 2 <= end && template_count < MAX_TEMPLATES) {
        memcpy(&template_bytes[template_count], at, 2);
        const uint16_t size = template_bytes[template_count];
        if (size > MAX_DATAGRAM_BYTES / 2 || at + 2 + size > end) usage_error("--templates");
        templates[template_count++] = at + 2;
        at += 2 + size;
    }
    if (template_count == 0) usage_error("--templates");
}

/* Every fourth source is IPv6 where there is such a target; the others are spread over 127/8. */
static void open_sources(void) {
    for (unsigned i = 0; i < options.sources; i++) {
        is_v6[i] = options.has_target6 && i % 4 == 3;
        struct sockaddr_in v4 = {.sin_family = AF_INET,
                                 .sin_addr = {htonl(INADDR_LOOPBACK + (i % 2 ? i * 257u : 0u))}};
        struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
        sockets[i] = socket(is_v6[i] ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        const int failed = is_v6[i] ? bind(sockets[i], (struct sockaddr *)&v6, sizeof v6)
                                    : bind(sockets[i], (struct sockaddr *)&v4, sizeof v4);
        if (sockets[i] < 0 || failed) die("source socket");
    }
}

int main(int argc, char **argv) {
    static const struct option known[] = {
        {"target", required_argument, NULL, 't'},       {"target6-port", required_argument, NULL, '6'},
        {"templates", required_argument, NULL, 'f'},    {"ledger", required_argument, NULL, 'l'},
        {"segment", required_argument, NULL, 'm'},      {"rows-at", required_argument, NULL, 'a'},
        {"row-bytes", required_argument, NULL, 'r'},    {"rows", required_argument, NULL, 'w'},
        {"packets-word", required_argument, NULL, 'p'}, {"bytes-word", required_argument, NULL, 'b'},
        {"count", required_argument, NULL, 'n'},        {"seed", required_argument, NULL, 's'},
        {"sources", required_argument, NULL, 'k'},      {"window", required_argument, NULL, 'i'},
        {"window-bytes", required_argument, NULL, 'y'}, {NULL, 0, NULL, 0}};
    const char *template_path = NULL, *ledger_path = NULL, *segment_path = NULL;
    bool has_target = false;
    size_t bytes;
    options.sources = 64, options.window = 512, options.window_bytes = 1 << 18;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        switch (c) {
        case 't': options.target = parse_ipv4(optarg, "--target"), has_target = true; break;
        case '6':
            options.target6 = (struct sockaddr_in6){.sin6_family = AF_INET6,
                                                    .sin6_addr = IN6ADDR_LOOPBACK_INIT,
                                                    .sin6_port = htons((uint16_t)parse_number(optarg, "--target6-port"))};
            options.has_target6 = true;
            break;
        case 'f': template_path = optarg; break;
        case 'l': ledger_path = optarg; break;
        case 'm': segment_path = optarg; break;
        case 'a': options.rows_at = parse_number(optarg, "--rows-at"); break;
        case 'r': options.row_bytes = parse_number(optarg, "--row-bytes"); break;
        case 'w': options.rows = parse_number(optarg, "--rows"); break;
        case 'p': options.packets_word = parse_number(optarg, "--packets-word"); break;
        case 'b': options.bytes_word = parse_number(optarg, "--bytes-word"); break;
        case 'n': options.count = parse_number(optarg, "--count"); break;
        case 's': state = parse_number(optarg, "--seed") * 2 + 1; break;
        case 'k': options.sources = (unsigned)parse_number(optarg, "--sources"); break;
        case 'i': options.window = parse_number(optarg, "--window"); break;
        case 'y': options.window_bytes = parse_number(optarg, "--window-bytes"); break;
        default: exit(2);
        }
    }
    if (!has_target || !template_path || !ledger_path || !segment_path || options.rows == 0 || state == 0)
        usage_error("--target, --templates, --ledger, --segment, --rows and --seed are needed");
    if (options.sources < 1 || options.sources > MAX_SOURCES) usage_error("--sources");
    prctl(PR_SET_PDEATHSIG, SIGKILL); /* never outlives the test */
    read_templates(template_path);
    ledger = (_Atomic uint64_t *)(uintptr_t)map_file(ledger_path, 1, &bytes);
    if (bytes < LEDGER_WORDS * sizeof *ledger) usage_error("--ledger");
    segment = map_file(segment_path, 0, &bytes);
    if (options.rows_at + options.rows * options.row_bytes > bytes) usage_error("--rows-at");
    open_sources();
    base_packets = relay_counter(options.packets_word) - atomic_load(&ledger[OTHER_PACKETS]);
    base_bytes = relay_counter(options.bytes_word) - atomic_load(&ledger[OTHER_BYTES]);
    const uint64_t begin = now_ns();
    while (sent < options.count) {
        send_batch();
        wait_for_room(options.window, options.window_bytes);
    }
    wait_for_room(0, 0);
    printf("{\"sent\": %llu, \"sent_bytes\": %llu, \"trains\": %llu, \"errors\": %llu, \"stalls\": %llu, "
           "\"elapsed_ns\": %llu}\n",
           (unsigned long long)sent, (unsigned long long)sent_bytes, (unsigned long long)trains,
           (unsigned long long)errors, (unsigned long long)stalls, (unsigned long long)(now_ns() - begin));
    return 0;
}
