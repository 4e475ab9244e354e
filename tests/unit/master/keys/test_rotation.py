"""Rules of key rotation: transitions, refusals, and that no valid lease is ever rejected."""

import secrets
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.keys.rules import (
    STATUS_AFTER,
    KeyStep,
    RelayKeys,
    active_key,
    check_held,
    check_removable,
    may_sign_for,
    next_keys,
    pick_successor,
    removable_at_s,
)
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.keyset import MAX_KEYS, PublishedKey


def key(name: str, status: Any = "pending", **validity: int) -> PublishedKey:
    return PublishedKey(kid=name, public_key=secrets.token_urlsafe(32), status=status, **validity)


def statuses(keys: tuple[PublishedKey, ...]) -> dict[str, str]:
    return {item.kid: item.status for item in keys}


def refused(**arguments: Any) -> str:
    with pytest.raises(RefusedError) as caught:
        next_keys(**arguments)
    return caught.value.code


FIRST = (key("a", "active"),)


def test_a_whole_rotation_and_its_rollback() -> None:
    created = next_keys(FIRST, KeyStep.CREATE, now_s=10, new_key=key("b"))
    assert statuses(created) == {"a": "active", "b": "pending"}
    assert next_keys(created, KeyStep.ROLLBACK, now_s=11) == FIRST
    activated = next_keys(created, KeyStep.ACTIVATE, now_s=20, kid="b")
    assert statuses(activated) == {"a": "retiring", "b": "active"}
    assert active_key(activated).not_before == 20
    back = next_keys(activated, KeyStep.ROLLBACK, now_s=30)
    assert statuses(back) == {"a": "active", "b": "retiring"}
    assert active_key(back).not_before == FIRST[0].not_before, "the age of a key goes on"
    assert statuses(next_keys(activated, KeyStep.REMOVE, now_s=40, kid="a")) == {"b": "active"}


def test_a_rollback_takes_the_key_that_signed_last() -> None:
    keys = next_keys(FIRST, KeyStep.CREATE, now_s=10, new_key=key("b"))
    keys = next_keys(keys, KeyStep.ACTIVATE, now_s=20, kid="b")
    keys = next_keys(keys, KeyStep.CREATE, now_s=30, new_key=key("c"))
    keys = next_keys(keys, KeyStep.ACTIVATE, now_s=40, kid="c")
    assert statuses(next_keys(keys, KeyStep.ROLLBACK, now_s=50)) == {
        "a": "retiring", "b": "active", "c": "retiring",
    }  # fmt: skip


def test_revoking_the_active_key_needs_a_successor_in_the_same_document() -> None:
    assert refused(keys=FIRST, step=KeyStep.REVOKE, now_s=1, kid="a") == "no_successor"
    fresh = next_keys(FIRST, KeyStep.REVOKE, now_s=1, kid="a", new_key=key("b"))
    assert statuses(fresh) == {"a": "revoked", "b": "active"}
    pending = next_keys(FIRST, KeyStep.CREATE, now_s=1, new_key=key("b"))
    held = RelayKeys({"r1": {"a", "b"}})
    assert pick_successor(pending, "a", held) == "b"
    assert pick_successor(pending, "a", RelayKeys({"r1": {"a"}})) is None
    stepped = next_keys(pending, KeyStep.REVOKE, now_s=2, kid="a", successor="b")
    assert statuses(stepped) == {"a": "revoked", "b": "active"}


def test_a_revoked_key_never_comes_back() -> None:
    keys = next_keys(FIRST, KeyStep.REVOKE, now_s=1, kid="a", new_key=key("b"))
    for step in (KeyStep.ACTIVATE, KeyStep.REVOKE):
        assert refused(keys=keys, step=step, now_s=2, kid="a") == "wrong_key_status"
    assert refused(keys=keys, step=KeyStep.ROLLBACK, now_s=2) == "nothing_to_roll_back"
    assert pick_successor(keys, "b", RelayKeys()) is None


