"""Pure rules: states, selection, renewal, challenges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.control.master import FakeRelay

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.enrolment.challenges import Challenges, PendingChallenge
from wavry_cp.master.leases import rules as leases
from wavry_cp.master.leases.rules import LeasedSession, LeaseSlot
from wavry_cp.master.leases.selection import RelayCandidate, choose, weight
from wavry_cp.master.relays import rules as registry
from wavry_cp.master.relays.rules import RegistrationTerms, RelayEvent, RelayRecord, RelayReport
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http.api import RegisterRequest
from wavry_peer.protocol.relay_terms import Enrolment, RelayState

STORED = [RelayState.NEW, RelayState.ACTIVE, RelayState.DRAINING, RelayState.BANNED]
TERMS = RegistrationTerms("fra-1", Enrolment.POOL, ("127.0.0.1:4500",), "eu")


def body(relay=None, **fields):
    return RegisterRequest(**{**(relay or FakeRelay(None)).registration(), **fields})


def record(**fields):
    made = registry.register(body(), None, TERMS, token_hash="h", now_s=1)
    values = {name: getattr(made, name) for name in RelayRecord.__slots__}
    return RelayRecord(**{**values, **fields})


def attempt(rule, *arguments, **named):
    """What a rule gives, and the code of its refusal."""
    try:
        return rule(*arguments, **named), None
    except RefusedError as error:
        return None, error.code


def status(**fields):
    return RelayReport(
        **{
            "at_s": 1,
            "load_pct": 0,
            "active_sessions": 0,
            "packet_loss_pct": 0,
            "held_kids": ("k",),
            "keyset_serial": 1,
            "reported": "ready",
            **fields,
        }
    )


# -- States ----------------------------------------------------------------------------------


@pytest.mark.parametrize("state", STORED)
@pytest.mark.parametrize("event", list(RelayEvent))
def test_every_state_and_event_has_an_outcome(state, event):
    after, code = attempt(registry.transition, state, event)
    assert after in STORED if code is None else code in ("banned", "wrong_state")


@pytest.mark.parametrize("state", [RelayState.BANNED, RelayState.DRAINING])
def test_nothing_that_a_relay_sends_ends_a_ban_or_a_drain(state):
    for event in (RelayEvent.REGISTERED, RelayEvent.HEARTBEAT):
        want = (None, "banned") if state is RelayState.BANNED else (state, None)
        assert attempt(registry.transition, state, event) == want


def test_registering_again_keeps_the_state_and_needs_the_same_key():
    relay = FakeRelay(None)
    known = registry.register(body(relay), None, TERMS, token_hash="a", now_s=1)
    drained = registry.after_event(known, RelayEvent.DRAIN)
    again = registry.register(body(relay), drained, TERMS, token_hash="b", now_s=2)
    assert (again.state, again.region, again.token_hash) == (RelayState.DRAINING, "eu", "b")
    banned = registry.after_event(known, RelayEvent.BAN)
    with pytest.raises(RefusedError, match="banned"):
        registry.register(body(relay), banned, TERMS, token_hash="b", now_s=2)
    foreign = body(FakeRelay(None), relay_id=relay.relay_id)
    with pytest.raises(RefusedError) as caught:
        registry.register(foreign, known, TERMS, token_hash="b", now_s=2)
    assert caught.value.code == "key_mismatch"


def test_an_undrain_that_the_relay_has_not_heard_survives_its_registration():
    relay = FakeRelay(None)
    known = registry.register(body(relay), None, TERMS, token_hash="a", now_s=1)
    assert not known.undrain_pending
    for event in (RelayEvent.HEARTBEAT, RelayEvent.DRAIN, RelayEvent.UNDRAIN):
        known = registry.after_event(known, event)
    assert known.undrain_pending
    assert registry.register(body(relay), known, TERMS, token_hash="b", now_s=2).undrain_pending


@pytest.mark.parametrize(
    ("stored", "reported", "alive", "seen"),
    [
        (RelayState.ACTIVE, "ready", True, RelayState.ACTIVE),
        (RelayState.ACTIVE, "draining", True, RelayState.DRAINING),
        (RelayState.ACTIVE, "starting", True, RelayState.NEW),
        (RelayState.ACTIVE, None, True, RelayState.NEW),
        (RelayState.ACTIVE, "ready", False, RelayState.OFFLINE),
        (RelayState.ACTIVE, "ready, lacking workers", True, RelayState.DEGRADED),
        (RelayState.ACTIVE, "draining, lacking workers", True, RelayState.DRAINING),
        (RelayState.ACTIVE, "ready, lacking workers", False, RelayState.OFFLINE),
        (RelayState.DRAINING, "ready", True, RelayState.DRAINING),
        (RelayState.DRAINING, "ready", False, RelayState.OFFLINE),
        (RelayState.BANNED, "ready", True, RelayState.BANNED),
        (RelayState.BANNED, None, False, RelayState.BANNED),
    ],
)
def test_state_that_others_see(stored, reported, alive, seen):
    said = None
    if reported is not None:
        word, _, lacking = reported.partition(", ")
        said = status(reported=word)
    found = registry.state_now(
        record(state=stored), said, alive=alive, degraded=reported is not None and bool(lacking)
    )
    assert found is seen


def test_relay_without_token_is_offline():
    assert registry.state_now(record(token_hash=None), status(), alive=True) is RelayState.OFFLINE
    assert not registry.token_matches(record(token_hash=None), "anything")


# -- Selection -------------------------------------------------------------------------------

candidates = st.lists(
    st.builds(
        RelayCandidate,
        relay_id=st.text("abcdef", min_size=1, max_size=3),
        region=st.sampled_from([None, "eu", "us"]),
        load_pct=st.floats(0, 100),
        packet_loss_pct=st.floats(0, 100),
        active_sessions=st.integers(0, 20),
        max_sessions=st.integers(1, 20),
        recent_picks=st.integers(0, 20),
    ),
    max_size=8,
    unique_by=lambda item: item.relay_id,
)
uniform = st.floats(0, 1, exclude_max=True)


@given(
    candidates,
    st.sampled_from([None, "eu", "mars"]),
    st.sets(st.text("abcdef", min_size=1, max_size=3)),
    uniform,
)
def test_choice_has_room_is_not_excluded_and_exists_where_one_can(items, region, exclude, point):
    choice = choose(items, region=region, exclude=exclude, random=lambda: point)
    by_id = {item.relay_id: item for item in items}
    able = {
        item.relay_id
        for item in items
        if item.relay_id not in exclude
        and item.active_sessions + item.recent_picks < item.max_sessions
    }
    if not able:
        assert choice is None
        return
    assert choice.relay_id in able
    assert (choice.standby_id is None) == (len(able) == 1)
    assert choice.standby_id != choice.relay_id
    assert choice.standby_id is None or choice.standby_id in able
    near = [by_id[key] for key in able if region and by_id[key].region == region]
    if any(weight(item) > 0.05 for item in near):
        assert by_id[choice.relay_id].region == region


@given(candidates)
def test_weight_is_a_share(items):
    assert all(0 <= weight(item) <= 1 for item in items)


def made(relay_id, **fields):
    return RelayCandidate(
        **{
            "relay_id": relay_id,
            "region": None,
            "load_pct": 0,
            "packet_loss_pct": 0,
            "active_sessions": 0,
            "max_sessions": 100,
            "recent_picks": 0,
            **fields,
        }
    )


def test_choice_follows_free_capacity():
    items = [made("busy", load_pct=90), made("idle", load_pct=10)]
    points = [index / 1000 for index in range(1000)]
    picks = [
        choose(items, region=None, exclude=(), random=lambda point=point: point).relay_id
        for point in points
    ]
    assert picks.count("busy") == pytest.approx(100, abs=2)


@pytest.mark.parametrize(
    "worse",
    [{"load_pct": 50}, {"active_sessions": 50}, {"packet_loss_pct": 50}, {"recent_picks": 9}],
)
def test_load_sessions_loss_and_recent_picks_make_a_relay_less_likely(worse):
    assert weight(made("a", **worse)) < weight(made("a"))


# -- Renewal ---------------------------------------------------------------------------------


def session():
    def slot(sub, jti):
        return LeaseSlot(sub, "cnf", jti, None, "k", 1000, 300)

    return LeasedSession("s", "r", 1, 2, slot("ann", "c0"), slot("bob", "s0"), 1000)


@given(
    st.lists(
        st.tuples(st.sampled_from(list(c.Role)), st.integers(0, 3), st.integers(0, 120)),
        max_size=12,
    )
)
def test_only_the_current_lease_or_its_fresh_predecessor_renews(steps):
    """However calls repeat, arrive late or mix roles, there is one current lease per role."""
    now, current = 1000, session()
    history = {c.Role.CLIENT: ["c0"], c.Role.SERVER: ["s0"]}
    for index, (role, back, later) in enumerate(steps):
        now += later
        known = history[role]
        jti = known[max(0, len(known) - 1 - back)]
        before = current.slot(role)
        other = current.slot(c.Role(1 - role))
        renewal, code = attempt(
            leases.renew, current, role, jti, now_s=now, kid="k", new_jti=f"n{index}"
        )
        if renewal is None:
            fresh = jti == before.jti or (
                jti == before.previous_jti and now - before.issued_at_s <= leases.REPEAT_S
            )
            assert code == "lease_expired" or not fresh
            assert code != "lease_expired" or before.expires_at_s <= now
            continue
        after = renewal.session.slot(role)
        assert before.expires_at_s > now
        assert renewal.session.slot(c.Role(1 - role)) == other
        assert (after.sub, after.cnf, after.ttl_s) == (before.sub, before.cnf, before.ttl_s)
        if renewal.repeated:
            assert renewal.session is current
            assert jti == before.previous_jti
        else:
            assert jti == before.jti
            assert after.expires_at_s == now + 300
            assert renewal.session.revision == current.revision + 1
            history[role].append(after.jti)
        current = renewal.session


def test_repeat_is_not_answered_with_a_lease_of_a_replaced_signing_key():
    renewal = leases.renew(session(), c.Role.CLIENT, "c0", now_s=1001, kid="k", new_jti="c1")
    with pytest.raises(RefusedError, match="not the current"):
        leases.renew(renewal.session, c.Role.CLIENT, "c0", now_s=1002, kid="k2", new_jti="c2")


# -- Challenges ------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 90)), max_size=40))
def test_challenges_are_bounded_single_use_and_short_lived(steps):
    open_until = {}
    now = 0.0
    challenges = Challenges(max_challenges=5)
    for add, number, later in steps:
        now += later
        key = str(number)
        if add:
            challenges.add(key, PendingChallenge(b"c", body()), now_s=now)
            open_until[key] = now + 60
        else:
            _, code = attempt(challenges.take, key, now_s=now)
            assert code == "unknown_challenge" or open_until[key] > now
            open_until[key] = float("-inf")
        assert len(challenges) <= 5
