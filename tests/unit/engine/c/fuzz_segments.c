/* Fuzz target over the segment parser and the decision: bytes as a train from one of a few sources.
 *
 * input: source u8 · time u8 · segment size u16 (0 = one datagram) · train
 * It goes through wv_process, as if the kernel had delivered it, and nothing is sent.
 */
#define _GNU_SOURCE
#include "segment_support.h"

#include <errno.h>
#include <netinet/in.h>
#include <unistd.h>

enum { HEAD_BYTES = 4, FUZZ_SESSIONS = 4 };

static struct test_segment segment;
static struct wv_engine *engine;
static uint8_t pristine[FUZZ_SESSIONS][sizeof(struct wv_session)];

static void start(void) {
    enum wv_open_error error;
    const int fds[2] = {socket(AF_INET, SOCK_DGRAM, 0), socket(AF_INET6, SOCK_DGRAM, 0)};
    segment = test_segment_new();
    engine = wv_engine_new(segment.base, segment.bytes, 0, fds, 2, -1, &error);
    CHECK(engine != NULL);
    engine->frozen = 1;
    struct wv_tables *t = &engine->tables;
    test_session(t, 0, test_v4(1, 1000), test_v4(2, 1000));
    test_session(t, 1, test_v4(3, 1000), test_v6(4, 1000, 1));
    test_session(t, 2, test_v4(5, 1000), test_v4(6, 1000))->state = WV_SESSION_WAITING;
    struct wv_slot *limited =
        (struct wv_slot *)test_session(t, 3, test_v4(7, 1000), test_v4(8, 1000))->client;
    limited->soft_kbps = 0;
    limited->hard_kbps = 100;
    memcpy(pristine, t->sessions, sizeof pristine);
}

/* What a datagram may change in a session: windows, rates and stamps; nothing else, ever. */
static void check_sessions(void) {
    for (unsigned number = 0; number < FUZZ_SESSIONS; number++) {
        struct wv_session now = engine->tables.sessions[number], was;
        memcpy(&was, pristine[number], sizeof was);
        CHECK(now.lock == 0);
        now.tat = was.tat;
        struct wv_slot *slots[2] = {(struct wv_slot *)now.client, (struct wv_slot *)now.server};
        const struct wv_slot *old[2] = {(struct wv_slot *)was.client, (struct wv_slot *)was.server};
        for (int i = 0; i < 2; i++) {
            slots[i]->window_head = old[i]->window_head;
            memcpy(slots[i]->window, old[i]->window, sizeof slots[i]->window);
            slots[i]->tat = old[i]->tat;
            slots[i]->soft_tat_us = old[i]->soft_tat_us;
            slots[i]->received_ms = old[i]->received_ms;
        }
        CHECK(memcmp(&now, &was, sizeof now) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes);

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t bytes) {
    if (engine == NULL) start();
    if (bytes < HEAD_BYTES || bytes - HEAD_BYTES > WV_RECEIVE_BYTES) return 0;
    const size_t length = bytes - HEAD_BYTES;
    const uint32_t asked = (uint32_t)input[2] << 8 | input[3];
    const uint32_t step = asked > 0 && asked < length ? asked : (uint32_t)length;
    struct wv_tables *t = &engine->tables;
    memset(t->row, 0, WV_COUNTER_ROW_BYTES);
    memcpy(t->sessions, pristine, sizeof pristine);
    t->control->session_kbps = input[1] & 1 ? 500 : 0;
    t->control->global_kbps = input[1] & 2 ? 2000 : 0;
    t->control->global_pps = input[1] & 4 ? 200 : 0;
    engine->now = TEST_NOW;
    engine->now.mono_ns += (uint64_t)(input[1] >> 3) * 10000000u;
    if (input[1] >> 3 == 31) engine->now.wall_ms = TEST_EXPIRES_MS;
    engine->fault = (struct wv_fault){.error = EPERM, .count = UINT32_MAX};
    /* The train ends where the heap block ends: reading on is seen. */
    uint8_t *train = malloc(length ? length : 1);
    CHECK(train != NULL);
    memcpy(train, input + HEAD_BYTES, length);
    const struct wv_address from = input[0] & 0x10 ? test_v6(input[0] & 15u, 1000, 1) : test_v4(input[0] & 15u, 1000);
    uint32_t segments = 0;
    struct wv_decision decision;
    for (size_t at = 0; at < length && segments < 64; at += step, segments++)
        wv_decide(t, train + at, step < length - at ? step : length - at, &from, &engine->now, &decision);
    free(train);
    check_sessions();
    /* And through the arena, with grouping and layout. */
    memset(t->row, 0, WV_COUNTER_ROW_BYTES);
    memcpy(t->sessions, pristine, sizeof pristine);
    memcpy(engine->in_vectors[0].iov_base, input + HEAD_BYTES, length);
    engine->in[0].msg_len = (uint32_t)length;
    engine->in_segment_bytes[0] = step;
    engine->in_from[0] = from;
    engine->batch_messages = 1;
    uint64_t control = 0, drops = 0;
    wv_process(engine);
    for (engine->control_due = UINT32_MAX; wv_next_control(engine) != NULL;) control++;
    for (unsigned i = WV_COUNT_DROP_TOO_SHORT; i <= WV_COUNT_DROP_SEND_FAILED; i++) drops += t->row[i];
    CHECK(control + drops == (step ? (length + step - 1) / step : 1));
    CHECK(t->row[WV_COUNT_FORWARDED_PACKETS] == 0);
    check_sessions();
    return 0;
}
