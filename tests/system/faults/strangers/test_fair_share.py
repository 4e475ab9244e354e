"""A relay that is short: an account pair far over its limit costs an innocent session nothing."""

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from support.relay.hostile import kernel_drops
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer
from support.waiting import wait_until

from wavry_peer.protocol import constants as c

MINT = Mint()
RELAY_KBPS = 8000
PAYLOAD = bytes(1200)
DATAGRAM_BITS = 8 * (c.HEADER_BYTES + 8 + len(PAYLOAD))
JUDGED = 100
"""Datagrams of the innocent, each way, after the relay became short."""


@pytest.fixture(scope="module")
def relay(tmp_path_factory: pytest.TempPathFactory, engine: str) -> Iterator[RelayProcess]:
    options = {
        "WAVRY_RELAY_ENGINE": engine,
        "WAVRY_RELAY_MAX_BITRATE_KBPS": str(RELAY_KBPS),
        # A pause of a busy machine is no burst of the innocent's.
        "WAVRY_RELAY_GLOBAL_BURST_MS": "1000",
        "WAVRY_RELAY_SOCKET_BUFFER_BYTES": "16000000",
    }
    with RelayProcess(tmp_path_factory.mktemp("relay"), MINT, **options) as started:
        yield started


class Stream:
    """One direction of a session, sent evenly."""

    def __init__(self, sender: UdpPeer, receiver: UdpPeer, kbps: int) -> None:
        self.sender, self.receiver = sender, receiver
        self.every_s = DATAGRAM_BITS / kbps / 1000
        self.due_s = time.monotonic()
        self.sent = self.received = 0
        receiver.sock.setblocking(False)

    def step(self) -> None:
        """Send what is due, but not what a pause of this machine has cost; and receive."""
        now_s = time.monotonic()
        self.due_s = max(self.due_s, now_s - 0.02)
        while self.due_s <= now_s:
            self.sender.forward(PAYLOAD)
            self.sent += 1
            self.due_s += self.every_s
        self.receive()

    def receive(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self.received += self.receiver.sock.recv(2048)[2] == c.PacketType.FORWARD


def streams(
    stack: ExitStack, relay: RelayProcess, user: str, kbps: int, sessions: int = 1
) -> list[Stream]:
    """Both directions of sessions of two accounts."""
    made = []
    for _ in range(sessions):
        sid = uuid.uuid4()
        client, server = (
            stack.enter_context(
                UdpPeer(MINT, relay.relay_id, relay.udp[0], sid, role, sub=f"{user}-{role}")
            )
            for role in c.Role
        )
        client.present()
        server.present()
        made += [Stream(client, server, kbps), Stream(server, client, kbps)]
    return made


def run(every: list[Stream], until: Stream, count: int) -> None:
    """Send on all streams until one has sent so many more."""
    goal = until.sent + count
    while until.sent < goal:
        for stream in every:
            stream.step()
        time.sleep(0.001)


def lost(some: list[Stream]) -> int:
    """Datagrams that were sent and have not come."""
    for stream in some:
        stream.receive()
    return sum(stream.sent - stream.received for stream in some)


def test_pair_at_three_times_the_limit_costs_an_innocent_nothing(relay: RelayProcess) -> None:
    def dropped() -> float:
        return relay.metric("wavry_relay_packets_dropped_total", reason="global_rate")

    with ExitStack() as stack:
        innocent = streams(stack, relay, "innocent", 500)  # 1 Mbit/s, both ways together
        greedy = streams(stack, relay, "greedy", 3 * RELAY_KBPS // 4, sessions=2)
        ends = [relay.udp[0], *(f":{one.receiver.sock.getsockname()[1]}" for one in innocent)]
        ports = {int(end.rpartition(":")[2]) for end in ends}
        full_before = kernel_drops(ports)
        while dropped() == 0:
            run([*innocent, *greedy], innocent[0], 5)
        run([*innocent, *greedy], innocent[0], JUDGED)
        with suppress(AssertionError):  # The comparison below says how many are missing.
            wait_until(lambda: not lost(innocent), timeout_s=5)
        assert lost(innocent) <= kernel_drops(ports) - full_before
        assert lost(greedy) > sum(one.sent for one in greedy) / 3
