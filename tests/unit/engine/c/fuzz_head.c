/* Fuzz target over the head of a segment: damaged tables are refused, or used inside their bounds.
 *
 * input: worker u8 · patches: offset u16 · value u8.  An offset below HEAD_WORDS * 8 is in the
 * head, where a patch with an odd value is a whole word of the next 8 bytes; others are anywhere.
 * The segment is a heap block of its exact size, so a step outside is seen.
 */
#define _GNU_SOURCE
#include "segment_support.h"

#include <unistd.h>

enum { HEAD_BYTES = 128 };

static struct test_segment pristine, copy;
static uint8_t own_id[16];

static void start(void) {
    struct wv_tables tables;
    pristine = test_segment_new(), copy = test_segment_new();
    CHECK(wv_open(&tables, pristine.base, pristine.bytes, 0, 1) == WV_OPEN_OK);
    for (unsigned number = 0; number < 4; number++)
        test_session(&tables, number, test_v4(1, 1000), test_v4(2, 1000));
    test_id(0, own_id);
}

/* Everything that reads what the head says. */
static void use(struct wv_tables *t) {
    uint8_t data[128];
    struct wv_decision decision;
    const struct wv_address from = test_v4(1, 1000);
    struct wv_instant now = TEST_NOW;
    for (unsigned session = 0; session < 6; session++) {
        const size_t bytes = test_forward(data, session, session * 1000u, 40);
        wv_prefetch_index(t, data, bytes);
        wv_prefetch_record(t, data, bytes);
        wv_decide(t, data, bytes, &from, &now, &decision);
    }
    const uint64_t places[] = {0, 1, t->max_sessions - 1u, t->max_sessions, UINT64_MAX, t->at_ip_rates,
                               t->rates_end, t->rates_end - 64u, t->rates_end - 32u, t->bytes, 64};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        for (int kind = WV_LOCK_TABLE; kind <= WV_LOCK_GLOBAL; kind++)
            if (wv_lock(t, (enum wv_lock_kind)kind, places[i], 0) == 1) wv_unlock(t, (enum wv_lock_kind)kind, places[i]);
    }
    for (uint32_t worker = 0; worker < 300; worker += 1 + worker / 4) wv_free_locks_of(t, worker);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes) {
    if (pristine.base == NULL) start();
    if (bytes < 1 || bytes > 4096) return 0;
    memcpy(copy.base, pristine.base, pristine.bytes);
    for (size_t at = 1; at + 3 <= bytes;) {
        const uint64_t offset = (uint64_t)input[at] << 8 | input[at + 1];
        const uint8_t value = input[at + 2];
        at += 3;
        if (offset < HEAD_BYTES && value % 2 == 1 && at + 8 <= bytes) {
            memcpy(copy.base + offset / 8 * 8, input + at, 8);
            at += 8;
        } else {
            copy.base[offset % copy.bytes] = value;
        }
    }
    struct wv_tables tables;
    /* A process that is gone may be named by any number; ours is asked about with kill(pid, 0). */
    if (wv_open(&tables, copy.base, copy.bytes, input[0] % (TEST_WORKERS + 1), (uint32_t)getpid()) == WV_OPEN_OK)
        use(&tables);
    return 0;
}
