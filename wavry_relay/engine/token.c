/* See token.h. */
#include "token.h"

#include <string.h>

static const char HEADER[] = "v4.public.";
#define HEADER_BYTES (sizeof HEADER - 1)
#define BAD 0xc0u /* the bits that no value has */

/* What each character stands for; 255 is of no alphabet. */
static const uint8_t VALUES[256] = {
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,  62, 255, 255,
     52,  53,  54,  55,  56,  57,  58,  59,  60,  61, 255, 255, 255, 255, 255, 255,
    255,   0,   1,   2,   3,   4,   5,   6,   7,   8,   9,  10,  11,  12,  13,  14,
     15,  16,  17,  18,  19,  20,  21,  22,  23,  24,  25, 255, 255, 255, 255,  63,
    255,  26,  27,  28,  29,  30,  31,  32,  33,  34,  35,  36,  37,  38,  39,  40,
     41,  42,  43,  44,  45,  46,  47,  48,  49,  50,  51, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
    255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255,
};

/* Canonical base64url without padding: bits that no byte needs are zero.  The number of bytes, or
 * SIZE_MAX. */
static size_t decode(const uint8_t *text, size_t size, uint8_t *out) {
    const uint8_t *start = out;
    uint32_t seen = 0;
    for (; size >= 4; size -= 4, text += 4) {
        const uint32_t a = VALUES[text[0]], b = VALUES[text[1]];
        const uint32_t c = VALUES[text[2]], d = VALUES[text[3]];
        const uint32_t bits = a << 18 | b << 12 | c << 6 | d;
        seen |= a | b | c | d;
        *out++ = (uint8_t)(bits >> 16);
        *out++ = (uint8_t)(bits >> 8);
        *out++ = (uint8_t)bits;
    }
    if (size == 1) return SIZE_MAX; /* a single character holds no byte */
    if (size >= 2) {
        const uint32_t a = VALUES[text[0]], b = VALUES[text[1]], c = size == 3 ? VALUES[text[2]] : 0;
        const uint32_t bits = a << 18 | b << 12 | c << 6;
        seen |= a | b | c;
        *out++ = (uint8_t)(bits >> 16);
        if (size == 3) *out++ = (uint8_t)(bits >> 8);
        if ((size == 3 ? bits & 0xff : bits & 0xffff) != 0) return SIZE_MAX;
    }
    return seen & BAD ? SIZE_MAX : (size_t)(out - start);
}

int wv_parse_token(const uint8_t *token, size_t size, uint8_t *out, struct wv_token *parts) {
    if (size < HEADER_BYTES || memcmp(token, HEADER, HEADER_BYTES) != 0) return 0;
    const uint8_t *body = token + HEADER_BYTES, *end = token + size;
    const uint8_t *dot = memchr(body, '.', (size_t)(end - body));
    if (dot != NULL && dot + 1 == end) return 0;
    const size_t body_bytes = decode(body, (size_t)((dot != NULL ? dot : end) - body), out);
    if (body_bytes == SIZE_MAX || body_bytes < WV_SIGNATURE_BYTES) return 0;
    parts->message_bytes = body_bytes - WV_SIGNATURE_BYTES;
    parts->footer_bytes = dot != NULL ? decode(dot + 1, (size_t)(end - dot - 1), out + body_bytes) : 0;
    return parts->footer_bytes != SIZE_MAX;
}
