/* A segment in plain memory for the C tests: what wavry_relay/shm/segment.py would make. */
#ifndef WAVRY_SEGMENT_SUPPORT_H
#define WAVRY_SEGMENT_SUPPORT_H

#include "fastpath.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                             \
    do {                                                                             \
        if (!(condition)) {                                                          \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);          \
            abort();                                                                 \
        }                                                                            \
    } while (0)

enum { TEST_WORKERS = 3, TEST_SESSIONS = 64, TEST_INDEX_SLOTS = 128, TEST_BUCKETS = 8 };
enum { TEST_PAGE = 4096, TEST_USED_SLOTS = 4 * TEST_SESSIONS };

static const struct wv_instant TEST_NOW = {.mono_ns = 10000000000000u, .wall_ms = 1800000000000u};
#define TEST_EXPIRES_MS (TEST_NOW.wall_ms + 300000u)

struct test_segment {
    uint8_t *base;
    uint64_t bytes;
};

static inline uint64_t test_place(uint64_t *at, uint64_t bytes) {
    const uint64_t place = *at;
    *at = (place + bytes + 63) / 64 * 64;
    return place;
}

static inline struct test_segment test_segment_new(void) {
    struct wv_head head = {.magic = WV_MAGIC_WORD,
                           .version = WV_LAYOUT_VERSION,
                           .workers = TEST_WORKERS,
                           .max_sessions = TEST_SESSIONS,
                           .index_slots = TEST_INDEX_SLOTS,
                           .used_slots = TEST_USED_SLOTS,
                           .counters = WV_COUNTER_COUNT,
                           .boot_ns = TEST_NOW.mono_ns - 5000000000u};
    uint64_t at = sizeof head;
    head.at_control = test_place(&at, sizeof(struct wv_control));
    head.at_shared = test_place(&at, sizeof(struct wv_shared));
    head.at_workers = test_place(&at, sizeof(struct wv_worker) * TEST_WORKERS);
    head.at_counters = test_place(&at, (uint64_t)WV_COUNTER_ROW_BYTES * TEST_WORKERS);
    head.at_ip_rates = test_place(&at, sizeof(struct wv_rate_bucket) * TEST_BUCKETS);
    head.at_identity_rates = test_place(&at, sizeof(struct wv_rate_bucket) * TEST_BUCKETS);
    head.at_network_rates = test_place(&at, sizeof(struct wv_rate_bucket) * TEST_BUCKETS);
    head.at_strike_rates = test_place(&at, sizeof(struct wv_rate_bucket) * TEST_BUCKETS);
    head.at_bitmap = test_place(&at, 8);
    head.at_index = test_place(&at, 8 * TEST_INDEX_SLOTS);
    head.at_used_leases = test_place(&at, sizeof(struct wv_used_lease) * TEST_USED_SLOTS);
    head.at_lease_origins = test_place(&at, sizeof(struct wv_lease_origin) * TEST_SESSIONS);
    head.at_local_addresses = test_place(&at, sizeof(struct wv_local_address) * WV_LOCAL_ADDRESSES);
    head.at_shares = test_place(&at, sizeof(struct wv_share_bucket) * TEST_SESSIONS);
    head.at_sessions = test_place(&at, sizeof(struct wv_session) * TEST_SESSIONS);
    head.total_bytes = (at + TEST_PAGE - 1) / TEST_PAGE * TEST_PAGE;
    struct test_segment made = {aligned_alloc(TEST_PAGE, head.total_bytes), head.total_bytes};
    CHECK(made.base != NULL);
    memset(made.base, 0, made.bytes);
    memcpy(made.base, &head, sizeof head);
    struct wv_control *control = (struct wv_control *)(made.base + head.at_control);
    control->hash_key[0] = UINT64_C(0x0123456789abcdef);
    control->hash_key[1] = UINT64_C(0xfedcba9876543210);
    control->peer_burst_ms = control->session_burst_ms = 250;
    control->global_burst_ms = 100;
    control->ip_per_s = control->ip_burst = 100000;
    return made;
}

static inline void test_id(unsigned number, uint8_t id[16]) { memset(id, (int)(0x11 + number), 16); }

static inline struct wv_address test_v4(unsigned last, unsigned port) {
    const uint8_t bytes[16] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, (uint8_t)last};
    struct wv_address made = {.endpoint = port | 4u << WV_FAMILY_SHIFT};
    memcpy(&made.high, bytes, 8);
    memcpy(&made.low, bytes + 8, 8);
    return made;
}

static inline struct wv_address test_v6(unsigned last, unsigned port, unsigned listen) {
    const uint8_t bytes[16] = {[15] = (uint8_t)last};
    struct wv_address made = {.endpoint = port | 6u << WV_FAMILY_SHIFT |
                                          (uint64_t)listen << WV_LISTEN_SHIFT};
    memcpy(&made.high, bytes, 8);
    memcpy(&made.low, bytes + 8, 8);
    return made;
}

/* The hash of Tags.pair, written down once more: an error in decide.c must not hide here. */
static inline uint64_t test_hash(const uint64_t id[2]) {
    __extension__ typedef unsigned __int128 wide;
    const wide product = (wide)(id[0] ^ UINT64_C(0x0123456789abcdef)) *
                         (id[1] ^ UINT64_C(0xfedcba9876543210));
    const uint64_t folded = (uint64_t)(product >> 64) ^ (uint64_t)product;
    return folded ? folded : 1;
}

static inline void test_fill_slot(struct wv_slot *slot, struct wv_address at, uint32_t cnf) {
    slot->address[0] = at.high;
    slot->address[1] = at.low;
    slot->endpoint = at.endpoint;
    slot->expires_ms = TEST_EXPIRES_MS;
    slot->jti = 1;
    slot->sub = 1;
    slot->cnf = cnf;
    slot->soft_kbps = 1000000;
    slot->hard_kbps = 1000000;
}

static inline struct wv_session *test_session(struct wv_tables *t, unsigned number,
                                              struct wv_address client, struct wv_address server) {
    struct wv_session *session = &t->sessions[number];
    uint8_t id[16];
    test_id(number, id);
    memcpy(session->id, id, 16);
    test_fill_slot((struct wv_slot *)session->client, client, 1);
    test_fill_slot((struct wv_slot *)session->server, server, 1);
    session->state = WV_SESSION_ACTIVE;
    const uint64_t digest = test_hash(session->id);
    for (uint64_t step = 0;; step++) {
        uint64_t *word = &t->index[(digest + step) & t->index_mask];
        if (*word != WV_INDEX_EMPTY) continue;
        *word = digest >> 32 << 32 | (number + 1);
        return session;
    }
}

static inline size_t test_forward(uint8_t *out, unsigned session, uint64_t sequence, size_t payload) {
    out[0] = WV_MAGIC, out[1] = WV_VERSION, out[2] = WV_TYPE_FORWARD, out[3] = 0;
    test_id(session, out + 4);
    for (int i = 0; i < 8; i++) out[20 + i] = (uint8_t)(sequence >> (56 - 8 * i));
    memset(out + 28, (int)(sequence & 0xff), payload);
    return 28 + payload;
}

#endif
