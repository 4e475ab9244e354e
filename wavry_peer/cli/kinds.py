"""How the subcommands of ``wavry-peer`` share a session: the first byte of each datagram.

A `Session` itself is raw: an application has every byte.  The subcommands own their session and
put one kind byte in front, so that two people who started different ones learn of it instead of
seeing each other's bytes: TEXT (``host``, ``connect``), FILE (``send``, ``receive``), PING
(``ping``; whoever is called answers it), and UNSERVED ("I do not do kind X").
"""

import time
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from wavry_peer.errors import PeerError
from wavry_peer.files.transfer import DatagramSession

__all__ = ["DatagramKind", "KindStream", "WrongToolError"]


class DatagramKind(IntEnum):
    """First byte."""

    TEXT = 0
    FILE = 1
    PING = 2
    PONG = 3
    UNSERVED = 4


_TOOLS: Final = {DatagramKind.TEXT: "wavry-peer host", DatagramKind.FILE: "wavry-peer receive"}
_UNSERVED_EVERY_NS: Final = 1_000_000_000


class WrongToolError(PeerError):
    """The other side runs a subcommand that does not go with ours."""


class KindStream:
    """Datagrams of one kind on a session; answers PINGs on the way.

    Args:
        session: nothing else may receive from it.
        kind: what is sent and received here.
        clock: monotonic nanoseconds.
    """

    def __init__(
        self,
        session: DatagramSession,
        kind: DatagramKind,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.max_datagram_bytes = session.max_datagram_bytes - 1
        self._session = session
        self._prefix = bytes((kind,))
        self._receive_kind = DatagramKind.PONG if kind is DatagramKind.PING else kind
        self._kind = kind
        self._clock = clock
        self._unserved_ns: int | None = None

    async def send(self, data: bytes) -> None:
        """Send a datagram of our kind; as `Session.send`."""
        await self._session.send(self._prefix + data)

    async def receive(self) -> bytes:
        """Wait for a datagram of our kind; as `Session.receive`.

        Raises:
            WrongToolError: the other side says that it does not do this.
            SessionClosedError: the session is over.
        """
        while True:
            datagram = await self._session.receive()
            if not datagram:
                continue
            kind, data = datagram[0], datagram[1:]
            if kind == self._receive_kind:
                return data
            if kind == DatagramKind.PING:
                await self._session.send(bytes((DatagramKind.PONG,)) + data)
            elif kind == DatagramKind.UNSERVED:
                if data == self._prefix:
                    tool = _TOOLS.get(self._kind, "another subcommand")
                    raise WrongToolError(f"the other side must run: {tool}")
            elif kind != DatagramKind.PONG:
                await self._refuse(kind)

    async def _refuse(self, kind: int) -> None:
        now_ns = self._clock()
        if self._unserved_ns is None or now_ns - self._unserved_ns >= _UNSERVED_EVERY_NS:
            self._unserved_ns = now_ns
            await self._session.send(bytes((DatagramKind.UNSERVED, kind)))
