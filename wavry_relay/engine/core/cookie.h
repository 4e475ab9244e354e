/* Path cookies: wavry_relay/engine/cookie.py.  A MAC is BLAKE2b (RFC 7693) of one block. */
#ifndef WAVRY_COOKIE_H
#define WAVRY_COOKIE_H

#include "decide.h"

/* What every MAC under a key of 32 bytes begins with. */
void wv_cookie_key(uint64_t state[8], const uint8_t *key);

/* Write a PATH_CHALLENGE (WV_CHALLENGE_BYTES) with the cookie of a session and a source at this time. */
void wv_put_challenge(const struct wv_tables *tables, const uint8_t *session_id,
                      const struct wv_address *from, uint64_t now_ns, uint8_t *at);

/* Whether a LEASE_PRESENT or LEASE_RENEW brings a cookie of its own session and source. */
int wv_has_cookie(const struct wv_tables *tables, const uint8_t *datagram, size_t bytes,
                  const struct wv_address *from, uint64_t now_ns);

#endif
