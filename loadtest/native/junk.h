/* Junk of every kind, beside the media of the generator's paced load: what anybody can send at a
 * relay's port without a lease.  One thread sends both, so that no second process takes the core of
 * what is measured; a batch holds the media up by some 20 us.  IP_PKTINFO names the source: all of
 * 127/8 is this host's, so one socket stands for one stranger or for sixteen million. */
#ifndef WAVRY_LOADTEST_JUNK_H
#define WAVRY_LOADTEST_JUNK_H

#include "sockets.h"

#include <stdbool.h>

enum {
    JUNK_BATCH = 16,
    JUNK_BYTES = 1600,
    JUNK_HEADER_BYTES = 20,
    JUNK_LEASE_BYTES = 400, /* header, role, token, proof: as a real one */
    JUNK_PROOF_BYTES = 80,
    JUNK_ONE_SOURCE = 0x7f420001 /* 127.66.0.1 */
};

enum junk_kind {
    JUNK_NOISE,
    JUNK_EMPTY,
    JUNK_TOO_LONG,
    JUNK_BAD_VERSION,
    JUNK_UNKNOWN_TYPE,
    JUNK_WRONG_DIRECTION,
    JUNK_UNKNOWN_SESSION, /* FORWARD */
    JUNK_LIVE_SESSION,    /* FORWARD from elsewhere */
    JUNK_BAD_RIFT,
    JUNK_PRESENT,
    JUNK_PRESENT_COOKIE, /* of nobody */
    JUNK_RENEW,          /* of a live session */
    JUNK_KEEPALIVE,
    JUNK_STUN,
    JUNK_KINDS
};

static struct {
    int fd;
    bool many;
    uint64_t every_ns, next_at, state, sent;
    struct sockaddr_in target;
} junk;

static uint64_t junk_random(void) { /* xorshift64* */
    junk.state ^= junk.state >> 12, junk.state ^= junk.state << 25, junk.state ^= junk.state >> 27;
    return junk.state * UINT64_C(2685821657736338717);
}

static size_t junk_packet(uint8_t *at, uint8_t type, uint8_t flags, const uint8_t *id, size_t bytes) {
    /* No check looks further, but that of a proof's cookie. */
    for (size_t i = 0; i < (bytes < 64 ? bytes : 64); i += 8) {
        const uint64_t word = junk_random();
        memcpy(at + i, &word, sizeof word);
    }
    at[0] = 0x57, at[1] = 0x01, at[2] = type, at[3] = flags;
    if (id != NULL) memcpy(at + 4, id, 16);
    return bytes;
}

/* One datagram; `id` is that of a live session. */
static size_t junk_datagram(uint8_t *at, enum junk_kind kind, const uint8_t *id) {
    size_t bytes;
    switch (kind) {
    case JUNK_EMPTY: return 0;
    case JUNK_TOO_LONG: return junk_packet(at, 0x10, 0, id, 1501);
    case JUNK_BAD_VERSION: bytes = junk_packet(at, 0x10, 0, id, 200); at[1] = 2; return bytes;
    case JUNK_UNKNOWN_TYPE: return junk_packet(at, 0x7f, 0, id, 200);
    case JUNK_WRONG_DIRECTION: return junk_packet(at, 0x02, 0, id, 36);
    case JUNK_UNKNOWN_SESSION: return junk_packet(at, 0x10, 0, NULL, 1200);
    case JUNK_LIVE_SESSION: return junk_packet(at, 0x10, 0, id, 200);
    case JUNK_BAD_RIFT:
        bytes = junk_packet(at, 0x10, 0, id, 200);
        memcpy(at + JUNK_HEADER_BYTES, "RI\0\1", 4);
        return bytes;
    case JUNK_PRESENT:
    case JUNK_PRESENT_COOKIE:
        bytes = junk_packet(at, 0x01, 1, NULL, JUNK_LEASE_BYTES);
        at[JUNK_HEADER_BYTES] = 0;
        const size_t token = bytes - JUNK_HEADER_BYTES - 3 - JUNK_PROOF_BYTES;
        at[JUNK_HEADER_BYTES + 1] = (uint8_t)(token >> 8), at[JUNK_HEADER_BYTES + 2] = (uint8_t)token;
        const uint64_t cookie = kind == JUNK_PRESENT ? 0 : junk_random();
        memcpy(at + bytes - JUNK_PROOF_BYTES + 8, &cookie, sizeof cookie);
        return bytes;
    case JUNK_RENEW: return junk_packet(at, 0x04, 1, id, JUNK_LEASE_BYTES);
    case JUNK_KEEPALIVE: return junk_packet(at, 0x04, 0, id, JUNK_HEADER_BYTES);
    case JUNK_STUN:
        junk_packet(at, 0, 0, NULL, JUNK_HEADER_BYTES);
        memcpy(at, "\0\1\0\0\x21\x12\xa4\x42", 8);
        return JUNK_HEADER_BYTES;
    default:
        bytes = junk_packet(at, 0, 0, NULL, 60) + junk_random() % 60;
        at[0] ^= 0x80; /* an empty STUN request is another kind */
        return bytes;
    }
}

