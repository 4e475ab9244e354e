"""HTTP bodies by which operators let relays in, name them and let them go.

Rules of form as in `api`.  Times are unix seconds.
"""

from typing import Annotated, ClassVar

import msgspec

from .admin import Reason
from .api import Body, Region, RelayName

__all__ = [
    "ApproveRequest",
    "EnrolmentInfo",
    "EnrolmentList",
    "EnrolmentRequest",
    "NewEnrolment",
    "RelayHistory",
    "RelayNews",
    "RelayNewsPage",
    "RelayRemoved",
    "RelayStateChange",
    "RenameRequest",
]


class EnrolmentRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/enrolments``; the token is bound to name and region (None: any)."""

    name: RelayName
    region: Region | None = None
    life_s: Annotated[int, msgspec.Meta(ge=60, le=90 * 86_400)] = 86_400
    reason: Reason = ""


class EnrolmentInfo(Body, frozen=True, kw_only=True):
    """A token that waits for its relay, without its secret."""

    name: str
    region: str | None = None
    created_at: int
    expires_at: int


class EnrolmentList(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/enrolments``."""

    enrolments: tuple[EnrolmentInfo, ...]


class NewEnrolment(Body, frozen=True, kw_only=True):
    """201: the only time that `token` is told; `replaces` an open one for the same name."""

    SECRET_FIELDS: ClassVar[frozenset[str]] = frozenset({"token"})

    token: str
    info: EnrolmentInfo
    replaces: bool = False


class ApproveRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/relays/{relay_id}/approve``; without `name` it keeps the one it has."""

    name: RelayName | None = None
    reason: Reason = ""


class RenameRequest(Body, frozen=True, kw_only=True):
    """``POST /v1/admin/relays/{relay_id}/rename``."""

    name: RelayName
    reason: Reason = ""


class RelayStateChange(Body, frozen=True, kw_only=True):
    """From `at` on the relay was `after`; `before` is empty where nothing is known.

    `causes` are those of `RelayInfo.faults`; `text` is for people.
    """

    at: int
    before: str
    after: str
    causes: tuple[str, ...] = ()
    text: str = ""


class RelayHistory(Body, frozen=True, kw_only=True):
    """``GET /v1/relays/{relay_id}/history``: the newest changes of state, in their order."""

    relay_id: str
    name: str
    changes: tuple[RelayStateChange, ...]


class RelayNews(Body, frozen=True, kw_only=True):
    """A change of state of any relay; `id` grows by the order of writing."""

    id: int
    at: int
    relay_id: str
    name: str
    before: str
    after: str
    text: str


class RelayNewsPage(Body, frozen=True, kw_only=True):
    """``GET /v1/admin/relay-news?after=ID&limit=N``: those behind `after`, or the last ones."""

    news: tuple[RelayNews, ...]


class RelayRemoved(Body, frozen=True, kw_only=True):
    """What follows from a removal.

    `state` is what the relay is now: ``BANNED`` where its ban keeps the record, else empty.
    `enrolment` says by what it was known: ``listed`` and ``pool`` relays may come back as before.
    """

    relay_id: str
    name: str
    enrolment: str
    state: str = ""
