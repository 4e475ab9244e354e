"""What two relays say to each other in a hot upgrade, and the channel that carries it."""

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from wavry_relay.upgrade.fd_channel import (
    BATCH_DESCRIPTORS,
    ChannelEndedError,
    FdChannel,
    PeerCredentials,
    ProcessHandle,
    all_gone,
    why_foreign,
)
from wavry_relay.upgrade.messages import (
    MAX_LINE_BYTES,
    Commit,
    Counts,
    Descriptors,
    GroupFacts,
    Release,
    TakeOverError,
    UpgradeFacts,
    UpgradeHello,
    decode,
    decode_hello,
    encode,
    layout_name,
    why_unfit,
)

HELLO = UpgradeHello(
    version="1",
    layout=layout_name(),
    engine="native",
    relay_id="rly-1",
    listen=("192.0.2.1:4500", "[2001:db8::1]:0"),
    ops_listen="127.0.0.1:0",
    root_key="root",
    pid=7,
)
GROUPS = (
    GroupFacts("192.0.2.1", 4500, 2, None, 1, 1),
    GroupFacts("2001:db8::1", 4700, 2, None, 1, 1),
)
OPS = ("127.0.0.1", 4501)


def judge(**changes: object) -> str | None:
    hello = msgspec.structs.replace(HELLO, **changes)
    return why_unfit(hello, own=HELLO, groups=GROUPS, ops=OPS)


# -- Who fits ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"version": "2"},
        {"pid": 8},
        {"listen": ("192.0.2.1:0", "[2001:db8::1]:4700")},
        {"ops_listen": "127.0.0.1:4501"},
    ],
)
def test_successor_that_fits(changes: dict[str, object]) -> None:
    assert judge(**changes) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layout": "2-0"}, "drain it, stop it and start the new version"),
        ({"engine": "reference"}, "reference engine"),
        ({"relay_id": "rly-2"}, "another identity"),
        ({"root_key": ""}, "WAVRY_RELAY_ROOT_KEY"),
        ({"listen": ("192.0.2.1:4500",)}, "WAVRY_RELAY_LISTEN"),
        ({"listen": ("192.0.2.1:4500", "[2001:db8::1]:1")}, "WAVRY_RELAY_LISTEN"),
        ({"listen": ("192.0.2.2:4500", "[2001:db8::1]:0")}, "WAVRY_RELAY_LISTEN"),
        ({"ops_listen": "127.0.0.1:4502"}, "WAVRY_RELAY_OPS_LISTEN"),
        ({"ops_listen": "no address"}, "WAVRY_RELAY_OPS_LISTEN"),
    ],
)
def test_successor_that_does_not_fit_hears_why(changes: dict[str, object], said: str) -> None:
    reason = judge(**changes)
    assert reason is not None
    assert said in reason
    assert "the running relay goes on" in reason


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        (PeerCredentials(7, 1001, 0), "user 1001"),
        (PeerCredentials(0, 1000, 0), "PID namespaces"),
        (PeerCredentials(8, 1000, 0), "PID namespaces"),
    ],
)
def test_process_of_another_user_or_namespace_is_refused(peer: PeerCredentials, said: str) -> None:
    assert said in (why_foreign(peer, own_uid=1000, said_pid=7) or "")


@pytest.mark.parametrize("uid", [1000, 0], ids=["same user", "root"])
def test_process_of_the_same_user_and_of_root_may(uid: int) -> None:
    assert why_foreign(PeerCredentials(7, uid, 0), own_uid=1000, said_pid=7) is None


# -- Messages ----------------------------------------------------------------------------------


def test_messages_come_back_as_they_were() -> None:
    facts = UpgradeFacts("1", 7, 7, GROUPS, Counts(upgrades={"done": 1}))
    for message in (facts, Descriptors(3), Release(1), Commit()):
        assert decode(encode(message)) == message
    assert decode_hello(encode(HELLO)) == HELLO


def test_fields_of_a_later_version_are_ignored() -> None:
    assert decode(b'{"type": "release", "worker": 1, "colour": "blue"}') == Release(1)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b'{"type": "release"}', b'{"type": "x"}', b"[" * 4000]
)
def test_line_that_is_no_message(line: bytes) -> None:
    with pytest.raises(TakeOverError):
        decode(line)
    with pytest.raises(TakeOverError):
        decode_hello(line)


# -- The channel -------------------------------------------------------------------------------


@pytest.fixture
def ends() -> Iterator[tuple[FdChannel, FdChannel]]:
    first, second = (FdChannel(sock) for sock in socket.socketpair(socket.AF_UNIX))
    yield first, second
    first.close()
    second.close()


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_descriptors_come_in_order_with_their_lines(
    ends: tuple[FdChannel, FdChannel],
) -> None:
    sender, receiver = ends
    pipes = [os.pipe() for _ in range(BATCH_DESCRIPTORS)]
    try:
        for batch in (pipes[:1], pipes[1:]):
            await sender.send(encode(Descriptors(len(batch))), [read for read, _ in batch])
        taken: list[int] = []
        for _ in range(2):
            message = decode(await receiver.receive())
            assert isinstance(message, Descriptors)
            taken += receiver.take(message.count)
        for (read, write), fd in zip(pipes, taken, strict=True):
            assert os.path.samestat(os.fstat(read), os.fstat(fd))
            assert not os.get_inheritable(fd)
            os.close(fd)
            os.close(write)
    finally:
        for read, _ in pipes:
            os.close(read)


async def test_close_ends_descriptors_that_nobody_took(ends: tuple[FdChannel, FdChannel]) -> None:
    sender, receiver = ends
    await sender.send(b"x\n", [0, 1, 2])
    before = open_descriptors()
    assert await receiver.receive() == b"x"
    assert open_descriptors() == before + 3
    with pytest.raises(TakeOverError, match="3 descriptors came, 4"):
        receiver.take(4)
    receiver.close()
    assert open_descriptors() == before - 1


async def test_end_of_the_other_side_is_an_error_of_its_own(
    ends: tuple[FdChannel, FdChannel],
) -> None:
    ends[0].close()
    with pytest.raises(ChannelEndedError):
        await ends[1].receive()
    with pytest.raises(ChannelEndedError):
        await ends[1].send(b"x\n")
    with pytest.raises(ChannelEndedError):
        await ends[1].send(b"x\n", [0])


async def test_line_without_an_end_is_refused(ends: tuple[FdChannel, FdChannel]) -> None:
    sending = asyncio.create_task(ends[0].send(bytes(4 * MAX_LINE_BYTES)))
    with pytest.raises(TakeOverError, match="without an end"):
        await ends[1].receive()
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)


def test_peer_is_told_by_the_kernel(ends: tuple[FdChannel, FdChannel]) -> None:
    assert ends[0].peer == (os.getpid(), os.getuid(), os.getgid())


# -- Processes ---------------------------------------------------------------------------------


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield child
    child.communicate()


async def test_process_is_gone_when_it_is_a_zombie(child: subprocess.Popen[bytes]) -> None:
    handle = ProcessHandle(child.pid)
    assert not await handle.wait(0.05)
    handle.kill()
    assert await handle.wait(10)
    assert await all_gone([child.pid, 0], 10)
    handle.close()
    child.wait()
    late = ProcessHandle(child.pid)
    assert late.is_gone
    late.close()
