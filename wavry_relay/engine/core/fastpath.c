/* See fastpath.h.
 *
 * A pass over one socket: recvmmsg → for each message its segments, in order → a decision each →
 * forwarded segments are appended to the open group of their destination → sendmmsg, one message
 * for each group.  Groups leave in the order in which they were opened and a destination has one
 * open group at a time, so a flow keeps its order.  Segments stay where they were received; a
 * group's iovecs point there, and neighbours become one iovec.
 */
#define _GNU_SOURCE
#include "fastpath.h"
#include "cookie.h"
#include "local.h"
#include "tables.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#ifndef UDP_SEGMENT
#define UDP_SEGMENT 103
#endif
#ifndef UDP_GRO
#define UDP_GRO 104
#endif

#define NONE UINT32_MAX
#define CONTROL_SPACE (CMSG_SPACE(sizeof(uint16_t)) + WV_LOCAL_CONTROL_SPACE)
/* Room for options that somebody set on the socket: ours must not be the ones that are cut off. */
#define IN_CONTROL_SPACE 128
/* Not a power of two: the first bytes of all messages would share a few cache sets. */
#define ARENA_STRIDE (WV_RECEIVE_BYTES + 1088)
#define PASSES 16             /* full batches of one socket before the others get their turn */
#define AHEAD_INDEX 8
#define AHEAD_RECORD 4
#define BLOCKED_WAIT_MS 1
#define LULL_US 4000 /* a tick of most kernels */
#define PLAIN_FOR_NS (600 * NS_PER_S) /* a path's MTU may grow again: asked every 10 minutes */

/* The arena is one block, so a read behind a datagram would not leave it: builds with ASan hide
 * from the packet path what the kernel did not fill. */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define HIDES_MEMORY 1
#endif
#endif
#if defined(HIDES_MEMORY) || defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define HIDE(at, bytes) ASAN_POISON_MEMORY_REGION(at, bytes)
#define SHOW(at, bytes) ASAN_UNPOISON_MEMORY_REGION(at, bytes)
#else
#define HIDE(at, bytes) ((void)0)
#define SHOW(at, bytes) ((void)0)
#endif

static const uint8_t V4_PREFIX[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

static uint64_t clock_ns(clockid_t id) {
    struct timespec now;
    clock_gettime(id, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void read_clocks(struct wv_engine *e) {
    e->tables.live_clock = !e->frozen;
    if (e->frozen) return;
    e->now.mono_ns = clock_ns(CLOCK_MONOTONIC);
    e->now.wall_ms = clock_ns(CLOCK_REALTIME) / NS_PER_MS;
}

/* -- Addresses ----------------------------------------------------------------------------- */

/* `local` is the local number: which address of the relay was written to. */
static void address_from(const struct sockaddr_storage *name, uint32_t local, struct wv_address *to) {
    uint8_t bytes[16];
    uint64_t port, family, scope = 0;
    if (name->ss_family == AF_INET) {
        struct sockaddr_in v4;
        memcpy(&v4, name, sizeof v4);
        memcpy(bytes, V4_PREFIX, sizeof V4_PREFIX);
        memcpy(bytes + 12, &v4.sin_addr, 4);
        port = ntohs(v4.sin_port);
        family = 4;
    } else {
        struct sockaddr_in6 v6;
        memcpy(&v6, name, sizeof v6);
        memcpy(bytes, &v6.sin6_addr, 16);
        port = ntohs(v6.sin6_port);
        /* An IPv4 peer of a dual-stack socket is an IPv4 peer. */
        family = memcmp(bytes, V4_PREFIX, sizeof V4_PREFIX) == 0 ? 4 : 6;
        scope = v6.sin6_scope_id;
    }
    memcpy(&to->high, bytes, 8);
    memcpy(&to->low, bytes + 8, 8);
    to->endpoint = port | family << WV_FAMILY_SHIFT | (uint64_t)local << WV_LISTEN_SHIFT |
                   scope << WV_SCOPE_SHIFT;
}

static socklen_t address_to(const struct wv_address *from, int socket_family,
                            struct sockaddr_storage *name) {
    uint8_t bytes[16];
    memcpy(bytes, &from->high, 8);
    memcpy(bytes + 8, &from->low, 8);
    if (socket_family == AF_INET) {
        struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)from->endpoint)};
        memcpy(&v4.sin_addr, bytes + 12, 4);
        memcpy(name, &v4, sizeof v4);
        return sizeof v4;
    }
    /* An IPv4 address is kept as ::ffff:a.b.c.d, which is what a dual-stack socket wants. */
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
                              .sin6_port = htons((uint16_t)from->endpoint),
                              .sin6_scope_id = (uint32_t)(from->endpoint >> WV_SCOPE_SHIFT)};
    memcpy(&v6.sin6_addr, bytes, 16);
    memcpy(name, &v6, sizeof v6);
    return sizeof v6;
}

