"""Presents leases to a relay by hand, good ones and bad ones, and reads the answer."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Final, Self

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.errors import PacketError
from wavry_peer.protocol.packets import (
    LeaseAck,
    LeaseReject,
    PathChallenge,
    build_present,
    parse_packet,
)
from wavry_peer.service.settings import parse_address

from .report import StepFailedError

__all__ = ["LeaseProbe"]

RETRY_S: Final = 0.5
TIMEOUT_S: Final = 4.0


class LeaseProbe(asyncio.DatagramProtocol):
    """One UDP socket to one relay, for one session.

    Attributes:
        address: of the relay, as it was advertised.
    """

    def __init__(self, address: str, session_id: bytes) -> None:
        self.address = address
        self._session_id = session_id
        self._answers: asyncio.Queue[LeaseAck | LeaseReject | PathChallenge] = asyncio.Queue()
        self._cookie = c.NO_COOKIE
        self._counter = time.time_ns() // 1000
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, addresses: Sequence[str], session_id: bytes) -> AsyncIterator[Self]:
        """Return a probe to the first address that this machine has a route to.

        Raises:
            StepFailedError: there is a route to none.
        """
        for text in dict.fromkeys(addresses):
            probe = cls(text, session_id)
            if not await probe._connect():
                continue
            try:
                yield probe
            finally:
                probe._close()
            return
        raise StepFailedError(
            f"this machine has no route to the relay's addresses {', '.join(addresses)}"
        )

    async def ask(
        self,
        token: str,
        role: c.Role,
        key: SigningKey,
        want: type[LeaseAck] | c.RejectReason,
    ) -> str:
        """Present a lease until the wanted answer comes.

        Args:
            token: the lease.
            role: slot that is asked for.
            key: makes the proof.
            want: an ACK, or the reason of a REJECT.

        Returns:
            ``"ACK"`` or the name of the reason.

        Raises:
            StepFailedError: another answer, or none.
        """
        got = "no answer"
        deadline_s = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline_s:
            self._present(token, role, key)
            retry_s = time.monotonic() + RETRY_S
            while (left_s := retry_s - time.monotonic()) > 0:
                try:
                    async with asyncio.timeout(left_s):
                        answer = await self._answers.get()
                except TimeoutError:
                    break
                if isinstance(answer, PathChallenge):
                    # The relay is under load: it wants to see that we receive at our address.
                    self._cookie = answer.cookie
                    break
                got = _name(answer)
                if got == _wanted(want):
                    return got
        raise StepFailedError(
            f"the relay at {self.address} answers {got} where {_wanted(want)} is due",
            "`wavryctl doctor` tells a blocked port, a lacking key and a wrong clock apart",
        )

    def release(self, token: str, role: c.Role, key: SigningKey) -> None:
        """Give the slot back; it would be freed by itself a minute later."""
        self._cookie = c.RELEASE_COOKIE
        self._present(token, role, key, renew=True)

    async def _connect(self) -> bool:
        loop = asyncio.get_running_loop()
        try:
            self._transport, _ = await loop.create_datagram_endpoint(
                lambda: self, remote_addr=parse_address(self.address)
            )
        except OSError:
            return False
        return True

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def _present(self, token: str, role: c.Role, key: SigningKey, *, renew: bool = False) -> None:
        if self._transport is None:
            return
        self._counter += 1
        self._transport.sendto(
            build_present(
                self._session_id, role, token.encode(), counter=self._counter,
                cookie=self._cookie, sign=key.sign, renew=renew,
            )
        )  # fmt: skip

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:  # noqa: ARG002
        """Keep what answers a lease."""
        with contextlib.suppress(PacketError):
            packet = parse_packet(data)
            if packet.header.session_id == self._session_id and isinstance(
                packet.body, LeaseAck | LeaseReject | PathChallenge
            ):
                self._answers.put_nowait(packet.body)

    def error_received(self, exc: Exception) -> None:
        """Do nothing: a port that refuses does not answer, and the next try tells."""


def _name(answer: LeaseAck | LeaseReject) -> str:
    if isinstance(answer, LeaseAck):
        return "ACK"
    known = isinstance(answer.reason, c.RejectReason)
    return c.RejectReason(answer.reason).name if known else f"reason {answer.reason}"


def _wanted(want: type[LeaseAck] | c.RejectReason) -> str:
    return want.name if isinstance(want, c.RejectReason) else "ACK"
