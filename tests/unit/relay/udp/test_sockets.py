"""Socket groups: ports that are taken, steering, buffers."""

import contextlib
import shlex
import socket
import subprocess
import sys
import uuid
from collections import Counter

import pytest
from support.needs import need_root
from support.paths import REPOSITORY
from support.relay.host import udp_sockets

from wavry_peer.protocol.errors import ListenError
from wavry_relay.udp import sockets
from wavry_relay.udp.sockets import ReuseportGroup, adopt_group, open_group


@pytest.fixture
def group():
    opened: list[ReuseportGroup] = []

    def make(*arguments, **options) -> ReuseportGroup:
        opened.append(open_group(*arguments, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_port_0_is_one_port_for_all(group, host: str) -> None:
    made = group(host, 0, 3, 65_536)
    assert {sock.getsockname()[1] for sock in made.sockets} == {made.port}
    assert made.endpoint.endswith(f":{made.port}")


def test_pitfall_taken_port_is_an_error_and_never_another_port(group) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        with pytest.raises(ListenError, match="taken by another process"):
            group("127.0.0.1", other.getsockname()[1], 2, 65_536)


def test_pitfall_port_of_another_relay_is_not_silently_shared(group) -> None:
    first = group("127.0.0.1", 0, 2, 65_536)
    with pytest.raises(ListenError, match="taken"):
        group("127.0.0.1", first.port, 2, 65_536)


def test_address_of_another_host(group) -> None:
    with pytest.raises(ListenError, match="not an address of this host"):
        group("192.0.2.1", 0, 1, 65_536)


def test_both_families_may_have_the_same_port(group) -> None:
    first = group("127.0.0.1", 0, 2, 65_536)
    second = group("::1", first.port, 2, 65_536)
    assert second.port == first.port


def test_pitfall_socket_buffers_are_sized(group) -> None:
    made = group("127.0.0.1", 0, 2, 150_000)
    assert made.receive_buffer_bytes == 150_000
    assert made.send_buffer_bytes == 150_000


def test_steering_sends_a_session_to_one_worker_wherever_it_comes_from(group) -> None:
    workers = 4
    made = group("127.0.0.1", 0, workers, 65_536)
    if made.steering_error is not None:
        pytest.skip(f"kernel without SO_ATTACH_REUSEPORT_CBPF: {made.steering_error}")
    used = Counter()
    for _ in range(40):
        session_id = uuid.uuid4().bytes
        expected = int.from_bytes(session_id[12:], "big") % workers
        for _ in range(3):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
                peer.sendto(bytes(4) + session_id + bytes(8), ("127.0.0.1", made.port))
            assert made.sockets[expected].recv(64)[4:20] == session_id
        used[expected] += 1
    assert len(used) == workers


@pytest.mark.parametrize("read", [{0}, {3}, {1, 2}, {0, 1, 3}])
def test_steering_leaves_out_sockets_without_a_reader_and_takes_them_back(group, read) -> None:
    made = group("127.0.0.1", 0, 4, 65_536)
    if made.steering_error is not None:
        pytest.skip(f"kernel without SO_ATTACH_REUSEPORT_CBPF: {made.steering_error}")

    def reached() -> list[int]:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            for number in range(4):
                session_id = bytes(12) + number.to_bytes(4, "big")
                peer.sendto(bytes(4) + session_id, ("127.0.0.1", made.port))
        got = []
        for at, sock in enumerate(made.sockets):
            with contextlib.suppress(BlockingIOError):
                while True:
                    number = sock.recv(64)[-1]
                    got.append(at)
                    assert number == at or (at in read and number not in read)
        return got

    assert reached() == [0, 1, 2, 3]
    made.steer_to(read)
    assert len(reached()) == 4
    made.steer_to(())
    assert set(reached()) <= read, "without any reader nothing changes"
    made.steer_to(range(4))
    assert reached() == [0, 1, 2, 3]


def test_short_datagrams_reach_some_worker(group) -> None:
    made = group("127.0.0.1", 0, 3, 65_536)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"x", ("127.0.0.1", made.port))
    got = 0
    for sock in made.sockets:
        try:
            got += len(sock.recv(10))
        except BlockingIOError:
            continue
    assert got == 1


def test_kernel_without_steering_is_not_fatal(group, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "SO_ATTACH_REUSEPORT_CBPF", 0x7FFF)
    made = group("127.0.0.1", 0, 2, 65_536)
    assert made.steering_error
    assert len(made.sockets) == 2


def test_pitfall_a_lone_passed_socket_is_not_opened_to_others() -> None:
    group = adopt_group(udp_sockets(1, reuse=False), 1, 65_536)
    try:
        with pytest.raises(OSError, match="in use"):
            bind_as_a_stranger(group.port)
    finally:
        group.close()


def bind_as_a_stranger(port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", port))


def test_workers_share_in_turn_where_sockets_are_fewer() -> None:
    group = ReuseportGroup("127.0.0.1", 1, udp_sockets(2))
    try:
        first, second = group.sockets
        assert [group.socket_of(n) for n in range(5)] == [first, second, first, second, first]
    finally:
        group.close()


# -- Link-local addresses --------------------------------------------------------------------------

LINK_LOCAL = """
import socket
from wavry_relay.ops.http_server import open_ops_socket
from wavry_peer.service.listen_address import bound_to
from wavry_relay.udp.sockets import adopt_group, open_group

group = open_group("fe80::7%lo", 0, 2, 65536)
assert len(group.sockets) == 2
assert bound_to(group.sockets[1]) == ("fe80::7%lo", group.port)
passed = adopt_group(group.sockets[:1], 3, 65536)
assert passed.host == "fe80::7%lo" and passed.sharing_error is None
assert bound_to(open_ops_socket("fe80::7%lo", 0))[0] == "fe80::7%lo"
"""


def test_pitfall_link_local_addresses_are_bound_with_their_interface() -> None:
    need_root("it makes a network namespace")
    set_up = "ip link set lo up && ip -6 addr add fe80::7/64 dev lo nodad && exec "
    command = set_up + shlex.join([sys.executable, "-c", LINK_LOCAL])
    subprocess.run(["unshare", "--net", "sh", "-c", command], check=True, cwd=REPOSITORY)


def test_an_interface_that_is_not_there_is_named() -> None:
    with pytest.raises(ListenError, match=r"fe80::7%none0\]:0 names an interface"):
        open_group("fe80::7%none0", 0, 1, 65536)
    with pytest.raises(ListenError, match="is not an address of this host"):
        open_group("fe80::dead%lo", 0, 1, 65536)