static int same_address(const struct wv_address *a, const struct wv_address *b) {
    return a->endpoint == b->endpoint && a->low == b->low && a->high == b->high;
}

static uint64_t address_hash(const struct wv_address *a) {
    uint64_t mixed = (a->low ^ a->high * UINT64_C(0x9e3779b97f4a7c15)) + a->endpoint;
    mixed *= UINT64_C(0xff51afd7ed558ccd);
    return mixed ^ mixed >> 29;
}

static int is_v4(const struct wv_address *a) { return (a->endpoint >> WV_FAMILY_SHIFT & WV_FAMILY_MASK) == 4; }

static uint32_t local_number(const struct wv_address *a) {
    return a->endpoint >> WV_LISTEN_SHIFT & WV_LISTEN_MASK;
}

/* The socket that the peer wrote to; where it has no such number (the list of listen addresses
 * changed), the first that can carry the family. */
static uint32_t socket_for(const struct wv_engine *e, const struct wv_address *to) {
    const uint32_t number = local_number(to);
    const struct wv_local_address *local = wv_local_address(&e->tables, number);
    const uint32_t listen = local == NULL ? number : wv_local_listen(local);
    const int family = is_v4(to) ? AF_INET : AF_INET6;
    if (listen < e->socket_count &&
        (e->sockets[listen].family == family || e->sockets[listen].family == AF_INET6))
        return listen;
    for (uint32_t i = 0; i < e->socket_count; i++)
        if (e->sockets[i].family == family) return i;
    return NONE;
}

/* -- Making and freeing ------------------------------------------------------------------------ */

static int open_socket(struct wv_socket *s, int fd) {
    socklen_t bytes = sizeof s->family;
    const int on = 1;
    s->fd = fd;
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &s->family, &bytes) != 0) return -1;
    s->gro = setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof on) == 0;
    s->gro_errno = s->gro ? 0 : errno;
    /* 0 asks for nothing and shows whether the kernel knows the option. */
    const int none = 0;
    s->gso = setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &none, sizeof none) == 0;
    s->gso_errno = s->gso ? 0 : errno;
    return 0;
}

/* Let a receive wait for its first datagram, LULL_US at most; whether it now does.  The flag is of
 * all who hold the socket; whoever else reads it asks with MSG_DONTWAIT or sets it again. */
static int let_wait(int fd) {
    const struct timeval lull = {.tv_usec = LULL_US};
    const int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &lull, sizeof lull) == 0 &&
           fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0;
}

static int take_memory(struct wv_engine *e) {
    e->arena = malloc((size_t)WV_RECEIVE_MESSAGES * ARENA_STRIDE);
    e->in = calloc(WV_RECEIVE_MESSAGES, sizeof *e->in);
    e->in_vectors = calloc(WV_RECEIVE_MESSAGES, sizeof *e->in_vectors);
    e->in_names = calloc(WV_RECEIVE_MESSAGES, sizeof *e->in_names);
    e->in_control = calloc(WV_RECEIVE_MESSAGES, IN_CONTROL_SPACE);
    e->in_from = calloc(WV_RECEIVE_MESSAGES, sizeof *e->in_from);
    e->in_segment_bytes = calloc(WV_RECEIVE_MESSAGES, sizeof *e->in_segment_bytes);
    e->out = calloc(WV_OUT_GROUPS, sizeof *e->out);
    e->out_vectors = calloc(WV_OUT_SEGMENTS, sizeof *e->out_vectors);
    e->out_names = calloc(WV_OUT_GROUPS, sizeof *e->out_names);
    e->out_control = calloc(WV_OUT_GROUPS, CONTROL_SPACE);
    e->out_order = calloc(WV_OUT_GROUPS, sizeof *e->out_order);
    e->segments = calloc(WV_OUT_SEGMENTS, sizeof *e->segments);
    e->groups = calloc(WV_OUT_GROUPS, sizeof *e->groups);
    e->places = calloc(WV_GROUP_PLACES, sizeof *e->places);
    e->plain = calloc(WV_PLAIN_DESTINATIONS, sizeof *e->plain);
    e->known.packets = calloc(e->known.size = WV_QUEUE_KNOWN, sizeof *e->known.packets);
    e->strangers.packets =
        calloc(e->strangers.size = WV_QUEUE_STRANGERS, sizeof *e->strangers.packets);
    return e->arena && e->in && e->in_vectors && e->in_names && e->in_control && e->in_from &&
           e->in_segment_bytes && e->out && e->out_vectors && e->out_names && e->out_control &&
           e->out_order && e->segments && e->groups && e->places && e->plain &&
           e->known.packets && e->strangers.packets;
}

