/* What the C files share: units of time, words that several processes look at, and the small rules over
 * them.  Everything is under one of three rules: a word that is written under a record's lock is
 * plain, a word that others read or write at the same time is atomic, and a counter has one
 * writer. */
#ifndef WAVRY_TABLES_H
#define WAVRY_TABLES_H

#include "decide.h"

#include <stdatomic.h>

__extension__ typedef unsigned __int128 wide;

#define NS_PER_MS UINT64_C(1000000)
#define NS_PER_S UINT64_C(1000000000)

_Static_assert(sizeof(_Atomic uint64_t) == sizeof(uint64_t), "atomics must be the words themselves");

static inline uint64_t load64(const uint64_t *word) {
    return atomic_load_explicit((const _Atomic uint64_t *)word, memory_order_acquire);
}

static inline void store64(uint64_t *word, uint64_t value) {
    atomic_store_explicit((_Atomic uint64_t *)word, value, memory_order_relaxed);
}

static inline int swap64(uint64_t *word, uint64_t expected, uint64_t wanted) {
    return atomic_compare_exchange_strong_explicit((_Atomic uint64_t *)word, &expected, wanted,
                                                   memory_order_acq_rel, memory_order_acquire);
}

static inline uint32_t load32(const uint32_t *word) {
    return atomic_load_explicit((const _Atomic uint32_t *)word, memory_order_acquire);
}

/* Says that what was written before it counts. */
static inline void publish64(uint64_t *word, uint64_t value) {
    atomic_store_explicit((_Atomic uint64_t *)word, value, memory_order_release);
}

static inline uint64_t hash_pair(const struct wv_tables *t, uint64_t high, uint64_t low) {
    wide product = (wide)(high ^ t->hash_high) * (low ^ t->hash_low);
    uint64_t folded = (uint64_t)(product >> 64) ^ (uint64_t)product;
    return folded ? folded : 1;
}

static inline int holds(const struct wv_session *session, uint64_t high, uint64_t low) {
    return load64(&session->id[1]) == low && load64(&session->id[0]) == high &&
           atomic_load_explicit((const _Atomic uint8_t *)&session->state, memory_order_acquire) !=
               WV_SESSION_FREE;
}

static inline int is_at(const struct wv_slot *slot, const struct wv_address *from) {
    return slot->address[1] == from->low && slot->endpoint == from->endpoint &&
           slot->address[0] == from->high && slot->jti != 0;
}

/* An address that is not proved gets at most three times what came from it (SlotRecord.credit). */
static inline void credit(struct wv_slot *slot, uint64_t bytes) {
    if (slot->unproved == 0) return;
    const uint64_t more = slot->unproved + WV_UNPROVED_FACTOR * bytes;
    slot->unproved = more < WV_UNPROVED_MOST ? (uint32_t)more : WV_UNPROVED_MOST;
}

static inline uint64_t conforms(uint64_t tat_ns, uint64_t now_ns, uint64_t burst_ns, uint64_t cost) {
    if (tat_ns > now_ns + burst_ns) return 0;
    return (tat_ns > now_ns ? tat_ns : now_ns) + cost;
}

/* The stamp of Segment.milliseconds: rounded down, modulo 2^32. */
static inline uint32_t stamp_ms(const struct wv_tables *t, uint64_t now_ns) {
    const int64_t elapsed_ns = (int64_t)(now_ns - t->boot_ns);
    int64_t ms = elapsed_ns / (int64_t)NS_PER_MS;
    if (elapsed_ns % (int64_t)NS_PER_MS < 0) ms -= 1;
    return (uint32_t)ms;
}

#endif
