/* See allowances.h. */
#include "allowances.h"
#include "cookie.h"
#include "rates.h"
#include "tables.h"

#include <string.h>

/* The words of Address.host_key and Address.network_key. */
struct place {
    uint64_t host, network, family;
};

static struct place place_of(const struct wv_address *from) {
    static const uint8_t v4_prefix[12] = {[10] = 0xff, [11] = 0xff};
    uint8_t bytes[16];
    memcpy(bytes, &from->high, 8);
    memcpy(bytes + 8, &from->low, 8);
    struct place place = {.host = from->high, .family = 6};
    if (memcmp(bytes, v4_prefix, sizeof v4_prefix) == 0) { /* at an IPv6 socket too */
        place.host = from->low;
        place.family = 4;
        memset(bytes + 8, 0, 4);
        bytes[15] = 0;
        memcpy(&place.network, bytes + 8, 8);
    } else {
        bytes[6] = bytes[7] = 0;
        memcpy(&place.network, bytes, 8);
    }
    return place;
}

static uint64_t key_of(const struct wv_tables *t, uint64_t word, uint64_t family, uint64_t purpose) {
    return hash_pair(t, word, family << 8 | purpose);
}

static uint32_t take_host(struct wv_tables *t, const struct place *place, uint64_t purpose,
                          uint64_t now_ns) {
    const struct wv_limit limit =
        wv_limit_of(load32(&t->control->ip_per_s), load32(&t->control->ip_burst));
    const uint64_t key = key_of(t, place->host, place->family, purpose);
    switch (wv_take(t, &t->hosts, key, now_ns, limit, 0)) {
        case WV_ANSWER_YES: return 0;
        case WV_ANSWER_NO: return WV_COUNT_LIMITED_HOST;
        default: return WV_COUNT_DROP_LOCK_BUSY;
    }
}

static uint32_t take_port(struct wv_tables *t, const struct wv_address *from, uint64_t purpose,
                          uint64_t now_ns) {
    const struct place place = place_of(from);
    const uint64_t port = from->endpoint & UINT16_MAX;
    return take_host(t, &place, port << WV_PURPOSE_PORT_SHIFT | purpose, now_ns);
}

static struct wv_limit network_limit(const struct wv_control *control) {
    const uint64_t per_s = load32(&control->network_per_s), burst = load32(&control->network_burst);
    const uint64_t factor = WV_NETWORK_FACTOR;
    return wv_limit_of(per_s != 0 ? per_s : factor * load32(&control->ip_per_s),
                       burst != 0 ? burst : factor * load32(&control->ip_burst));
}

/* The network first: many addresses of one that is used up do not reach the table of hosts. */
static uint32_t take_source(struct wv_tables *t, const struct wv_address *from, uint64_t purpose,
                            uint64_t now_ns) {
    const struct place place = place_of(from);
    const struct wv_limit limit = network_limit(t->control);
    const uint64_t key = key_of(t, place.network, place.family, purpose);
    switch (wv_take(t, &t->networks, key, now_ns, limit, 0)) {
        case WV_ANSWER_YES: break;
        case WV_ANSWER_NO: return WV_COUNT_LIMITED_NETWORK;
        default: return WV_COUNT_DROP_LOCK_BUSY;
    }
    const uint32_t refused = take_host(t, &place, purpose, now_ns);
    if (refused != 0) wv_give_back(t, &t->networks, key, now_ns, limit);
    return refused;
}

/* 1 where a live slot of the session is at this address and port, -1 where its lock is not free. */
static int is_slot(struct wv_tables *t, const uint8_t *datagram, const struct wv_address *from) {
    uint64_t id[2];
    memcpy(id, datagram + WV_SESSION_ID_OFFSET, sizeof id);
    struct wv_session *session = wv_find_session(t, id[0], id[1]);
    if (session == NULL) return 0;
    if (!wv_lock_session(t, session)) return -1;
    const int found = holds(session, id[0], id[1]) &&
                      (is_at((const struct wv_slot *)session->client, from) ||
                       is_at((const struct wv_slot *)session->server, from));
    wv_unlock_session(t, session);
    return found;
}

static uint32_t judge_lease(struct wv_tables *t, const uint8_t *datagram, size_t bytes,
                            const struct wv_address *from, const struct wv_instant *now,
                            struct wv_decision *decision) {
    uint32_t proved_refused = 0;
    if (wv_has_cookie(t, datagram, bytes, from, now->mono_ns)) {
        proved_refused = take_source(t, from, WV_PURPOSE_PROVED, now->mono_ns);
        if (proved_refused == 0) {
            decision->sender = WV_SENDER_PROVED;
            return 0;
        }
    }
    const int slot = is_slot(t, datagram, from);
    if (slot < 0) return WV_COUNT_DROP_LOCK_BUSY;
    if (slot) {
        decision->sender = WV_SENDER_SLOT;
        const uint32_t refused = take_port(t, from, WV_PURPOSE_SLOT, now->mono_ns);
        return refused == WV_COUNT_LIMITED_HOST ? WV_COUNT_LIMITED_SLOT : refused;
    }
    if (proved_refused != 0) return proved_refused;
    return take_source(t, from, WV_PURPOSE_STRANGER, now->mono_ns);
}

uint32_t wv_judge_source(struct wv_tables *t, enum wv_kind kind, const uint8_t *datagram,
                         size_t bytes, const struct wv_address *from, const struct wv_instant *now,
                         struct wv_decision *decision) {
    decision->sender = WV_SENDER_STRANGER;
    if (kind == WV_KIND_LEASE) return judge_lease(t, datagram, bytes, from, now, decision);
    if (kind == WV_KIND_STUN) return take_source(t, from, WV_PURPOSE_STUN, now->mono_ns);
    return take_port(t, from, WV_PURPOSE_PATH, now->mono_ns);
}
