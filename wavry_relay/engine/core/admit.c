/* See admit.h. */
#include "admit.h"
#include "cookie.h"
#include "tables.h"

#include <string.h>

/* -- Used leases (wavry_relay/shm/leases.py) ------------------------------------------------------ */

/* Whether nothing is remembered of an empty slot and no floor denies the lease; then `floor_s` is the
 * highest of them. */
static int is_unused(const struct wv_tables *t, const struct wv_lease *lease, uint32_t *floor_s) {
    const uint64_t slot = hash_pair(t, hash_pair(t, lease->id[0], lease->id[1]), lease->role + 1u);
    *floor_s = (uint32_t)t->shared->used_floor_s;
    for (uint64_t step = 0; step < t->used_slots; step++) {
        const struct wv_used_lease *entry = &t->used[(lease->sub + step) % t->used_slots];
        if (entry->tag == 0) break;
        if (entry->sub != lease->sub) continue;
        if (entry->tag == slot) return 0;
        if (entry->floor_s > *floor_s) *floor_s = entry->floor_s;
    }
    return lease->issued_s > *floor_s;
}

/* Whether a held slot may take a lease that is not its own: none that it denies. */
static int is_new(const struct wv_lease_origin *origin, const struct wv_lease *lease) {
    const uint32_t *denied = &origin->denied[lease->role * WV_LEASE_HISTORY];
    for (unsigned place = 0; place < WV_LEASE_HISTORY; place++)
        if (denied[place] == (uint32_t)lease->jti) return 0;
    return lease->issued_s > origin->floor_s[lease->role];
}

/* Deny the lease that a slot holds from now on. */
static void deny_held(struct wv_lease_origin *origin, unsigned role, const struct wv_slot *slot) {
    uint32_t *denied = &origin->denied[role * WV_LEASE_HISTORY];
    uint32_t *issued_s = &origin->denied_issued_s[role * WV_LEASE_HISTORY];
    const unsigned last = WV_LEASE_HISTORY - 1;
    if (issued_s[last] > origin->floor_s[role]) origin->floor_s[role] = issued_s[last];
    for (unsigned place = last; place > 0; place--) {
        denied[place] = denied[place - 1];
        issued_s[place] = issued_s[place - 1];
    }
    denied[0] = (uint32_t)slot->jti;
    issued_s[0] = origin->issued_s[role];
    if (slot->expires_ms > origin->until_ms[role]) origin->until_ms[role] = slot->expires_ms;
}

/* An empty slot of a session that goes on: of who held it before, nothing is left here. */
static void forget_denied(struct wv_lease_origin *origin, unsigned role, uint32_t floor_s) {
    memset(&origin->denied[role * WV_LEASE_HISTORY], 0, sizeof origin->denied / 2);
    memset(&origin->denied_issued_s[role * WV_LEASE_HISTORY], 0, sizeof origin->denied_issued_s / 2);
    origin->until_ms[role] = 0;
    origin->floor_s[role] = floor_s;
}

/* -- Slots (wavry_relay/admission/slots.py, shm/sessions.py) ----------------------------------------- */

/* A free record's number; max_sessions: all are taken. */
static uint64_t free_record(const struct wv_tables *t) {
    const uint64_t words = ((uint64_t)t->max_sessions + 63) / 64;
    const uint64_t hint = t->shared->allocation_hint % words;
    for (uint64_t step = 0; step < words; step++) {
        const uint64_t at = (hint + step) % words;
        const uint64_t taken = t->bitmap[at];
        if (taken == UINT64_MAX) continue;
        const uint64_t number = at * 64 + (uint64_t)__builtin_ctzll(~taken);
        if (number < t->max_sessions) return number;
    }
    return t->max_sessions;
}

/* Few records are left: then it is asked whose the others are.  Counts no further than it must. */
static int is_nearly_full(const struct wv_tables *t) {
    const uint64_t words = ((uint64_t)t->max_sessions + 63) / 64;
    const uint64_t hint = t->shared->allocation_hint % words;
    uint64_t free = 0;
    for (uint64_t step = 0; step < words; step++) {
        const uint64_t at = (hint + step) % words, left = t->max_sessions - at * 64;
        free += (left < 64 ? left : 64) - (uint64_t)__builtin_popcountll(t->bitmap[at]);
        if (free * (WV_SESSION_SHARE + 1u) > t->max_sessions) return 0;
    }
    return 1;
}

