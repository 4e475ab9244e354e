/* See rates.h. */
#include "rates.h"
#include "tables.h"

struct wv_limit wv_limit_of(uint64_t per_s, uint64_t burst) {
    const uint64_t cost = NS_PER_S / (per_s != 0 ? per_s : 1);
    const wide ahead = (wide)(burst != 0 ? burst - 1 : 0) * cost;
    return (struct wv_limit){cost, ahead < INT64_MAX ? (uint64_t)ahead : (uint64_t)INT64_MAX};
}

/* A word of a slower limit comes as near as this one would have let it. */
static void bound(uint64_t *tat, uint64_t now_ns, struct wv_limit limit) {
    const uint64_t full_ns = now_ns + limit.burst_ns;
    if (load64(tat) > full_ns + limit.cost_ns) store64(tat, full_ns);
}

static int take_word(uint64_t *tat, uint64_t now_ns, struct wv_limit limit, uint64_t cost_ns) {
    bound(tat, now_ns, limit);
    const uint64_t tat_ns = conforms(load64(tat), now_ns, limit.burst_ns, cost_ns);
    if (tat_ns != 0) store64(tat, tat_ns);
    return tat_ns != 0;
}

static uint64_t *find_key(struct wv_rate_bucket *bucket, uint64_t key) {
    for (unsigned way = 0; way < WV_RATE_WAYS; way++)
        if (load64(&bucket->tags[way]) == key) return &bucket->tats[way];
    return NULL;
}

static int take_unit(struct wv_rate_bucket *bucket, uint64_t key, uint64_t now_ns,
                     struct wv_limit limit) {
    uint64_t *tat = find_key(bucket, key);
    for (unsigned way = 0; way < WV_RATE_WAYS && tat == NULL; way++) {
        bound(&bucket->tats[way], now_ns, limit);
        if (load64(&bucket->tats[way]) > now_ns) continue;
        /* The word is reset first: a crash in between leaves a free place, never a debt. */
        store64(&bucket->tats[way], 0);
        publish64(&bucket->tags[way], key);
        tat = &bucket->tats[way];
    }
    if (tat == NULL)
        return take_word(&bucket->overflow_tat, now_ns, limit,
                         limit.cost_ns / WV_RATE_OVERFLOW_FACTOR);
    return take_word(tat, now_ns, limit, limit.cost_ns);
}

static struct wv_rate_bucket *bucket_of(const struct wv_tables *t, const struct wv_rates *rates,
                                        uint64_t key) {
    return (struct wv_rate_bucket *)(t->base + rates->at) + key % rates->buckets;
}

enum wv_answer wv_take(struct wv_tables *t, const struct wv_rates *rates, uint64_t key,
                       uint64_t now_ns, struct wv_limit limit, uint64_t wait_ns) {
    struct wv_rate_bucket *bucket = bucket_of(t, rates, key);
    const uint64_t which = (uint64_t)((uint8_t *)bucket - t->base);
    if (wv_lock(t, WV_LOCK_RATE, which, wait_ns) != 1) return WV_ANSWER_BUSY;
    const int taken = take_unit(bucket, key, now_ns, limit);
    wv_unlock(t, WV_LOCK_RATE, which);
    return taken ? WV_ANSWER_YES : WV_ANSWER_NO;
}

void wv_give_back(struct wv_tables *t, const struct wv_rates *rates, uint64_t key, uint64_t now_ns,
                  struct wv_limit limit) {
    struct wv_rate_bucket *bucket = bucket_of(t, rates, key);
    const uint64_t which = (uint64_t)((uint8_t *)bucket - t->base);
    if (wv_lock(t, WV_LOCK_RATE, which, 0) != 1) return;
    uint64_t *tat = find_key(bucket, key);
    const uint64_t unit_ns = tat != NULL ? limit.cost_ns : limit.cost_ns / WV_RATE_OVERFLOW_FACTOR;
    if (tat == NULL) tat = &bucket->overflow_tat;
    if (load64(tat) >= now_ns + unit_ns) store64(tat, load64(tat) - unit_ns);
    wv_unlock(t, WV_LOCK_RATE, which);
}
