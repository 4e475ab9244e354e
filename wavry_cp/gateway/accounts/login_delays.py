"""Delays after wrong passwords: they grow for the guesser and cannot lock out the owner.

The delay belongs to a pair (account, address prefix): whoever guesses from elsewhere delays only
himself.  Against a guesser with many addresses the account as a whole gets slower, by a short
pause before each answer that is capped and never refuses.  An attempt is counted before the
password is checked and taken back when it was right, so that parallel guesses do not share one
free try.  Refused attempts do not prolong a delay.

Memory is bounded.  When the table is full, forgotten entries go first; then new pairs share
coarse entries picked by a keyed hash, so that flooding the table frees nobody and shuts out no
good address beyond a shared, slower count.
"""

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

__all__ = ["LoginDelays"]

FREE_ATTEMPTS: Final = 5
"""Wrong tries without a delay: people mistype, and 5 guesses win nothing against 10 characters."""
SHARED_FREE_ATTEMPTS: Final = 200
"""The same for a shared entry of a full table."""
SHARED_ENTRIES: Final = 1024
MAX_DELAY_S: Final = 900.0
FORGET_S: Final = 3600.0
ACCOUNT_FREE_ATTEMPTS: Final = 20
MAX_PAUSE_S: Final = 2.0


@dataclass(slots=True)
class _Entry:
    failures: float
    touched_s: float
    open_at_s: float = 0.0


class LoginDelays:
    """Failed logins by (account, address prefix) and by account; lost at a restart on purpose.

    Args:
        secret: key of the hash that picks shared entries, unknown to clients.
        max_entries: bound of each of the two tables.
    """

    def __init__(self, *, secret: bytes, max_entries: int = 65_536) -> None:
        self._secret = secret
        self._max_entries = max_entries
        self._pairs: OrderedDict[str, _Entry] = OrderedDict()
        self._accounts: OrderedDict[str, _Entry] = OrderedDict()

    def begin(self, account: str, prefix: str, now_s: float) -> float:
        """Count an attempt as failed until `succeeded` says otherwise.

        Returns:
            0.0 where the attempt may go on (it is counted), else seconds to wait (not counted).
        """
        entry, free = self._entry(self._pairs, f"{account}\n{prefix}", now_s, FREE_ATTEMPTS)
        if entry.open_at_s > now_s:
            return entry.open_at_s - now_s
        entry.failures += 1
        entry.touched_s = now_s
        if entry.failures >= free:
            exponent = min(entry.failures - free, 32)
            entry.open_at_s = now_s + min(MAX_DELAY_S, 2.0**exponent)
        whole, _ = self._entry(self._accounts, account, now_s, ACCOUNT_FREE_ATTEMPTS)
        # A level that leaks by the clock: it falls again although the guessing goes on.
        whole.failures = 1 + max(0.0, whole.failures - (now_s - whole.touched_s) / 60)
        whole.touched_s = now_s
        return 0.0

    def pause_s(self, account: str, now_s: float) -> float:
        """Return the seconds to sleep before the answer of an attempt that `begin` let pass."""
        whole = self._accounts.get(account)
        if whole is None or now_s - whole.touched_s > FORGET_S:
            return 0.0
        return min(MAX_PAUSE_S, max(0.0, whole.failures - ACCOUNT_FREE_ATTEMPTS) * 0.1)

    def succeeded(self, account: str, prefix: str) -> None:
        """Forget the failures of this pair and take the attempt back from the account."""
        self._pairs.pop(f"{account}\n{prefix}", None)
        whole = self._accounts.get(account)
        if whole is not None:
            whole.failures = max(0.0, whole.failures - 1)

    def take_back(self, account: str, prefix: str) -> None:
        """Take back an attempt that was never checked (the service was busy)."""
        entry = self._pairs.get(f"{account}\n{prefix}")
        if entry is not None and entry.failures:
            entry.failures -= 1
            entry.open_at_s = 0.0

    def __len__(self) -> int:
        return len(self._pairs) + len(self._accounts)

    def _entry(
        self, table: OrderedDict[str, _Entry], key: str, now_s: float, free: int
    ) -> tuple[_Entry, int]:
        entry = table.get(key)
        if entry is not None:
            if now_s - entry.touched_s > FORGET_S:
                entry.failures, entry.open_at_s = 0.0, 0.0
            table.move_to_end(key)
            return entry, free
        if len(table) >= self._max_entries:
            self._drop_forgotten(table, now_s)
        if len(table) >= self._max_entries:
            free, key = SHARED_FREE_ATTEMPTS, self._shared_key(key)
        entry = table.get(key)
        if entry is None:
            entry = table[key] = _Entry(0.0, now_s)
        return entry, free

    def _drop_forgotten(self, table: OrderedDict[str, _Entry], now_s: float) -> None:
        while table:
            oldest = next(iter(table))
            if now_s - table[oldest].touched_s <= FORGET_S:
                return
            del table[oldest]

    def _shared_key(self, key: str) -> str:
        digest = hashlib.blake2b(key.encode(), key=self._secret, digest_size=4).digest()
        return f"\n{int.from_bytes(digest) % SHARED_ENTRIES}"