@pytest.mark.parametrize("status", [None, "pending", "active", "retiring", "revoked"])
def test_every_other_transition_is_refused(status: str | None) -> None:
    """What is not in the table cannot be reached by any step."""
    others = (key("x", "active"),)
    keys = others if status is None else (key("k", status), *(() if status == "active" else others))
    for step in KeyStep:
        try:
            after = next_keys(keys, step, now_s=5, kid="k", new_key=key("n"), successor="x")
        except RefusedError:
            continue
        reached = statuses(after).get("k")
        legal = {STATUS_AFTER[pair] for pair in STATUS_AFTER if pair[0] == status} | {status}
        assert reached in legal, (status, step)


def test_refusals_name_their_cause() -> None:
    pending = next_keys(FIRST, KeyStep.CREATE, now_s=1, new_key=key("b"))
    again = {"keys": pending, "step": KeyStep.CREATE, "now_s": 2, "new_key": key("c")}
    assert refused(**again) == "pending_exists"
    assert refused(keys=FIRST, step=KeyStep.ACTIVATE, now_s=2, kid="zz") == "unknown_key"
    assert refused(keys=FIRST, step=KeyStep.ACTIVATE, now_s=2, kid="a") == "wrong_key_status"
    assert refused(keys=FIRST, step=KeyStep.REMOVE, now_s=2, kid="a") == "wrong_key_status"
    full = FIRST + tuple(key(f"o{number}", "retiring") for number in range(MAX_KEYS - 1))
    filled = {"keys": full, "step": KeyStep.CREATE, "now_s": 2, "new_key": key("c")}
    assert refused(**filled) == "too_many_keys"


def test_activation_is_refused_while_a_live_relay_lacks_the_key_and_names_it() -> None:
    relays = RelayKeys({f"r{number}": {"a", "b"} for number in range(9)} | {"late": {"a"}})
    with pytest.raises(RefusedError, match="late") as caught:
        check_held("b", relays)
    assert caught.value.code == "relays_lack_key"
    check_held("b", relays, quorum_pct=90)
    check_held("b", RelayKeys())
    with pytest.raises(RefusedError, match="and 5 more"):
        check_held("c", relays)


def test_a_key_stays_until_its_last_lease_and_the_skew_are_over() -> None:
    with pytest.raises(RefusedError, match="another 31 s"):
        check_removable(key("a", "retiring"), 1001, now_s=1000)
    check_removable(key("a", "retiring"), 1000, now_s=removable_at_s(1000))
    check_removable(key("a", "retiring"), 0, now_s=1)


# -- At no step may a valid lease be rejected -----------------------------------------------------

RELAYS = st.sampled_from(("r1", "r2", "r3"))


