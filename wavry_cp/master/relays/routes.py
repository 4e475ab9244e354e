"""Routes of relays: heartbeat, list, detail, deregister, drain."""

from typing import Final

import structlog
from aiohttp import web

from wavry_cp.app.http import bearer_token, client_address
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.master.master import Master
from wavry_cp.master.outcome import outcome_of
from wavry_cp.operators.audit import AuditEntry, attempted
from wavry_peer.protocol.http.admin import Order
from wavry_peer.protocol.http.api import (
    Command,
    HeartbeatRequest,
    HeartbeatResponse,
    RelayInfo,
    RelayList,
)
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.relays import RelayRemoved

from . import rules
from .rules import RelayEvent
from .strangers import network_of

__all__ = ["RELAY_ROUTES"]

_log = structlog.get_logger(__name__)


def _count_heartbeat(master: Master, error: Exception) -> None:
    master.metrics.heartbeats.labels(outcome_of(error)).inc()


async def _heartbeat(
    master: Master, request: web.Request, body: HeartbeatRequest
) -> HeartbeatResponse:
    known = master.registry.record(body.relay_id)
    is_stranger = known is not None and known.is_stranger
    record, status = await master.registry.heartbeat(
        body,
        bearer_token(request) or "",
        network=network_of(client_address(request, master.trusted_proxies)) if is_stranger else "",
        wall_s=master.clock.wall_s(),
        monotonic_s=master.clock.monotonic_s(),
    )
    commands = rules.commands_for(
        record,
        status,
        keyset_serial=master.keys.keyset.serial,
        active_kid=master.keys.active_kid,
    )
    master.metrics.heartbeats.labels("accepted").inc()
    return HeartbeatResponse(
        commands=(
            *(Command(type=name) for name in commands),
            *master.block_service.take_heartbeat(body.relay_id, body.blocks),
        )
    )


async def _list(master: Master, _request: web.Request) -> RelayList:
    return RelayList(relays=tuple(master.registry.infos(master.clock.monotonic_s())))


async def _detail(master: Master, request: web.Request) -> RelayInfo:
    return master.registry.info(request.match_info["relay_id"], master.clock.monotonic_s())


async def _deregister(master: Master, request: web.Request, order: Order) -> RelayRemoved:
    caller, named = caller_of(request), request.match_info["relay_id"]
    own = caller.kind is CallerKind.RELAY
    who = "relay" if own else caller.name
    now_s = master.clock.now_s()
    entry = AuditEntry(now_s, who, "deregister" if own else "remove", named, order.reason)
    async with attempted(master.store, entry):
        record = master.registry.find(named)
        await master.registry.deregister(
            record.relay_id, who=who, by_operator=not own, now_s=now_s, reason=order.reason
        )
    relay_id = record.relay_id
    master.forget_relay(relay_id)
    _log.info("relay_deregistered", relay_id=relay_id, name=record.name, by=who)
    left = master.registry.state(relay_id, master.clock.monotonic_s())
    return RelayRemoved(
        relay_id=relay_id,
        name=record.name,
        enrolment=record.enrolment.value,
        state="" if left is None else left.value,
    )


async def _drain(master: Master, request: web.Request, order: Order) -> RelayInfo:
    return await _order(master, request, order, RelayEvent.DRAIN)


async def _undrain(master: Master, request: web.Request, order: Order) -> RelayInfo:
    return await _order(master, request, order, RelayEvent.UNDRAIN)


async def _order(
    master: Master, request: web.Request, order: Order, event: RelayEvent
) -> RelayInfo:
    who, named = caller_of(request).name, request.match_info["relay_id"]
    now_s = master.clock.now_s()
    entry = AuditEntry(now_s, who, event.value, named, order.reason)
    async with attempted(master.store, entry):
        relay_id = master.registry.find(named).relay_id
        await master.registry.order(relay_id, event, who=who, now_s=now_s, reason=order.reason)
    master.events.wake(relay_id)
    _log.info("relay_order", relay_id=relay_id, order=event.value, by=who)
    return master.registry.info(relay_id, master.clock.monotonic_s())


RELAY_ROUTES: Final = (
    Route[Master](
        "POST",
        "/v1/relays/heartbeat",
        (CallerKind.RELAY_IN_BODY,),
        _heartbeat,
        "Take a relay's report and answer with orders.",
        body=HeartbeatRequest,
        answer=HeartbeatResponse,
        errors=(
            ErrorCode.BANNED,
            ErrorCode.INVALID_RELAY_TOKEN,
            ErrorCode.UNKNOWN_RELAY,
            ErrorCode.WRONG_STATE,
        ),
        in_lockdown=True,
        refused=_count_heartbeat,
    ),
    Route[Master](
        "GET",
        "/v1/relays",
        (CallerKind.SERVICE, CallerKind.VIEWER),
        _list,
        "List all relays.",
        answer=RelayList,
    ),
    Route[Master](
        "GET",
        "/v1/relays/{relay_id}",
        (CallerKind.SERVICE, CallerKind.VIEWER),
        _detail,
        "Tell about one relay.",
        answer=RelayInfo,
        errors=(
            ErrorCode.AMBIGUOUS_RELAY,
            ErrorCode.UNKNOWN_RELAY,
        ),
    ),
    Route[Master](
        "DELETE",
        "/v1/relays/{relay_id}",
        (CallerKind.RELAY, CallerKind.OPERATOR),
        _deregister,
        "Forget a relay; its own farewell ends its token and leaves it enrolled.",
        body=Order,
        body_optional=True,
        answer=RelayRemoved,
        errors=(ErrorCode.AMBIGUOUS_RELAY, ErrorCode.UNKNOWN_RELAY, ErrorCode.WRONG_STATE),
    ),
    Route[Master](
        "POST",
        "/v1/admin/relays/{relay_id}/drain",
        (CallerKind.OPERATOR,),
        _drain,
        "Give a relay no new sessions from now on.",
        body=Order,
        body_optional=True,
        answer=RelayInfo,
        errors=(ErrorCode.AMBIGUOUS_RELAY, ErrorCode.UNKNOWN_RELAY, ErrorCode.WRONG_STATE),
    ),
    Route[Master](
        "POST",
        "/v1/admin/relays/{relay_id}/undrain",
        (CallerKind.OPERATOR,),
        _undrain,
        "End a drain.",
        body=Order,
        body_optional=True,
        answer=RelayInfo,
        errors=(ErrorCode.AMBIGUOUS_RELAY, ErrorCode.UNKNOWN_RELAY, ErrorCode.WRONG_STATE),
    ),
)
