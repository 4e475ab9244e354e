"""Calls: who may call, who is calling, and the calls that wait for an answer."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from wavry_peer.errors import PeerUnavailableError
from wavry_peer.home.identity import fingerprint
from wavry_peer.protocol import base64url
from wavry_peer.protocol.http import signaling as s
from wavry_peer.protocol.http.api import Credentials

__all__ = ["AcceptPolicy", "IncomingCall", "PendingCalls", "is_accepted", "read_noise_key"]

News = TypeVar("News", s.Answer, Credentials)


@dataclass(frozen=True, slots=True)
class IncomingCall:
    """Somebody calls us.

    Attributes:
        session_id: UUID.
        username: who, as the gateway names the caller.
        noise_key: the caller's 32-byte channel key, which must prove itself in the handshake.
    """

    session_id: str
    username: str
    noise_key: bytes

    @property
    def fingerprint(self) -> str:
        """Of the key, for people to compare."""
        return fingerprint(self.noise_key)


AcceptPolicy = Literal["all"] | Collection[str] | Callable[[IncomingCall], bool | Awaitable[bool]]
"""Which calls to accept: ``"all"``, a collection of user names, or a function that decides."""


async def is_accepted(policy: AcceptPolicy, call: IncomingCall) -> bool:
    """Ask the policy about a call; whatever a policy function raises goes through."""
    if policy == "all":
        return True
    if callable(policy):
        verdict = policy(call)
        return bool(await verdict) if inspect.isawaitable(verdict) else bool(verdict)
    # A lone name would otherwise accept every caller whose name is a part of it.
    return call.username == policy if isinstance(policy, str) else call.username in policy


def read_noise_key(text: str | None) -> bytes:
    """Return the 32 bytes of a key in signaling.

    Raises:
        PeerUnavailableError: the other peer names none (it is of the first protocol version).
    """
    try:
        return base64url.decode(text or "", size=32)
    except ValueError as error:
        raise PeerUnavailableError(
            "the other peer named no key for the encrypted channel; it needs a later version"
        ) from error


class PendingCalls:
    """What signaling brought for calls that are being set up, by session id.

    News may come before we know that we wait for it (the answer to our HTTP request may be
    slower than the other peer): a bounded number is kept.
    """

    MAX_KEPT: Final = 64

    def __init__(self) -> None:
        self._answers: dict[str, asyncio.Future[s.Answer]] = {}
        self._credentials: dict[str, asyncio.Future[Credentials]] = {}

    def answer(self, session_id: str) -> "asyncio.Future[s.Answer]":
        """Return what will hold the ANSWER."""
        return self._slot(self._answers, session_id)

    def credentials(self, session_id: str) -> "asyncio.Future[Credentials]":
        """Return what will hold the first RELAY_CREDENTIALS."""
        return self._slot(self._credentials, session_id)

    def put_answer(self, session_id: str, answer: s.Answer) -> None:
        """Note an ANSWER; only the first counts."""
        future = self._slot(self._answers, session_id)
        if not future.done():
            future.set_result(answer)

    def put_credentials(self, session_id: str, credentials: Credentials) -> None:
        """Take RELAY_CREDENTIALS; a later lease replaces an earlier one that nobody took."""
        future = self._slot(self._credentials, session_id)
        if future.done():
            future = self._credentials[session_id] = _new_future()
        future.set_result(credentials)

    def put_bye(self, session_id: str) -> None:
        """Note that the other side gave the call up."""
        for future in (self.answer(session_id), self.credentials(session_id)):
            if not future.done():
                future.set_exception(PeerUnavailableError("the other peer ended the call"))
                future.exception()  # marked as read: nobody may be waiting for it.

    def forget(self, session_id: str) -> None:
        """Forget a call that is set up or over."""
        for futures in (self._answers, self._credentials):
            future = futures.pop(session_id, None)
            if future is not None:
                future.cancel()

    def _slot(
        self, futures: "dict[str, asyncio.Future[News]]", session_id: str
    ) -> "asyncio.Future[News]":
        if session_id not in futures:
            if len(futures) >= self.MAX_KEPT:
                futures.pop(next(iter(futures))).cancel()
            futures[session_id] = _new_future()
        return futures[session_id]


def _new_future() -> "asyncio.Future[Any]":
    return asyncio.get_running_loop().create_future()
