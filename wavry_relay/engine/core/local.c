/* See local.h.  An entry is written once, under the table lock, `origin` last, and never changes. */
#define _GNU_SOURCE
#include "local.h"

#include <netinet/in.h>
#include <string.h>

#define ADD_WAIT_NS (UINT64_C(5) * NS_PER_MS)

_Static_assert(WV_FIRST_LOCAL + WV_LOCAL_ADDRESSES - 1 <= WV_LISTEN_MASK, "numbers must fit");
_Static_assert(CMSG_SPACE(sizeof(struct in6_pktinfo)) <= WV_LOCAL_CONTROL_SPACE, "must fit");
_Static_assert(CMSG_SPACE(sizeof(struct in_pktinfo)) <= WV_LOCAL_CONTROL_SPACE, "must fit");

static const uint8_t V4_PREFIX[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
static const uint8_t NOBODY[16];

/* The 16 bytes of the address, and the interface of a link-local one; 0 where nobody can send from
 * there. */
static int read_asked(const struct cmsghdr *asked, uint8_t bytes[16], uint32_t *scope) {
    *scope = 0;
    if (asked->cmsg_level == IPPROTO_IP && asked->cmsg_type == IP_PKTINFO &&
        asked->cmsg_len >= CMSG_LEN(sizeof(struct in_pktinfo))) {
        struct in_pktinfo info;
        memcpy(&info, CMSG_DATA(asked), sizeof info);
        /* Not filled in for what came before the socket was told to. */
        const struct in_addr *local = info.ipi_spec_dst.s_addr ? &info.ipi_spec_dst : &info.ipi_addr;
        memcpy(bytes, V4_PREFIX, sizeof V4_PREFIX);
        memcpy(bytes + 12, local, 4);
    } else if (asked->cmsg_level == IPPROTO_IPV6 && asked->cmsg_type == IPV6_PKTINFO &&
               asked->cmsg_len >= CMSG_LEN(sizeof(struct in6_pktinfo))) {
        struct in6_pktinfo info;
        memcpy(&info, CMSG_DATA(asked), sizeof info);
        memcpy(bytes, &info.ipi6_addr, 16);
        if (bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80) *scope = (uint32_t)info.ipi6_ifindex;
    } else {
        return 0;
    }
    if (memcmp(bytes, V4_PREFIX, sizeof V4_PREFIX) == 0) return bytes[12] > 0 && bytes[12] < 224;
    return bytes[0] != 0xff && memcmp(bytes, NOBODY, sizeof NOBODY) != 0;
}

/* The place of an entry, or the first free one, or the end. */
static uint32_t find(const struct wv_tables *t, const uint64_t words[2], uint64_t origin, int *is_free) {
    uint32_t place = 0;
    *is_free = 0;
    for (; place < WV_LOCAL_ADDRESSES; place++) {
        const struct wv_local_address *entry = &t->locals[place];
        const uint64_t held = load64(&entry->origin);
        if (held == 0) {
            *is_free = 1;
            break;
        }
        if (held == origin && entry->address[1] == words[1] && entry->address[0] == words[0]) break;
    }
    return place;
}

uint32_t wv_local_number(struct wv_tables *t, uint32_t listen, const struct cmsghdr *asked) {
    uint8_t bytes[16];
    uint64_t words[2];
    uint32_t scope;
    int is_free;
    if (!read_asked(asked, bytes, &scope)) return listen;
    memcpy(words, bytes, sizeof words);
    const uint64_t origin = (listen + 1u) | (uint64_t)scope << 32;
    uint32_t place = find(t, words, origin, &is_free);
    if (is_free) {
        if (wv_lock(t, WV_LOCK_TABLE, 0, ADD_WAIT_NS) != 1) return listen;
        place = find(t, words, origin, &is_free);
        if (is_free) {
            memcpy(t->locals[place].address, words, sizeof words);
            publish64(&t->locals[place].origin, origin);
        }
        wv_unlock(t, WV_LOCK_TABLE, 0);
    }
    return place < WV_LOCAL_ADDRESSES ? WV_FIRST_LOCAL + place : listen;
}

size_t wv_local_control(const struct wv_local_address *local, int family, struct cmsghdr *to) {
    const uint8_t *bytes = (const uint8_t *)local->address;
    if (family == AF_INET) {
        struct in_pktinfo info = {0};
        memcpy(&info.ipi_spec_dst, bytes + 12, 4);
        to->cmsg_level = IPPROTO_IP;
        to->cmsg_type = IP_PKTINFO;
        to->cmsg_len = CMSG_LEN(sizeof info);
        memcpy(CMSG_DATA(to), &info, sizeof info);
        return CMSG_SPACE(sizeof info);
    }
    struct in6_pktinfo info = {.ipi6_ifindex = (unsigned)(local->origin >> 32)};
    memcpy(&info.ipi6_addr, bytes, 16);
    to->cmsg_level = IPPROTO_IPV6;
    to->cmsg_type = IPV6_PKTINFO;
    to->cmsg_len = CMSG_LEN(sizeof info);
    memcpy(CMSG_DATA(to), &info, sizeof info);
    return CMSG_SPACE(sizeof info);
}
