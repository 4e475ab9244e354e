"""How a relay comes to be known: one-time tokens, and which of its credentials lets it in.

``wve_<id>_<secret>``, as `wavry_cp.operators.admin_tokens` has it: the id finds the row, and of the
secret's 256 random bits the SHA-256 is stored.  A token is bound to a name and a region, ends by
itself, and is spent in the transaction that writes the relay: whoever comes second finds it used.
A relay that is known already needs no token, only its key, so an answer that was lost costs
nothing.
"""

import hashlib
import hmac
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from wavry_cp.app.refusal import RefusedError
from wavry_cp.master.relays.rules import RelayRecord
from wavry_peer.protocol import base64url
from wavry_peer.protocol.http.api import RegisterRequest
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.relay_terms import Enrolment

__all__ = [
    "EnrolmentCredentials",
    "EnrolmentToken",
    "Entry",
    "entry_of",
    "is_secret_of",
    "new_enrolment",
    "refused_token",
    "token_id_of",
]

ID_BYTES: Final = 5
SECRET_BYTES: Final = 32
_FORM: Final = re.compile(r"wve_([0-9a-f]{10})_([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class EnrolmentToken:
    """What is stored of a token.  Times are unix seconds.

    Attributes:
        name: of the relay that it is for; one token for each name.
        token_id: public part, ten hex digits.
        region: of the relay; None leaves it to the relay.
        secret_hash: hex SHA-256 of the secret part.
        created_at_s: when it was made.
        expires_at_s: good before this instant.
        used_by: relay id, None while nobody used it.
    """

    name: str
    token_id: str
    region: str | None
    secret_hash: str
    created_at_s: int
    expires_at_s: int
    used_by: str | None = None

    def is_open(self, now_s: int) -> bool:
        """Return whether a relay may still use it."""
        return self.used_by is None and now_s < self.expires_at_s


@dataclass(frozen=True, slots=True)
class EnrolmentCredentials:
    """What stands behind a registration beside the relay's key.

    Attributes:
        is_listed: the operator's list of keys has it.
        is_managed: it showed the service token.
        token: that it showed, with the right secret; None for any other text.
        is_door_open: strangers may come in.
    """

    is_listed: bool = False
    is_managed: bool = False
    token: EnrolmentToken | None = None
    is_door_open: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """By what a relay is let in.

    Attributes:
        kind: of the enrolment.
        name: that it has or gets; None takes one made of its id.
        token: to be spent.
        region: that it is bound to; None believes the relay.
    """

    kind: Enrolment
    name: str | None = None
    token: EnrolmentToken | None = None
    region: str | None = None


def new_enrolment(
    name: str,
    region: str | None,
    *,
    now_s: int,
    life_s: int,
    random_bytes: Callable[[int], bytes],
) -> tuple[EnrolmentToken, str]:
    """Make a token and its text, which is shown once and kept nowhere."""
    token_id = random_bytes(ID_BYTES).hex()
    secret = base64url.encode(random_bytes(SECRET_BYTES))
    token = EnrolmentToken(name, token_id, region, _digest(secret), now_s, now_s + life_s)
    return token, f"wve_{token_id}_{secret}"


def token_id_of(text: str) -> str | None:
    """Return the public part of a token's text, None where it has another form."""
    match = _FORM.fullmatch(text)
    return None if match is None else match[1]


def is_secret_of(token: EnrolmentToken, text: str) -> bool:
    """Return whether `text` is this token, compared in constant time."""
    match = _FORM.fullmatch(text)
    return match is not None and hmac.compare_digest(token.secret_hash, _digest(match[2]))


def entry_of(
    body: RegisterRequest,
    known: RelayRecord | None,
    credentials: EnrolmentCredentials,
    *,
    now_s: int,
) -> Entry:
    """Decide by what a relay is let in; its key is proved later.

    Args:
        body: of the registration.
        known: the record so far.
        credentials: what stands behind it.
        now_s: unix seconds.

    Raises:
        RefusedError: ``relay_not_enrolled``, ``enrolment_token_invalid`` or ``wrong_region``.
    """
    entry = _entry(body, known, credentials, now_s)
    if entry.region is not None and body.region not in (None, entry.region):
        raise RefusedError(
            ErrorCode.WRONG_REGION,
            f"this relay is enrolled for region {entry.region} and says {body.region}",
        )
    return entry


def _entry(
    body: RegisterRequest, known: RelayRecord | None, credentials: EnrolmentCredentials, now_s: int
) -> Entry:
    if known is not None and known.enrolment is Enrolment.TOKEN:
        return Entry(known.enrolment, known.name, region=known.region)
    if known is not None and known.enrolment in (Enrolment.APPROVED, Enrolment.POOL):
        return Entry(known.enrolment, known.name)
    name = body.name if known is None else known.name
    if credentials.is_listed:
        return Entry(Enrolment.LISTED, name)
    if credentials.is_managed:
        return Entry(Enrolment.POOL, name)
    if body.enrolment_token is not None:
        token = _good_token(credentials.token, now_s)
        return Entry(Enrolment.TOKEN, token.name, token, token.region)
    if credentials.is_door_open:
        # A stranger chooses no name: it would be read as an operator's word.
        return Entry(Enrolment.OPEN, None if known is None else known.name)
    raise RefusedError(
        ErrorCode.RELAY_NOT_ENROLLED,
        "this relay is not enrolled: the operator makes a token by `wavryctl relays enrol`",
    )


def _good_token(token: EnrolmentToken | None, now_s: int) -> EnrolmentToken:
    if token is None:
        raise refused_token("is unknown, or was replaced or rejected")
    if token.used_by is not None:
        raise refused_token("was used by another relay")
    if not token.is_open(now_s):
        raise refused_token("has ended")
    return token


def refused_token(why: str) -> RefusedError:
    """Return the refusal of an enrolment token."""
    return RefusedError(ErrorCode.ENROLMENT_TOKEN_INVALID, f"the enrolment token {why}")


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
