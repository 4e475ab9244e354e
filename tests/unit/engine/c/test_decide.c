/* Unit tests of decide.c that Python cannot write: damaged segments, exact words, lock words. */
#define _GNU_SOURCE
#include "segment_support.h"

#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct wv_decision decision;

static struct wv_tables opened(const struct test_segment *segment, uint32_t worker) {
    struct wv_tables t;
    CHECK(wv_open(&t, segment->base, segment->bytes, worker, (uint32_t)getpid()) == WV_OPEN_OK);
    return t;
}

static enum wv_kind decide(struct wv_tables *t, const uint8_t *data, size_t bytes,
                           struct wv_address from) {
    /* An exact copy on the heap: ASan sees every byte that is read behind the datagram. */
    uint8_t *exact = malloc(bytes ? bytes : 1);
    CHECK(exact != NULL);
    if (bytes) memcpy(exact, data, bytes);
    const enum wv_kind kind = wv_decide(t, exact, bytes, &from, &TEST_NOW, &decision);
    free(exact);
    return kind;
}

static void refuses_damaged_segments(void) {
    struct test_segment s = test_segment_new();
    struct wv_head *head = (struct wv_head *)s.base;
    struct wv_tables t;
    CHECK(wv_open(&t, s.base, 100, 0, 1) == WV_OPEN_NOT_A_SEGMENT);
    CHECK(wv_open(&t, s.base, s.bytes, TEST_WORKERS, 1) == WV_OPEN_NO_SUCH_WORKER);
    CHECK(wv_open(&t, s.base, s.bytes - TEST_PAGE, 0, 1) == WV_OPEN_BAD_GEOMETRY);
    const struct wv_head good = *head;
#define DAMAGED(field, value, wanted)                                  \
    do {                                                               \
        head->field = (value);                                         \
        CHECK(wv_open(&t, s.base, s.bytes, 0, 1) == (wanted));         \
        *head = good;                                                  \
    } while (0)
    DAMAGED(magic, 1, WV_OPEN_NOT_A_SEGMENT);
    DAMAGED(version, WV_LAYOUT_VERSION + 1, WV_OPEN_OTHER_LAYOUT);
    DAMAGED(counters, 1, WV_OPEN_OTHER_LAYOUT);
    DAMAGED(workers, 0, WV_OPEN_BAD_GEOMETRY);
    DAMAGED(workers, WV_MAX_WORKERS + 1, WV_OPEN_BAD_GEOMETRY);
    DAMAGED(max_sessions, 0, WV_OPEN_BAD_GEOMETRY);
    DAMAGED(max_sessions, UINT32_MAX, WV_OPEN_BAD_GEOMETRY);
    DAMAGED(index_slots, 96, WV_OPEN_BAD_GEOMETRY);
    DAMAGED(index_slots, 1u << 31, WV_OPEN_BAD_GEOMETRY);
    DAMAGED(at_sessions, UINT64_MAX - 63, WV_OPEN_BAD_GEOMETRY);
    DAMAGED(at_control, 65, WV_OPEN_BAD_GEOMETRY);
    DAMAGED(at_bitmap, 0, WV_OPEN_BAD_GEOMETRY);
    CHECK(wv_open(&t, s.base, s.bytes, 0, 1) == WV_OPEN_OK);
    free(s.base);
}

