"""A small internet in network namespaces: a home behind a NAT, a relay, a peer and a stranger.

Strategy: a namespace here has no name.  It is an open file descriptor, and it ends, with its
interfaces, rules and connection table, when the last descriptor and process in it is gone: a test
that is killed leaves nothing behind.  `setns` is a property of a thread, so `Namespace.entered`
makes what one block opens or starts (a socket, a process) belong to the namespace, and
`InNamespace` is a thread with an event loop that lives there.

The kernel here has no netem.  The way between NAT and relay is therefore a pair of TUN
devices with a process between them that holds each packet for a set time (this file, run as a
program).

    home ──veth── nat ══delay══ core ──veth── beside
                                  └───veth── stranger

    relay (on core's loopback)   198.18.0.1, 2001:db8::1
    NAT, outer addresses         203.0.113.10 … .19, 2001:db8:1::10 … ::19
"""

import asyncio
import collections
import contextlib
import ctypes
import fcntl
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Self

from support.needs import lack, need_program
from support.paths import TESTS

CLONE_NEWNET = 0x40000000
TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
NETLINK_NETFILTER = 12
CT_DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
NLM_REQUEST_ACK = 1 | 4

RELAY_V4, RELAY_V6 = "198.18.0.1", "2001:db8::1"
OUTER = {4: "203.0.113.{}", 6: "2001:db8:1::{}"}
BESIDE = {4: "198.51.100.2", 6: "2001:db8:2::2"}
STRANGER = {4: "192.0.2.2", 6: "2001:db8:3::2"}
OUTER_NUMBERS = range(10, 20)
FIRST_PORT, PORTS = 40000, 100
"""Of the NAT's outer ports, so many at a time."""

_libc = ctypes.CDLL(None, use_errno=True)


def need_namespaces() -> None:
    """Go on where there can be such a network."""
    if os.geteuid() != 0:
        lack("needs root: network namespaces, NAT and raw sockets")
    need_program("ip", "nft")
    try:
        with Namespace() as namespace:
            namespace.tun("probe").close()
            namespace.nft("add table inet probe")
    except (OSError, subprocess.CalledProcessError) as error:
        lack(f"this machine gives no network namespace with TUN and nft: {error}")


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _own_namespace() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