class KeyWorld(RuleBasedStateMachine):
    """A master that follows the rules, relays that follow late, and the leases between them.

    A relay holds any document that was published, reports it when it likes, and may be away for
    any time.  The master knows what was reported, not what is held.
    """

    guarded = True
    """Whether leases are only signed for relays that hold the key (`may_sign_for`)."""
    checked = True
    """Whether activation waits for the relays (`check_held`)."""

    @initialize()
    def begin(self) -> None:
        self.numbers = count()
        self.now_s = 1_000_000
        first = (key(self.new_kid(), "active"),)
        self.documents = [first]
        self.holds = dict.fromkeys(("r1", "r2", "r3"), 0)
        self.reported = {name: frozenset(statuses(first)) for name in self.holds}
        self.away: set[str] = set()
        self.leases: list[tuple[str, str, int]] = []
        self.last_expiry_s: dict[str, int] = {}
        self.revoked: set[str] = set()

    def new_kid(self) -> str:
        return f"k{next(self.numbers):04}"

    @property
    def keys(self) -> tuple[PublishedKey, ...]:
        return self.documents[-1]

    def relay_keys(self) -> RelayKeys:
        return RelayKeys({n: held for n, held in self.reported.items() if n not in self.away})

    def step(self, step: KeyStep, **arguments: Any) -> None:
        try:
            following = next_keys(self.keys, step, now_s=self.now_s, **arguments)
        except RefusedError:
            return
        self.documents.append(following)

    @rule(seconds=st.sampled_from((1, 60, 250, 331, 1000)))
    def time_passes(self, seconds: int) -> None:
        self.now_s += seconds

    @rule(relay=RELAYS, data=st.data())
    def relay_fetches(self, relay: str, data: st.DataObject) -> None:
        newest = len(self.documents) - 1
        self.holds[relay] = data.draw(st.integers(self.holds[relay], newest))

    @rule(relay=RELAYS)
    def relay_reports(self, relay: str) -> None:
        self.away.discard(relay)
        self.reported[relay] = frozenset(statuses(self.documents[self.holds[relay]]))

    @precondition(lambda self: self.guarded)
    @rule(relay=RELAYS)
    def relay_goes_away(self, relay: str) -> None:
        self.away.add(relay)

    @rule(relay=RELAYS, ttl_s=st.sampled_from((60, 300, 900)))
    def lease(self, relay: str, ttl_s: int) -> None:
        """A new lease or a renewal: for the master they are signed alike."""
        kid = active_key(self.keys).kid
        guard = may_sign_for(self.reported[relay], kid) or not self.guarded
        if relay in self.away or not guard:
            return
        self.leases.append((kid, relay, self.now_s + ttl_s))
        self.last_expiry_s[kid] = max(self.last_expiry_s.get(kid, 0), self.now_s + ttl_s)

    @rule()
    def create(self) -> None:
        self.step(KeyStep.CREATE, new_key=key(self.new_kid()))

    @rule()
    def activate(self) -> None:
        for item in self.keys:
            if item.status == "pending":
                try:
                    if self.checked:
                        check_held(item.kid, self.relay_keys())
                except RefusedError:
                    return
                self.step(KeyStep.ACTIVATE, kid=item.kid)

    @rule()
    def roll_back(self) -> None:
        for item in self.keys:
            if item.status == "retiring" and self.checked and self.relay_keys().lacking(item.kid):
                return
        self.step(KeyStep.ROLLBACK)

    @rule()
    def remove_what_may_go(self) -> None:
        for item in self.keys:
            try:
                check_removable(item, self.last_expiry_s.get(item.kid, 0), now_s=self.now_s)
            except RefusedError:
                continue
            self.step(KeyStep.REMOVE, kid=item.kid)

    @precondition(lambda self: self.guarded)
    @rule(data=st.data())
    def revoke(self, data: st.DataObject) -> None:
        kid = data.draw(st.sampled_from(sorted(statuses(self.keys))))
        successor = pick_successor(self.keys, kid, self.relay_keys())
        before = len(self.documents)
        self.step(
            KeyStep.REVOKE, kid=kid, successor=successor,
            new_key=None if successor else key(self.new_kid()),
        )  # fmt: skip
        if len(self.documents) > before:
            self.revoked.add(kid)

    @invariant()
    def no_valid_lease_is_rejected(self) -> None:
        self.leases = [
            lease for lease in self.leases
            if lease[2] + c.NOT_BEFORE_SKEW_S > self.now_s and lease[0] not in self.revoked
        ]  # fmt: skip
        for kid, relay, expires_s in self.leases:
            held = statuses(self.documents[self.holds[relay]])
            assert held.get(kid, "unknown") in ("pending", "active", "retiring"), (
                f"{relay} rejects a lease of {kid} that is valid until {expires_s}"
            )

    @invariant()
    def one_key_signs(self) -> None:
        active_key(self.keys)


class WatchedWorld(KeyWorld):
    """All relays are always there: waiting for them before activation is enough."""

    guarded = False


class HastyWorld(KeyWorld):
    """A master that waits for nobody, but signs only for relays that hold the key."""

    checked = False


class RecklessWorld(WatchedWorld):
    """Neither rule."""

    checked = False


PATIENT = settings(
    max_examples=60, stateful_step_count=40, deadline=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow],
)  # fmt: skip
for world in (KeyWorld, WatchedWorld, HastyWorld):
    world.TestCase.settings = PATIENT

TestKeyWorld = KeyWorld.TestCase
TestWatchedWorld = WatchedWorld.TestCase
TestHastyWorld = HastyWorld.TestCase


def test_without_the_rules_the_model_does_find_a_rejected_lease() -> None:
    """The invariant above can fail."""
    RecklessWorld.TestCase.settings = settings(PATIENT, database=None, print_blob=False)
    with pytest.raises(AssertionError, match="rejects a lease"):
        RecklessWorld.TestCase("runTest").runTest()