void wv_engine_free(struct wv_engine *e) {
    if (e == NULL) return;
    free(e->arena), free(e->in), free(e->in_vectors), free(e->in_names), free(e->in_control);
    free(e->in_from), free(e->in_segment_bytes), free(e->out), free(e->out_vectors);
    free(e->out_names), free(e->out_control), free(e->out_order), free(e->segments);
    free(e->groups), free(e->places), free(e->plain);
    free(e->known.packets), free(e->strangers.packets);
    free(e);
}

struct wv_engine *wv_engine_new(void *base, uint64_t bytes, uint32_t worker, const int *fds,
                                uint32_t fd_count, int wake_fd, enum wv_open_error *error) {
    struct wv_engine *e = fd_count <= WV_MAX_SOCKETS ? calloc(1, sizeof *e) : NULL;
    *error = WV_OPEN_OK;
    if (e == NULL) {
        errno = fd_count <= WV_MAX_SOCKETS ? ENOMEM : EINVAL;
        return NULL;
    }
    if (!take_memory(e)) {
        wv_engine_free(e);
        errno = ENOMEM;
        return NULL;
    }
    *error = wv_open(&e->tables, base, bytes, worker, (uint32_t)getpid());
    if (*error != WV_OPEN_OK) {
        wv_engine_free(e);
        errno = EINVAL;
        return NULL;
    }
    e->socket_count = fd_count;
    e->round = 1;
    for (uint32_t i = 0; i < fd_count; i++) {
        if (open_socket(&e->sockets[i], fds[i]) != 0) {
            const int reason = errno;
            wv_engine_free(e);
            errno = reason;
            return NULL;
        }
        e->changed += !e->sockets[i].gro || !e->sockets[i].gso;
        e->polls[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    }
    e->alone = fd_count == 1 && let_wait(fds[0]);
    e->wake = wake_fd >= 0;
    e->polls[fd_count] = (struct pollfd){.fd = wake_fd, .events = POLLIN};
    for (uint32_t i = 0; i < WV_RECEIVE_MESSAGES; i++) {
        e->in_vectors[i] = (struct iovec){e->arena + (size_t)i * ARENA_STRIDE, WV_RECEIVE_BYTES};
        e->in[i].msg_hdr = (struct msghdr){.msg_name = &e->in_names[i],
                                           .msg_namelen = sizeof e->in_names[i],
                                           .msg_iov = &e->in_vectors[i],
                                           .msg_iovlen = 1,
                                           .msg_control = e->in_control + i * IN_CONTROL_SPACE,
                                           .msg_controllen = IN_CONTROL_SPACE};
    }
    return e;
}

/* -- Sending ----------------------------------------------------------------------------------- */

static uint32_t destination_port(const struct msghdr *message) {
    uint16_t port;
    /* sin_port and sin6_port are at the same place. */
    memcpy(&port, (const uint8_t *)message->msg_name + offsetof(struct sockaddr_in, sin_port), 2);
    return ntohs(port);
}

static int is_train(const struct msghdr *message) {
    const struct cmsghdr *first = CMSG_FIRSTHDR(message);
    return first != NULL && first->cmsg_level == IPPROTO_UDP;
}

static int send_messages(struct wv_engine *e, int fd, struct mmsghdr *messages, unsigned count) {
    struct wv_fault *fault = &e->fault;
    for (unsigned i = 0; fault->count != 0 && i < count; i++) {
        const struct msghdr *message = &messages[i].msg_hdr;
        if (fault->only_gso && !is_train(message)) continue;
        if (fault->port != 0 && fault->port != destination_port(message)) continue;
        if (i > 0) {
            count = i; /* the messages before it go out, as the kernel would do it */
            break;
        }
        fault->count -= 1;
        errno = fault->error;
        return -1;
    }
    return sendmmsg(fd, messages, count, MSG_DONTWAIT);
}

static void set_segment(struct msghdr *message, uint8_t *control, uint16_t segment_bytes) {
    struct cmsghdr *header = (struct cmsghdr *)control;
    header->cmsg_level = IPPROTO_UDP;
    header->cmsg_type = UDP_SEGMENT;
    header->cmsg_len = CMSG_LEN(sizeof segment_bytes);
    memcpy(CMSG_DATA(header), &segment_bytes, sizeof segment_bytes);
    message->msg_control = control;
    message->msg_controllen = CMSG_SPACE(sizeof segment_bytes);
}

/* Name the destination and, at a wildcard socket, the address that the peer wrote to: the last
 * control message. */
static void set_path(struct wv_engine *e, uint32_t socket, const struct wv_address *to,
                     struct msghdr *message, struct sockaddr_storage *name, uint8_t *control) {
    const int family = e->sockets[socket].family;
    const struct wv_local_address *local = wv_local_address(&e->tables, local_number(to));
    message->msg_name = name;
    message->msg_namelen = address_to(to, family, name);
    if (local == NULL || wv_local_listen(local) != socket) return;
    message->msg_control = control;
    message->msg_controllen +=
        wv_local_control(local, family, (struct cmsghdr *)(control + message->msg_controllen));
}

static struct wv_plain_destination *plain_place(struct wv_engine *e, const struct wv_address *to) {
    return &e->plain[address_hash(to) % WV_PLAIN_DESTINATIONS];
}

static int goes_plain(struct wv_engine *e, uint32_t socket, const struct wv_address *to) {
    if (!e->sockets[socket].gso) return 1;
    const struct wv_plain_destination *place = plain_place(e, to);
    return place->until_ns > e->now.mono_ns && same_address(&place->to, to);
}

static void count_forwarded(struct wv_engine *e, uint64_t packets, uint64_t bytes) {
    if (e->answers) return;
    wv_count(&e->tables, WV_COUNT_FORWARDED_PACKETS, packets);
    wv_count(&e->tables, WV_COUNT_FORWARDED_BYTES, bytes);
}

static void count_sent(struct wv_engine *e, const struct wv_out_group *group) {
    if (group->segments > 1) {
        struct wv_socket *s = &e->sockets[group->socket];
        s->gso_proven = 1;
        s->gso_refusals = 0;
        e->gso_messages += 1;
    }
    count_forwarded(e, group->segments, group->bytes);
}

static int is_blocked(int error) {
    return error == EAGAIN || error == EWOULDBLOCK || error == ENOBUFS;
}

static void count_unsent(struct wv_engine *e, int error, uint64_t segments, uint64_t bytes) {
    wv_count_drop(&e->tables,
                  is_blocked(error) ? WV_COUNT_DROP_SEND_BLOCKED : WV_COUNT_DROP_SEND_FAILED,
                  segments, bytes);
}

/* An ICMP error of an earlier datagram is reported once, by whatever is sent next, which is then
 * not sent. */
static int may_be_pending(int error) {
    return error == ECONNREFUSED || error == EHOSTUNREACH || error == ENETUNREACH ||
           error == EPROTO || error == EHOSTDOWN;
}

/* Waits once in a pass for room in the send buffer: the backlog then waits in the receive buffer,
 * where it belongs, but a device that is stuck must not stop the worker. */
static int wait_for_room(int fd, int *waited) {
    struct pollfd ready = {.fd = fd, .events = POLLOUT};
    if (*waited) return 0;
    *waited = 1;
    return poll(&ready, 1, BLOCKED_WAIT_MS) == 1;
}

static int send_alone(struct wv_engine *e, int fd, struct mmsghdr *message, int *waited) {
    for (int retried = 0;;) {
        if (send_messages(e, fd, message, 1) == 1) return 0;
        if (errno == EINTR) continue;
        const int error = errno;
        if (is_blocked(error) && wait_for_room(fd, waited)) continue;
        if (!may_be_pending(error) || retried++) return error;
    }
}

/* Send the segments of a group one by one: the kernel refused to do the cutting.  How many went. */
static uint32_t send_apart(struct wv_engine *e, uint32_t socket, const struct wv_out_group *group,
                       int *waited) {
    struct sockaddr_storage name;
    _Alignas(struct cmsghdr) uint8_t control[CONTROL_SPACE];
    struct iovec vector;
    struct mmsghdr message = {.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1}};
    uint32_t sent = 0;
    set_path(e, socket, &group->to, &message.msg_hdr, &name, control);
    for (uint32_t at = group->first; at != NONE; at = e->segments[at].next) {
        const struct wv_out_segment *segment = &e->segments[at];
        vector = (struct iovec){(void *)segment->data, segment->bytes};
        const int error = send_alone(e, e->sockets[socket].fd, &message, waited);
        if (error == 0) {
            count_forwarded(e, 1, segment->bytes);
            sent += 1;
        } else {
            count_unsent(e, error, 1, segment->bytes);
        }
    }
    return sent;
}

