"""Socket activation: sockets that systemd (or whoever follows its protocol) opened for the relay.

The protocol (sd_listen_fds(3)): LISTEN_FDS sockets from descriptor 3 on are for the process whose
id is LISTEN_PID; LISTEN_FDNAMES names them.  UDP sockets take the place of WAVRY_RELAY_LISTEN,
those of one address are one SO_REUSEPORT group; a listening TCP socket named ``ops`` takes the
place of WAVRY_RELAY_OPS_LISTEN.  A passed socket that no worker reads would swallow its share of
the datagrams, so more of them than workers end the start.
"""

import socket
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from wavry_peer.protocol.errors import ListenError
from wavry_peer.service.listen_address import bound_to, format_endpoint

__all__ = ["Activation", "take_passed"]

_FIRST_FD: Final = 3
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")
_OPS_NAME: Final = "ops"
_SO_PROTOCOL: Final = 38
"""asm-generic/socket.h; Python's socket module has it on some systems only."""
_FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def take_passed(environ: MutableMapping[str, str], pid: int) -> list[tuple[str, socket.socket]]:
    """Take the passed sockets, with their names, and hide them from processes started later.

    Args:
        environ: loses its LISTEN variables.
        pid: of this process; sockets for another one are left alone.

    Raises:
        ListenError: the variables do not fit, or a descriptor is no socket.
    """
    for_pid, count_text, names_text = (environ.pop(name, "") for name in _VARIABLES)
    if not count_text or for_pid != str(pid):
        return []
    if not count_text.isascii() or not count_text.isdigit():
        raise ListenError("LISTEN_FDS must be a number; start the relay from its socket unit")
    names = names_text.split(":")
    passed = []
    for number in range(int(count_text)):
        name = names[number] if number < len(names) else ""
        try:
            sock = socket.socket(fileno=_FIRST_FD + number)
            sock.set_inheritable(False)
        except OSError as error:
            raise ListenError(
                f"passed descriptor {_FIRST_FD + number} ({name or 'unnamed'}) is no socket"
            ) from error
        passed.append((name, sock))
    return passed


@dataclass(slots=True)
class Activation:
    """Passed sockets in their roles.

    Attributes:
        udp: sockets of each address, in the order in which they were passed.
        ops: listening socket for /health, /ready and /metrics.
    """

    udp: list[list[socket.socket]] = field(default_factory=list)
    ops: socket.socket | None = None

    @classmethod
    def sort(cls, passed: Sequence[tuple[str, socket.socket]]) -> Self:
        """Give each passed socket its role.

        Raises:
            ListenError: one that the relay cannot use.
        """
        by_address: dict[tuple[str, int], list[socket.socket]] = {}
        made = cls()
        for number, (name, sock) in enumerate(passed):
            what = f"passed socket {number} ({name or 'unnamed'})"
            if name == _OPS_NAME:
                _check_ops(sock, what)
                if made.ops is not None:
                    raise ListenError(f"{what} is the second one named {_OPS_NAME}; pass only one")
                made.ops = sock
            else:
                _check_udp(sock, what)
                by_address.setdefault(bound_to(sock), []).append(sock)
        made.udp = list(by_address.values())
        return made

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each UDP address."""
        return [bound_to(sockets[0]) for sockets in self.udp]

    def worker_count(self, asked: int, default: int) -> int:
        """Return the number of workers that leaves no passed socket unread.

        Args:
            asked: for by the operator, 0 = none in particular.
            default: number then, unless more sockets were passed.

        Raises:
            ListenError: fewer are asked for than sockets of one address were passed.
        """
        most = max(map(len, self.udp), default=0)
        if asked and asked < most:
            raise ListenError(
                f"{most} sockets of one address were passed for {asked} workers, and what reaches"
                f" a socket without a worker is lost; set WAVRY_RELAY_WORKERS={most}, or list"
                f" ListenDatagram= {asked} times"
            )
        return asked or max(default, most)


def _check_udp(sock: socket.socket, what: str) -> None:
    protocol = sock.getsockopt(socket.SOL_SOCKET, _SO_PROTOCOL)
    if sock.family not in _FAMILIES or protocol != socket.IPPROTO_UDP:
        raise ListenError(
            f"{what} is no UDP socket; use ListenDatagram= with an IP address (and"
            f" FileDescriptorName={_OPS_NAME} for the TCP socket of /health and /metrics)"
        )
    host, port = sock.getsockname()[:2]
    if not port:
        raise ListenError(f"{what} is not bound to a port; use ListenDatagram=IP:PORT")
    if sock.family != socket.AF_INET6:
        return
    only_v6 = sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    # Peers from IPv4 would all look like one IPv6 network, and share its limits.
    if host.lower().startswith("::ffff:") or (host == "::" and not only_v6):
        raise ListenError(
            f"{what} ({format_endpoint(host, port)}) takes IPv4 as well; set"
            " BindIPv6Only=ipv6-only and list the IPv4 address apart"
        )


def _check_ops(sock: socket.socket, what: str) -> None:
    fits = sock.family in _FAMILIES and sock.type == socket.SOCK_STREAM
    if not fits or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ListenError(
            f"{what} is no listening TCP socket; use ListenStream=IP:PORT with Accept=no"
        )