static void forwards_and_counts(void) {
    struct test_segment s = test_segment_new();
    struct wv_tables t = opened(&s, 1);
    const struct wv_address alice = test_v4(1, 5000), bob = test_v6(1, 6000, 1);
    struct wv_session *session = test_session(&t, 3, alice, bob);
    uint8_t data[1500];
    size_t bytes = test_forward(data, 3, 7, 1000);
    CHECK(decide(&t, data, bytes, alice) == WV_KIND_FORWARD);
    CHECK(memcmp(&decision.to, &bob, sizeof bob) == 0);
    CHECK(decide(&t, data, bytes, bob) == WV_KIND_FORWARD);
    CHECK(memcmp(&decision.to, &alice, sizeof alice) == 0);
    CHECK(decide(&t, data, bytes, alice) == WV_KIND_DROP);
    CHECK(decision.drop == WV_COUNT_DROP_DUPLICATE);
    CHECK(t.row[WV_COUNT_DROP_DUPLICATE] == 1);
    CHECK(t.row[WV_COUNT_DROPPED_BYTES_DUPLICATE] == bytes);
    CHECK(((uint64_t *)(s.base + ((struct wv_head *)s.base)->at_counters))[WV_COUNT_DROP_DUPLICATE] == 0);
    CHECK(((struct wv_slot *)session->client)->received_ms == 5000);
    CHECK(((struct wv_slot *)session->client)->window_head == 8);
    CHECK(session->lock == 0);
    CHECK(decide(&t, data, bytes, test_v4(1, 5001)) == WV_KIND_UNKNOWN_PATH);
    free(s.base);
}

static void finds_behind_deleted_and_foreign_index_words(void) {
    struct test_segment s = test_segment_new();
    struct wv_tables t = opened(&s, 0);
    const struct wv_address alice = test_v4(1, 1), bob = test_v4(2, 2);
    uint8_t id[16], data[64];
    uint64_t words[2];
    test_id(5, id);
    memcpy(words, id, 16);
    const uint64_t digest = test_hash(words);
    const uint64_t tag = digest >> 32 << 32;
    t.index[digest & t.index_mask] = WV_INDEX_DELETED;
    t.index[(digest + 1) & t.index_mask] = tag | UINT32_MAX; /* a record that cannot be */
    t.index[(digest + 2) & t.index_mask] = tag;              /* record number -1 */
    t.index[(digest + 3) & t.index_mask] = tag | 9;          /* free record, same tag */
    test_session(&t, 5, alice, bob);
    const size_t bytes = test_forward(data, 5, 1, 0);
    wv_prefetch_index(&t, data, bytes);
    wv_prefetch_record(&t, data, bytes);
    wv_prefetch_record(&t, data, 3);
    CHECK(decide(&t, data, bytes, alice) == WV_KIND_FORWARD);
    t.sessions[5].state = WV_SESSION_FREE; /* and the memo of the last record is not believed */
    CHECK(decide(&t, data, bytes, alice) == WV_KIND_DROP);
    CHECK(decision.drop == WV_COUNT_DROP_UNKNOWN_SESSION);
    for (uint64_t i = 0; i <= t.index_mask; i++) t.index[i] = WV_INDEX_DELETED;
    CHECK(decide(&t, data, bytes, alice) == WV_KIND_DROP); /* a full table ends the search */
    free(s.base);
}

static void reads_no_byte_behind_any_prefix(void) {
    struct test_segment s = test_segment_new();
    struct wv_tables t = opened(&s, 0);
    const struct wv_address alice = test_v4(1, 1);
    test_session(&t, 0, alice, test_v4(2, 2));
    const uint8_t bodies[][10] = {{0}, {'R'}, {'R', 'I'}, {'R', 'I', 0, 1}, {'R', 'I', 0, 1, 0, 0, 0, 0}};
    uint8_t data[80] = {0};
    for (size_t body = 0; body < sizeof bodies / sizeof bodies[0]; body++) {
        test_forward(data, 0, 0, 40);
        memcpy(data + 20, bodies[body], 10);
        for (size_t bytes = 0; bytes <= 68; bytes++) CHECK(decide(&t, data, bytes, alice) != WV_KIND_UNKNOWN_PATH);
    }
    const uint8_t stun[20] = {0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42};
    CHECK(decide(&t, stun, 20, alice) == WV_KIND_STUN);
    for (size_t bytes = 0; bytes < 20; bytes++) CHECK(decide(&t, stun, bytes, alice) == WV_KIND_DROP);
    free(s.base);
}