static void turn_gso_off(struct wv_engine *e, uint32_t socket, int error) {
    if (!e->sockets[socket].gso) return;
    e->sockets[socket].gso = 0;
    e->sockets[socket].gso_errno = error;
    e->changed += 1;
}

static int is_refusal(int error) { return error == EMSGSIZE || error == EIO || error == EINVAL; }

/* What a refused group teaches, once its segments went out one by one.  EMSGSIZE is about the path:
 * its MTU is below a segment.  EIO and EINVAL may be about the path too (IPsec, the MTU on older
 * kernels) or about the socket or its device; a socket that has cut a group before can do it, so
 * only the destination is spared then, unless nobody gets through any more. */
static void learn_refusal(struct wv_engine *e, uint32_t socket, const struct wv_out_group *group,
                          int error) {
    struct wv_socket *s = &e->sockets[socket];
    if (error != EMSGSIZE && (!s->gso_proven || ++s->gso_refusals >= WV_MAX_REFUSALS)) {
        turn_gso_off(e, socket, error);
        return;
    }
    struct wv_plain_destination *place = plain_place(e, &group->to);
    place->to = group->to;
    place->until_ns = e->now.mono_ns + PLAIN_FOR_NS;
    e->plain_learned += 1;
}

static uint32_t lay_out(struct wv_engine *e, uint32_t socket, uint32_t *vectors_used) {
    uint32_t messages = 0;
    for (uint32_t number = 0; number < e->out_groups; number++) {
        const struct wv_out_group *group = &e->groups[number];
        if (group->socket != socket) continue;
        struct msghdr *header = &e->out[messages].msg_hdr;
        struct iovec *first = &e->out_vectors[*vectors_used];
        struct iovec *vector = first - 1;
        for (uint32_t at = group->first; at != NONE; at = e->segments[at].next) {
            const struct wv_out_segment *segment = &e->segments[at];
            if (vector >= first && (uint8_t *)vector->iov_base + vector->iov_len == segment->data)
                vector->iov_len += segment->bytes;
            else
                *++vector = (struct iovec){(void *)segment->data, segment->bytes};
        }
        const uint32_t used = (uint32_t)(vector - first) + 1;
        *vectors_used += used;
        memset(header, 0, sizeof *header);
        header->msg_iov = first;
        header->msg_iovlen = used;
        uint8_t *control = e->out_control + messages * CONTROL_SPACE;
        if (group->segments > 1) set_segment(header, control, (uint16_t)group->segment_bytes);
        set_path(e, socket, &group->to, header, &e->out_names[messages], control);
        e->out_order[messages++] = number;
    }
    return messages;
}

