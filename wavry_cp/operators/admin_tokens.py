"""Named admin tokens: their form, how they are checked, and what rotation leaves valid.

``wvt_<id>_<secret>``: the id is public and finds the row; the secret has 256 random bits, so
its SHA-256 is what is stored (no salt or slow hash is due) and what is compared, in constant time.
A name has at most two valid tokens: the newest, and the one that it replaced, for as long as the
overlap lasts.
"""

import hashlib
import hmac
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final, Self

from wavry_peer.protocol import base64url

from .audit import SYSTEM
from .roles import SERVICE, AdminRole, Caller

__all__ = [
    "RESERVED_NAMES",
    "AdminToken",
    "ShownToken",
    "TokenTable",
    "new_token",
    "rotation",
]

ID_BYTES: Final = 5
SECRET_BYTES: Final = 32
RESERVED_NAMES: Final = frozenset({"admin", "relay", SERVICE, SYSTEM})
"""Names that the audit log uses for others; ``admin`` is the token in the operator's file."""

_FORM: Final = re.compile(r"wvt_([0-9a-f]{10})_([A-Za-z0-9_-]{43})")
_NOBODY: Final = hashlib.sha256(b"no token has this secret").hexdigest()


@dataclass(frozen=True, slots=True)
class AdminToken:
    """What is stored of a token.  Times are unix seconds.

    Attributes:
        token_id: public part, ten hex digits.
        name: of its holder; shared by a token and the one that it replaced.
        role: what it may do.
        secret_hash: hex SHA-256 of the secret part.
        created_at_s: when it was made.
        expires_at_s: valid before this instant; None is for ever.
    """

    token_id: str
    name: str
    role: AdminRole
    secret_hash: str
    created_at_s: int
    expires_at_s: int | None

    def is_valid(self, now_s: int) -> bool:
        """Return whether its expiry is still to come."""
        return self.expires_at_s is None or now_s < self.expires_at_s

    @property
    def caller(self) -> Caller:
        """Who shows it."""
        return Caller(self.name, self.role)


@dataclass(frozen=True, slots=True)
class ShownToken:
    """A token that a request shows, taken apart; without the secret itself."""

    token_id: str
    secret_hash: str

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """Return the parts of `text`, or None where it has not the form of a named token."""
        match = None if text is None else _FORM.fullmatch(text)
        if match is None:
            return None
        return cls(match[1], hashlib.sha256(match[2].encode()).hexdigest())


def new_token(
    name: str,
    role: AdminRole,
    *,
    now_s: int,
    life_s: int | None,
    random_bytes: Callable[[int], bytes],
) -> tuple[AdminToken, str]:
    """Make a new token and its text, which is shown once and kept nowhere."""
    token_id = random_bytes(ID_BYTES).hex()
    secret = base64url.encode(random_bytes(SECRET_BYTES))
    token = AdminToken(
        token_id=token_id,
        name=name,
        role=role,
        secret_hash=hashlib.sha256(secret.encode()).hexdigest(),
        created_at_s=now_s,
        expires_at_s=None if life_s is None else now_s + life_s,
    )
    return token, f"wvt_{token_id}_{secret}"


def rotation(
    held: Iterable[AdminToken], *, now_s: int, overlap_s: int
) -> tuple[AdminToken | None, tuple[AdminToken, ...]]:
    """Decide what becomes of the tokens of a name when a new one is made.

    Returns:
        The one that stays valid until the overlap ends (None where none was valid), and those
        that end now.
    """
    by_age = sorted(held, key=_age)
    if not by_age or not by_age[-1].is_valid(now_s) or overlap_s == 0:
        return None, tuple(by_age)
    newest = by_age[-1]
    ends_s = now_s + overlap_s
    if newest.expires_at_s is not None:
        ends_s = min(ends_s, newest.expires_at_s)
    return replace(newest, expires_at_s=ends_s), tuple(by_age[:-1])


def _age(token: AdminToken) -> tuple[int, float]:
    # Within one second, the one that was replaced is the one that ends first.
    end_s = math.inf if token.expires_at_s is None else token.expires_at_s
    return token.created_at_s, end_s


class TokenTable:
    """All named tokens of the master, in memory; the store has the same."""

    def __init__(self, tokens: Iterable[AdminToken] = ()) -> None:
        self._by_id = {token.token_id: token for token in tokens}

    def check(self, shown: ShownToken | None, now_s: int) -> AdminToken | None:
        """Return the valid token that `shown` is; an unknown id takes as long as a wrong secret."""
        token = None if shown is None else self._by_id.get(shown.token_id)
        stored_hash = _NOBODY if token is None else token.secret_hash
        given_hash = "" if shown is None else shown.secret_hash
        fits = hmac.compare_digest(stored_hash, given_hash)
        if token is None or not fits or not token.is_valid(now_s):
            return None
        return token

    def named(self, name: str) -> tuple[AdminToken, ...]:
        """Return the tokens of a name, valid or not, oldest first."""
        held = (token for token in self._by_id.values() if token.name == name)
        return tuple(sorted(held, key=_age))

    def all(self) -> tuple[AdminToken, ...]:
        """Return all tokens by name, oldest first."""
        return tuple(sorted(self._by_id.values(), key=lambda t: (t.name, _age(t))))

    def change(self, keep: Iterable[AdminToken], forget: Iterable[AdminToken]) -> None:
        """Take over what the store has just written."""
        for token in forget:
            self._by_id.pop(token.token_id, None)
        for token in keep:
            self._by_id[token.token_id] = token

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self._by_id)