/* A process that is certainly gone: a child that was waited for. */
static uint32_t dead_pid(void) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) _exit(0);
    CHECK(waitpid(child, NULL, 0) == child);
    return (uint32_t)child;
}

static void lock_words_name_owner_and_generation(void) {
    struct test_segment s = test_segment_new();
    struct wv_tables one = opened(&s, 0), two = opened(&s, 2);
    CHECK(one.lock_value == (1u << 9 | 1u) && two.lock_value == (1u << 9 | 3u));
    CHECK(wv_lock(&one, WV_LOCK_SESSION, 7, 0) == 1);
    CHECK(one.sessions[7].lock == one.lock_value);
    CHECK(one.self->holds_session == 8);
    CHECK(wv_lock(&two, WV_LOCK_SESSION, 7, 1000) == 0); /* we are alive */
    wv_unlock(&two, WV_LOCK_SESSION, 7);                 /* not its own: stays */
    CHECK(one.sessions[7].lock == one.lock_value);
    two.sessions[1].lock = 500; /* no such worker: damaged words are taken over */
    CHECK(wv_lock(&two, WV_LOCK_SESSION, 1, 0) == 1);
    CHECK(wv_lock(&two, WV_LOCK_SESSION, TEST_SESSIONS, 0) == -1);
    CHECK(wv_lock(&two, WV_LOCK_RATE, 0, 0) == -1);
    CHECK(wv_lock(&two, WV_LOCK_RATE, two.rates_end - sizeof(struct wv_rate_bucket) / 2, 0) == -1);
    CHECK(wv_lock(&two, WV_LOCK_RATE, two.rates_end, 0) == -1);
    CHECK(wv_lock(&two, WV_LOCK_RATE, UINT64_MAX - sizeof(struct wv_rate_bucket) + 1, 0) == -1);
    CHECK(wv_free_locks_of(&two, 99) == 0);
    free(s.base);
}

static void only_the_dead_lose_their_locks(void) {
    struct test_segment s = test_segment_new();
    struct wv_tables t = opened(&s, 2), ghost, next;
    /* Two of one number side by side, as in a hot upgrade: neither takes from the other. */
    struct wv_tables first = opened(&s, 0);
    CHECK(wv_lock(&first, WV_LOCK_TABLE, 0, 0) == 1);
    struct wv_tables second = opened(&s, 0);
    CHECK(first.shared->table_lock == first.lock_value && second.lock_value == (2u << 9 | 1u));
    CHECK(wv_lock(&second, WV_LOCK_TABLE, 0, 1000) == 0);
    CHECK(wv_lock(&t, WV_LOCK_TABLE, 0, 1000) == 0);
    CHECK(wv_free_locks_of(&t, 0) == 0);
    wv_unlock(&first, WV_LOCK_TABLE, 0);
    CHECK(wv_lock(&second, WV_LOCK_TABLE, 0, 0) == 1);
    wv_unlock(&second, WV_LOCK_TABLE, 0);
    /* A dead one: whoever waits takes it over, */
    CHECK(wv_open(&ghost, s.base, s.bytes, 1, dead_pid()) == WV_OPEN_OK);
    CHECK(wv_lock(&ghost, WV_LOCK_SESSION, 3, 0) == 1 && wv_lock(&ghost, WV_LOCK_TABLE, 0, 0) == 1);
    CHECK(wv_lock(&t, WV_LOCK_SESSION, 3, 0) == 1);
    wv_unlock(&ghost, WV_LOCK_SESSION, 3); /* and what it lost it cannot give away */
    CHECK(t.sessions[3].lock == t.lock_value);
    wv_unlock(&t, WV_LOCK_SESSION, 3);
    /* or its replacement frees it. */
    CHECK(wv_open(&next, s.base, s.bytes, 1, (uint32_t)getpid()) == WV_OPEN_OK);
    CHECK(next.shared->table_lock == 0);
    for (int i = 0; i < 300; i++) opened(&s, 1); /* generations wrap */
    CHECK(wv_lock(&next, WV_LOCK_TABLE, 0, 0) == 1); /* too old to be alive: */
    CHECK(wv_lock(&t, WV_LOCK_TABLE, 0, 0) == 1);
    free(s.base);
}

