"""The UDP sockets of the relay: one SO_REUSEPORT group for each listen address, and its steering.

The supervisor opens every socket of a group itself, in the order of the workers, and keeps them:
a worker that dies takes no queued datagram along, and its replacement gets the same socket.  A
small BPF program chooses the socket from the session id, so both peers of a session, and a
peer that moved, reach the same worker.  That is affinity only: any worker can handle any packet.
Sockets that were passed to the relay (activation.py) are adopted into such a group.
"""

import ctypes
import socket
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Final

from wavry_peer.protocol.errors import ListenError
from wavry_peer.service.listen_address import (
    bound_to,
    format_endpoint,
    socket_address,
    why_not_bound,
)
from wavry_relay.engine.local_addresses import tell_destinations

__all__ = [
    "ReuseportGroup",
    "adopt_group",
    "open_group",
    "set_busy_poll",
    "size_buffers",
]

# Not in Python's socket module (asm-generic/socket.h).
SO_SNDBUFFORCE: Final = 32
SO_RCVBUFFORCE: Final = 33
SO_BUSY_POLL: Final = 46
SO_ATTACH_REUSEPORT_CBPF: Final = 51
_STEERING_OFFSET: Final = 16
"""Offset of the last four bytes of the session id in the UDP payload."""

# Classic BPF (linux/filter.h): A = payload[16:20]; A %= N; return A, or the place of another socket
# where nobody reads that one.  A shorter datagram ends the program with 0, the first socket.
_BPF_LD_W_ABS: Final = 0x20
_BPF_ALU_MOD_K: Final = 0x94
_BPF_JMP_EQ_K: Final = 0x15
_BPF_RET_K: Final = 0x06
_BPF_RET_A: Final = 0x16
_INSTRUCTION: Final = struct.Struct("=HBBI")


@dataclass(slots=True)
class ReuseportGroup:
    """Sockets of one listen address, in worker order.

    Attributes:
        host: as configured.
        port: real one, also where 0 was asked for.
        sockets: one for each worker; fewer where the kernel allowed no more beside passed ones.
        steering_error: why the steering program is not attached, or None.
        sharing_error: why workers must share sockets, or None.
        receive_buffer_bytes: what the kernel gave, the smallest of all sockets.
        send_buffer_bytes: the same for the other direction.
    """

    host: str
    port: int
    sockets: list[socket.socket] = field(default_factory=list)
    steering_error: str | None = None
    sharing_error: str | None = None
    receive_buffer_bytes: int = 0
    send_buffer_bytes: int = 0

    @property
    def endpoint(self) -> str:
        """``127.0.0.1:4500`` or ``[::1]:4500``."""
        return format_endpoint(self.host, self.port)

    def socket_of(self, worker: int) -> socket.socket:
        """Return the socket that a worker reads."""
        return self.sockets[worker % len(self.sockets)]

    def steer_to(self, read: Collection[int]) -> None:
        """Steer to the sockets at these places only; the sessions of the others are spread.

        Without any place, and where the kernel took no program before, nothing changes.
        """
        if read and len(self.sockets) > 1 and self.steering_error is None:
            self.steering_error = attach_steering(self.sockets[0], len(self.sockets), read)

    def close(self) -> None:
        """Close all sockets."""
        for sock in self.sockets:
            sock.close()


def open_group(host: str, port: int, workers: int, buffer_bytes: int) -> ReuseportGroup:
    """Open the sockets of one listen address.

    Args:
        host: IPv4 or IPv6 address.
        port: UDP port, 0 for any free one.
        workers: number of sockets.
        buffer_bytes: wanted size of the receive and the send buffer of each socket.

    Raises:
        ListenError: the address is taken, not local, or needs more rights.
    """
    # SO_REUSEPORT would silently share the port with another process of this user, so the
    # first bind asks for it alone.
    probe = _bind(host, port, reuse=False)
    group = ReuseportGroup(host, probe.getsockname()[1])
    probe.close()
    try:
        for _ in range(workers):
            group.sockets.append(_bind(host, group.port, reuse=True))
    except ListenError:
        group.close()
        raise
    size_buffers(group, buffer_bytes)
    if workers > 1:
        group.steering_error = attach_steering(group.sockets[0], workers)
    return group


def adopt_group(passed: Sequence[socket.socket], workers: int, buffer_bytes: int) -> ReuseportGroup:
    """Make a group of bound sockets of one address, at most one for each worker.

    Where they are fewer than the workers, more are opened beside them.  The kernel allows that to
    the user who made the passed ones alone; else `sharing_error` says so and workers share.

    Args:
        passed: bound to one address; owned by the group from here on.
        workers: number of workers.
        buffer_bytes: as for `open_group`.
    """
    group = ReuseportGroup(*bound_to(passed[0]), list(passed))
    try:
        for sock in passed:
            sock.settimeout(0)
            tell_destinations(sock)
        while len(group.sockets) < workers:
            # Only where it is needed: it opens the port to every process of this user.
            passed[0].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            group.sockets.append(_bind(group.host, group.port, reuse=True))
    except ListenError:
        group.sharing_error = "the kernel opens no further socket beside one of another user"
    except OSError as error:
        group.sharing_error = error.strerror or "unknown error"
    size_buffers(group, buffer_bytes)
    if len(group.sockets) > 1:
        group.steering_error = attach_steering(group.sockets[0], len(group.sockets))
    return group