static void send_socket(struct wv_engine *e, uint32_t socket, uint32_t messages) {
    const int fd = e->sockets[socket].fd;
    int waited = 0, retried = 0;
    for (uint32_t done = 0; done < messages;) {
        const int sent = send_messages(e, fd, e->out + done, messages - done);
        if (sent > 0) {
            for (int i = 0; i < sent; i++) count_sent(e, &e->groups[e->out_order[done + (uint32_t)i]]);
            done += (uint32_t)sent;
            retried = 0;
            continue;
        }
        const int error = sent == 0 ? EAGAIN : errno;
        const struct wv_out_group *group = &e->groups[e->out_order[done]];
        if (error == EINTR) continue;
        if (is_blocked(error) && wait_for_room(fd, &waited)) continue;
        if (may_be_pending(error) && !retried) {
            retried = 1;
            e->retried_messages += 1;
            continue;
        }
        if (group->segments > 1 && is_refusal(error)) {
            /* Where a lone datagram fares no better, the cutting was not to blame: a peer that
             * claims port 0 must not cost the others their speed. */
            if (send_apart(e, socket, group, &waited) > 0) learn_refusal(e, socket, group, error);
        } else {
            count_unsent(e, error, group->segments, group->bytes);
        }
        retried = 0;
        done += 1;
    }
}

static void flush(struct wv_engine *e) {
    if (e->out_groups == 0) return;
    uint32_t vectors = 0, left = e->out_groups;
    for (uint32_t socket = 0; socket < e->socket_count && left > 0; socket++) {
        const uint32_t messages = lay_out(e, socket, &vectors);
        if (messages > 0) send_socket(e, socket, messages);
        left -= messages;
    }
    e->out_groups = e->out_segments = 0;
    if (++e->round == 0) { /* once in 2^32 rounds old places would come alive again */
        memset(e->places, 0, WV_GROUP_PLACES * sizeof *e->places);
        e->round = 1;
    }
}

/* Whether a segment may join: equal sizes, a shorter one only as the last. */
static int joins(const struct wv_out_group *group, uint32_t bytes) {
    return !group->closed && bytes <= group->segment_bytes && group->segments < WV_GROUP_SEGMENTS &&
           group->bytes + bytes <= WV_GROUP_BYTES;
}

static struct wv_group_place *place_of(struct wv_engine *e, const struct wv_address *to) {
    uint64_t at = address_hash(to);
    for (;; at++) {
        struct wv_group_place *place = &e->places[at % WV_GROUP_PLACES];
        if (place->round != e->round || same_address(&e->groups[place->group].to, to)) return place;
    }
}