static void windows_stay_exact_while_they_wrap(void) {
    struct test_segment s = test_segment_new();
    struct wv_tables t = opened(&s, 0);
    const struct wv_address alice = test_v4(1, 1);
    struct wv_slot *slot = (struct wv_slot *)test_session(&t, 0, alice, test_v4(2, 2))->client;
    uint8_t data[64];
    for (uint64_t sequence = 0; sequence < 5000; sequence += 1 + sequence % 7) {
        const size_t bytes = test_forward(data, 0, sequence, 0);
        CHECK(decide(&t, data, bytes, alice) == WV_KIND_FORWARD);
        CHECK(slot->window_head == sequence + 1);
        for (uint64_t back = 0; back <= sequence && back < 1100; back += 13) {
            test_forward(data, 0, sequence - back, 0);
            const uint64_t before = t.row[WV_COUNT_DROP_TOO_OLD];
            const enum wv_kind kind = decide(&t, data, bytes, alice);
            CHECK((t.row[WV_COUNT_DROP_TOO_OLD] > before) == (back >= 1024));
            CHECK(back != 0 || kind == WV_KIND_DROP);
        }
    }
    free(s.base);
}

/* A worker that slept with a batch in its hands is behind one that went on: nobody was too fast. */
static void a_late_worker_is_not_over_the_global_limit(void) {
    struct test_segment s = test_segment_new();
    struct wv_tables late = opened(&s, 0), prompt = opened(&s, 1);
    const struct wv_address alice = test_v4(1, 1), carol = test_v4(3, 3);
    struct timespec clock;
    uint8_t data[64];
    test_session(&late, 0, alice, test_v4(2, 2));
    test_session(&late, 1, carol, test_v4(4, 4));
    late.control->global_pps = 1000, late.control->global_kbps = 100000;
    clock_gettime(CLOCK_MONOTONIC, &clock);
    struct wv_instant now = {(uint64_t)clock.tv_sec * 1000000000u + (uint64_t)clock.tv_nsec, TEST_NOW.wall_ms};
    const struct wv_instant before = {now.mono_ns - 500000000u, now.wall_ms};
    CHECK(wv_decide(&prompt, data, test_forward(data, 1, 1, 0), &carol, &now, &decision) == WV_KIND_FORWARD);
    const size_t bytes = test_forward(data, 0, 1, 0);
    CHECK(wv_decide(&late, data, bytes, &alice, &before, &decision) == WV_KIND_DROP); /* a clock of a test */
    late.live_clock = 1;
    CHECK(wv_decide(&late, data, bytes, &alice, &before, &decision) == WV_KIND_FORWARD);
    /* And the limit holds: ten minutes ahead are too far for any clock. */
    late.shared->global_packets_tat = now.mono_ns + 600000000000u;
    CHECK(wv_decide(&late, data, test_forward(data, 0, 2, 0), &alice, &before, &decision) == WV_KIND_DROP);
    CHECK(decision.drop == WV_COUNT_DROP_GLOBAL_RATE);
    free(s.base);
}

int main(void) {
    refuses_damaged_segments();
    forwards_and_counts();
    finds_behind_deleted_and_foreign_index_words();
    reads_no_byte_behind_any_prefix();
    lock_words_name_owner_and_generation();
    only_the_dead_lose_their_locks();
    windows_stay_exact_while_they_wrap();
    a_late_worker_is_not_over_the_global_limit();
    puts("decide: ok");
    return 0;
}
