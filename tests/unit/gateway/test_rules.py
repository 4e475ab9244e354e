"""The pure parts, with a clock of our own."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.control.gateway import public_key

from wavry_cp.app.refusal import RefusedError
from wavry_cp.gateway.accounts.login_delays import (
    FORGET_S,
    FREE_ATTEMPTS,
    MAX_DELAY_S,
    MAX_PAUSE_S,
    SHARED_ENTRIES,
    LoginDelays,
)
from wavry_cp.gateway.accounts.tokens import TokenHash, make_token, token_hash
from wavry_cp.gateway.sessions import rules as sessions
from wavry_cp.gateway.sessions.breaker import FAILURES, OPEN_S, Breaker
from wavry_cp.gateway.sessions.keyed_lock import KeyedLock
from wavry_cp.gateway.sessions.rules import TRANSITIONS, Keys, SessionKey, new_session
from wavry_cp.gateway.signaling.connection import SignalingConnection
from wavry_cp.gateway.signaling.hub import Hub
from wavry_cp.gateway.signaling.limits import STRIKE_FORGET_S, ConnectionFaults, ConnectionSlots
from wavry_peer.protocol.http import signaling as wire

NOW = 1_800_000_000


def pending(**kwargs):
    return new_session(
        SessionKey("0" * 36), "ann", "bob", Keys("ak", "an"), now_s=NOW, pending_s=60, **kwargs
    )


def accepted():
    return sessions.accept(pending(), "bob", Keys("bk", "bn"), now_s=NOW, lifetime_s=1000)


def active():
    return granted(accepted())


def granted(session, *, now_s=NOW):
    return sessions.grant(
        session,
        relay_id="rly",
        relay_addrs=("127.0.0.1:1",),
        lease_expires_at=now_s + 300,
        now_s=now_s,
        lifetime_s=1000,
    )


STATES = {
    "pending": pending,
    "accepted": accepted,
    "active": active,
    "closed": lambda: sessions.close(active(), now_s=NOW),
}
EVENTS = {
    "accept": lambda s: sessions.accept(s, "bob", Keys("bk", "bn"), now_s=NOW, lifetime_s=1000),
    "relay": granted,
    "renew": lambda s: sessions.renew(s, lease_expires_at=NOW + 600, now_s=NOW, lifetime_s=1000),
    "close": lambda s: sessions.close(s, now_s=NOW),
}
HARMLESS = {("accepted", "accept"), ("active", "accept"), ("closed", "close")}
"""Saying it again changes nothing."""


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_every_pair_of_state_and_event(state, event):
    before = STATES[state]()
    assert before.state == state
    if (state, event) in TRANSITIONS:
        assert EVENTS[event](before).state == TRANSITIONS[state, event]
    elif (state, event) in HARMLESS:
        assert EVENTS[event](before) == before
    else:
        with pytest.raises(RefusedError):
            EVENTS[event](before)


@given(st.lists(st.sampled_from(sorted(EVENTS)), max_size=8))
def test_no_order_of_events_reaches_a_lease_without_consent(events):
    session, consented = pending(), False
    for event in events:
        try:
            session = EVENTS[event](session)
        except RefusedError:
            continue
        consented = consented or event == "accept"
        assert session.state != "active" or consented
        assert session.lease_expires_at is None or consented


@pytest.mark.parametrize("state", ["pending", "accepted", "active"])
def test_expiry_needs_no_sweep(state):
    session = STATES[state]()
    late = session.expires_at
    for rule in (
        lambda: sessions.accept(session, "bob", Keys(), now_s=late, lifetime_s=1),
        lambda: sessions.require_grantable(session, now_s=late),
        lambda: sessions.require_renewable(session, now_s=late),
    ):
        with pytest.raises(RefusedError) as refused:
            rule()
        assert refused.value.code == "session_closed"
    assert sessions.expire(session, now_s=late).state == "closed"
    assert sessions.expire(session, now_s=late - 1) == session


def test_a_renewed_session_lives_on():
    session = active()
    for step in range(1, 50):
        now_s = NOW + step * 240
        session = sessions.renew(
            session, lease_expires_at=now_s + 300, now_s=now_s, lifetime_s=1000
        )
        sessions.require_open(session, now_s=now_s + 299)
    # An old renewal that arrives late does not shorten it.
    assert sessions.renew(session, lease_expires_at=NOW, now_s=now_s, lifetime_s=1000) == session


def test_accepting_again_with_other_keys_is_refused():
    with pytest.raises(RefusedError) as refused:
        sessions.accept(accepted(), "bob", Keys(public_key()), now_s=NOW, lifetime_s=1000)
    assert refused.value.code == "key_mismatch"


def test_each_user_sees_the_keys_of_the_other():
    assert sessions.describe(accepted(), "ann").peer_noise_key == "bn"
    assert sessions.describe(accepted(), "bob").peer_noise_key == "an"
    with pytest.raises(RefusedError):
        sessions.describe(accepted(), "eve")


def test_nobody_calls_himself():
    with pytest.raises(RefusedError) as refused:
        new_session(SessionKey("x"), "ann", "ann", Keys(), now_s=NOW, pending_s=1)
    assert refused.value.code == "invalid_target"


# -- delays after wrong passwords ---------------------------------------------------------------


def delays(**kwargs):
    return LoginDelays(secret=b"s" * 32, **kwargs)


def test_delay_doubles_up_to_its_bound():
    table, now, waits = delays(), 0.0, []
    for _ in range(FREE_ATTEMPTS):
        assert table.begin("ann", "1", now) == 0
    for _ in range(14):
        wait = table.begin("ann", "1", now)
        waits.append(wait)
        now += wait
        assert table.begin("ann", "1", now) == 0
    assert waits[:4] == [1, 2, 4, 8]
    assert waits[-1] == MAX_DELAY_S


def test_refused_attempts_do_not_prolong_the_delay():
    table = delays()
    for _ in range(FREE_ATTEMPTS):
        table.begin("ann", "1", 0.0)
    assert [table.begin("ann", "1", t / 10) for t in range(1, 10)] == pytest.approx(
        [1 - t / 10 for t in range(1, 10)]
    )
    assert table.begin("ann", "1", 1.0) == 0


def test_guessing_from_everywhere_never_locks_the_owner_out_and_is_forgotten():
    table = delays()
    for number in range(5000):
        assert table.begin("ann", f"evil{number}", number / 100) == 0
    assert table.begin("ann", "home", 50.0) == 0
    assert table.pause_s("ann", 50.0) == MAX_PAUSE_S
    assert table.pause_s("bob", 50.0) == 0
    assert table.pause_s("ann", 50.0 + FORGET_S + 1) == 0


def test_a_success_clears_the_pair_only():
    table = delays()
    for prefix in ("home", "evil"):
        for _ in range(FREE_ATTEMPTS):
            table.begin("ann", prefix, 0.0)
    table.succeeded("ann", "home")
    assert table.begin("ann", "home", 0.1) == 0
    assert table.begin("ann", "evil", 0.1) > 0


def test_an_attempt_that_was_never_checked_is_no_failure():
    table = delays()
    for _ in range(FREE_ATTEMPTS * 3):
        assert table.begin("ann", "1", 0.0) == 0
        table.take_back("ann", "1")


def test_flooding_the_table_frees_nobody_and_shuts_out_nobody():
    table = delays(max_entries=100)
    for _ in range(FREE_ATTEMPTS):
        table.begin("ann", "evil", 0.0)
    for number in range(20_000):
        table.begin(f"user{number}", "evil", 0.001)
    assert len(table) <= 2 * (100 + SHARED_ENTRIES)
    assert table.begin("ann", "evil", 0.002) > 0
    assert table.begin("good", "elsewhere", 0.002) == 0
    # What is old makes room again.
    assert table.begin("late", "evil", FORGET_S + 1) == 0
    assert len(table._pairs) <= 100


# -- small things ---------------------------------------------------------------------------------


def test_breaker_opens_after_failures_and_lets_one_try():
    breaker = Breaker()
    for _ in range(FAILURES):
        assert breaker.allows(0.0)
        breaker.failed(0.0)
    assert not breaker.allows(OPEN_S - 0.1)
    assert breaker.allows(OPEN_S)
    assert not breaker.allows(OPEN_S), "the others wait for the one that tries"
    breaker.succeeded()
    assert breaker.allows(OPEN_S)


def test_strikes_are_forgotten_after_a_quiet_minute():
    strikes = ConnectionFaults(2)
    assert [strikes.add(0.0), strikes.add(1.0), strikes.add(2.0)] == [False, False, True]
    assert not strikes.add(2.0 + STRIKE_FORGET_S + 0.1)


def test_slots_come_back_from_a_failing_block():
    slots = ConnectionSlots(per_address=2, total=3)
    for _ in range(10):
        with pytest.raises(ZeroDivisionError), slots.take("a"):
            raise ZeroDivisionError
    assert (slots.in_use, slots._used) == (0, {})
    with slots.take("a"), slots.take("a"):
        with pytest.raises(RefusedError) as refused:
            slots.take("a")
        assert refused.value.code == "too_many_connections"
        with slots.take("b"), pytest.raises(RefusedError) as refused:
            slots.take("c")
        assert refused.value.code == "busy"


def test_tokens_have_256_bits_and_only_their_hash_is_known():
    asked = []

    def random_bytes(count):
        asked.append(count)
        return bytes(count)

    token, hashed = make_token(random_bytes)
    assert asked == [32]
    assert token == "A" * 43
    assert hashed == token_hash(token)
    assert len(hashed) == 64
    for bad in ("", "A" * 42, "A" * 44, "A" * 42 + "é", "A" * 42 + "\n", "\ud800" * 43):
        assert token_hash(bad) is None


async def test_keyed_lock_keeps_nothing_and_serializes_one_key():
    lock: KeyedLock[str] = KeyedLock()
    order = []

    async def work(key, name):
        async with lock.hold(key, timeout_s=5):
            order.append(f"{name} in")
            await asyncio.sleep(0.01)
            order.append(f"{name} out")

    await asyncio.gather(work("a", "1"), work("a", "2"))
    assert order == ["1 in", "1 out", "2 in", "2 out"]
    async with lock.hold("a", timeout_s=5):
        with pytest.raises(TimeoutError):
            async with lock.hold("a", timeout_s=0.01):
                raise AssertionError
        async with lock.hold("b", timeout_s=0.01):
            assert len(lock) == 2
    assert len(lock) == 0


class _Transport:
    aborted = False

    def abort(self):
        self.aborted = True


def connection(**kwargs):
    limits = {"queue_messages": 4, "queue_bytes": 1000, "send_timeout_s": 1.0} | kwargs
    return SignalingConnection(None, _Transport(), **limits)


async def test_queue_of_a_connection_is_bounded_by_messages_and_by_bytes():
    for message, kwargs in (
        (wire.Pong(), {"queue_bytes": 10**9}),
        (wire.Candidate(candidate="x" * 300), {"queue_messages": 10**9}),
    ):
        slow = connection(**kwargs)
        sent = sum(slow.send(message) for _ in range(100))
        assert 0 < sent <= 4
        assert slow.cause == "slow_reader"
        assert slow._transport.aborted
        assert not slow._queue


async def test_hub_the_end_of_the_older_does_not_remove_the_newer():
    hub, old, new = Hub(), connection(), connection()
    for item in (old, new):
        hub.add(item)
        hub.claim(item, TokenHash("t"))
        hub.bind(item, "ann")
    assert old.cause == "displaced"
    hub.remove(old)
    assert hub.is_online("ann")
    assert hub.deliver("ann", wire.Pong())
    hub.end_tokens([TokenHash("t"), TokenHash("unknown")])
    assert new.cause == "invalid_token"
    assert not hub.is_online("ann")
    hub.remove(new)
    assert (hub.online, len(hub._all), len(hub._by_token)) == (0, 0, 0)


async def test_hub_a_connection_that_ends_already_is_not_bound():
    hub, bound, item = Hub(), connection(), connection()
    hub.add(bound)
    hub.claim(bound, TokenHash("good"))
    hub.bind(bound, "ann")
    hub.add(item)
    hub.claim(item, TokenHash("t"))
    hub.end_tokens([TokenHash("t")])
    hub.bind(item, "ann")
    assert hub.is_online("ann")
    assert bound.cause is None
    hub.remove(item)
    assert hub.is_online("ann")
