/* Batch I/O of the native engine: receive with UDP_GRO, decide each segment, send with UDP_SEGMENT.
 *
 * One engine serves one worker: its sockets, one arena, one set of tables.  All memory is taken
 * when it is made; the packet path allocates nothing and knows nothing of Python.
 */
#ifndef WAVRY_FASTPATH_H
#define WAVRY_FASTPATH_H

#include "decide.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/types.h>

enum {
    WV_MAX_SOCKETS = WV_FIRST_LOCAL,
    WV_RECEIVE_MESSAGES = 64,
    WV_RECEIVE_BYTES = 65536, /* the largest datagram, and the largest GRO train */
    WV_OUT_SEGMENTS = 4096,
    WV_OUT_GROUPS = 1024,    /* also what one sendmmsg takes (UIO_MAXIOV) */
    WV_GROUP_SEGMENTS = 64,  /* UDP_MAX_SEGMENTS of every kernel that has UDP_SEGMENT */
    WV_GROUP_BYTES = 65000,  /* below 65 535 less the headers of either family */
    WV_GROUP_PLACES = 2048,  /* hash places, twice the groups */
    WV_CONTROL_PACKETS = 20, /* 0.15 ms each in Python: for 3 ms at most, media waits for leases */
    WV_CONTROL_BESIDE_MEDIA = 4,
    WV_CONTROL_EVERY_MS = 2, /* Python's turn where the sockets are never dry */
    WV_QUEUE_KNOWN = 2048,   /* of live slots and proved addresses: half a second of Python's time */
    WV_QUEUE_STRANGERS = 512,
    WV_CHALLENGES = 16, /* sent for each batch where those wait: some 3 us each, and media goes first */
    WV_CONTROL_BYTES = 1504,
    WV_PLAIN_DESTINATIONS = 256,
    WV_MAX_REFUSALS = 16,
};

struct wv_socket {
    int fd;
    int family;     /* AF_INET or AF_INET6 */
    int gro;        /* 1 where the kernel gives trains */
    int gso;        /* 1 until the kernel refuses segmentation */
    int gro_errno;  /* why not */
    int gso_errno;
    int gso_proven;        /* a cut group went out */
    uint32_t gso_refusals; /* since then */
};

struct wv_control_packet {
    struct wv_address from;
    uint32_t kind;
    uint32_t sender;
    uint32_t bytes;
    uint8_t datagram[WV_CONTROL_BYTES];
};

/* First in, first out; who finds it full is dropped. */
struct wv_control_queue {
    struct wv_control_packet *packets;
    uint32_t size, first, count;
};

struct wv_out_segment {
    const uint8_t *data;
    uint32_t bytes;
    uint32_t next; /* in the same group; UINT32_MAX at the end */
};

/* Datagrams for one destination that leave in one system call entry.  All have segment_bytes, the
 * last may have less and then closes the group. */
struct wv_out_group {
    struct wv_address to;
    uint32_t first, last;
    uint32_t segments;
    uint32_t segment_bytes;
    uint32_t bytes;
    uint16_t socket;
    uint8_t plain; /* no UDP_SEGMENT for this destination or socket */
    uint8_t closed;
};

struct wv_group_place {
    uint32_t round; /* of the group tables; another round's place is empty */
    uint32_t group;
};

struct wv_plain_destination {
    struct wv_address to;
    uint64_t until_ns;
};

/* What tests refuse in the kernel's name: the next `count` sends of messages that match fail with
 * `error`.  count 0 is off, and costs a comparison for each sendmmsg. */
struct wv_fault {
    int error;
    uint32_t count;
    int only_gso;
    uint32_t port; /* of the destination; 0 = any */
};

struct wv_engine {
    struct wv_tables tables;
    struct wv_socket sockets[WV_MAX_SOCKETS];
    struct pollfd polls[WV_MAX_SOCKETS + 1];
    uint32_t socket_count;
    uint32_t first_socket; /* served first in the next pass, so that none starves */
    int alone;             /* one socket, whose receive can wait */
    int flows;             /* ... and it had datagrams when it was last looked at */
    int wake;              /* a wake descriptor is the last of `polls` */
    int frozen;            /* `now` is given from outside (tests) */
    uint32_t busy_poll_us;
    struct wv_instant now;
    struct wv_fault fault;
    uint32_t changed; /* grows with every fall-back that the shell should log */

    uint32_t batch_messages; /* that are being worked on */
    uint32_t in_used;        /* messages that the last receive filled */
    struct wv_control_queue known, strangers; /* in the order in which they are served */
    uint32_t challenges;                      /* that this batch may still send */
    uint32_t control_due;                     /* how many Python may take before the next run */
    int forwards;                             /* whether media came since the last run began */
    int answers;                              /* the open groups hold the relay's own datagrams */
    uint32_t out_segments, out_groups, round;

    uint64_t receive_errors; /* pending ICMP errors and the like: they belong to no datagram */
    uint64_t gso_messages;
    uint64_t retried_messages;
    uint64_t plain_learned; /* destinations that go without UDP_SEGMENT */

    /* Everything below is large and made once. */
    uint8_t *arena;
    struct mmsghdr *in;
    struct iovec *in_vectors;
    struct sockaddr_storage *in_names;
    uint8_t *in_control;
    struct mmsghdr *out;
    struct iovec *out_vectors;
    struct sockaddr_storage *out_names;
    uint8_t *out_control;
    uint32_t *out_order; /* group of each message */
    struct wv_out_segment *segments;
    struct wv_out_group *groups;
    struct wv_group_place *places;
    struct wv_plain_destination *plain;
    struct wv_address *in_from;
    uint32_t *in_segment_bytes;
};

enum wv_run_result {
    WV_RUN_DONE = 0,
    WV_RUN_WOKEN = 1,       /* the wake descriptor is readable */
    WV_RUN_INTERRUPTED = 2, /* a signal: Python wants to look at it */
    WV_RUN_FAILED = -1,     /* errno says why; poll itself failed */
};

/* Make an engine over descriptors that it borrows.  NULL with errno ENOMEM or EINVAL; *error says
 * what is wrong with the segment.  `wake_fd` may be -1. */
struct wv_engine *wv_engine_new(void *base, uint64_t bytes, uint32_t worker, const int *fds,
                                uint32_t fd_count, int wake_fd, enum wv_open_error *error);
void wv_engine_free(struct wv_engine *engine);

/* Forward for at most `timeout_ms`; earlier back for control packets, a wake-up or a signal.  Media
 * comes first: control packets wait until the sockets are dry, or WV_CONTROL_EVERY_MS at most. */
enum wv_run_result wv_run(struct wv_engine *engine, int timeout_ms);

/* The next control packet that is due, good until the next run; NULL: no more in this turn. */
const struct wv_control_packet *wv_next_control(struct wv_engine *engine);

/* Work on everything that was received.  Sends. */
void wv_process(struct wv_engine *engine);

/* Send one datagram of the relay's own; 0, or the errno (counted as a drop). */
int wv_send(struct wv_engine *engine, const uint8_t *datagram, size_t bytes,
            const struct wv_address *to);

/* Gather answers, between two runs, and send them: in one system call, those for one peer as one train.
 * The datagrams stay the caller's until then. */
void wv_gather(struct wv_engine *engine, const uint8_t *datagram, uint32_t bytes,
               const struct wv_address *to);
void wv_send_gathered(struct wv_engine *engine);

#endif
