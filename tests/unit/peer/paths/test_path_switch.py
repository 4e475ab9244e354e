"""Make before break, with a fake clock: what is lost, how late it is, and where both sides end."""

import pytest
from support.peer.simulated_paths import FRAME_NS, FakeRelay, Move
from support.protocol.fakelink import MS, SECOND

from wavry_peer.paths.path_switch import PATIENCE_NS, RETIRE_NS, REVERT_NS
from wavry_peer.protocol.channel.wire import ProbeStage
from wavry_peer.protocol.constants import Role


def two_relays(**options: object) -> tuple[FakeRelay, FakeRelay]:
    return FakeRelay("old", 1), FakeRelay("new", 2, **options)  # type: ignore[arg-type]  # options of any test


def settle(move: Move) -> None:
    move.run(RETIRE_NS + SECOND)
    move.finish()


def test_a_move_loses_nothing_and_ends_on_the_new_relay_alone() -> None:
    move = Move(*two_relays())
    move.run(SECOND)
    for role in Role:
        move.arrive(role, "new")
    settle(move)
    assert move.lost() == 0
    assert move.longest_way_ns() == 10 * MS, "not one datagram waited"
    assert move.is_settled_at("new")
    for side in move.sides.values():
        assert (side.switched, side.retired) == (["old", "new"], ["old"])
        assert side.probes < 10


@pytest.mark.parametrize("late", list(Role))
@pytest.mark.parametrize("delay_ms", [5, 80, 900, 6000])
def test_one_side_slower_costs_nothing(late: Role, delay_ms: int) -> None:
    move = Move(*two_relays())
    early = Role.SERVER if late is Role.CLIENT else Role.CLIENT
    move.arrive(early, "new")
    move.run(delay_ms * MS)
    assert move.sides[early].switch.active == "old", "nobody is there yet"
    move.arrive(late, "new")
    move.run(SECOND)
    assert move.client.switch.active == move.server.switch.active == "new"
    settle(move)
    assert move.lost() == 0
    assert move.is_settled_at("new")


@pytest.mark.parametrize("seed", range(8))
def test_lost_probes_delay_the_switch_and_lose_no_data(seed: int) -> None:
    move = Move(*two_relays(loss=0.5), seed=seed)
    for role in Role:
        move.arrive(role, "new")
    # Data on the lossy relay would be lost by its fault: only probes cross it here.
    move.sending = False
    move.run(RETIRE_NS + 2 * SECOND)
    assert move.is_settled_at("new")
    move.relays["new"].loss = 0.0
    move.sending = True
    settle(move)
    assert move.lost() == 0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("new_delay_ms", [1, 60])
def test_reordering_between_and_on_the_paths_loses_nothing(seed: int, new_delay_ms: int) -> None:
    old, new = two_relays(delay_ns=new_delay_ms * MS, jitter_ns=40 * MS)
    old.jitter_ns = 40 * MS
    move = Move(old, new, seed=seed)
    move.run(SECOND)
    for role in Role:
        move.arrive(role, "new")
        move.run(move.random.randrange(50) * MS)
    settle(move)
    assert move.lost() == 0
    assert move.longest_way_ns() <= (new_delay_ms + 50) * MS
    assert move.is_settled_at("new")


def test_the_new_relay_that_dies_before_it_is_proved_is_given_up() -> None:
    move = Move(*two_relays())
    move.arrive(Role.CLIENT, "new")
    move.relays["new"].dead = True
    move.arrive(Role.SERVER, "new")
    move.run(PATIENCE_NS + SECOND)
    move.finish()
    assert move.lost() == 0
    assert move.is_settled_at("old")
    for side in move.sides.values():
        assert side.failed == ["new"]
        assert side.switched == ["old"]