static void append(struct wv_engine *e, const struct wv_address *to, const uint8_t *data,
                   uint32_t bytes) {
    if (e->out_segments == WV_OUT_SEGMENTS || e->out_groups == WV_OUT_GROUPS) flush(e);
    struct wv_group_place *place = place_of(e, to);
    const int known = place->round == e->round;
    const uint32_t segment = e->out_segments;
    if (known && joins(&e->groups[place->group], bytes)) {
        struct wv_out_group *group = &e->groups[place->group];
        e->segments[group->last].next = segment;
        group->last = segment;
        group->segments += 1;
        group->bytes += bytes;
        group->closed = bytes < group->segment_bytes;
    } else {
        const uint32_t socket = known ? e->groups[place->group].socket : socket_for(e, to);
        if (socket == NONE) {
            wv_count_drop(&e->tables, WV_COUNT_DROP_SEND_FAILED, 1, bytes);
            return;
        }
        const int plain = known ? e->groups[place->group].plain : goes_plain(e, socket, to);
        *place = (struct wv_group_place){e->round, e->out_groups};
        e->groups[e->out_groups++] = (struct wv_out_group){.to = *to,
                                                           .first = segment,
                                                           .last = segment,
                                                           .segments = 1,
                                                           .segment_bytes = bytes,
                                                           .bytes = bytes,
                                                           .socket = (uint16_t)socket,
                                                           .plain = (uint8_t)plain,
                                                           .closed = (uint8_t)plain};
    }
    e->segments[segment] = (struct wv_out_segment){data, bytes, NONE};
    e->out_segments = segment + 1;
}

int wv_send(struct wv_engine *e, const uint8_t *datagram, size_t bytes, const struct wv_address *to) {
    const uint32_t socket = socket_for(e, to);
    int error = EADDRNOTAVAIL, waited = 0;
    if (socket != NONE) {
        struct sockaddr_storage name;
        _Alignas(struct cmsghdr) uint8_t control[CONTROL_SPACE];
        struct iovec vector = {(void *)datagram, bytes};
        struct mmsghdr message = {.msg_hdr = {.msg_iov = &vector, .msg_iovlen = 1}};
        set_path(e, socket, to, &message.msg_hdr, &name, control);
        error = send_alone(e, e->sockets[socket].fd, &message, &waited);
    }
    if (error != 0) count_unsent(e, error, 1, bytes);
    return error;
}

void wv_gather(struct wv_engine *e, const uint8_t *datagram, uint32_t bytes,
               const struct wv_address *to) {
    e->answers = 1;
    append(e, to, datagram, bytes);
}

void wv_send_gathered(struct wv_engine *e) {
    flush(e);
    e->answers = 0;
}

/* -- Receiving ----------------------------------------------------------------------------- */

/* What a message says of itself: size of a train's segments (0 for a lone datagram), and the local
 * number of the address that it was sent to. */
static void read_control(struct wv_engine *e, uint32_t socket, struct msghdr *message,
                         uint32_t *train, uint32_t *local) {
    *train = 0;
    *local = socket;
    for (struct cmsghdr *at = CMSG_FIRSTHDR(message); at != NULL; at = CMSG_NXTHDR(message, at)) {
        if (at->cmsg_level == IPPROTO_UDP && at->cmsg_type == UDP_GRO) {
            int bytes = 0; /* stays so where the kernel cut it off */
            if (at->cmsg_len >= CMSG_LEN(sizeof bytes)) memcpy(&bytes, CMSG_DATA(at), sizeof bytes);
            *train = bytes > 0 ? (uint32_t)bytes : 0;
        } else if (*local == socket) {
            *local = wv_local_number(&e->tables, socket, at);
        }
    }
}