static void set_state(struct wv_session *session, uint8_t state) {
    atomic_store_explicit((_Atomic uint8_t *)&session->state, state, memory_order_release);
}

/* In the order bitmap, contents, state, index, which a sweep can repair. */
static struct wv_session *claim(struct wv_tables *t, const uint64_t id[2], uint64_t number,
                                uint64_t now_ns) {
    struct wv_session *session = &t->sessions[number];
    store64(&t->bitmap[number / 64], t->bitmap[number / 64] | UINT64_C(1) << number % 64);
    store64(&t->shared->allocation_hint, number / 64);
    memset(session->client, 0, sizeof session->client);
    memset(session->server, 0, sizeof session->server);
    memset(&t->origins[number], 0, sizeof t->origins[number]);
    store64(&session->id[0], id[0]);
    store64(&session->id[1], id[1]);
    session->tat = 0;
    session->created_ms = stamp_ms(t, now_ns);
    set_state(session, WV_SESSION_WAITING);
    const uint64_t digest = hash_pair(t, id[0], id[1]);
    for (uint64_t step = 0; step <= t->index_mask; step++) {
        uint64_t *word = &t->index[(digest + step) & t->index_mask];
        if (*word != WV_INDEX_EMPTY && *word != WV_INDEX_DELETED) continue;
        publish64(word, (digest >> 32) << 32 | (number + 1));
        break;
    }
    wv_count(t, WV_COUNT_SESSION_CREATED, 1);
    return session;
}

static struct wv_slot *slot_of(struct wv_session *session, unsigned role) {
    return (struct wv_slot *)(role != 0 ? session->server : session->client);
}

/* Presented → Accepted, or Active → Renewed, under the record's lock; `jti` goes last. */
static void accept_lease(struct wv_tables *t, struct wv_session *session, const struct wv_lease *lease,
                         const struct wv_address *from, uint32_t floor_s, uint64_t now_ns) {
    struct wv_slot *slot = slot_of(session, lease->role);
    struct wv_lease_origin *origin = &t->origins[session - t->sessions];
    const int taken = slot->jti != 0;
    const int active = session->state == WV_SESSION_ACTIVE;
    if (!lease->renews) {
        store64(&slot->window_head, 0);
        memset(slot->window, 0, sizeof slot->window);
    }
    if (taken)
        deny_held(origin, lease->role, slot);
    else
        forget_denied(origin, lease->role, floor_s);
    if (!taken) slot->unproved = 1;
    if (lease->proves) slot->unproved = 0;
    if (slot->unproved != 0) {
        credit(slot, lease->bytes);
        slot->unproved -= WV_ACK_BYTES + WV_CHALLENGE_BYTES;
    }
    slot->address[0] = from->high;
    slot->address[1] = from->low;
    slot->endpoint = from->endpoint;
    store64(&slot->expires_ms, lease->expires_ms);
    slot->soft_kbps = lease->soft_kbps;
    slot->hard_kbps = lease->hard_kbps;
    store64(&slot->sub, lease->sub);
    slot->cnf = lease->cnf;
    store64(&slot->mark, lease->mark);
    slot->received_ms = stamp_ms(t, now_ns);
    origin->kid[lease->role] = lease->kid;
    origin->issued_s[lease->role] = lease->issued_s;
    wv_count(t, taken && lease->renews ? WV_COUNT_LEASE_RENEWED : WV_COUNT_LEASE_ACCEPTED, 1);
    publish64(&slot->jti, lease->jti);
    if (taken) {
        wv_count(t, active ? WV_COUNT_TRANSITION_ACTIVE_RENEWED : WV_COUNT_TRANSITION_ACCEPTED_RENEWED, 1);
        wv_count(t, active ? WV_COUNT_TRANSITION_RENEWED_ACTIVE : WV_COUNT_TRANSITION_RENEWED_ACCEPTED, 1);
    } else {
        wv_count(t, WV_COUNT_TRANSITION_PRESENTED_ACCEPTED, 1);
    }
    if (!active && slot_of(session, 1u - lease->role)->jti != 0) {
        set_state(session, WV_SESSION_ACTIVE);
        wv_count(t, WV_COUNT_SESSION_ACTIVATED, 1);
        wv_count(t, WV_COUNT_TRANSITION_ACCEPTED_ACTIVE, 2);
    }
}