class Namespace:
    """A network namespace of its own, with loopback up and forwarding on."""

    def __init__(self) -> None:
        before = _own_namespace()
        try:
            if _libc.unshare(CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            try:
                self.fd = _own_namespace()
            finally:
                _setns(before)
        finally:
            os.close(before)
        self.ip("link set lo up")

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in the namespace for a block, which must not await."""
        before = _own_namespace()
        try:
            _setns(self.fd)
            try:
                yield
            finally:
                _setns(before)
        finally:
            os.close(before)

    def run(self, *command: str, text: str | None = None) -> str:
        with self.entered():
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30)
        if done.returncode:
            raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout

    def ip(self, *commands: str) -> None:
        """Runs lines of ``ip``."""
        self.run("ip", "-batch", "-", text="\n".join(commands) + "\n")

    def nft(self, rules: str) -> None:
        """Applies rules in one transaction."""
        self.run("nft", "-f", "-", text=rules)

    def set_kernel(self, **values: str) -> None:
        """Settings below /proc/sys/net, ``__`` for a slash."""
        with self.entered():
            for name, value in values.items():
                Path("/proc/sys/net", name.replace("__", "/")).write_text(value)

    def join(self, name: str, other: "Namespace", other_name: str) -> None:
        """A veth pair between two namespaces, up."""
        # `ip` inherits the descriptor of the other namespace under its own number.
        with self.entered():
            subprocess.run(
                ["ip", "link", "add", name, "type", "veth", "peer", "name", other_name,
                 "netns", f"/proc/{os.getpid()}/fd/{other.fd}"],
                check=True, capture_output=True, timeout=30,
            )  # fmt: skip
        self.ip(f"link set {name} up")
        other.ip(f"link set {other_name} up")

    def tun(self, name: str) -> "Tun":
        with self.entered():
            return Tun(name)

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        with self.entered():
            return socket.socket(family, kind, protocol)

    def forget_connections(self) -> None:
        """Empties the connection table, as ``conntrack -F`` does."""
        with self.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) as netlink:
            netlink.settimeout(10)
            netlink.bind((0, 0))
            netlink.send(struct.pack("=IHHIIBBH", 20, CT_DELETE, NLM_REQUEST_ACK, 1, 0, 0, 0, 0))
            answer = netlink.recv(4096)
            (code,) = struct.unpack_from("=i", answer, 16)
            if code:
                raise OSError(-code, "the connection table was not emptied")


class Tun:
    """A TUN device of the namespace that this thread is in."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            request = struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI)
            fcntl.ioctl(self.fd, TUNSETIFF, request)
        except OSError:
            os.close(self.fd)
            raise

    def close(self) -> None:
        os.close(self.fd)


class DelayLink:
    """Joins two namespaces by a way that takes `delay_s` in each direction.

    The process between them ends with this one, whatever ends it: its standard input closes.
    """

    def __init__(
        self, near: Namespace, near_name: str, far: Namespace, far_name: str, *, delay_s: float
    ) -> None:
        ends = [near.tun(near_name), far.tun(far_name)]
        try:
            self._process = subprocess.Popen(
                [
                    sys.executable, "-m", "support.machines.namespaces",
                    str(ends[0].fd), str(ends[1].fd), str(delay_s),
                ],
                cwd=TESTS,
                stdin=subprocess.PIPE,
                pass_fds=[end.fd for end in ends],
            )  # fmt: skip
        finally:
            for end in ends:
                end.close()
        near.ip(f"link set {near_name} up")
        far.ip(f"link set {far_name} up")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


class InNamespace:
    """A thread with an event loop in a namespace: whatever it opens is there."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()

    def _live(self) -> None:
        with self._namespace.entered():
            asyncio.set_event_loop(self._loop)
            self._loop.run_forever()
            self._loop.close()

    def run(self, work: Coroutine[Any, Any, Any], timeout_s: float = 30) -> Any:
        """Runs a coroutine there; its value."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


class Internet:
    """The network of this module's docstring.

    Attributes:
        round_trip_s: between the NAT and the relay.
    """

    def __init__(self, *, round_trip_s: float) -> None:
        self.round_trip_s = round_trip_s
        with contextlib.ExitStack() as stack:
            self.home, self.nat, self.core, self.beside, self.stranger = (
                stack.enter_context(Namespace()) for _ in range(5)
            )
            link = DelayLink(self.nat, "wide", self.core, "access", delay_s=round_trip_s / 2)
            stack.callback(link.close)
            self._address()
            self.number, self.port = OUTER_NUMBERS[0], FIRST_PORT
            self._write_rules()
            self._stack = stack.pop_all()

    def close(self) -> None:
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def outer(self, family: int) -> str:
        """The NAT's present outer address."""
        return OUTER[family].format(self.number)

    def change_mapping(self, *, address: bool) -> None:
        """The NAT forgets its connections; they get another outer port, or address and port."""
        self.port += PORTS
        if self.port + PORTS > 65536:
            self.port = FIRST_PORT
        if address:
            self.number = OUTER_NUMBERS[(self.number + 1) % len(OUTER_NUMBERS)]
        self._write_rules()
        self.nat.forget_connections()

    def _write_rules(self) -> None:
        # More than all the flows of a test module: a mapping lives on after its socket.
        ports = f"{self.port}-{self.port + PORTS - 1}"
        self.nat.nft(
            # Without the first line there is nothing to delete the first time.
            f"""
            table inet nat
            delete table inet nat
            table inet nat {{
                chain outgoing {{
                    type nat hook postrouting priority srcnat;
                    oifname wide meta nfproto ipv4 udp dport 0-65535 snat ip to {self.outer(4)}:{ports}
                    oifname wide meta nfproto ipv6 udp dport 0-65535 snat ip6 to [{self.outer(6)}]:{ports}
                }}
                chain incoming {{
                    # What no mapping fits is dropped without a word, as NATs do.
                    type filter hook input priority filter;
                    iifname wide meta l4proto udp drop
                }}
            }}
            """  # noqa: E501 - a rule is a line.
        )

    def _address(self) -> None:
        self.home.join("uplink", self.nat, "inside")
        self.beside.join("uplink", self.core, "beside")
        self.stranger.join("uplink", self.core, "stranger")
        address_pair(self.home, self.nat, "inside", "192.168.7", "fd00:7:")
        address_pair(self.beside, self.core, "beside", "198.51.100", "2001:db8:2:")
        address_pair(self.stranger, self.core, "stranger", "192.0.2", "2001:db8:3:")
        outer = [OUTER[family].format(number) for number in OUTER_NUMBERS for family in (4, 6)]
        self.nat.ip(
            *(
                f"addr add {text}/{'128 dev wide nodad' if ':' in text else '32 dev wide'}"
                for text in outer
            ),
            "route add default dev wide",
            "route add ::/0 dev wide",
        )
        self.core.ip(
            f"addr add {RELAY_V4}/32 dev lo",
            f"addr add {RELAY_V6}/128 dev lo",
            "route add 203.0.113.0/24 dev access",
            "route add 2001:db8:1::/64 dev access",
        )
        for router in (self.nat, self.core):
            router.set_kernel(ipv4__ip_forward="1", ipv6__conf__all__forwarding="1")
        # A stranger may write any source address here: a network that does not filter.
        self.core.set_kernel(ipv4__conf__all__rp_filter="0")


def address_pair(end: Namespace, router: Namespace, name: str, v4: str, v6: str) -> None:
    end.ip(
        f"addr add {v4}.2/24 dev uplink",
        f"addr add {v6}:2/64 dev uplink nodad",
        f"route add default via {v4}.1",
        f"route add ::/0 via {v6}:1",
    )
    router.ip(f"addr add {v4}.1/24 dev {name}", f"addr add {v6}:1/64 dev {name} nodad")


def udp_packet(source: tuple[str, int], destination: tuple[str, int], payload: bytes) -> bytes:
    """An IPv4 packet as a spoofer writes it (for a raw socket); the kernel sums the header."""
    addresses = socket.inet_aton(source[0]) + socket.inet_aton(destination[0])
    size = 8 + len(payload)
    header = struct.pack("!BBHHHBBH8s", 0x45, 0, 20 + size, 0, 0, 64, 17, 0, addresses)
    return header + struct.pack("!HHHH", source[1], destination[1], size, 0) + payload


def _delay_packets(fds: list[int], delay_s: float) -> None:
    """Program of `DelayLink`: moves packets between two TUN devices, each `delay_s` late."""
    waiting: collections.deque[tuple[float, int, bytes]] = collections.deque()
    other = {fds[0]: fds[1], fds[1]: fds[0]}
    while True:
        wait_s = max(waiting[0][0] - time.monotonic(), 0) if waiting else None
        readable, _, _ = select.select([0, *fds], [], [], wait_s)
        if 0 in readable:
            return
        now = time.monotonic()
        for fd in readable:
            with contextlib.suppress(BlockingIOError):
                while True:
                    waiting.append((now + delay_s, other[fd], os.read(fd, 65536)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, fd, packet = waiting.popleft()
            with contextlib.suppress(OSError):
                os.write(fd, packet)


if __name__ == "__main__":
    _delay_packets([int(sys.argv[1]), int(sys.argv[2])], float(sys.argv[3]))
