/* Unit tests of token.c: what is a token, and no byte read or written outside the buffers. */
#include "token.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                        \
        }                                                                   \
    } while (0)

static const char ALPHABET[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
static struct wv_token parts;
static uint8_t out[2048];

/* Buffers of the exact sizes on the heap: the sanitizer sees every byte outside. */
static int parse(const char *text, size_t size) {
    uint8_t *token = malloc(size ? size : 1), *room = malloc(size ? size : 1);
    CHECK(token != NULL && room != NULL);
    memcpy(token, text, size);
    const int good = wv_parse_token(token, size, room, &parts);
    if (good) {
        const size_t used = parts.message_bytes + WV_SIGNATURE_BYTES + parts.footer_bytes;
        CHECK(used <= size);
        memcpy(out, room, used);
    }
    free(token);
    free(room);
    return good;
}

/* "v4.public." and `count` characters that decode to zeros, then `tail`. */
static size_t token_of(char *text, size_t count, const char *tail) {
    return (size_t)sprintf(text, "v4.public.%.*s%s", (int)count,
                           "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
                           "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
                           tail);
}

static void takes_a_token_apart(void) {
    char text[256];
    size_t size = token_of(text, 86, "");
    CHECK(parse(text, size) && parts.message_bytes == 0 && parts.footer_bytes == 0);
    size = token_of(text, 84, "-_8.QUJD"); /* 63 zeros and 2 more bytes; the footer is ABC */
    CHECK(parse(text, size) && parts.message_bytes == 1 && parts.footer_bytes == 3);
    CHECK(out[63] == 0xfb && out[64] == 0xff && memcmp(out + 65, "ABC", 3) == 0);
}

static void refuses_other_shapes(void) {
    static const char *const TAILS[] = {".", "..", ".A", ".AB", ".QUJD.", ".QUJD=", "=", "+", "/",
                                        ".QUJD.QUJD", "\xff", "A\n"};
    char text[256];
    for (size_t i = 0; i < sizeof TAILS / sizeof *TAILS; i++)
        CHECK(!parse(text, token_of(text, 88, TAILS[i])));
    CHECK(!parse(text, token_of(text, 85, "")));  /* a single character left over */
    CHECK(!parse(text, token_of(text, 85, "B"))); /* bits that no byte needs */
    CHECK(!parse(text, token_of(text, 84, "")));  /* 63 bytes are no signature */
    CHECK(!parse("v4.local.AAAA", 13));
}

static void every_prefix_and_every_character(void) {
    char text[256];
    const size_t size = token_of(text, 90, ".QUJDREU");
    for (size_t cut = 0; cut <= size; cut++) parse(text, cut);
    for (size_t at = 10; at < size; at++) {
        const char kept = text[at];
        for (int character = 0; character < 256; character++) {
            text[at] = (char)character;
            const int known = character != 0 && strchr(ALPHABET, character) != NULL;
            if (parse(text, size)) CHECK(known || character == '.');
        }
        text[at] = kept;
    }
}

int main(void) {
    takes_a_token_apart();
    refuses_other_shapes();
    every_prefix_and_every_character();
    puts("token: ok");
    return 0;
}