/* Fill the batch from a socket; the number of messages, 0 when it is dry (or errno says else). */
static uint32_t receive(struct wv_engine *e, uint32_t socket, int flags) {
    /* The kernel shortens the lengths of those that it fills. */
    for (uint32_t i = 0; i < e->in_used; i++) {
        struct msghdr *message = &e->in[i].msg_hdr;
        message->msg_namelen = sizeof e->in_names[i];
        message->msg_controllen = IN_CONTROL_SPACE;
        message->msg_flags = 0;
        SHOW(e->in_vectors[i].iov_base, ARENA_STRIDE);
    }
    e->in_used = 0;
    int count;
    /* A pending ICMP error of an earlier send comes instead of a datagram, a few times at most. */
    for (int errors = 0;; errors++) {
        count = recvmmsg(e->sockets[socket].fd, e->in, WV_RECEIVE_MESSAGES, flags, NULL);
        if (count >= 0) break;
        if (errno == EAGAIN || errno == EWOULDBLOCK || errors == 8) return 0;
        if (errno == EINTR && flags != MSG_DONTWAIT) return 0;
        if (errno != EINTR) e->receive_errors += 1;
    }
    e->in_used = (uint32_t)count;
    e->challenges = WV_CHALLENGES;
    read_clocks(e); /* after the call: everything in the batch came before this moment */
    uint64_t packets = 0, bytes = 0;
    for (int i = 0; i < count; i++) {
        const uint32_t length = e->in[i].msg_len;
        uint32_t train, local;
        read_control(e, socket, &e->in[i].msg_hdr, &train, &local);
        const uint32_t segment = train > 0 && train < length ? train : length;
        e->in_segment_bytes[i] = segment;
        HIDE((uint8_t *)e->in_vectors[i].iov_base + length, ARENA_STRIDE - length);
        address_from(&e->in_names[i], local, &e->in_from[i]);
        packets += segment > 0 ? (length + segment - 1) / segment : 1;
        bytes += length;
    }
    wv_count(&e->tables, WV_COUNT_RECEIVED_PACKETS, packets);
    wv_count(&e->tables, WV_COUNT_RECEIVED_BYTES, bytes);
    e->batch_messages = (uint32_t)count;
    return (uint32_t)count;
}

/* Where strangers crowd, answer a lease with PATH_CHALLENGE at once, as the admission would under
 * load: whoever receives at his address comes back with a cookie, and then before all of them. */
static int challenge(struct wv_engine *e, enum wv_kind kind, const uint8_t *datagram, uint32_t bytes,
                     const struct wv_address *from) {
    uint8_t answer[WV_CHALLENGE_BYTES];
    if (kind != WV_KIND_LEASE || bytes < WV_HEADER_BYTES + WV_PROOF_BYTES ||
        !(datagram[3] & WV_PROOF_FLAG) || e->challenges == 0)
        return 0;
    e->challenges -= 1;
    wv_put_challenge(&e->tables, datagram + WV_SESSION_ID_OFFSET, from, e->now.mono_ns, answer);
    wv_count(&e->tables, WV_COUNT_LEASE_PRESENTED, 1);
    wv_count(&e->tables, WV_COUNT_COOKIE_DEMANDED, 1);
    wv_count(&e->tables, WV_COUNT_SENT_CHALLENGES, 1);
    wv_send(e, answer, sizeof answer, from);
    return 1;
}

static void keep_control(struct wv_engine *e, const struct wv_decision *decision,
                         const uint8_t *datagram, uint32_t bytes, const struct wv_address *from) {
    struct wv_control_queue *queue =
        decision->sender == WV_SENDER_STRANGER ? &e->strangers : &e->known;
    if (queue->count == queue->size) {
        if (queue == &e->strangers && challenge(e, decision->kind, datagram, bytes, from)) return;
        wv_count_drop(&e->tables, WV_COUNT_DROP_CONTROL_QUEUE, 1, bytes);
        return;
    }
    struct wv_control_packet *packet = &queue->packets[(queue->first + queue->count++) % queue->size];
    packet->from = *from;
    packet->kind = (uint32_t)decision->kind;
    packet->sender = (uint32_t)decision->sender;
    packet->bytes = bytes;
    memcpy(packet->datagram, datagram, bytes);
}
_Static_assert((unsigned)WV_CONTROL_BYTES >= WV_MAX_DATAGRAM_BYTES, "a control packet must fit");

static const uint8_t *message_data(const struct wv_engine *e, uint32_t number) {
    return e->arena + (size_t)number * ARENA_STRIDE;
}

static void prefetch_ahead(struct wv_engine *e, uint32_t number) {
    if (number + AHEAD_INDEX < e->batch_messages)
        wv_prefetch_index(&e->tables, message_data(e, number + AHEAD_INDEX),
                          e->in_segment_bytes[number + AHEAD_INDEX]);
    if (number + AHEAD_RECORD < e->batch_messages)
        wv_prefetch_record(&e->tables, message_data(e, number + AHEAD_RECORD),
                           e->in_segment_bytes[number + AHEAD_RECORD]);
}

const struct wv_control_packet *wv_next_control(struct wv_engine *e) {
    struct wv_control_queue *queue = e->known.count > 0 ? &e->known : &e->strangers;
    if (e->control_due == 0 || queue->count == 0) return NULL;
    const struct wv_control_packet *packet = &queue->packets[queue->first];
    queue->count -= 1;
    /* An empty queue begins at the front again: few of its pages are ever touched. */
    queue->first = queue->count > 0 ? (queue->first + 1) % queue->size : 0;
    e->control_due -= 1;
    return packet;
}

