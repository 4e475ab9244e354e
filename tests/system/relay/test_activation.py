"""Socket activation: real relays on sockets that somebody else opened."""

import json
import os
import socket
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.relay.host import IS_ROOT, HostedRelay, environment_of, udp_sockets
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.waiting import wait_until

from wavry_peer.protocol import constants as c
from wavry_relay.udp.activation import Activation, take_passed
from wavry_relay.udp.sockets import ListenError

MINT = Mint()


@pytest.fixture
def closing() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def made(closing: ExitStack, sockets: list[socket.socket]) -> list[socket.socket]:
    for sock in sockets:
        closing.enter_context(sock)
    return sockets


def named(sockets: list[socket.socket], name: str = "relay") -> list[tuple[str, socket.socket]]:
    return [(name, sock) for sock in sockets]


def sessions_work(relay: RelayProcess, udp: str, count: int = 8) -> None:
    """Enough sessions that each of two workers has some."""
    for _ in range(count):
        with active_session(relay, MINT, udp=udp) as (client, server):
            client.forward(b"to the server")
            assert server.receive() == (1, b"to the server")
            server.forward(b"to the client")
            assert client.receive() == (1, b"to the client")


# -- Real relays -----------------------------------------------------------------------------------


def test_one_socket_for_each_worker_is_served(tmp_path: Path, closing: ExitStack) -> None:
    passed = made(closing, udp_sockets(2))
    port = passed[0].getsockname()[1]
    with HostedRelay(tmp_path, MINT, passed=named(passed), WAVRY_RELAY_LISTEN="") as relay:
        assert relay.udp == [f"127.0.0.1:{port}"]
        sessions_work(relay, relay.udp[0])
        where = {"listen": relay.udp[0]}
        assert relay.metric("wavry_relay_udp_sockets", **where) == 2
        assert relay.metric("wavry_relay_steering_attached", **where) == 1
        assert relay.metric("wavry_relay_socket_buffer_bytes", direction="receive", **where) == 1e6
        assert not relay.events("sockets_shared")
        assert relay.stop() == 0


def test_both_families_are_passed(tmp_path: Path, closing: ExitStack) -> None:
    passed = made(closing, [*udp_sockets(1), *udp_sockets(2, "::1"), *udp_sockets(1)])
    with HostedRelay(tmp_path, MINT, passed=named(passed)) as relay:
        ports = [sock.getsockname()[1] for sock in passed]
        assert relay.udp == [
            f"127.0.0.1:{ports[0]}", f"[::1]:{ports[1]}", f"127.0.0.1:{ports[3]}",
        ]  # fmt: skip
        for udp in relay.udp:
            sessions_work(relay, udp, 3)


def test_fewer_sockets_than_workers_are_filled_up(tmp_path: Path, closing: ExitStack) -> None:
    passed = made(closing, udp_sockets(1, reuse=False))
    with HostedRelay(tmp_path, MINT, passed=named(passed), workers=2) as relay:
        assert relay.metric("wavry_relay_udp_sockets", listen=relay.udp[0]) == 2
        sessions_work(relay, relay.udp[0])
        assert not relay.events("sockets_shared")


@pytest.mark.skipif(not IS_ROOT, reason="only root can make a socket of another user")
def test_sockets_of_another_user_are_shared_by_the_workers(
    tmp_path: Path, closing: ExitStack
) -> None:
    os.seteuid(65534)
    try:
        passed = made(closing, udp_sockets(1))
    finally:
        os.seteuid(0)
    with HostedRelay(tmp_path, MINT, passed=named(passed), workers=2) as relay:
        assert relay.metric("wavry_relay_udp_sockets", listen=relay.udp[0]) == 1
        sessions_work(relay, relay.udp[0])
        (warning,) = relay.events("sockets_shared")
        assert warning["next_step"] == "list ListenDatagram= once per worker with ReusePort=true"


def test_pitfall_a_passed_socket_without_a_worker_ends_the_start(
    tmp_path: Path, closing: ExitStack
) -> None:
    passed = made(closing, udp_sockets(3))
    status, log = HostedRelay(tmp_path, MINT, passed=named(passed), workers=2).refusal()
    assert status == 1
    assert "set WAVRY_RELAY_WORKERS=3" in log


def test_automatic_workers_are_at_least_the_passed_sockets(
    tmp_path: Path, closing: ExitStack
) -> None:
    count = len(os.sched_getaffinity(0)) + 1
    passed = made(closing, udp_sockets(count))
    with HostedRelay(tmp_path, MINT, passed=named(passed), workers=0) as relay:
        assert relay.health()["workers"]["wanted"] == count
        sessions_work(relay, relay.udp[0], 4)


def test_queued_datagrams_wait_for_the_relay(tmp_path: Path, closing: ExitStack) -> None:
    """What activation is for: what came while no relay ran is answered when one does."""
    passed = made(closing, udp_sockets(1))
    first = HostedRelay(tmp_path, MINT, passed=named(passed), workers=1)
    with first as relay:
        relay_id, udp = relay.relay_id, relay.udp[0]
        assert relay.stop() == 0
    with UdpPeer(MINT, relay_id, udp, uuid.uuid4(), c.Role.CLIENT, timeout_s=20) as early:
        early.sock.send(early.present_datagram())
        again = HostedRelay(tmp_path, MINT, passed=named(passed), workers=1)
        with again:
            assert early.sock.recv(2048)[2] == c.PacketType.LEASE_ACK


