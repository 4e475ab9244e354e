"""``wavryctl doctor``: a list of checks, each of which says what it saw and what to do next.

A check is a coroutine over `Places` that gives findings; it is entered in `CHECKS`.  The verdicts:
``ok``; ``warn``: look at it today; ``fail``: users notice, or will; ``unknown``: could not be
checked, and why.  A check never ends the others: what goes wrong in it is its finding.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from wavry_peer.protocol.api import RelayList
from wavry_peer.protocol.keys_api import KeysStatus

from .client import ask, ask_json
from .output import EXIT_FAILED, EXIT_UNREACHABLE, CommandError
from .places import Places
from .status import gather_status

__all__ = ["CHECKS", "Examination", "Finding", "examine", "exit_code"]

UNKNOWN_KEY: Final = "unknown_key"
REJECTS: Final = "wavry_relay_lease_rejects_total"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What one check saw about one thing.

    Attributes:
        layer: ``service``, ``keys``, ``relay`` …
        check: name of the check.
        subject: what it looked at, e.g. a relay id.
        verdict: ``ok``, ``warn``, ``fail`` or ``unknown``.
        evidence: what was seen, with numbers.
        next_step: what to do; empty where all is well.
        unreachable: the service did not answer at all.
    """

    layer: str
    check: str
    subject: str
    verdict: str
    evidence: str
    next_step: str = ""
    unreachable: bool = False


@dataclass(frozen=True, slots=True)
class Examination:
    """What the checks may use.

    Attributes:
        places: where the services are.
        watch_s: how long counters are watched.
        relay_ops: ops URLs of relays by id or name, beside those of a dev system.
    """

    places: Places
    watch_s: float = 3.0
    relay_ops: Mapping[str, str] = field(default_factory=dict)

    def ops_urls(self) -> dict[str, str]:
        """Ops URLs by relay id (or the URL, where the id is not known)."""
        return {relay.relay_id: relay.ops_url for relay in self.places.relays} | dict(
            self.relay_ops
        )


Check = Callable[[Examination], Awaitable[list[Finding]]]


async def check_services(examination: Examination) -> list[Finding]:
    """Gateway, master and relays answer and are ready."""
    findings = []
    for row in await gather_status(examination.places):
        healthy = row.ok
        findings.append(
            Finding(
                layer="service",
                check="reachable",
                subject=row.name,
                verdict="ok" if healthy else "fail",
                evidence=" ".join(filter(None, (row.state, row.detail))),
                next_step=""
                if healthy
                else f"look at the end of the log of {row.service} {row.name}; start it",
                unreachable=row.state == "unreachable",
            )
        )
    return findings


async def check_keyset(examination: Examination) -> list[Finding]:
    """Every live relay holds the key set that the master publishes."""
    places = examination.places
    status = await ask_json(
        "master",
        places.need_master(),
        "/v1/admin/keys/status",
        KeysStatus,
        token=places.admin_token(),
    )
    findings = []
    for relay in status.relays:
        verdict, evidence, next_step = _keys_of(relay.relay_id, status)
        findings.append(
            Finding(
                layer="keys",
                check="same key set",
                subject=relay.relay_id,
                verdict=verdict,
                evidence=evidence,
                next_step=next_step,
            )
        )
    return findings


def _keys_of(relay_id: str, status: KeysStatus) -> tuple[str, str, str]:
    relay = next(relay for relay in status.relays if relay.relay_id == relay_id)
    seen = f"serial {relay.keyset_serial}, master {status.serial}"
    if relay.keyset_serial > status.serial:
        return (
            "fail",
            f"{seen}: the relay has a newer key set than the master",
            "the master runs on an old backup of keys.json: restore the newest one",
        )
    if status.active_kid not in relay.held_kids:
        return (
            "fail",
            f"{seen}: the relay lacks the active key {status.active_kid} and rejects its leases",
            (
                "look for keyset_refused or keyset_refresh_failed in its log; until it is repaired "
                "`wavryctl keys rollback` lets the key before sign again"
            ),
        )
    if relay.keyset_serial < status.serial:
        return (
            "warn",
            f"{seen}: the relay holds the active key, but not the newest document",
            "wait for its next heartbeat; then look for keyset_refused in its log",
        )
    return "ok", f"{seen}, holds {len(relay.held_kids)} keys", ""


