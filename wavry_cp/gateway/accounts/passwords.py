"""Argon2id in worker threads, bounded, and with the same work for every answer.

Each check costs memory and a core for a while, so at most `concurrency` run at once, and those who
wait take fair turns (`fair_queue`).  A login of an unknown
user verifies against a decoy made with the same cost, so that time does not tell who exists.
"""

import asyncio
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import nacl.exceptions
import nacl.pwhash
from nacl.pwhash import argon2id

from .fair_queue import FairQueue, Party

__all__ = ["PasswordCost", "PasswordHasher"]

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class PasswordCost:
    """Argon2id cost: passes over the memory, and KiB of memory of one check."""

    passes: int
    memory_kib: int

    @property
    def prefix(self) -> str:
        """How a stored hash of this cost begins."""
        return f"$argon2id$v=19$m={self.memory_kib},t={self.passes},"


def _canonical(password: str) -> bytes:
    # One keyboard sends é as one code point, another as two; both are the same password.
    return unicodedata.normalize("NFC", password).encode()


class PasswordHasher:
    """Hashes and checks passwords without holding up the event loop."""

    def __init__(self, cost: PasswordCost, *, concurrency: int, max_waiting: int) -> None:
        self._cost = cost
        self._turns = FairQueue(concurrency=concurrency, max_waiting=max_waiting)
        self._threads = ThreadPoolExecutor(concurrency, thread_name_prefix="argon2")
        self._decoy = self._hash(b"decoy of a user who does not exist")

    def close(self) -> None:
        """End the worker threads; running checks come to their end."""
        self._threads.shutdown(wait=True)

    async def hash(self, password: str, party: Party) -> str:
        """Hash of a new password of `party`, with salt and cost inside.

        Raises:
            RefusedError: ``busy``: too many checks wait already.
        """
        return await self._work(lambda: self._hash(_canonical(password)), party)

    async def verify(self, password: str, stored: str | None, party: Party) -> bool:
        """Return whether `password` fits `stored`; for None (no such user) False, by the same work.

        Raises:
            RefusedError: ``busy``.
        """
        target = self._decoy if stored is None else stored
        fits = await self._work(lambda: self._verify(target, _canonical(password)), party)
        return fits and stored is not None

    def outdated(self, stored: str) -> bool:
        """Return whether `stored` was made with another cost than the one that is set now."""
        return not stored.startswith(self._cost.prefix)

    def _hash(self, password: bytes) -> str:
        return argon2id.str(password, self._cost.passes, self._cost.memory_kib * 1024).decode()

    def _verify(self, stored: str, password: bytes) -> bool:
        try:
            return nacl.pwhash.verify(stored.encode(), password)
        except nacl.exceptions.InvalidkeyError:
            return False

    async def _work(self, job: Callable[[], Result], party: Party) -> Result:
        async with self._turns.turn(party):
            return await asyncio.get_running_loop().run_in_executor(self._threads, job)