static void junk_open(struct sockaddr_in target, uint64_t per_s, bool many) {
    junk.fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in any = {.sin_family = AF_INET};
    int bytes = 4 << 20;
    if (junk.fd < 0 || bind(junk.fd, (struct sockaddr *)&any, sizeof any) != 0) die("junk socket");
    setsockopt(junk.fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    bytes = 4096; /* answers are thrown away */
    setsockopt(junk.fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes);
    junk.target = target;
    junk.many = many;
    junk.every_ns = JUNK_BATCH * UINT64_C(1000000000) / per_s;
    junk.state = now_ns() | 1;
}

/* A batch where one is due; what is late is made up for, unless it is more than 10 ms. */
static void junk_send(uint64_t now, const uint8_t *live_id) {
    static uint8_t packets[JUNK_BATCH][JUNK_BYTES];
    static struct mmsghdr messages[JUNK_BATCH];
    static struct iovec vectors[JUNK_BATCH];
    static union {
        char bytes[CMSG_SPACE(sizeof(struct in_pktinfo))];
        struct cmsghdr align;
    } control[JUNK_BATCH];
    if (junk.every_ns == 0 || now < junk.next_at) return;
    junk.next_at = now > junk.next_at + 10000000u ? now + junk.every_ns : junk.next_at + junk.every_ns;
    for (unsigned i = 0; i < JUNK_BATCH; i++) {
        const enum junk_kind kind = (enum junk_kind)((junk.sent + i) % JUNK_KINDS);
        vectors[i] = (struct iovec){packets[i], junk_datagram(packets[i], kind, live_id)};
        messages[i].msg_hdr = (struct msghdr){.msg_name = &junk.target,
                                              .msg_namelen = sizeof junk.target,
                                              .msg_iov = &vectors[i],
                                              .msg_iovlen = 1,
                                              .msg_control = &control[i],
                                              .msg_controllen = sizeof control[i]};
        const uint32_t source = junk.many ? 0x7f000100u + (uint32_t)(junk_random() % 0xfffe00u) : JUNK_ONE_SOURCE;
        struct cmsghdr *header = CMSG_FIRSTHDR(&messages[i].msg_hdr);
        const struct in_pktinfo from = {.ipi_spec_dst = {htonl(source)}};
        header->cmsg_level = IPPROTO_IP;
        header->cmsg_type = IP_PKTINFO;
        header->cmsg_len = CMSG_LEN(sizeof from);
        memcpy(CMSG_DATA(header), &from, sizeof from);
    }
    const int went = sendmmsg(junk.fd, messages, JUNK_BATCH, MSG_DONTWAIT);
    if (went > 0) junk.sent += (uint64_t)went;
}

#endif
