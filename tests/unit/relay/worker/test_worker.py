"""The worker's loop around an engine that does as it is told."""

import socket
from collections.abc import Callable, Sequence

import pytest
from support.relay.world import World, v4

from wavry_relay.engine.base import Answer, ControlKind, ControlPacket
from wavry_relay.shm.control import WorkerRow
from wavry_relay.worker import process as worker_module
from wavry_relay.worker.chores import Chores
from wavry_relay.worker.process import STOP, Worker

PACKET = ControlPacket(ControlKind.LEASE, b"datagram", v4(1))


class Script:
    """Engine and admission in one: rounds of packets, then the supervisor's end closes."""

    def __init__(self, rounds: int, supervisor: socket.socket, farewell: bytes) -> None:
        self.rounds, self.supervisor, self.farewell = rounds, supervisor, farewell
        self.sent: list[bytes] = []
        self.handled = 0

    def run(self, _timeout_ms: int) -> list[ControlPacket]:
        self.rounds -= 1
        if self.rounds == 0:
            self.supervisor.sendall(self.farewell)
            self.supervisor.close()
        return [PACKET]

    def answer(self, packets: list[ControlPacket], answers: list[Answer]) -> None:
        assert len(packets) == len(answers)
        self.sent += [datagram for answer in answers for datagram in answer]

    def handle_all(
        self, packets: Sequence[ControlPacket], _now: object, on_defect: Callable[[Exception], None]
    ) -> list[Answer]:
        self.handled += 1
        if self.handled == 1:
            on_defect(RuntimeError("defect"))
            return [()]
        return [(b"answer",) for _ in packets]


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    errors: list[Exception] = []
    monkeypatch.setattr(worker_module, "_report", errors.append)
    return errors


def run(world: World, *, rounds: int, farewell: bytes = b"") -> Script:
    mine, theirs = socket.socketpair()
    script = Script(rounds, theirs, farewell)
    row = WorkerRow(world.segment, 0)
    with mine:
        chores = Chores(world.tables, world.row, 0, world.policy, world.views[0], world._notice)
        Worker(script, script, chores, row, world.row, mine, world.clock).run()
    return script


def test_defect_in_the_admission_costs_one_packet(world: World, reported: list[Exception]) -> None:
    script = run(world, rounds=3)
    assert script.sent == [b"answer"] * 2
    assert world.count("internal_errors") == 1
    assert [str(error) for error in reported] == ["defect"]


def test_loop_writes_its_heartbeat_and_ends_with_the_supervisor(
    world: World, reported: list[Exception]
) -> None:
    script = run(world, rounds=5)
    row = WorkerRow(world.segment, 0)
    assert script.rounds == 0
    assert row.rounds == 5
    assert row.heartbeat_ns == world.now.mono_ns
    assert not world.notices


def test_order_to_stop_announces_the_shutdown(world: World, reported: list[Exception]) -> None:
    world.session()
    run(world, rounds=1, farewell=STOP)
    assert len(world.notices) == 2
