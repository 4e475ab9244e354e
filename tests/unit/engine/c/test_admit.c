/* Unit tests of admit.c that Python cannot write: a full table, held locks, no byte outside. */
#define _GNU_SOURCE
#include "admit.h"
#include "segment_support.h"

#include <unistd.h>

static struct wv_tables t;

static void open_table(struct test_segment *segment) {
    *segment = test_segment_new();
    CHECK(wv_open(&t, segment->base, segment->bytes, 1, (uint32_t)getpid()) == WV_OPEN_OK);
    struct wv_control *control = t.control;
    control->log_level = 20;
    control->identity_per_s = 10;
    control->identity_burst = 3;
}

static struct wv_lease lease_of(unsigned number, unsigned role) {
    struct wv_lease lease = {.jti = 1000 + 2 * number + role,
                             .sub = 5000 + 2 * number + role,
                             .mark = 2,
                             .expires_ms = TEST_EXPIRES_MS,
                             .cnf = 77,
                             .kid = 5,
                             .issued_s = 9,
                             .role = (uint8_t)role,
                             .proves = 1,
                             .bytes = 900};
    test_id(number, (uint8_t *)lease.id);
    return lease;
}

static uint64_t test_slot_tag(const struct wv_lease *lease) {
    const uint64_t words[2] = {test_hash(lease->id), lease->role + 1u};
    return test_hash(words);
}

static enum wv_answer admit(const struct wv_lease *lease, unsigned port) {
    const struct wv_address from = test_v4(1, port);
    return wv_admit(&t, lease, &from, TEST_NOW.mono_ns);
}

enum { MOST = 57 }; /* of 64: then fewer than a ninth are left */

static void fills_most_of_the_table(void) {
    struct test_segment s;
    open_table(&s);
    t.control->identity_burst = 1000;
    for (unsigned number = 0; number < MOST; number++) {
        for (unsigned role = 0; role < 2; role++) {
            const struct wv_lease lease = lease_of(number, role);
            CHECK(admit(&lease, 2000 + 2 * number + role) == WV_ANSWER_YES);
        }
        CHECK(t.sessions[number].state == WV_SESSION_ACTIVE);
    }
    CHECK(t.row[WV_COUNT_SESSION_ACTIVATED] == MOST);
    /* From here on the rules in Python ask whose sessions they are. */
    const struct wv_lease another = lease_of(MOST, 0);
    CHECK(admit(&another, 9) == WV_ANSWER_NO);
    CHECK(t.row[WV_COUNT_SESSION_CREATED] == MOST);
    free(s.base);
}

static void leaves_what_is_not_ordinary(void) {
    struct test_segment s;
    open_table(&s);
    struct wv_lease lease = lease_of(3, 0);
    t.control->log_level = 10;
    CHECK(admit(&lease, 7) == WV_ANSWER_NO);
    t.control->log_level = 20;
    t.control->drain = 1;
    CHECK(admit(&lease, 7) == WV_ANSWER_NO);
    t.control->drain = 0;
    t.shared->used_floor_s = lease.issued_s; /* of a lease that nobody knows any more */
    CHECK(admit(&lease, 7) == WV_ANSWER_NO);
    t.shared->used_floor_s = 0;
    struct wv_used_lease *left = &t.used[lease.sub % t.used_slots];
    *left = (struct wv_used_lease){.tag = 5, .sub = lease.sub, .floor_s = lease.issued_s};
    CHECK(admit(&lease, 7) == WV_ANSWER_NO); /* his own floor */
    left->floor_s = 0;
    left->tag = test_slot_tag(&lease);
    CHECK(admit(&lease, 7) == WV_ANSWER_NO); /* his slot, which somebody left */
    left->sub += 1;
    CHECK(t.row[WV_COUNT_TRANSITION_ISSUED_PRESENTED] == 0);
    CHECK(admit(&lease, 7) == WV_ANSWER_YES);
    CHECK(admit(&lease, 7) == WV_ANSWER_NO); /* the same lease again */
    lease.jti += 50;
    CHECK(admit(&lease, 8) == WV_ANSWER_NO); /* from elsewhere */
    CHECK(admit(&lease, 7) == WV_ANSWER_YES);
    lease.jti -= 50;
    CHECK(admit(&lease, 7) == WV_ANSWER_NO); /* the denied one */
    for (unsigned i = 0; i < WV_LEASE_HISTORY + 1; i++) {
        lease.jti += 100, lease.issued_s += 1;
        t.control->identity_burst = 1000;
        CHECK(admit(&lease, 7) == WV_ANSWER_YES);
    }
    lease.jti += 7, lease.issued_s = t.origins[0].floor_s[0];
    CHECK(lease.issued_s != 0 && admit(&lease, 7) == WV_ANSWER_NO); /* denied by date */
    const struct wv_used_lease whole = {.tag = 1, .sub = 1};
    for (unsigned place = 0; place < t.used_slots; place++) t.used[place] = whole;
    lease = lease_of(5, 1);
    CHECK(admit(&lease, 9) == WV_ANSWER_YES); /* a full table ends the search */
    free(s.base);
}

