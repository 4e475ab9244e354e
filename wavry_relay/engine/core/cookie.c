/* See cookie.h. */
#include "cookie.h"
#include "tables.h"

#include <string.h>

struct block {
    uint8_t bytes[128];
};

static const uint64_t IV[8] = {
    UINT64_C(0x6a09e667f3bcc908), UINT64_C(0xbb67ae8584caa73b), UINT64_C(0x3c6ef372fe94f82b),
    UINT64_C(0xa54ff53a5f1d36f1), UINT64_C(0x510e527fade682d1), UINT64_C(0x9b05688c2b3e6c1f),
    UINT64_C(0x1f83d9abfb41bd6b), UINT64_C(0x5be0cd19137e2179)};

static const uint8_t SIGMA[10][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
    {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4},
    {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13},
    {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11},
    {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5},
    {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0}};

static uint64_t read_le64(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 7; i >= 0; i--) value = value << 8 | at[i];
    return value;
}

static inline uint64_t rotate(uint64_t word, unsigned bits) { return word >> bits | word << (64 - bits); }

static inline void mix(uint64_t v[16], unsigned a, unsigned b, unsigned c, unsigned d, uint64_t x,
                       uint64_t y) {
    v[a] += v[b] + x;
    v[d] = rotate(v[d] ^ v[a], 32);
    v[c] += v[d];
    v[b] = rotate(v[b] ^ v[c], 24);
    v[a] += v[b] + y;
    v[d] = rotate(v[d] ^ v[a], 16);
    v[c] += v[d];
    v[b] = rotate(v[b] ^ v[c], 63);
}

static void compress(uint64_t h[8], const struct block *block, uint64_t total_bytes, int is_last) {
    uint64_t v[16], m[16];
    for (unsigned i = 0; i < 16; i++) m[i] = read_le64(block->bytes + 8 * i);
    memcpy(v, h, 8 * sizeof *v);
    memcpy(v + 8, IV, sizeof IV);
    v[12] ^= total_bytes;
    if (is_last) v[14] = ~v[14];
    for (unsigned round = 0; round < 12; round++) {
        const uint8_t *s = SIGMA[round % 10];
        for (unsigned i = 0; i < 4; i++)
            mix(v, i, 4 + i, 8 + i, 12 + i, m[s[2 * i]], m[s[2 * i + 1]]);
        for (unsigned i = 0; i < 4; i++)
            mix(v, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[s[8 + 2 * i]],
                m[s[9 + 2 * i]]);
    }
    for (unsigned i = 0; i < 8; i++) h[i] ^= v[i] ^ v[8 + i];
}

void wv_cookie_key(uint64_t state[8], const uint8_t *key) {
    struct block block = {{0}};
    memcpy(state, IV, sizeof IV);
    state[0] ^= UINT64_C(0x01010000) ^ (uint64_t)WV_COOKIE_KEY_BYTES << 8 ^ WV_COOKIE_BYTES;
    state[6] ^= WV_COOKIE_PERSON;
    memcpy(block.bytes, key, WV_COOKIE_KEY_BYTES);
    compress(state, &block, sizeof block, 0);
}

/* The 8 bytes of a cookie, as they lie in a packet. */
static uint64_t cookie_of(const struct wv_tables *t, const uint8_t *session_id,
                          const struct wv_address *from, uint64_t slot) {
    const uint64_t words[] = {from->high, from->low, from->endpoint, slot};
    const size_t id_bytes = WV_HEADER_BYTES - WV_SESSION_ID_OFFSET;
    struct block block = {{0}};
    uint64_t h[8];
    memcpy(block.bytes, session_id, id_bytes);
    memcpy(block.bytes + id_bytes, words, sizeof words);
    memcpy(h, t->cookie_state, sizeof h);
    compress(h, &block, sizeof block + id_bytes + sizeof words, 1);
    return h[0];
}

void wv_put_challenge(const struct wv_tables *t, const uint8_t *session_id,
                      const struct wv_address *from, uint64_t now_ns, uint8_t *at) {
    const uint8_t head[] = {WV_MAGIC, WV_VERSION, WV_TYPE_PATH_CHALLENGE, 0};
    const uint64_t cookie = cookie_of(t, session_id, from, now_ns / (WV_COOKIE_SLOT_S * NS_PER_S));
    memcpy(at, head, sizeof head);
    memcpy(at + WV_SESSION_ID_OFFSET, session_id, WV_HEADER_BYTES - WV_SESSION_ID_OFFSET);
    for (unsigned i = 0; i < WV_COOKIE_BYTES; i++)
        at[WV_HEADER_BYTES + i] = (uint8_t)(cookie >> 8 * i);
}

int wv_has_cookie(const struct wv_tables *t, const uint8_t *datagram, size_t bytes,
                  const struct wv_address *from, uint64_t now_ns) {
    if (!(datagram[3] & WV_PROOF_FLAG) || bytes < WV_HEADER_BYTES + WV_PROOF_BYTES) return 0;
    const uint64_t given = read_le64(datagram + bytes - WV_COOKIE_FROM_END);
    const uint64_t slot = now_ns / (WV_COOKIE_SLOT_S * NS_PER_S);
    const uint8_t *session_id = datagram + WV_SESSION_ID_OFFSET;
    return given != 0 && (given == cookie_of(t, session_id, from, slot) ||
                          (slot > 0 && given == cookie_of(t, session_id, from, slot - 1)));
}
