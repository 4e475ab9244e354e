"""Generator sockets and the session file that the generator maps (``struct session``)."""

import mmap
import secrets
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from wavry_peer.protocol.packets import SessionId

__all__ = ["Endpoints", "SessionFile", "SessionPlan", "plan_sessions"]

_RECORD: Final = struct.Struct("=16sQQIIH6x")
_RECEIVED_AT: Final = 24
_BUFFER_BYTES: Final = 4 << 20
"""Room for some thousand datagrams; a smaller kernel limit is taken silently by the kernel and
would show as loss in the table."""


class SessionPlan(NamedTuple):
    """One session: its id, and which sockets (by index) and which channel it uses."""

    session_id: SessionId
    client: int
    server: int
    channel: int = 0


def plan_sessions(count: int, *, clients: int, servers: int) -> list[SessionPlan]:
    """Spread `count` new sessions over the sockets.

    Each (client socket, server socket) pair comes once before any comes again, so that a TURN
    server, which knows a peer by its address, can hold `clients` times `servers` of them.  Channel
    numbers (0x4000 on) grow within a client socket.
    """
    plans = []
    for index in range(count):
        turn = index // clients
        client = index % clients
        plans.append(
            SessionPlan(
                SessionId(secrets.token_bytes(16)),
                client,
                (client + turn) % servers,
                0x4000 + turn % 0x3FFF,
            )
        )
    return plans


def _open_socket(host: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    opened.bind((host, 0))
    return opened


def _loopback_host(index: int) -> str:
    """Return an address of its own /24 in 127/8, so that limits per subnet see many users."""
    return f"127.{20 + index // 250}.{index % 250 + 1}.1"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The sockets of the two sides of all sessions; each has its own loopback address."""

    clients: Sequence[socket.socket]
    servers: Sequence[socket.socket]

    @classmethod
    def open(cls, clients: int, servers: int) -> Self:
        """Open and bind the sockets (IPv4 loopback, free ports)."""
        return cls(
            [_open_socket(_loopback_host(index)) for index in range(clients)],
            [_open_socket(_loopback_host(clients + index)) for index in range(servers)],
        )

    @property
    def fds(self) -> list[int]:
        """All file descriptors, for inheritance."""
        return [opened.fileno() for opened in (*self.clients, *self.servers)]

    def close(self) -> None:
        """Close all sockets."""
        for opened in (*self.clients, *self.servers):
            opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class SessionFile:
    """Sessions as the generator reads them; sequences live here from run to run."""

    path: Path
    count: int

    @classmethod
    def write(cls, path: Path, plans: Sequence[SessionPlan]) -> Self:
        """Write a new file; sequences begin at 1."""
        with path.open("wb") as file:
            for plan in plans:
                file.write(
                    _RECORD.pack(plan.session_id, 1, 0, plan.client, plan.server, plan.channel)
                )
        return cls(path, len(plans))

    def extend(self, plans: Sequence[SessionPlan]) -> "SessionFile":
        """Append sessions; those that are there keep their sequences."""
        with self.path.open("ab") as file:
            for plan in plans:
                file.write(
                    _RECORD.pack(plan.session_id, 1, 0, plan.client, plan.server, plan.channel)
                )
        return SessionFile(self.path, self.count + len(plans))

    def received(self) -> list[int]:
        """Return how many packets came back for each session in the last run."""
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
            counts = []
            for index in range(self.count):
                at = index * _RECORD.size + _RECEIVED_AT
                counts.append(int.from_bytes(view[at : at + 8], sys.byteorder))
            return counts