/* Whether a taken slot may take this lease without a question: its own peer renews from where it is. */
static int is_renewal(const struct wv_slot *slot, const struct wv_lease *lease,
                      const struct wv_address *from) {
    return slot->jti != lease->jti && slot->sub == lease->sub && slot->cnf == lease->cnf &&
           is_at(slot, from);
}

enum wv_answer wv_admit(struct wv_tables *t, const struct wv_lease *lease, const struct wv_address *from,
                       uint64_t now_ns) {
    const struct wv_control *control = t->control;
    if (load32(&control->log_level) <= WV_LOG_DEBUG) return WV_ANSWER_NO; /* each step is told there */
    struct wv_session *session = wv_find_session(t, lease->id[0], lease->id[1]);
    const struct wv_slot *held = session != NULL ? slot_of(session, lease->role) : NULL;
    if (held != NULL && held->jti != 0 && !is_renewal(held, lease, from)) return WV_ANSWER_NO;
    if (session == NULL &&
        (load32(&control->drain) != 0 || load32(&control->shedding) != 0 || is_nearly_full(t)))
        return WV_ANSWER_NO;
    uint32_t floor_s = 0;
    if (held != NULL && held->jti != 0 ? !is_new(&t->origins[session - t->sessions], lease)
                                       : !is_unused(t, lease, &floor_s))
        return WV_ANSWER_NO;
    const uint64_t number = session != NULL ? (uint64_t)(session - t->sessions) : free_record(t);
    if (number >= t->max_sessions) return WV_ANSWER_NO;
    const struct wv_limit limit =
        wv_limit_of(load32(&control->identity_per_s), load32(&control->identity_burst));
    const enum wv_answer allowed =
        wv_take(t, &t->identities, lease->sub, now_ns, limit, WV_LOCK_WAIT_NS);
    if (allowed != WV_ANSWER_YES) return allowed; /* who asks again is refused again */
    wv_count(t, WV_COUNT_TRANSITION_ISSUED_PRESENTED, 1);
    if (session == NULL) session = claim(t, lease->id, number, now_ns);
    if (wv_lock(t, WV_LOCK_SESSION, number, WV_LOCK_WAIT_NS) != 1) return WV_ANSWER_BUSY;
    accept_lease(t, session, lease, from, floor_s, now_ns);
    const int proved = slot_of(session, lease->role)->unproved == 0;
    wv_unlock(t, WV_LOCK_SESSION, number);
    return proved ? WV_ANSWER_YES : WV_ANSWER_UNPROVED;
}

static uint8_t *put_number(uint8_t *at, uint64_t value, unsigned bytes) {
    for (unsigned i = bytes; i-- > 0; value >>= 8) at[i] = (uint8_t)value;
    return at + bytes;
}

static void put_ack(const struct wv_lease *lease, const struct wv_address *from, uint8_t *at) {
    const uint8_t head[] = {WV_MAGIC, WV_VERSION, WV_TYPE_LEASE_ACK, WV_REFLEXIVE_FLAG};
    const int is_v4 = (from->endpoint >> WV_FAMILY_SHIFT & WV_FAMILY_MASK) == 4;
    memset(at, 0, WV_ACK_BYTES);
    memcpy(at, head, sizeof head);
    memcpy(at + WV_SESSION_ID_OFFSET, lease->id, sizeof lease->id);
    at = put_number(at + WV_HEADER_BYTES, lease->expires_ms, 8);
    at = put_number(at, lease->soft_kbps, 4);
    at = put_number(at, lease->hard_kbps, 4);
    at = put_number(at, is_v4 ? 4 : 6, 1);
    at = put_number(at, from->endpoint & 0xffff, 2);
    if (!is_v4) memcpy(at, &from->high, 8);
    memcpy(is_v4 ? at : at + 8, (const uint8_t *)&from->low + (is_v4 ? 4 : 0), is_v4 ? 4 : 8);
}

void wv_answer_lease(struct wv_tables *t, const struct wv_lease *lease, const struct wv_address *from,
                     uint64_t now_ns, enum wv_answer admitted, struct wv_admitted *answer) {
    put_ack(lease, from, answer->ack);
    wv_count(t, WV_COUNT_SENT_ACKS, 1);
    if (admitted != WV_ANSWER_UNPROVED) return;
    wv_put_challenge(t, (const uint8_t *)lease->id, from, now_ns, answer->challenge);
    wv_count(t, WV_COUNT_SENT_CHALLENGES, 1);
}
