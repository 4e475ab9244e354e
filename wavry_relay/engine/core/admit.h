/* The ordinary cases of the admission, without Python: a verified lease that takes an empty slot or
 * renews its own.
 *
 * Which cases are ordinary is for this file to say and for Python to trust: what is not is left
 * untouched, and the rules in Python (wavry_relay/admission/slots.py) decide it.  In the ordinary
 * ones both leave the same bytes in every table.
 */
#ifndef WAVRY_ADMIT_H
#define WAVRY_ADMIT_H

#include "rates.h"

/* ACK of a lease, and the challenge after it where its address is not proved yet. */
struct wv_admitted {
    uint8_t ack[WV_ACK_BYTES];
    uint8_t challenge[WV_CHALLENGE_BYTES];
};

/* A verified lease in the words of a slot; see wavry_relay/engine/verified_lease.py. */
struct wv_lease {
    uint64_t id[2]; /* of the session */
    uint64_t jti, sub;
    uint64_t mark; /* proof counter + 1 */
    uint64_t expires_ms;
    uint32_t cnf, kid, issued_s;
    uint32_t soft_kbps, hard_kbps;
    uint8_t role;   /* 0 client, 1 server */
    uint8_t renews; /* came as LEASE_RENEW */
    uint8_t proves; /* its cookie is good here */
    uint32_t bytes; /* of the packet */
};

/* Put a lease into its slot; needs the table lock.  NO: not an ordinary case, nothing changed. */
enum wv_answer wv_admit(struct wv_tables *tables, const struct wv_lease *lease,
                         const struct wv_address *from, uint64_t now_ns);

/* Write, and count, what a lease is answered with that wv_admit took. */
void wv_answer_lease(struct wv_tables *tables, const struct wv_lease *lease,
                     const struct wv_address *from, uint64_t now_ns, enum wv_answer admitted,
                     struct wv_admitted *answer);

#endif
