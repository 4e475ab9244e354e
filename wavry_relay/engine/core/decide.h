/* The decision of the native engine: one datagram against the shared tables.
 *
 * The same checks in the same order, with the same effects, as wavry_relay/engine/reference.py.
 * No allocation, no Python, no system call but the waiting for a lock that is held elsewhere.
 */
#ifndef WAVRY_DECIDE_H
#define WAVRY_DECIDE_H

#include "layout.h"

/* What happens to a datagram; the middle three are base.ControlKind. */
enum wv_kind {
    WV_KIND_DROP = 0,
    WV_KIND_LEASE = WV_CONTROL_LEASE,
    WV_KIND_STUN = WV_CONTROL_STUN,
    WV_KIND_UNKNOWN_PATH = WV_CONTROL_UNKNOWN_PATH,
    WV_KIND_FORWARD,
};

/* The three words of wavry_relay/shm/address.py. */
struct wv_address {
    uint64_t high;
    uint64_t low;
    uint64_t endpoint;
};

/* One moment: CLOCK_MONOTONIC in ns, unix time in ms. */
struct wv_instant {
    uint64_t mono_ns;
    uint64_t wall_ms;
};

/* What is known of the sender of a control packet; base.SenderClass. */
enum wv_sender {
    WV_SENDER_STRANGER = WV_SOURCE_STRANGER,
    WV_SENDER_PROVED = WV_SOURCE_PROVED,
    WV_SENDER_SLOT = WV_SOURCE_SLOT,
};

struct wv_decision {
    enum wv_kind kind;
    enum wv_sender sender; /* of a control packet */
    uint32_t drop;        /* enum wv_counter, if kind is WV_KIND_DROP */
    struct wv_address to; /* if kind is WV_KIND_FORWARD */
};

/* Where a rate table begins, and how many buckets it has. */
struct wv_rates {
    uint64_t at;
    uint64_t buckets;
};

/* One worker's view of a segment. */
struct wv_tables {
    uint8_t *base;
    uint64_t bytes;
    struct wv_control *control;
    struct wv_shared *shared;
    struct wv_worker *workers;
    struct wv_worker *self;
    uint64_t *row; /* counters of this worker */
    uint64_t *index;
    struct wv_session *sessions;
    uint64_t *bitmap;
    struct wv_used_lease *used;
    struct wv_lease_origin *origins;
    struct wv_local_address *locals;
    struct wv_share_bucket *shares;
    struct wv_rates hosts, identities, networks;
    uint64_t cookie_state[8];
    uint32_t used_slots;
    uint64_t index_mask;
    uint64_t hash_high, hash_low;
    uint64_t boot_ns;
    uint64_t at_ip_rates, rates_end;
    uint32_t max_sessions;
    uint32_t worker_count;
    uint16_t lock_value; /* of this worker and generation */
    struct wv_session *last; /* found last; looked at first */
    uint64_t busy_record;    /* record + 1 whose lock timed out, */
    uint64_t busy_until_ns;  /* and until when nobody waits for it again */
    int live_clock;          /* instants come from the real clock, so it may be asked again */
};

enum wv_open_error {
    WV_OPEN_OK = 0,
    WV_OPEN_NOT_A_SEGMENT = 1,
    WV_OPEN_OTHER_LAYOUT = 2,
    WV_OPEN_BAD_GEOMETRY = 3,
    WV_OPEN_NO_SUCH_WORKER = 4,
};

/* Look at a mapped segment as worker number `worker` of process `pid`.  Starts a new generation of
 * that worker and frees what its dead predecessor held. */
enum wv_open_error wv_open(struct wv_tables *tables, void *base, uint64_t bytes, uint32_t worker,
                           uint32_t pid);

enum wv_kind wv_decide(struct wv_tables *tables, const uint8_t *datagram, size_t bytes,
                       const struct wv_address *from, const struct wv_instant *now,
                       struct wv_decision *decision);

/* The record of a session id, or NULL.  It may be gone before the caller has its lock. */
struct wv_session *wv_find_session(struct wv_tables *tables, uint64_t high, uint64_t low);

/* The decision's own way to a session's lock; 0 where a stopped process holds it. */
int wv_lock_session(struct wv_tables *tables, const struct wv_session *session);
void wv_unlock_session(struct wv_tables *tables, struct wv_session *session);

/* Bring into the cache what a decision about this datagram will need: first the index word, later
 * the record.  Hints only: any bytes are allowed. */
void wv_prefetch_index(const struct wv_tables *tables, const uint8_t *datagram, size_t bytes);
void wv_prefetch_record(const struct wv_tables *tables, const uint8_t *datagram, size_t bytes);

void wv_count(struct wv_tables *tables, enum wv_counter counter, uint64_t amount);

/* Count dropped datagrams, `reason` being WV_COUNT_DROP_..., and the bytes of all of them. */
void wv_count_drop(struct wv_tables *tables, enum wv_counter reason, uint64_t datagrams, uint64_t bytes);

/* Locks that outlive nobody.  A lock word names its owner (worker and generation); whoever meets
 * one of a dead owner takes it over.  Order: table, session, one rate bucket. */
enum wv_lock_kind { WV_LOCK_TABLE = 0, WV_LOCK_SESSION = 1, WV_LOCK_RATE = 2, WV_LOCK_GLOBAL = 3 };

/* `which` is the record number or the bucket's offset.  Returns 1, 0 when a living owner did not
 * give the lock back in `wait_ns`, -1 when there is no such lock. */
int wv_lock(struct wv_tables *tables, enum wv_lock_kind kind, uint64_t which, uint64_t wait_ns);
void wv_unlock(struct wv_tables *tables, enum wv_lock_kind kind, uint64_t which);

/* Free what a worker held if its process is gone; the number of locks that were freed. */
int wv_free_locks_of(struct wv_tables *tables, uint32_t worker);

#endif
