/* A v4.public token taken apart, as wavry_peer/protocol/paseto.py does it. */
#ifndef WAVRY_TOKEN_H
#define WAVRY_TOKEN_H

#include <stddef.h>
#include <stdint.h>

#define WV_SIGNATURE_BYTES 64u
struct wv_token {
    size_t message_bytes; /* the message, its signature and the footer follow each other */
    size_t footer_bytes;
};

/* Returns 1, or 0 for what is no token; `out` has room for `size` bytes. */
int wv_parse_token(const uint8_t *token, size_t size, uint8_t *out, struct wv_token *parts);

#endif
