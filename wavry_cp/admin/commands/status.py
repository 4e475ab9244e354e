"""``wavryctl status``: asks every service at the same time and makes one row of each."""

import asyncio
from typing import Any, Final

import msgspec

from wavry_cp.admin.client import ask, ask_json
from wavry_cp.admin.endpoints import DevRelay, ServiceEndpoints
from wavry_cp.admin.output import EXIT_UNREACHABLE, CommandError
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http.api import RelayInfo, RelayList
from wavry_peer.protocol.http.ops import MasterHealth, ServiceHealth

__all__ = ["ServiceRow", "gather_status"]


DRAINING_AS_ORDERED: Final = ("not_ready", "draining", "DRAINING")
"""A drain is a state that an operator wanted, not a fault."""


class ServiceRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One service.

    `state` is ``ready``, ``not_ready`` or ``unreachable``; for a relay, the master's word.
    """

    service: str
    name: str
    state: str
    ok: bool
    detail: str = ""
    url: str = ""


async def gather_status(endpoints: ServiceEndpoints) -> list[ServiceRow]:
    """Return one row for the gateway, the master, and each relay.

    Relays come from the master's registry; one that this machine runs (``dev.json``) is also asked
    itself.
    """
    checks = []
    if endpoints.gateway_url:
        checks.append(_service("gateway", endpoints.gateway_url))
    if endpoints.master_url:
        checks.append(_service("master", endpoints.master_url))
    own = {relay.relay_id: relay for relay in endpoints.relays}
    rows = list(await asyncio.gather(*checks))
    answers = not any(row.service == "master" and row.state == "unreachable" for row in rows)
    listed = await _listed_relays(endpoints) if answers else ()
    rows += await asyncio.gather(
        *(_relay(info, own.get(info.relay_id)) for info in listed),
        *(
            _relay(None, relay)
            for key, relay in own.items()
            if key not in {r.relay_id for r in listed}
        ),
    )
    return rows


async def _service(service: str, url: str) -> ServiceRow:
    state, detail = await _readiness(service, url)
    if state == "unreachable":  # Asking a hanging one again takes as long again.
        return ServiceRow(service, service, state, ok=False, detail=detail, url=url)
    detail = "; ".join(filter(None, (detail, await _switches(service, url))))
    return ServiceRow(service, service, state, state == "ready", detail, url)


async def _switches(service: str, url: str) -> str:
    """Return what the kill switches turn away; an operator wanted it, so it is no fault."""
    try:
        answer = await ask(service, url, "/health")
        health = answer.read(MasterHealth if service == "master" else ServiceHealth)
    except (CommandError, MessageError):
        return ""  # The state of the row says so.
    no_relays = isinstance(health, MasterHealth) and health.relay_mode == "off"
    off = "relay mode is off" if no_relays else ""
    return "; ".join(filter(None, ("LOCKDOWN" if health.lockdown else "", off)))


async def _readiness(service: str, url: str) -> tuple[str, str]:
    try:
        answer = await ask(service, url, "/ready")
    except CommandError as error:
        return "unreachable", str(error)
    try:
        body = answer.read(dict[str, Any])
    except MessageError:
        return "not_ready", "the answer of /ready is not JSON"
    if answer.status == 200:
        return "ready", str(body.get("warning", ""))
    reason = body.get("message") or body.get("reason") or body.get("reasons") or "no reason given"
    return "not_ready", str(reason)


async def _listed_relays(endpoints: ServiceEndpoints) -> tuple[RelayInfo, ...]:
    if endpoints.master_url is None:
        return ()
    try:
        answer = await ask_json(
            "master", endpoints.master_url, "/v1/relays", RelayList, token=endpoints.admin_token()
        )
    except CommandError as error:
        if error.exit_code == EXIT_UNREACHABLE:
            return ()  # The master's own row says so.
        raise
    return answer.relays


async def _relay(info: RelayInfo | None, own: DevRelay | None) -> ServiceRow:
    name = f"{info.name} ({info.relay_id})" if info else own.relay_id if own else "unknown"
    url = own.ops_url if own else ""
    state, detail = await _readiness("relay", own.ops_url) if own else ("", "")
    if info is None:
        return ServiceRow(
            "relay", name, state, ok=False, detail=detail or "unknown to the master", url=url
        )
    if state in ("", "ready") or (state, detail, info.state) == DRAINING_AS_ORDERED:
        state, detail = info.state.lower(), ""
    load = f"{info.active_sessions}/{info.max_sessions} sessions, load {info.load_pct:.0f} %"
    healthy = state in ("active", "probation", "draining")
    return ServiceRow("relay", name, state, healthy, "; ".join(filter(None, (load, detail))), url)
