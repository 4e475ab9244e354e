/* Who may send control packets, and how many: wavry_relay/engine/source_limits.py. */
#ifndef WAVRY_ALLOWANCES_H
#define WAVRY_ALLOWANCES_H

#include "decide.h"

/* Take a control packet from the allowance that it belongs to, and note the class of its sender.
 * 0, or what refuses it: WV_COUNT_LIMITED_..., WV_COUNT_DROP_LOCK_BUSY. */
uint32_t wv_judge_source(struct wv_tables *tables, enum wv_kind kind, const uint8_t *datagram,
                         size_t bytes, const struct wv_address *from, const struct wv_instant *now,
                         struct wv_decision *decision);

#endif