void wv_process(struct wv_engine *e) {
    struct wv_decision decision;
    for (uint32_t number = 0; number < e->batch_messages; number++) {
        const uint32_t length = e->in[number].msg_len, step = e->in_segment_bytes[number];
        uint32_t offset = 0;
        prefetch_ahead(e, number);
        do {
            const uint8_t *data = message_data(e, number) + offset;
            const uint32_t left = length - offset;
            const uint32_t bytes = step < left ? step : left;
            const enum wv_kind kind =
                wv_decide(&e->tables, data, bytes, &e->in_from[number], &e->now, &decision);
            if (kind == WV_KIND_FORWARD) {
                append(e, &decision.to, data, bytes);
                e->forwards = 1;
            } else if (kind != WV_KIND_DROP) {
                keep_control(e, &decision, data, bytes, &e->in_from[number]);
            }
            offset += bytes;
        } while (offset < length);
    }
    e->batch_messages = 0;
    flush(e);
}

/* -- The loop ---------------------------------------------------------------------------------- */

/* Work on what a socket has; whether it had anything.  `first` are the flags of the first receive. */
static int drain(struct wv_engine *e, uint32_t socket, int first) {
    for (int pass = 0; pass < PASSES; pass++) {
        const uint32_t count = receive(e, socket, pass == 0 ? first : MSG_DONTWAIT);
        if (count == 0) return pass > 0;
        wv_process(e);
        if (count < WV_RECEIVE_MESSAGES) return 1; /* that was all of it */
    }
    return 1;
}

/* Wait for a descriptor; with busy polling, ask again and again for a while first. */
static int wait_ready(struct wv_engine *e, uint64_t deadline_ns) {
    const nfds_t count = e->socket_count + (e->wake ? 1u : 0u);
    uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
    const uint64_t busy_ns = now_ns + e->busy_poll_us * UINT64_C(1000);
    while (now_ns < busy_ns && now_ns < deadline_ns) {
        const int ready = poll(e->polls, count, 0);
        if (ready != 0) return ready;
        now_ns = clock_ns(CLOCK_MONOTONIC);
    }
    const uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
    const struct timespec left = {.tv_sec = (time_t)(left_ns / NS_PER_S),
                                  .tv_nsec = (long)(left_ns % NS_PER_S)};
    return ppoll(e->polls, count, &left, NULL);
}

static int has_control(const struct wv_engine *e) { return e->known.count + e->strangers.count > 0; }

/* Serve every socket that is ready. */
static void serve_ready(struct wv_engine *e) {
    const uint32_t first = e->first_socket;
    for (uint32_t i = 0; i < e->socket_count; i++) {
        const uint32_t socket = (first + i) % e->socket_count;
        if (e->polls[socket].revents == 0) continue;
        e->flows = drain(e, socket, MSG_DONTWAIT) && e->alone && e->busy_poll_us == 0;
        e->first_socket = (socket + 1) % e->socket_count;
    }
}

/* While datagrams flow at a lone socket, the receive itself waits for the next one: without the poll,
 * a third system call of each pass (1 us of 7).  A lull ends that; the wake descriptor is seen then,
 * or when the run is over. */
static enum wv_run_result serve(struct wv_engine *e, int timeout_ms) {
    const uint64_t began_ns = clock_ns(CLOCK_MONOTONIC);
    const uint64_t deadline_ns = began_ns + (timeout_ms > 0 ? (uint64_t)timeout_ms : 0) * NS_PER_MS;
    const uint64_t turn_ns = began_ns + WV_CONTROL_EVERY_MS * NS_PER_MS;
    for (;;) {
        if (e->flows) {
            const int may_wait = timeout_ms > 0 && !has_control(e);
            e->flows = drain(e, 0, may_wait ? MSG_WAITFORONE : MSG_DONTWAIT);
            if (!e->flows && errno == EINTR) return WV_RUN_INTERRUPTED;
        } else {
            const int ready = wait_ready(e, has_control(e) ? 0 : deadline_ns);
            if (ready < 0) return errno == EINTR ? WV_RUN_INTERRUPTED : WV_RUN_FAILED;
            if (ready == 0) return WV_RUN_DONE;
            serve_ready(e);
            if (e->wake && e->polls[e->socket_count].revents != 0) return WV_RUN_WOKEN;
        }
        const uint64_t now_ns = clock_ns(CLOCK_MONOTONIC);
        if (now_ns >= deadline_ns || (has_control(e) && now_ns >= turn_ns)) return WV_RUN_DONE;
    }
}

enum wv_run_result wv_run(struct wv_engine *e, int timeout_ms) {
    e->forwards = 0;
    const enum wv_run_result result = serve(e, timeout_ms);
    e->control_due = e->forwards ? WV_CONTROL_BESIDE_MEDIA : WV_CONTROL_PACKETS;
    return result;
}
