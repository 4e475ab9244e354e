/* Rates of many keys: wavry_relay/shm/rate_limit.py. */
#ifndef WAVRY_RATES_H
#define WAVRY_RATES_H

#include "decide.h"

struct wv_limit {
    uint64_t cost_ns;
    uint64_t burst_ns;
};

enum wv_answer {
    WV_ANSWER_NO = 0,
    WV_ANSWER_YES = 1,
    WV_ANSWER_BUSY = 2, /* a lock is held by a stopped process */
    WV_ANSWER_UNPROVED = 3, /* yes, and the peer still has to prove its address (wv_admit) */
};

struct wv_limit wv_limit_of(uint64_t per_s, uint64_t burst);

/* Take a unit of a key's allowance.  WV_ANSWER_BUSY: the lock was not free for `wait_ns`. */
enum wv_answer wv_take(struct wv_tables *tables, const struct wv_rates *rates, uint64_t key,
                       uint64_t now_ns, struct wv_limit limit, uint64_t wait_ns);

/* Return a unit that wv_take has just taken, and that was not used. */
void wv_give_back(struct wv_tables *tables, const struct wv_rates *rates, uint64_t key,
                  uint64_t now_ns, struct wv_limit limit);

#endif
