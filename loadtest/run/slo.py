"""Service level objectives: what a run must keep to, from a TOML file, judged at its end."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec

from .totals import Totals

__all__ = ["Check", "Objectives", "ObjectivesError", "judge", "read_objectives"]

Percent = Annotated[float, msgspec.Meta(ge=0, le=100)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0)]
ANY_KIND: Final = "*"


class ObjectivesError(Exception):
    """The file of objectives cannot be used; the message says why."""


class Objectives(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits; a number equal to a limit is good.

    Attributes:
        max_error_pct: failed requests of each kind, so that few failed logins do not drown in
            many frames.
        max_loss_pct: datagrams of media that never came.
        max_reordered_pct: datagrams of media that were overtaken.
        max_send_late_p99_ms: how late the load generator itself may be; beyond it the latencies
            say more of this machine than of the system under test.
        p99_ms: 99th percentile by kind of request; ``*`` is for all that are not named.
    """

    max_error_pct: Percent
    max_loss_pct: Percent
    max_reordered_pct: Percent
    max_send_late_p99_ms: Milliseconds
    p99_ms: dict[str, Milliseconds]


class Check(msgspec.Struct, frozen=True):
    """One objective, judged.

    Attributes:
        name: e.g. ``UDP frame one-way p99``.
        limit: what was promised.
        got: what was measured; None where there is nothing to measure.
        unit: of both.
        ok: whether it was kept.
        why: more to know of a broken one.
    """

    name: str
    limit: float
    got: float | None
    unit: str
    ok: bool
    why: str = ""

    def line(self) -> str:
        """Return the check as a line of text."""
        got = "nothing" if self.got is None else f"{self.got:g} {self.unit}".rstrip()
        why = f" ({self.why})" if self.why else ""
        verdict = "kept" if self.ok else "BROKEN"
        return f"{verdict}: {self.name}: {got}, limit {self.limit:g} {self.unit}".rstrip() + why


def read_objectives(path: Path) -> Objectives:
    """Read a file of objectives.

    Raises:
        ObjectivesError: it cannot be read, is no TOML, or a name or number does not fit.
    """
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), Objectives)
    except OSError as error:
        raise ObjectivesError(f"objectives {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ObjectivesError(f"objectives {path}: {error}") from error


def _reasons(reasons: Mapping[str, int]) -> str:
    most = sorted(reasons.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{count} x {reason}" for reason, count in most)


def _at_most(name: str, limit: float, got: float | None, unit: str, why: str = "") -> Check:
    ok = got is not None and got <= limit
    shown = None if got is None else round(got, 4)
    return Check(name, limit, shown, unit, ok, "" if ok else why)


def judge(
    objectives: Objectives, totals: Totals, *, wants_media: bool, faults: int = 0
) -> list[Check]:
    """Judge what was measured.

    A run that measured nothing has kept nothing: that is a broken objective too.

    Args:
        objectives: what was promised.
        totals: what was measured.
        wants_media: whether the users of the run stream media.
        faults: exceptions of the load test's own code.
    """
    checks = [
        Check("requests made", 1, len(totals.requests), "kinds", bool(totals.requests)),
        Check("faults of the load test itself", 0, faults, "", not faults, "see the log"),
    ]
    for kind, sums in sorted(totals.requests.items()):
        why = _reasons(sums.reasons)
        checks.append(
            _at_most(f"{kind} errors", objectives.max_error_pct, sums.error_pct, "%", why)
        )
        limit_ms = objectives.p99_ms.get(kind, objectives.p99_ms.get(ANY_KIND))
        if limit_ms is not None:
            p99_ms = sums.latency.percentile_ms(0.99)
            checks.append(_at_most(f"{kind} p99", limit_ms, p99_ms, "ms"))
    if wants_media:
        media = totals.media
        got = media.received > 0
        why = f"{media.lost} of {media.received + media.lost}" if got else "no media arrived"
        loss_pct = media.loss_pct if got else None
        reordered_pct = media.reordered_pct if got else None
        late_ms = media.send_late.percentile_ms(0.99)
        checks += [
            _at_most("media loss", objectives.max_loss_pct, loss_pct, "%", why),
            _at_most("media reordering", objectives.max_reordered_pct, reordered_pct, "%", why),
            _at_most(
                "load generator late, p99",
                objectives.max_send_late_p99_ms,
                late_ms,
                "ms",
                "this machine did not keep the pace, so latencies are its own: run fewer users, "
                "or more processes on more cores",
            ),
        ]
    return checks
