"""A peer whose other side vanished: nothing came from it on any path for a minute."""

import asyncio
from typing import Any

import pytest
import typer
from support.peer.peer_world import PeerWorld, eventually

from wavry_peer.cli.chat import chat
from wavry_peer.cli.output import Output, run_command
from wavry_peer.errors import SessionClosedError
from wavry_peer.paths.remote_presence import GONE_NS, RemotePresence
from wavry_peer.protocol.channel.wire import PACKET_HEADER
from wavry_peer.protocol.packets import build_forward

S = 1_000_000_000


def test_gone_after_a_minute_and_not_before() -> None:
    presence = RemotePresence()
    assert presence.due_ns(None) is None
    assert not presence.is_gone(None, 10**15)
    assert presence.due_ns(5 * S) == 65 * S
    assert not presence.is_gone(5 * S, 65 * S - 1)
    assert presence.is_gone(5 * S, 65 * S)


def test_who_was_away_itself_reads_first_what_waits() -> None:
    presence = RemotePresence()
    woke_ns = 500 * S
    assert not presence.is_gone(5 * S, woke_ns)
    assert presence.due_ns(5 * S) == woke_ns + 5 * S
    assert not presence.is_gone(woke_ns + S, woke_ns + 5 * S), "it is there"
    assert presence.is_gone(5 * S, woke_ns + 5 * S), "or it is not"


async def test_session_ends_with_a_clear_error_and_the_gateway_is_told(world: PeerWorld) -> None:
    async with world.pair() as (alice, _):
        connection = alice._connection
        await eventually(lambda: connection._channel.heard_ns)
        connection._channel.heard_ns = connection._clock() - GONE_NS + S
        connection._on_timer()
        assert not connection.is_over
        connection._channel.heard_ns -= S
        connection._on_timer()
        assert connection.is_over
        with pytest.raises(SessionClosedError, match=r"bob is gone: nothing came.* 60 s") as caught:
            await alice.receive()
        assert not caught.value.by_remote
        await eventually(lambda: world.gateway.calls[alice.session_id].state == "closed")
        await eventually(lambda: len(world.relay.slots.get(_id(alice), {})) < 2)


async def test_only_what_is_authentic_counts(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        connection = alice._connection
        await eventually(lambda: connection._channel.heard_ns)
        connection._channel.heard_ns = 7
        junk = build_forward(_id(alice), bytes(PACKET_HEADER.size + 20))
        connection._channel.receive_datagram(junk, connection._clock())
        assert connection._channel.heard_ns == 7
        await bob.send(b"here")
        await eventually(lambda: connection._channel.heard_ns != 7)


class EndedSession:
    """A session that ends while somebody waits for a datagram."""

    remote_username = "bob"
    max_datagram_bytes = 1000

    def __init__(self, *, by_remote: bool) -> None:
        self._by_remote = by_remote

    async def receive(self) -> bytes:
        raise SessionClosedError("bob is gone", by_remote=self._by_remote)

    async def send(self, data: bytes) -> None:
        await asyncio.Event().wait()


class NoInput:
    async def line(self) -> bytes:
        await asyncio.Event().wait()
        return b""


@pytest.mark.parametrize(("by_remote", "status"), [(True, 0), (False, 1)])
def test_command_ends_with_a_truthful_status(by_remote: bool, status: int) -> None:
    output = Output(as_json=False)
    session: Any = EndedSession(by_remote=by_remote)
    nothing: Any = NoInput()

    async def work() -> int:
        await chat(session, nothing, output, ends_with_input=True)
        return 0

    with pytest.raises(typer.Exit) as ended:
        run_command(output, work())
    assert ended.value.exit_code == status


def _id(session: Any) -> bytes:
    return bytes.fromhex(session.session_id.replace("-", ""))