def test_the_ops_socket_may_be_passed(tmp_path: Path, closing: ExitStack) -> None:
    ops = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
    passed = [*named(made(closing, udp_sockets(2))), ("ops", ops)]
    with HostedRelay(tmp_path, MINT, passed=passed) as relay:
        url = f"http://127.0.0.1:{ops.getsockname()[1]}"
        assert relay.facts["ops_url"] == url
        with urllib.request.urlopen(url + "/health", timeout=10) as answer:
            assert json.load(answer)["workers"]["running"] == 2


def test_only_the_ops_socket_may_be_passed(tmp_path: Path, closing: ExitStack) -> None:
    ops = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
    with HostedRelay(tmp_path, MINT, passed=[("ops", ops)]) as relay:
        assert relay.facts["ops_url"].endswith(f":{ops.getsockname()[1]}")
        sessions_work(relay, relay.udp[0], 1)


def test_workers_do_not_inherit_the_variables(tmp_path: Path, closing: ExitStack) -> None:
    passed = made(closing, udp_sockets(2))
    with HostedRelay(tmp_path, MINT, passed=named(passed)) as relay:
        for pid in relay.worker_pids():
            assert not [name for name in environment_of(pid) if name.startswith("LISTEN_")]


def test_sockets_for_another_process_are_left_alone(closing: ExitStack) -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x", "HOME": "/"}
    assert take_passed(environ, os.getpid()) == []
    assert environ == {"HOME": "/"}


def test_a_setting_that_the_sockets_overrule_is_named(tmp_path: Path, closing: ExitStack) -> None:
    passed = made(closing, udp_sockets(1))
    with HostedRelay(tmp_path, MINT, passed=named(passed)) as relay:
        assert relay.environ["WAVRY_RELAY_LISTEN"] == "127.0.0.1:0"
        assert len(relay.events("listen_setting_ignored")) == 1


def test_pitfall_a_passed_public_address_needs_a_word_too(
    tmp_path: Path, closing: ExitStack
) -> None:
    passed = made(closing, udp_sockets(1, "0.0.0.0"))
    status, log = HostedRelay(tmp_path, MINT, passed=named(passed)).refusal()
    assert status == 2
    assert "WAVRY_RELAY_ALLOW_PUBLIC_BIND=1" in log
    assert "ListenDatagram=" in log


def test_pitfall_a_passed_wildcard_address_is_never_advertised(
    tmp_path: Path, closing: ExitStack
) -> None:
    passed = made(closing, udp_sockets(1, "::"))
    relay = HostedRelay(
        tmp_path,
        MINT,
        passed=named(passed),
        WAVRY_RELAY_ALLOW_PUBLIC_BIND="1",
        WAVRY_RELAY_MASTER_URL="http://127.0.0.1:1",
    )
    status, log = relay.refusal()
    assert status == 2
    assert "WAVRY_RELAY_ADVERTISE must be set" in log


# -- Sockets that do not fit -----------------------------------------------------------------------


def refused(*passed: tuple[str, socket.socket]) -> str:
    with pytest.raises(ListenError) as caught:
        Activation.sort(passed)
    return str(caught.value)


def test_tcp_socket_with_another_name(closing: ExitStack) -> None:
    tcp = closing.enter_context(socket.create_server(("127.0.0.1", 0)))
    assert "passed socket 0 (web) is no UDP socket" in refused(("web", tcp))


def test_unix_socket(closing: ExitStack) -> None:
    sock = closing.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    assert "is no UDP socket" in refused(("relay", sock))


def test_udp_socket_that_is_not_bound(closing: ExitStack) -> None:
    sock = closing.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    assert "is not bound to a port" in refused(("", sock))


def test_pitfall_dual_stack_socket(closing: ExitStack) -> None:
    (sock,) = made(closing, udp_sockets(1, "::", only_v6=False))
    assert "BindIPv6Only=ipv6-only" in refused(("relay", sock))


def test_ops_socket_that_is_udp(closing: ExitStack) -> None:
    (sock,) = made(closing, udp_sockets(1))
    assert "is no listening TCP socket" in refused(("ops", sock))


def test_two_ops_sockets(closing: ExitStack) -> None:
    pair = [closing.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
    assert "second one named ops" in refused(("ops", pair[0]), ("ops", pair[1]))


def test_descriptor_that_is_no_socket(tmp_path: Path) -> None:
    relay = HostedRelay(tmp_path, MINT)
    relay.environ["LISTEN_FDS"] = "1"
    with (tmp_path / "file").open("w") as file:
        relay.passed = [file]  # type: ignore[list-item]  # what must not be there
        status, log = relay.refusal()
    assert status == 1
    assert "passed descriptor 3 (unnamed) is no socket" in log


def test_variables_that_are_nonsense() -> None:
    environ = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "many"}
    with pytest.raises(ListenError, match="LISTEN_FDS must be a number"):
        take_passed(environ, os.getpid())


def test_pitfall_shared_group_of_one_address_keeps_its_order(closing: ExitStack) -> None:
    first, second = made(closing, udp_sockets(2)), made(closing, udp_sockets(1))
    sorted_ = Activation.sort(named([first[0], second[0], first[1]]))
    assert sorted_.udp == [first, second]
    assert wait_until(lambda: sorted_.worker_count(0, 1) == 2)