@pytest.mark.parametrize("half_way_ms", [11, 15, 21, 25])
def test_the_new_relay_that_dies_between_proof_and_settling_is_left_again(half_way_ms: int) -> None:
    move = Move(*two_relays())
    for role in Role:
        move.arrive(role, "new")
    move.after(half_way_ms * MS, lambda: setattr(move.relays["new"], "dead", True))
    died_ns = move.now_ns + half_way_ms * MS
    move.run(PATIENCE_NS + 2 * SECOND)
    move.finish()
    assert move.lost_since(died_ns + 2 * REVERT_NS) == 0, "both are back on the old relay"
    assert move.is_settled_at("old")
    # What was sent there before the silence was noticed, by two sides, is all that is lost.
    assert move.lost() <= 2 * (REVERT_NS // FRAME_NS + 4)


@pytest.mark.parametrize("deaf_to", list(Role))
def test_a_relay_that_works_one_way_only_is_never_switched_to(deaf_to: Role) -> None:
    move = Move(*two_relays(deaf_to={deaf_to}))
    for role in Role:
        move.arrive(role, "new")
    move.run(PATIENCE_NS + SECOND)
    move.finish()
    assert move.lost() == 0
    assert move.is_settled_at("old")


def test_both_sides_asked_at_once_and_got_two_relays() -> None:
    """Each side learns of both leases, in another order; the later one wins on both."""
    move = Move(FakeRelay("old", 1), FakeRelay("b", 2), FakeRelay("c", 3))
    move.arrive(Role.CLIENT, "b")
    move.arrive(Role.SERVER, "c")
    move.run(30 * MS)
    move.arrive(Role.SERVER, "b")
    move.run(40 * MS)
    move.arrive(Role.CLIENT, "c")
    settle(move)
    assert move.lost() == 0
    assert move.is_settled_at("c")


def test_a_second_move_while_the_first_is_under_way() -> None:
    move = Move(FakeRelay("old", 1), FakeRelay("b", 2), FakeRelay("c", 3))
    for name in ("b", "c"):
        for role in Role:
            move.arrive(role, name)
            move.run(7 * MS)
    settle(move)
    assert move.lost() == 0
    assert move.is_settled_at("c")


@pytest.mark.parametrize("elapsed_ms", [3, 12, 30, 500])
def test_undrain_in_the_middle_takes_both_back_to_the_old_relay(elapsed_ms: int) -> None:
    """The master gave them the old relay again, on the path that they still have."""
    move = Move(*two_relays())
    for role in Role:
        move.arrive(role, "new")
    move.run(elapsed_ms * MS)
    for role in Role:
        move.prefer(role, "old", 3)
        move.run(9 * MS)
    settle(move)
    assert move.lost() == 0
    assert move.is_settled_at("old")


def test_undrain_that_only_one_side_heard_of_loses_nothing() -> None:
    move = Move(*two_relays())
    for role in Role:
        move.arrive(role, "new")
    move.run(500 * MS)
    move.prefer(Role.CLIENT, "old", 3)
    move.run(PATIENCE_NS + 3 * SECOND)
    move.finish()
    assert move.lost() == 0
    assert move.client.switch.active == move.server.switch.active == "new"


def test_the_old_relay_that_dies_before_the_switch_hands_over_at_once() -> None:
    move = Move(*two_relays())
    move.arrive(Role.CLIENT, "new")
    move.relays["old"].dead = True
    move.lose(Role.CLIENT, "old")
    assert move.client.switch.active == "new"
    move.arrive(Role.SERVER, "new")
    move.run(SECOND)
    # The server did not even notice: it moved because the new path was proved.
    assert move.server.switch.active == "new"
    settle(move)
    assert move.lost() <= 2, "what was on its way through the relay that died"


def test_a_path_in_use_that_fails_falls_back_to_the_one_that_worked() -> None:
    move = Move(*two_relays())
    for role in Role:
        move.arrive(role, "new")
    move.run(100 * MS)
    for role in Role:
        move.lose(role, "new")
    before = move.lost()
    move.run(5 * SECOND)
    move.finish()
    assert move.lost() <= before + 4
    assert move.is_settled_at("old")


def test_quiet_sessions_move_as_well() -> None:
    move = Move(*two_relays())
    move.sending = False
    for role in Role:
        move.arrive(role, "new")
    move.run(RETIRE_NS + SECOND)
    assert move.is_settled_at("new")


def test_an_old_path_stays_open_as_long_as_somebody_sends_on_it() -> None:
    move = Move(*two_relays())
    for role in Role:
        move.arrive(role, "new")
    for _ in range(4):
        move.run(RETIRE_NS - 200 * MS)
        move.server.channel.send(b"late", move.now_ns)
        (body,) = move.server.channel.datagrams_to_send()
        move.client.channel.receive_datagram(body, move.now_ns)
        move.client.channel.next_event()
        move.client.switch.heard("old", ProbeStage.SETTLED, move.now_ns)
    assert "old" in move.client.open
    move.run(RETIRE_NS + 100 * MS)
    assert "old" not in move.client.open


def test_without_keys_the_newest_path_is_used_at_once() -> None:
    move = Move(*two_relays())
    switch = move.client.switch
    switch.ready("new", (2, "new"), move.now_ns, can_probe=False)
    assert switch.active == "new"


def test_a_late_acknowledgement_of_an_older_lease_changes_nothing() -> None:
    move = Move(FakeRelay("b", 2), FakeRelay("old", 1))
    move.arrive(Role.CLIENT, "old")
    move.run(RETIRE_NS + SECOND)
    move.finish()
    assert move.client.switched == ["b"]
    assert move.client.retired == ["old"]
    assert move.lost() == 0