async def check_unknown_key(examination: Examination) -> list[Finding]:
    """No relay rejects leases because it lacks the key that signed them."""
    urls = examination.ops_urls()
    if not urls:
        return [await _no_ops_urls(examination)]
    before = await asyncio.gather(*(_rejects(url) for url in urls.values()))
    await asyncio.sleep(examination.watch_s)
    after = await asyncio.gather(*(_rejects(url) for url in urls.values()))
    return [
        _rejects_of(name, first, last, examination.watch_s)
        for name, first, last in zip(urls, before, after, strict=True)
    ]


async def _no_ops_urls(examination: Examination) -> Finding:
    places = examination.places
    listed = await ask_json(
        "master", places.need_master(), "/v1/relays", RelayList, token=places.admin_token()
    )
    return Finding(
        layer="relay",
        check="unknown key",
        subject="relays",
        verdict="unknown" if listed.relays else "ok",
        evidence=f"no ops URL of {len(listed.relays)} relays is known",
        next_step="give them with --relay-ops URL, or watch "
        f'{REJECTS}{{reason="{UNKNOWN_KEY}"}} in your monitoring',
    )


async def _rejects(url: str) -> float | None:
    """UNKNOWN_KEY rejects since the relay's start, or None where it does not say."""
    try:
        status, raw = await ask("relay", url, "/metrics")
    except CommandError:
        return None
    if status != 200:
        return None
    try:
        families = list(text_string_to_metric_families(raw.decode()))
    except ValueError:
        return None
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == REJECTS and sample.labels.get("reason") == UNKNOWN_KEY
    )


def _rejects_of(name: str, before: float | None, after: float | None, watch_s: float) -> Finding:
    next_step = (
        "compare with `wavryctl keys status` which key this relay lacks; look for keyset_refused "
        "or keyset_refresh_failed in its log; `wavryctl keys rollback` ends the rejects"
    )
    if before is None or after is None:
        verdict, evidence = "unknown", "its /metrics do not answer"
        next_step = "check the ops URL, and that this host may read it"
    elif after > before:
        verdict = "fail"
        evidence = (
            f"UNKNOWN_KEY rejects rise: {after - before:.0f} in {watch_s:g} s, "
            f"{after:.0f} since its start"
        )
    elif after:
        verdict, evidence = "warn", f"{after:.0f} UNKNOWN_KEY rejects since its start, none now"
    else:
        verdict, evidence, next_step = "ok", "no UNKNOWN_KEY rejects", ""
    return Finding(
        layer="relay",
        check="unknown key",
        subject=name,
        verdict=verdict,
        evidence=evidence,
        next_step=next_step,
    )


CHECKS: Final[tuple[tuple[str, str, Check], ...]] = (
    ("service", "reachable", check_services),
    ("keys", "same key set", check_keyset),
    ("relay", "unknown key", check_unknown_key),
)
"""Layer, name and coroutine of each check, from the ground up."""


async def examine(examination: Examination) -> list[Finding]:
    """Run every check at the same time; findings in the order of `CHECKS`."""

    async def run(layer: str, name: str, check: Check) -> list[Finding]:
        try:
            return await check(examination)
        except CommandError as error:
            unreachable = error.exit_code == EXIT_UNREACHABLE
            return [
                Finding(
                    layer=layer,
                    check=name,
                    subject="-",
                    verdict="fail" if unreachable else "unknown",
                    evidence=str(error),
                    next_step="repair this first, then run the doctor again",
                    unreachable=unreachable,
                )
            ]

    results = await asyncio.gather(*(run(*entry) for entry in CHECKS))
    return [finding for findings in results for finding in findings]


def exit_code(findings: list[Finding]) -> int:
    """3 where a service is unreachable, else 1 where a check fails, else 0."""
    if any(finding.unreachable for finding in findings):
        return EXIT_UNREACHABLE
    return EXIT_FAILED if any(finding.verdict == "fail" for finding in findings) else 0
