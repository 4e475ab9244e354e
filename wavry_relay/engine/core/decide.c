/* See decide.h; the rules for shared words stand in tables.h. */
#define _GNU_SOURCE
#include "decide.h"
#include "cookie.h"
#include "allowances.h"
#include "tables.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <time.h>

#define OWNER_BITS 9u
#define OWNER_MASK ((1u << OWNER_BITS) - 1u)
#define GENERATION_MASK 0x7fu
#define SPINS 400u          /* some 10 us: longer than a decision under a lock */
#define NAP_NS 50000L       /* the owner was put aside by the scheduler */
#define NAPS_BETWEEN_QUESTIONS 64u
#define BUSY_MEMORY_NS (UINT64_C(1) * NS_PER_S)

_Static_assert(WV_MAX_WORKERS <= OWNER_MASK - 1u, "owner numbers must fit the lock word");
_Static_assert(sizeof(_Atomic uint16_t) == sizeof(uint16_t), "atomics must be the words themselves");

static inline uint64_t read_be64(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++) value = value << 8 | at[i];
    return value;
}

static inline uint32_t read_be32(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline uint32_t read_be16(const uint8_t *at) { return (uint32_t)at[0] << 8 | at[1]; }

static uint64_t monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

void wv_count(struct wv_tables *t, enum wv_counter counter, uint64_t amount) {
    uint64_t *word = &t->row[counter];
    store64(word, atomic_load_explicit((_Atomic uint64_t *)word, memory_order_relaxed) + amount);
}

void wv_count_drop(struct wv_tables *t, enum wv_counter reason, uint64_t datagrams, uint64_t bytes) {
    wv_count(t, reason, datagrams);
    wv_count(t, (enum wv_counter)(reason + WV_DROP_BYTES_AHEAD), bytes);
}

/* -- Opening ------------------------------------------------------------------------------- */

static int inside(uint64_t bytes, uint64_t offset, uint64_t size, uint64_t count) {
    return offset % 64 == 0 && offset <= bytes && size * count <= bytes - offset;
}

/* The buckets of a rate table are all there is between it and the next one. */
static int open_rates(struct wv_rates *rates, uint64_t bytes, uint64_t offset, uint64_t end) {
    if (offset >= end || !inside(bytes, offset, end - offset, 1)) return 0;
    rates->at = offset;
    rates->buckets = (end - offset) / sizeof(struct wv_rate_bucket);
    return rates->buckets != 0;
}

enum wv_open_error wv_open(struct wv_tables *t, void *base, uint64_t bytes, uint32_t worker,
                           uint32_t pid) {
    const struct wv_head *head = base;
    memset(t, 0, sizeof *t);
    if (bytes < sizeof *head || head->magic != WV_MAGIC_WORD) return WV_OPEN_NOT_A_SEGMENT;
    if (head->version != WV_LAYOUT_VERSION || head->counters != WV_COUNTER_COUNT)
        return WV_OPEN_OTHER_LAYOUT;
    if (head->workers == 0 || head->workers > WV_MAX_WORKERS || head->max_sessions == 0 ||
        head->index_slots == 0 || (head->index_slots & (head->index_slots - 1)) != 0 ||
        head->total_bytes > bytes)
        return WV_OPEN_BAD_GEOMETRY;
    if (!inside(bytes, head->at_control, sizeof *t->control, 1) ||
        !inside(bytes, head->at_shared, sizeof *t->shared, 1) ||
        !inside(bytes, head->at_workers, sizeof *t->workers, head->workers) ||
        !inside(bytes, head->at_counters, WV_COUNTER_ROW_BYTES, head->workers) ||
        !inside(bytes, head->at_index, sizeof *t->index, head->index_slots) ||
        !inside(bytes, head->at_sessions, sizeof *t->sessions, head->max_sessions) ||
        !inside(bytes, head->at_bitmap, sizeof *t->bitmap, (head->max_sessions + 63ul) / 64) ||
        !inside(bytes, head->at_used_leases, sizeof *t->used, head->used_slots) ||
        !inside(bytes, head->at_lease_origins, sizeof *t->origins, head->max_sessions) ||
        !inside(bytes, head->at_local_addresses, sizeof *t->locals, WV_LOCAL_ADDRESSES) ||
        !inside(bytes, head->at_shares, sizeof *t->shares, head->max_sessions) ||
        head->used_slots == 0 ||
        !open_rates(&t->hosts, bytes, head->at_ip_rates, head->at_identity_rates) ||
        !open_rates(&t->identities, bytes, head->at_identity_rates, head->at_network_rates) ||
        !open_rates(&t->networks, bytes, head->at_network_rates, head->at_strike_rates) ||
        head->at_bitmap < head->at_strike_rates)
        return WV_OPEN_BAD_GEOMETRY;
    if (worker >= head->workers) return WV_OPEN_NO_SUCH_WORKER;
    t->base = base;
    t->bytes = bytes;
    t->control = (struct wv_control *)(t->base + head->at_control);
    t->shared = (struct wv_shared *)(t->base + head->at_shared);
    t->workers = (struct wv_worker *)(t->base + head->at_workers);
    t->self = &t->workers[worker];
    t->row = (uint64_t *)(t->base + head->at_counters + (uint64_t)worker * WV_COUNTER_ROW_BYTES);
    t->index = (uint64_t *)(t->base + head->at_index);
    t->sessions = (struct wv_session *)(t->base + head->at_sessions);
    t->bitmap = (uint64_t *)(t->base + head->at_bitmap);
    t->used = (struct wv_used_lease *)(t->base + head->at_used_leases);
    t->origins = (struct wv_lease_origin *)(t->base + head->at_lease_origins);
    t->locals = (struct wv_local_address *)(t->base + head->at_local_addresses);
    t->shares = (struct wv_share_bucket *)(t->base + head->at_shares);
    t->used_slots = head->used_slots;
    t->index_mask = head->index_slots - 1u;
    t->hash_high = t->control->hash_key[0];
    t->hash_low = t->control->hash_key[1];
    wv_cookie_key(t->cookie_state, (const uint8_t *)t->control->cookie_key);
    t->boot_ns = head->boot_ns;
    t->at_ip_rates = head->at_ip_rates;
    t->rates_end = head->at_bitmap;
    t->max_sessions = head->max_sessions;
    t->worker_count = head->workers;
    wv_free_locks_of(t, worker);
    uint32_t generation =
        atomic_fetch_add_explicit((_Atomic uint32_t *)&t->self->generation, 1u, memory_order_acq_rel) +
        1u;
    atomic_store_explicit((_Atomic uint32_t *)&t->self->owner_pids[generation % 2], pid,
                          memory_order_release);
    t->lock_value = (uint16_t)((generation & GENERATION_MASK) << OWNER_BITS | (worker + 1u));
    return WV_OPEN_OK;
}

/* -- Locks --------------------------------------------------------------------------------- */

static inline void pause_cpu(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void *lock_place(struct wv_tables *t, enum wv_lock_kind kind, uint64_t which) {
    switch (kind) {
        case WV_LOCK_TABLE: return &t->shared->table_lock;
        case WV_LOCK_GLOBAL: return &t->shared->global_lock;
        case WV_LOCK_SESSION: return which < t->max_sessions ? &t->sessions[which].lock : NULL;
        case WV_LOCK_RATE:
            if (which < t->at_ip_rates || which % sizeof(struct wv_rate_bucket) != 0 ||
                which >= t->rates_end || t->rates_end - which < sizeof(struct wv_rate_bucket))
                return NULL;
            return &((struct wv_rate_bucket *)(t->base + which))->lock;
    }
    return NULL;
}

/* Says, before a lock is taken, which one a successor must free. */
static inline void note_intent(struct wv_tables *t, enum wv_lock_kind kind, uint64_t which) {
    if (kind == WV_LOCK_SESSION) store64(&t->self->holds_session, which + 1);
    if (kind == WV_LOCK_RATE) store64(&t->self->holds_rate, which);
}

static inline int swap_lock(_Atomic uint16_t *lock, uint16_t expected, uint16_t wanted) {
    /* Release as well: the intent must be visible before the lock is. */
    return atomic_compare_exchange_strong_explicit(lock, &expected, wanted, memory_order_acq_rel,
                                                   memory_order_relaxed);
}

/* Whether the process that a lock word names is gone.  Two openings of one worker number may live
 * side by side (a hot upgrade); a third means that the first is gone.  A system call, so not asked
 * at every look. */
static int is_orphan(const struct wv_tables *t, uint16_t value) {
    const uint32_t owner = value & OWNER_MASK;
    const uint32_t generation = (uint32_t)value >> OWNER_BITS;
    if (owner == 0 || owner > t->worker_count) return 1; /* nobody ever wrote that */
    const struct wv_worker *row = &t->workers[owner - 1];
    if (((load32(&row->generation) - generation) & GENERATION_MASK) > 1) return 1;
    const uint32_t pid = load32(&row->owner_pids[generation % 2]);
    return pid == 0 || (kill((pid_t)pid, 0) != 0 && errno == ESRCH);
}

static int wait_for_lock(struct wv_tables *t, _Atomic uint16_t *lock, uint64_t wait_ns) {
    uint16_t seen = 0;
    for (unsigned spin = 0; spin < SPINS; spin++) {
        seen = atomic_load_explicit(lock, memory_order_relaxed);
        if (seen == 0 && swap_lock(lock, 0, t->lock_value)) return 1;
        pause_cpu();
    }
    const uint64_t deadline_ns = monotonic_ns() + wait_ns;
    const struct timespec nap = {.tv_sec = 0, .tv_nsec = NAP_NS};
    for (unsigned naps = 0;; naps++) {
        seen = atomic_load_explicit(lock, memory_order_relaxed);
        if (seen == 0 || (naps % NAPS_BETWEEN_QUESTIONS == 0 && is_orphan(t, seen))) {
            if (swap_lock(lock, seen, t->lock_value)) return 1;
            continue;
        }
        if (monotonic_ns() >= deadline_ns)
            return is_orphan(t, seen) && swap_lock(lock, seen, t->lock_value);
        nanosleep(&nap, NULL);
    }
}

int wv_lock(struct wv_tables *t, enum wv_lock_kind kind, uint64_t which, uint64_t wait_ns) {
    _Atomic uint16_t *lock = lock_place(t, kind, which);
    if (lock == NULL) return -1;
    note_intent(t, kind, which);
    return swap_lock(lock, 0, t->lock_value) || wait_for_lock(t, lock, wait_ns);
}

void wv_unlock(struct wv_tables *t, enum wv_lock_kind kind, uint64_t which) {
    _Atomic uint16_t *lock = lock_place(t, kind, which);
    /* Only what is still ours: a lock that was taken over belongs to somebody else now. */
    if (lock != NULL && atomic_load_explicit(lock, memory_order_relaxed) == t->lock_value)
        atomic_store_explicit(lock, 0, memory_order_release);
}

static int free_orphan(const struct wv_tables *t, void *place, uint32_t worker) {
    _Atomic uint16_t *lock = place;
    if (lock == NULL) return 0;
    uint16_t seen = atomic_load_explicit(lock, memory_order_acquire);
    return (seen & OWNER_MASK) == worker + 1u && is_orphan(t, seen) && swap_lock(lock, seen, 0);
}

int wv_free_locks_of(struct wv_tables *t, uint32_t worker) {
    if (worker >= t->worker_count) return 0;
    uint64_t session = load64(&t->workers[worker].holds_session);
    uint64_t rate = load64(&t->workers[worker].holds_rate);
    int freed = free_orphan(t, lock_place(t, WV_LOCK_TABLE, 0), worker);
    freed += free_orphan(t, lock_place(t, WV_LOCK_GLOBAL, 0), worker);
    if (session != 0) freed += free_orphan(t, lock_place(t, WV_LOCK_SESSION, session - 1), worker);
    if (rate != 0) freed += free_orphan(t, lock_place(t, WV_LOCK_RATE, rate), worker);
    return freed;
}

/* The decision's own way to a session lock.  One stopped process must cost a session its packets,
 * not every worker 50 ms for each of them: after one time-out the lock is only tried for a while. */
int wv_lock_session(struct wv_tables *t, const struct wv_session *session) {
    const uint64_t record = (uint64_t)(session - t->sessions);
    _Atomic uint16_t *lock = (_Atomic uint16_t *)&t->sessions[record].lock;
    note_intent(t, WV_LOCK_SESSION, record);
    if (swap_lock(lock, 0, t->lock_value)) return 1;
    if (t->busy_record == record + 1) {
        uint64_t now_ns = monotonic_ns();
        if (now_ns < t->busy_until_ns) return wait_for_lock(t, lock, 0);
        t->busy_record = 0;
    }
    if (wait_for_lock(t, lock, WV_LOCK_WAIT_NS)) return 1;
    t->busy_record = record + 1;
    t->busy_until_ns = monotonic_ns() + BUSY_MEMORY_NS;
    return 0;
}

void wv_unlock_session(struct wv_tables *t, struct wv_session *session) {
    _Atomic uint16_t *lock = (_Atomic uint16_t *)&session->lock;
    if (atomic_load_explicit(lock, memory_order_relaxed) == t->lock_value)
        atomic_store_explicit(lock, 0, memory_order_release);
}

/* -- Sessions ------------------------------------------------------------------------------ */

static struct wv_session *record_of(const struct wv_tables *t, uint64_t word) {
    uint64_t number = (word & UINT32_MAX) - 1;
    return number < t->max_sessions ? &t->sessions[number] : NULL;
}

struct wv_session *wv_find_session(struct wv_tables *t, uint64_t high, uint64_t low) {
    if (t->last != NULL && holds(t->last, high, low)) return t->last;
    const uint64_t digest = hash_pair(t, high, low);
    const uint64_t tag = digest >> 32;
    for (uint64_t step = 0; step <= t->index_mask; step++) {
        uint64_t word = load64(&t->index[(digest + step) & t->index_mask]);
        if (word == WV_INDEX_EMPTY) return NULL;
        if (word >> 32 != tag || word == WV_INDEX_DELETED) continue;
        struct wv_session *session = record_of(t, word);
        if (session != NULL && holds(session, high, low)) return t->last = session;
    }
    return NULL;
}

void wv_prefetch_index(const struct wv_tables *t, const uint8_t *datagram, size_t bytes) {
    uint64_t id[2];
    if (bytes < WV_HEADER_BYTES) return;
    memcpy(id, datagram + WV_SESSION_ID_OFFSET, sizeof id);
    __builtin_prefetch(&t->index[hash_pair(t, id[0], id[1]) & t->index_mask]);
}

void wv_prefetch_record(const struct wv_tables *t, const uint8_t *datagram, size_t bytes) {
    uint64_t id[2];
    if (bytes < WV_HEADER_BYTES) return;
    memcpy(id, datagram + WV_SESSION_ID_OFFSET, sizeof id);
    uint64_t word = load64(&t->index[hash_pair(t, id[0], id[1]) & t->index_mask]);
    const struct wv_session *session = word == WV_INDEX_EMPTY ? NULL : record_of(t, word);
    if (session == NULL) return;
    for (size_t at = 0; at < sizeof *session; at += 64)
        __builtin_prefetch((const uint8_t *)session + at, 1);
}

/* -- Replay window (wavry_peer/protocol/replay.py) ------------------------------------------- */

/* WV_COUNT_DROP_..., or 0 for a fresh sequence (0 is no drop counter). */
static uint32_t window_check(const struct wv_slot *slot, uint64_t sequence) {
    const uint64_t head = slot->window_head;
    const uint64_t width = WV_WINDOW_WORDS * 64u;
    if (sequence >= head) {
        if (sequence == UINT64_MAX) return WV_COUNT_DROP_JUMP_TOO_FAR;
        if (head != 0 && sequence - head >= WV_REPLAY_MAX_JUMP) return WV_COUNT_DROP_JUMP_TOO_FAR;
        return 0;
    }
    if (head - sequence > width) return WV_COUNT_DROP_TOO_OLD;
    if (slot->window[sequence / 64 % WV_WINDOW_WORDS] >> sequence % 64 & 1)
        return WV_COUNT_DROP_DUPLICATE;
    return 0;
}

static void window_commit(struct wv_slot *slot, uint64_t sequence) {
    uint64_t start = slot->window_head;
    if (sequence >= start) {
        /* The head first: a crash before the bits are cleared then makes some fresh sequences look
         * like duplicates, and never a duplicate fresh. */
        store64(&slot->window_head, sequence + 1);
        if (sequence - start >= WV_WINDOW_WORDS * 64u) {
            for (unsigned i = 0; i < WV_WINDOW_WORDS; i++) slot->window[i] = 0;
        } else {
            while (start < sequence) {
                uint64_t low = start % 64;
                uint64_t count = 64 - low < sequence - start ? 64 - low : sequence - start;
                uint64_t ones = count == 64 ? UINT64_MAX : (UINT64_C(1) << count) - 1;
                slot->window[start / 64 % WV_WINDOW_WORDS] &= ~(ones << low);
                start += count;
            }
        }
    }
    slot->window[sequence / 64 % WV_WINDOW_WORDS] |= UINT64_C(1) << sequence % 64;
}

/* -- Rates (wavry_relay/shm/rate_limit.py) ------------------------------------------------------- */

static inline uint64_t cost_ns(uint64_t bytes, uint32_t kbps) { return bytes * WV_BYTE_KBPS_NS / kbps; }

/* A burst of the control block, which may change between two datagrams, in ns. */
static inline uint64_t burst_ns(const uint32_t *burst_ms) { return load32(burst_ms) * NS_PER_MS; }

static inline uint64_t bit_rate(uint64_t tat_ns, uint32_t kbps, uint64_t bytes, uint64_t now_ns,
                                uint64_t burst) {
    if (kbps == 0) return 0;
    return conforms(tat_ns, now_ns, burst, cost_ns(bytes, kbps));
}

/* Take a unit from a word that others change too; the word before and after it, or 0.  A worker
 * that was put aside with a batch in its hands has an old clock, and a word that others moved on
 * meanwhile would look far ahead: before it refuses, it asks for the time again. */
static int take_shared(const struct wv_tables *t, uint64_t *word, uint64_t now_ns, uint64_t burst,
                       uint64_t cost, uint64_t *before, uint64_t *after) {
    for (int asked = !t->live_clock;;) {
        *before = load64(word);
        *after = conforms(*before, now_ns, burst, cost);
        if (*after == 0) {
            if (asked) return 0;
            asked = 1;
            now_ns = monotonic_ns();
            continue;
        }
        if (swap64(word, *before, *after)) return 1;
        pause_cpu();
    }
}

/* -- Shares (wavry_relay/shm/rate_limit.py) ---------------------------------------------------------- */

/* How many identities sent in this second or the one before, whichever are more. */
static uint64_t share_users(struct wv_shared *shared, uint64_t second) {
    const uint64_t known = load64(&shared->share_second);
    if (known != second && swap64(&shared->share_second, known, second)) {
        store64(&shared->share_users_before, second - known == 1 ? load64(&shared->share_users) : 0);
        store64(&shared->share_users, 0);
    }
    const uint64_t users = load64(&shared->share_users), before = load64(&shared->share_users_before);
    return users > before ? users : before;
}

/* The word of an identity; NULL where three others of its bucket are sending. */
static uint64_t *share_word(struct wv_tables *t, uint64_t sub, uint32_t second) {
    struct wv_share_bucket *bucket = &t->shares[sub % t->max_sessions];
    unsigned way = 0;
    while (way < WV_SHARE_WAYS && load64(&bucket->subs[way]) != sub) way++;
    if (way == WV_SHARE_WAYS) {
        for (way = 0; way < WV_SHARE_WAYS; way++)
            if (second - load32(&bucket->seconds[way]) > 1) break;
        if (way == WV_SHARE_WAYS) return NULL;
        store64(&bucket->tats[way], 0);
        publish64(&bucket->subs[way], sub);
    }
    if (load32(&bucket->seconds[way]) != second) {
        atomic_store_explicit((_Atomic uint32_t *)&bucket->seconds[way], second, memory_order_relaxed);
        atomic_fetch_add_explicit((_Atomic uint64_t *)&t->shared->share_users, 1u, memory_order_relaxed);
    }
    return &bucket->tats[way];
}

/* From both global allowances or from none.  What was taken in vain is given back where nobody
 * else has moved the word in between; else it is lost: never more than the limit passes.  Where the
 * relay is short, whoever sent more than his share has half of the burst only. */
static int charge_global(struct wv_tables *t, uint64_t sub, uint64_t bytes, uint64_t now_ns) {
    const uint32_t kbps = load32(&t->control->global_kbps);
    const uint32_t pps = load32(&t->control->global_pps);
    if (kbps == 0 && pps == 0) return 1;
    struct wv_shared *shared = t->shared;
    const uint64_t bits_cost = kbps != 0 ? cost_ns(bytes, kbps) : 0;
    const uint64_t packet_cost = pps != 0 ? NS_PER_S / pps : 0;
    uint64_t burst = burst_ns(&t->control->global_burst_ms), share = 0, *word = NULL;
    const uint64_t short_ns = now_ns + burst / WV_SHORT_PART;
    if ((kbps != 0 && load64(&shared->global_bits_tat) > short_ns) ||
        (pps != 0 && load64(&shared->global_packets_tat) > short_ns)) {
        const uint64_t users = share_users(shared, now_ns / NS_PER_S);
        word = share_word(t, sub, (uint32_t)(now_ns / NS_PER_S));
        const uint64_t most = bits_cost > packet_cost ? bits_cost : packet_cost;
        if (word != NULL)
            share = conforms(load64(word), now_ns, burst, most * (users != 0 ? users : 1));
        if (word != NULL && share == 0) burst /= WV_HEAVY_PART;
    }
    uint64_t before = 0, after = 0, packets_before, packets_after;
    if (kbps != 0 &&
        !take_shared(t, &shared->global_bits_tat, now_ns, burst, bits_cost, &before, &after))
        return 0;
    if (pps == 0 || take_shared(t, &shared->global_packets_tat, now_ns, burst, packet_cost,
                                &packets_before, &packets_after)) {
        if (share != 0) store64(word, share);
        return 1;
    }
    if (kbps != 0) swap64(&shared->global_bits_tat, after, before);
    return 0;
}

static void count_soft(struct wv_tables *t, struct wv_slot *sender, uint64_t bytes, uint64_t now_ns) {
    const uint32_t kbps = sender->soft_kbps;
    if (kbps != 0) {
        const uint32_t burst_us = load32(&t->control->peer_burst_ms) * 1000u;
        const uint32_t now_us = (uint32_t)(now_ns / 1000u);
        const uint32_t ahead_us = sender->soft_tat_us - now_us;
        const int over = ahead_us > burst_us &&
                         ahead_us <= burst_us + cost_ns(WV_MAX_DATAGRAM_BYTES, kbps) / 1000u;
        if (!over) {
            uint32_t start_us = ahead_us <= burst_us ? sender->soft_tat_us : now_us;
            sender->soft_tat_us = start_us + (uint32_t)(cost_ns(bytes, kbps) / 1000u);
            return;
        }
    }
    wv_count(t, WV_COUNT_SOFT_LIMIT_PACKETS, 1);
    wv_count(t, WV_COUNT_SOFT_LIMIT_BYTES, bytes);
}

/* WV_COUNT_DROP_..., or 0 after all allowances were charged. */
static uint32_t charge(struct wv_tables *t, struct wv_session *session, struct wv_slot *sender,
                       uint64_t bytes, uint64_t now_ns) {
    const uint64_t peer_tat = bit_rate(sender->tat, sender->hard_kbps, bytes, now_ns,
                                       burst_ns(&t->control->peer_burst_ms));
    if (peer_tat == 0) return WV_COUNT_DROP_PEER_RATE;
    const uint32_t session_kbps = load32(&t->control->session_kbps);
    uint64_t session_tat = 0;
    if (session_kbps != 0) {
        session_tat = bit_rate(session->tat, session_kbps, bytes, now_ns,
                               burst_ns(&t->control->session_burst_ms));
        if (session_tat == 0) return WV_COUNT_DROP_SESSION_RATE;
    }
    if (!charge_global(t, sender->sub, bytes, now_ns)) return WV_COUNT_DROP_GLOBAL_RATE;
    sender->tat = peer_tat;
    if (session_tat != 0) session->tat = session_tat;
    count_soft(t, sender, bytes, now_ns);
    return 0;
}

/* -- Decision ------------------------------------------------------------------------------ */

static int is_stun(const uint8_t *datagram, size_t bytes) {
    return bytes >= WV_STUN_HEADER_BYTES && bytes <= WV_MAX_DATAGRAM_BYTES &&
           read_be16(datagram) == WV_STUN_BINDING_REQUEST &&
           read_be32(datagram + 4) == WV_STUN_COOKIE &&
           read_be16(datagram + 2) == bytes - WV_STUN_HEADER_BYTES && bytes % 4 == 0;
}
_Static_assert(WV_STUN_HEADER_BYTES % 4 == 0, "the length may be judged by the datagram's");

static int allowed_flags(uint8_t type) {
    switch (type) {
        case WV_TYPE_LEASE_PRESENT: return WV_FLAGS_LEASE_PRESENT;
        case WV_TYPE_LEASE_ACK: return WV_FLAGS_LEASE_ACK;
        case WV_TYPE_LEASE_REJECT: return WV_FLAGS_LEASE_REJECT;
        case WV_TYPE_LEASE_RENEW: return WV_FLAGS_LEASE_RENEW;
        case WV_TYPE_PATH_CHALLENGE: return WV_FLAGS_PATH_CHALLENGE;
        case WV_TYPE_NOTICE: return WV_FLAGS_NOTICE;
        case WV_TYPE_FORWARD: return WV_FLAGS_FORWARD;
        default: return -1;
    }
}

/* WV_COUNT_DROP_..., or 0 for a header that every later check may rely on. */
static uint32_t check_header(const uint8_t *datagram, size_t bytes) {
    if (bytes < WV_MIN_DATAGRAM_BYTES) return WV_COUNT_DROP_TOO_SHORT;
    if (bytes > WV_MAX_DATAGRAM_BYTES) return WV_COUNT_DROP_TOO_LONG;
    if (datagram[0] != WV_MAGIC) return WV_COUNT_DROP_BAD_MAGIC;
    if (datagram[1] != WV_VERSION) return WV_COUNT_DROP_BAD_VERSION;
    const int allowed = allowed_flags(datagram[2]);
    if (allowed < 0) return WV_COUNT_DROP_UNKNOWN_TYPE;
    if (datagram[3] & ~(unsigned)allowed) return WV_COUNT_DROP_UNKNOWN_FLAG;
    uint64_t id[2];
    memcpy(id, datagram + WV_SESSION_ID_OFFSET, sizeof id);
    if ((id[0] | id[1]) == 0) return WV_COUNT_DROP_NIL_SESSION;
    return 0;
}

static uint32_t rift_sequence(const uint8_t *body, size_t bytes, uint64_t *sequence) {
    if (bytes < WV_RIFT_TRANSPORT_MIN_BYTES) return WV_COUNT_DROP_BAD_RIFT;
    if (read_be16(body + 2) != WV_RIFT_VERSION) return WV_COUNT_DROP_BAD_RIFT;
    const int handshake = read_be32(body + 4) == 0 && bytes >= WV_RIFT_HANDSHAKE_MIN_BYTES;
    const size_t id_at = handshake ? WV_RIFT_HANDSHAKE_ID_OFFSET : WV_RIFT_TRANSPORT_ID_OFFSET;
    const size_t crc_at = id_at + sizeof *sequence;
    uint16_t crc = 0;
    for (size_t i = 0; i < crc_at; i++)
        crc = (uint16_t)(crc >> 8 ^ WV_CRC16[(crc ^ body[i]) & 0xff]);
    if (crc != read_be16(body + crc_at)) return WV_COUNT_DROP_BAD_CRC;
    *sequence = read_be64(body + id_at);
    return 0;
}

static uint32_t forward_sequence(const uint8_t *body, size_t bytes, uint64_t *sequence) {
    if (bytes >= 2 && read_be16(body) == WV_RIFT_MAGIC) return rift_sequence(body, bytes, sequence);
    if (bytes < WV_FORWARD_SEQUENCE_BYTES) return WV_COUNT_DROP_BAD_BODY;
    if (bytes > WV_FORWARD_SEQUENCE_BYTES + WV_MAX_FORWARD_PAYLOAD_BYTES)
        return WV_COUNT_DROP_BAD_BODY;
    *sequence = read_be64(body);
    return 0;
}

/* All conditions of forwarding, under the session's lock. */
static enum wv_kind decide_locked(struct wv_tables *t, struct wv_session *session, const uint64_t id[2],
                                  uint64_t sequence, size_t bytes, const struct wv_address *from,
                                  const struct wv_instant *now, struct wv_decision *decision) {
    struct wv_slot *client = (struct wv_slot *)session->client;
    struct wv_slot *server = (struct wv_slot *)session->server;
    struct wv_slot *sender, *receiver;
    if (!holds(session, id[0], id[1])) return decision->drop = WV_COUNT_DROP_UNKNOWN_SESSION, WV_KIND_DROP;
    if (is_at(client, from)) {
        sender = client, receiver = server;
    } else if (is_at(server, from)) {
        sender = server, receiver = client;
    } else {
        return WV_KIND_UNKNOWN_PATH;
    }
    if (session->state != WV_SESSION_ACTIVE)
        return decision->drop = WV_COUNT_DROP_NOT_ACTIVE, WV_KIND_DROP;
    if (now->wall_ms >= sender->expires_ms)
        return decision->drop = WV_COUNT_DROP_LEASE_EXPIRED, WV_KIND_DROP;
    if ((decision->drop = window_check(sender, sequence)) != 0) return WV_KIND_DROP;
    if (receiver->unproved != 0 && receiver->unproved <= bytes)
        return decision->drop = WV_COUNT_DROP_UNPROVED_PATH, WV_KIND_DROP;
    if ((decision->drop = charge(t, session, sender, bytes, now->mono_ns)) != 0) return WV_KIND_DROP;
    if (receiver->unproved != 0) receiver->unproved -= (uint32_t)bytes;
    credit(sender, bytes);
    window_commit(sender, sequence);
    sender->received_ms = stamp_ms(t, now->mono_ns);
    decision->to.high = receiver->address[0];
    decision->to.low = receiver->address[1];
    decision->to.endpoint = receiver->endpoint;
    return WV_KIND_FORWARD;
}

static enum wv_kind decide_forward(struct wv_tables *t, const uint8_t *datagram, size_t bytes,
                                   const struct wv_address *from, const struct wv_instant *now,
                                   struct wv_decision *decision) {
    uint64_t sequence = 0, id[2];
    decision->drop =
        forward_sequence(datagram + WV_HEADER_BYTES, bytes - WV_HEADER_BYTES, &sequence);
    if (decision->drop != 0) return WV_KIND_DROP;
    memcpy(id, datagram + WV_SESSION_ID_OFFSET, sizeof id);
    struct wv_session *session = wv_find_session(t, id[0], id[1]);
    if (session == NULL) return decision->drop = WV_COUNT_DROP_UNKNOWN_SESSION, WV_KIND_DROP;
    if (!wv_lock_session(t, session))
        return decision->drop = WV_COUNT_DROP_LOCK_BUSY, WV_KIND_DROP;
    enum wv_kind kind = decide_locked(t, session, id, sequence, bytes, from, now, decision);
    wv_unlock_session(t, session);
    return kind;
}

static enum wv_kind decide_any(struct wv_tables *t, const uint8_t *datagram, size_t bytes,
                               const struct wv_address *from, const struct wv_instant *now,
                               struct wv_decision *decision) {
    decision->drop = check_header(datagram, bytes);
    if (decision->drop != 0) return is_stun(datagram, bytes) ? WV_KIND_STUN : WV_KIND_DROP;
    switch (datagram[2]) {
        case WV_TYPE_FORWARD: return decide_forward(t, datagram, bytes, from, now, decision);
        case WV_TYPE_LEASE_PRESENT:
        case WV_TYPE_LEASE_RENEW: return WV_KIND_LEASE;
        default: decision->drop = WV_COUNT_DROP_WRONG_DIRECTION; return WV_KIND_DROP;
    }
}

/* Drop what is over an allowance before Python sees it. */
static void limit_control(struct wv_tables *t, const uint8_t *datagram, size_t bytes,
                          const struct wv_address *from, const struct wv_instant *now,
                          struct wv_decision *decision) {
    const uint32_t refused = wv_judge_source(t, decision->kind, datagram, bytes, from, now, decision);
    if (refused == 0) return;
    decision->kind = WV_KIND_DROP;
    decision->drop = refused;
    if (refused == WV_COUNT_DROP_LOCK_BUSY) return;
    wv_count(t, (enum wv_counter)refused, 1);
    wv_count(t, (enum wv_counter)(refused + WV_LIMITED_BYTES_AHEAD), bytes);
    decision->drop = WV_COUNT_DROP_IP_RATE;
}

enum wv_kind wv_decide(struct wv_tables *t, const uint8_t *datagram, size_t bytes,
                       const struct wv_address *from, const struct wv_instant *now,
                       struct wv_decision *decision) {
    decision->kind = decide_any(t, datagram, bytes, from, now, decision);
    if (decision->kind != WV_KIND_FORWARD && decision->kind != WV_KIND_DROP)
        limit_control(t, datagram, bytes, from, now, decision);
    if (decision->kind == WV_KIND_DROP) wv_count_drop(t, (enum wv_counter)decision->drop, 1, bytes);
    return decision->kind;
}