def _bind(host: str, port: int, *, reuse: bool) -> socket.socket:
    try:
        family, address = socket_address(host, port, socket.SOCK_DGRAM)
    except OSError as error:
        raise _unbound(error, host, port) from error
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.settimeout(0)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        tell_destinations(sock)
    except OSError as error:
        sock.close()
        raise _unbound(error, host, port) from error
    return sock


def _unbound(error: OSError, host: str, port: int) -> ListenError:
    return ListenError(f"UDP {why_not_bound(error, host, port, 'WAVRY_RELAY_LISTEN')}")


def size_buffers(group: ReuseportGroup, wanted_bytes: int) -> None:
    """Size the buffers of all sockets of a group, beyond the kernel's limits where that is allowed.

    What the kernel gave stands in the group afterwards.
    """
    receive, send = [], []
    for sock in group.sockets:
        receive.append(_size(sock, SO_RCVBUFFORCE, socket.SO_RCVBUF, wanted_bytes))
        send.append(_size(sock, SO_SNDBUFFORCE, socket.SO_SNDBUF, wanted_bytes))
    group.receive_buffer_bytes, group.send_buffer_bytes = min(receive), min(send)


def _size(sock: socket.socket, forced: int, plain: int, wanted_bytes: int) -> int:
    try:
        sock.setsockopt(socket.SOL_SOCKET, forced, wanted_bytes)
    except PermissionError:  # Without CAP_NET_ADMIN the limits of the kernel hold.
        # A passed socket may have more than this process could ask for: that is kept.
        if (
            not _buffer_bytes(sock, plain)
            >= wanted_bytes
            > _allowed_bytes(sock, plain, wanted_bytes)
        ):
            sock.setsockopt(socket.SOL_SOCKET, plain, wanted_bytes)
    return _buffer_bytes(sock, plain)


def _buffer_bytes(sock: socket.socket, option: int) -> int:
    # Linux doubles the number for its own bookkeeping and reports the doubled one.
    return sock.getsockopt(socket.SOL_SOCKET, option) // 2


def _allowed_bytes(sock: socket.socket, option: int, wanted_bytes: int) -> int:
    """Ask a new socket what it gets: the sysctl may be hidden from this process."""
    with socket.socket(sock.family, socket.SOCK_DGRAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, option, wanted_bytes)
        return _buffer_bytes(probe, option)


def set_busy_poll(groups: Sequence[ReuseportGroup], busy_poll_us: int) -> str | None:
    """Let the kernel poll the device of each socket before it reports that nothing is there.

    Returns:
        None, or why the kernel refuses (older ones want CAP_NET_ADMIN); the engine polls all the
        same.
    """
    try:
        for group in groups:
            for sock in group.sockets:
                sock.setsockopt(socket.SOL_SOCKET, SO_BUSY_POLL, busy_poll_us)
    except OSError as error:
        return error.strerror or "unknown error"
    return None


def steering_program(
    sockets: int, read: Collection[int] | None = None
) -> Sequence[tuple[int, int, int, int]]:
    """Build the program as rows of (code, jump if true, jump if false, k).

    Args:
        sockets: in the group.
        read: places of those that somebody reads; None is all.
    """
    places = range(sockets) if read is None else sorted(read)
    rows = [(_BPF_LD_W_ABS, 0, 0, _STEERING_OFFSET), (_BPF_ALU_MOD_K, 0, 0, sockets)]
    unread = [place for place in range(sockets) if place not in places]
    for at, place in enumerate(unread):
        rows += [(_BPF_JMP_EQ_K, 0, 1, place), (_BPF_RET_K, 0, 0, places[at % len(places)])]
    return (*rows, (_BPF_RET_A, 0, 0, 0))


def attach_steering(
    sock: socket.socket, sockets: int, read: Collection[int] | None = None
) -> str | None:
    """Attach the steering program to a socket's group, in the place of one that is there.

    Returns:
        None, or why the kernel refuses; packets are then spread by address, which still works.
    """
    code = b"".join(_INSTRUCTION.pack(*row) for row in steering_program(sockets, read))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HL", len(code) // _INSTRUCTION.size, ctypes.addressof(buffer))
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, program)
    except OSError as error:
        return error.strerror or "unknown error"
    return None
