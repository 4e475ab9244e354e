"""The JSON that a run leaves behind: what was measured, by what, and the verdict."""

from pathlib import Path
from typing import Any

import msgspec

from .slo import Check
from .totals import RequestTotals, Totals

__all__ = [
    "Moment",
    "OfferedLoad",
    "Results",
    "describe_media",
    "describe_requests",
    "write_results",
]


class OfferedLoad(msgspec.Struct, frozen=True):
    """What was asked for.

    Attributes:
        users: names of the user classes.
        shape: of the load.
        peak_users: most users at a time.
        processes: that made the load.
        media_kbps: payload of one stream.
        packets_per_s: datagrams of one stream.
    """

    users: list[str]
    shape: str
    peak_users: int
    processes: int
    media_kbps: float
    packets_per_s: float


class Moment(msgspec.Struct, frozen=True):
    """One interval of the run, ending at `time_s` from its start; None where nothing came."""

    time_s: float
    users: int
    requests_per_s: float
    failures: int
    frames_per_s: float
    one_way_p99_ms: float | None
    send_late_p99_ms: float | None


class Results(msgspec.Struct, frozen=True):
    """The document.

    Attributes:
        format: of this document.
        started_at: RFC 3339, UTC.
        duration_s: from the start of the first user to the end of the last.
        machine: that made the load, see `loadtest.machine`.
        software: versions.
        target: kind and URLs, no secrets.
        load: what was asked for.
        requests: kinds of requests by name.
        media: sums of all streams.
        timeline: one interval after another.
        checks: objectives, judged.
        ok: whether all were kept.
    """

    started_at: str
    duration_s: float
    machine: dict[str, str | int | float | bool]
    software: dict[str, str]
    target: dict[str, str | None]
    load: OfferedLoad
    requests: dict[str, dict[str, Any]]
    media: dict[str, Any]
    timeline: list[Moment]
    checks: list[Check]
    ok: bool
    format: int = 1


def _describe(sums: RequestTotals) -> dict[str, Any]:
    return {
        **sums.latency.summary(),
        "failures": sums.failures,
        "error_pct": round(sums.error_pct, 4),
        "reasons": sums.reasons,
    }


def describe_requests(totals: Totals) -> dict[str, dict[str, Any]]:
    """Return every kind of request."""
    return {kind: _describe(sums) for kind, sums in sorted(totals.requests.items())}


def describe_media(totals: Totals) -> dict[str, Any]:
    """Return sums of all streams."""
    media = totals.media
    return {
        "streams": media.streams,
        "sent": media.sent,
        "received": media.received,
        "lost": media.lost,
        "loss_pct": round(media.loss_pct, 4),
        "duplicates": media.duplicates,
        "reordered": media.reordered,
        "reordered_pct": round(media.reordered_pct, 4),
        "foreign": media.foreign,
        "one_way": media.one_way.summary(),
        "send_late": media.send_late.summary(),
    }


def write_results(path: Path, results: Results) -> None:
    """Write the document, whole or not at all; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".tmp")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    partial.replace(path)