static void waits_for_nobody_who_stopped(void) {
    struct test_segment s;
    open_table(&s);
    struct wv_tables other;
    CHECK(wv_open(&other, s.base, s.bytes, 2, (uint32_t)getpid()) == WV_OPEN_OK);
    const struct wv_lease lease = lease_of(4, 1);
    const uint64_t bucket = t.identities.at + lease.sub % t.identities.buckets * 64;
    CHECK(wv_lock(&other, WV_LOCK_RATE, bucket, 0) == 1);
    CHECK(admit(&lease, 7) == WV_ANSWER_BUSY);
    wv_unlock(&other, WV_LOCK_RATE, bucket);
    CHECK(admit(&lease, 7) == WV_ANSWER_YES);
    free(s.base);
}

static void limits_an_identity(void) {
    struct test_segment s;
    open_table(&s);
    struct wv_lease lease = lease_of(5, 0);
    for (int i = 0; i < 3; i++, lease.jti += 50) CHECK(admit(&lease, 7) == WV_ANSWER_YES);
    CHECK(admit(&lease, 7) == WV_ANSWER_NO);
    t.control->identity_per_s = t.control->identity_burst = 0; /* no division by it */
    admit(&lease, 7);
    free(s.base);
}

static void counts_what_an_unproved_address_may_get(void) {
    struct test_segment s;
    open_table(&s);
    struct wv_lease lease = lease_of(6, 0);
    lease.proves = 0;
    CHECK(admit(&lease, 7) == WV_ANSWER_UNPROVED);
    const struct wv_slot *slot = (const struct wv_slot *)t.sessions[0].client;
    const uint32_t first = 1 + WV_UNPROVED_FACTOR * 900 - (WV_ACK_BYTES + WV_CHALLENGE_BYTES);
    CHECK(slot->unproved == first);
    lease.jti += 50, lease.renews = 1;
    CHECK(admit(&lease, 7) == WV_ANSWER_UNPROVED && slot->unproved == 2 * first - 1);
    lease.jti += 50, lease.proves = 1;
    CHECK(admit(&lease, 7) == WV_ANSWER_YES && slot->unproved == 0);
    lease.jti += 50, lease.proves = 0;
    t.control->identity_burst = 1000;
    CHECK(admit(&lease, 7) == WV_ANSWER_YES && slot->unproved == 0); /* proved stays proved */
    free(s.base);
}

int main(void) {
    counts_what_an_unproved_address_may_get();
    fills_most_of_the_table();
    leaves_what_is_not_ordinary();
    waits_for_nobody_who_stopped();
    limits_an_identity();
    puts("admit: ok");
    return 0;
}
