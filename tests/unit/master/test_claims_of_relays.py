"""What a relay says weighs only within what its sessions show: the book, and the shares."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavry_cp.master.leases.rules import LeasedSession, LeaseSlot
from wavry_cp.master.leases.selection import GROWTH, RelayCandidate, choose, weigh
from wavry_cp.master.leases.tally import LeaseTally, LiveLeases, LiveLeasesRow

TTL_S = 300


def session(relay="r1", *, issued_s=1000, renewed=(False, False), name="s"):
    slots = [
        LeaseSlot(sub, "cnf", "j", "before" if again else None, "k", issued_s, TTL_S)
        for sub, again in zip(("ann", "bob"), renewed, strict=True)
    ]
    return LeasedSession(name, relay, 1, 2, slots[0], slots[1], issued_s)


# -- The book ----------------------------------------------------------------------------------


def test_a_session_counts_until_its_last_lease_ends_and_is_proven_when_both_renewed():
    tally = LeaseTally(now_s=1000)
    first = session()
    tally.change(None, first, 1000)
    assert tally.live("r1", 1000) == LiveLeases(1, 0)
    half = session(issued_s=1100, renewed=(True, False))
    tally.change(first, half, 1100)
    assert tally.live("r1", 1100) == LiveLeases(1, 0)
    both = session(issued_s=1110, renewed=(True, True))
    tally.change(half, both, 1110)
    assert tally.live("r1", 1110) == LiveLeases(1, 1)
    assert tally.live("r1", 1110 + TTL_S - 1) == LiveLeases(1, 1)
    assert tally.live("r1", 1110 + TTL_S) == LiveLeases(0, 0)


def test_a_session_that_moves_is_proven_nowhere_before_it_renews_there():
    tally = LeaseTally(now_s=1000)
    there = session(renewed=(True, True))
    tally.change(None, there, 1000)
    tally.change(there, session("r2", issued_s=1010), 1010)
    assert tally.live("r1", 1010) == LiveLeases(0, 0)
    assert tally.live("r2", 1010) == LiveLeases(1, 0)


def test_the_book_goes_on_with_what_the_store_holds():
    rows = [LiveLeasesRow("r1", 1200, True, 5), LiveLeasesRow("r1", 900, True, 7)]
    tally = LeaseTally(rows, now_s=1000)
    assert tally.live("r1", 1000) == LiveLeases(5, 5)
    assert tally.live("r1", 1200) == LiveLeases(0, 0)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4), st.sampled_from("ab"), st.tuples(st.booleans(), st.booleans()),
            st.integers(0, 400),
        ),
        max_size=30,
    )
)  # fmt: skip
def test_the_book_is_what_counting_all_sessions_would_say(steps):
    now, kept, tally = 1000, {}, LeaseTally(now_s=1000)
    for number, relay, renewed, later in steps:
        now += later
        after = session(relay, issued_s=now, renewed=renewed)
        tally.change(kept.get(number), after, now)
        kept[number] = after
        for name in "ab":
            live = [s for s in kept.values() if s.relay_id == name and s.expires_at_s > now]
            proven = [s for s in live if s.client.previous_jti and s.server.previous_jti]
            assert tally.live(name, now) == LiveLeases(len(live), len(proven))


# -- The shares --------------------------------------------------------------------------------


def relay(name, **fields):
    return RelayCandidate(
        **{
            "relay_id": name,
            "region": None,
            "load_pct": 0.0,
            "packet_loss_pct": 0.0,
            "active_sessions": 0,
            "max_sessions": 10_000_000,
            "recent_picks": 0,
            **fields,
        }
    )


def shares(items, rounds=4000):
    dice = random.Random(1)
    picks = Counter(
        choose(items, region=None, exclude=(), random=dice.random).relay_id for _ in range(rounds)
    )
    return {item.relay_id: picks[item.relay_id] / rounds for item in items}


def honest(name, *, use=0.4, sessions=400):
    return relay(
        name,
        load_pct=100 * use,
        active_sessions=sessions,
        max_sessions=round(sessions / use),
        proven_sessions=round(0.8 * sessions),
        proven_peak=sessions,
    )


@given(
    use=st.floats(0.05, 0.9),
    count=st.integers(1, 10),
    liars=st.integers(1, 25),
    accomplices=st.integers(0, 10),
)
def test_a_liar_gets_no_more_than_an_honest_relay_of_proven_use(use, count, liars, accomplices):
    """Load 0, room for ten million; a few sessions of accomplices that renew change little."""
    items = [honest(f"honest-{n}", use=use) for n in range(count)]
    items += [
        relay(f"liar-{n}", proven_sessions=accomplices, proven_peak=accomplices)
        for n in range(liars)
    ]
    weights = weigh(items)
    proven = 320 * count
    voice = proven / (proven + liars * accomplices)
    most = 1 - use * voice * (1 - accomplices / (320 * voice))
    for n in range(liars):
        assert weights[f"liar-{n}"] <= most + 1e-9
        if accomplices == 0:
            assert weights[f"liar-{n}"] <= weights["honest-0"] + 1e-9


def test_the_share_that_each_got():
    items = [honest(f"honest-{n}") for n in range(3)] + [relay("liar")]
    got = shares(items)
    assert got["liar"] == pytest.approx(0.25, abs=0.03)


def test_a_liar_that_carries_sessions_is_believed_four_times_what_it_carried():
    carried = relay("liar", proven_sessions=320, proven_peak=320)
    got = weigh([honest("honest-0"), carried])
    assert got["liar"] == pytest.approx(1 - 1 / GROWTH)


def test_a_relay_cannot_say_that_it_has_fewer_sessions_than_it_renews():
    said = relay("liar", max_sessions=100, proven_sessions=80, proven_peak=80)
    assert weigh([honest("honest-0"), said])["liar"] == pytest.approx(0.2)


def test_loss_that_the_master_sees_itself_counts_against_it():
    lossy = honest("a").__class__(**{**_fields(honest("a")), "packet_loss_pct": 50.0})
    got = weigh([lossy, honest("b")])
    assert got["a"] == pytest.approx(got["b"] / 2)


def _fields(item):
    return {name: getattr(item, name) for name in item.__dataclass_fields__}


def test_a_new_honest_relay_gets_the_share_of_its_neighbours_and_more_once_it_has_proved_itself():
    pool = [honest(f"honest-{n}", use=0.8) for n in range(3)]
    new = weigh([*pool, relay("new", max_sessions=1000)])
    assert new["new"] == pytest.approx(new["honest-0"])
    grown = weigh([*pool, honest("new", use=0.2)])
    assert grown["new"] > 2 * grown["honest-0"]


def test_where_nobody_has_proved_anything_relays_are_taken_at_their_word():
    got = weigh([relay("busy", load_pct=90), relay("idle", load_pct=10)])
    assert got == {"busy": pytest.approx(0.1), "idle": pytest.approx(0.9)}


def simulated(seed, *, liars, honest_relays=3, minutes=60, per_minute=60):
    """Sessions of 20 minutes; a liar drops all, so that its sessions end after half a minute."""
    dice = random.Random(seed)
    names = [f"honest-{n}" for n in range(honest_relays)] + [f"liar-{n}" for n in range(liars)]
    began: dict[str, list[int]] = {name: [] for name in names}
    peaks, given_to = Counter(), Counter()
    for now_s in range(0, minutes * 60, 60 // per_minute):
        items = []
        for name in names:
            lies = name.startswith("liar")
            life_s = 30 if lies else 1200
            began[name] = [at for at in began[name] if now_s - at < life_s]
            proven = 0 if lies else sum(now_s - at >= TTL_S for at in began[name])
            peaks[name] = max(peaks[name], proven)
            live = len(began[name])
            items.append(
                relay(
                    name,
                    load_pct=0.0 if lies else min(100.0, live / 10),
                    active_sessions=0 if lies else live,
                    max_sessions=1_000_000 if lies else 1000,
                    proven_sessions=proven,
                    proven_peak=peaks[name],
                )
            )
        chosen = choose(items, region=None, exclude=(), random=dice.random)
        began[chosen.relay_id].append(now_s)
        given_to[chosen.relay_id] += 1
    return given_to


def test_over_an_hour_a_liar_got_no_more_than_the_honest_relays_and_without_the_bound_it_did():
    got = simulated(3, liars=1)
    average = sum(got[f"honest-{n}"] for n in range(3)) / 3
    assert got["liar-0"] <= 1.1 * average
