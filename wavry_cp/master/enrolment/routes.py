"""Routes of operators: tokens for new relays; approve, reject and rename relays."""

from dataclasses import replace
from typing import Final

import structlog
from aiohttp import web

from wavry_cp.app.refusal import RefusedError
from wavry_cp.app.routes import CallerKind, Route, caller_of
from wavry_cp.master.master import Master
from wavry_cp.operators.audit import AuditEntry, attempted
from wavry_peer.protocol.http.admin import BanRequest, Order
from wavry_peer.protocol.http.api import RelayInfo
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.protocol.http.relays import (
    ApproveRequest,
    EnrolmentInfo,
    EnrolmentList,
    EnrolmentRequest,
    NewEnrolment,
    RenameRequest,
)

__all__ = ["ENROLMENT_ROUTES"]

_log = structlog.get_logger(__name__)


async def _enrol(master: Master, request: web.Request, body: EnrolmentRequest) -> NewEnrolment:
    who = caller_of(request).name
    made = await master.enrolments.create(body, who=who)
    _log.info("enrolment_made", name=body.name, region=body.region, life_s=body.life_s, by=who)
    return made


async def _list(master: Master, _request: web.Request) -> EnrolmentList:
    return EnrolmentList(enrolments=master.enrolments.listed())


async def _withdraw(master: Master, request: web.Request, body: Order) -> EnrolmentInfo:
    who, name = caller_of(request).name, request.match_info["name"]
    rejected = await master.enrolments.reject(name, who=who, reason=body.reason)
    _log.info("enrolment_rejected", name=name, by=who)
    return rejected


async def _approve(master: Master, request: web.Request, body: ApproveRequest) -> RelayInfo:
    who, named = caller_of(request).name, request.match_info["relay_id"]
    now_s = master.clock.now_s()
    async with attempted(master.store, AuditEntry(now_s, who, "approve", named, body.reason)):
        relay_id = master.registry.find(named).relay_id
        master.enrolments.require_free(body.name)
        await master.registry.approve(relay_id, body.name, who=who, now_s=now_s, reason=body.reason)
    _log.info("relay_approved", relay_id=relay_id, by=who)
    return master.registry.info(relay_id, master.clock.monotonic_s())


async def _reject(master: Master, request: web.Request, body: Order) -> RelayInfo:
    who, named = caller_of(request).name, request.match_info["relay_id"]
    entry = AuditEntry(master.clock.now_s(), who, "reject", named, body.reason)
    async with attempted(master.store, entry):
        record = master.registry.find(named)
        if not record.is_stranger:
            raise RefusedError(
                ErrorCode.WRONG_STATE,
                "this relay is enrolled: `wavryctl relays remove` or `wavryctl bans add relay` it",
            )
    relay_id, reason = record.relay_id, body.reason or "rejected"
    await master.ban_service.ban(BanRequest(kind="relay", value=relay_id, reason=reason), who=who)
    await master.store.record_act(replace(entry, target=relay_id))
    _log.info("relay_rejected", relay_id=relay_id, by=who)
    return master.registry.info(relay_id, master.clock.monotonic_s())


async def _rename(master: Master, request: web.Request, body: RenameRequest) -> RelayInfo:
    who, named = caller_of(request).name, request.match_info["relay_id"]
    now_s = master.clock.now_s()
    async with attempted(master.store, AuditEntry(now_s, who, "rename", named, body.reason)):
        relay_id = master.registry.find(named).relay_id
        master.enrolments.require_free(body.name)
        await master.registry.rename(relay_id, body.name, who=who, now_s=now_s, reason=body.reason)
    _log.info("relay_renamed", relay_id=relay_id, name=body.name, by=who)
    return master.registry.info(relay_id, master.clock.monotonic_s())


ENROLMENT_ROUTES: Final = (
    Route[Master](
        "POST",
        "/v1/admin/enrolments",
        (CallerKind.OPERATOR,),
        _enrol,
        "Make a one-time token for a new relay; its text is told this one time.",
        body=EnrolmentRequest,
        answer=NewEnrolment,
        status=201,
        errors=(ErrorCode.NAME_TAKEN, ErrorCode.TOO_MANY_ENROLMENTS),
    ),
    Route[Master](
        "GET",
        "/v1/admin/enrolments",
        (CallerKind.VIEWER,),
        _list,
        "List the tokens that wait for their relays, without their secrets.",
        answer=EnrolmentList,
    ),
    Route[Master](
        "DELETE",
        "/v1/admin/enrolments/{name}",
        (CallerKind.OPERATOR,),
        _withdraw,
        "End a token before a relay used it.",
        body=Order,
        body_optional=True,
        answer=EnrolmentInfo,
        errors=(ErrorCode.UNKNOWN_RELAY,),
    ),
    Route[Master](
        "POST",
        "/v1/admin/relays/{relay_id}/approve",
        (CallerKind.OPERATOR,),
        _approve,
        "Make a full relay of one that came in by the open door.",
        body=ApproveRequest,
        body_optional=True,
        answer=RelayInfo,
        errors=(
            ErrorCode.AMBIGUOUS_RELAY,
            ErrorCode.NAME_TAKEN,
            ErrorCode.UNKNOWN_RELAY,
            ErrorCode.WRONG_STATE,
        ),
    ),
    Route[Master](
        "POST",
        "/v1/admin/relays/{relay_id}/reject",
        (CallerKind.OPERATOR,),
        _reject,
        "Ban a relay that came in by the open door.",
        body=Order,
        body_optional=True,
        answer=RelayInfo,
        errors=(
            ErrorCode.AMBIGUOUS_RELAY,
            ErrorCode.TOO_MANY_BANS,
            ErrorCode.UNKNOWN_RELAY,
            ErrorCode.WRONG_STATE,
        ),
    ),
    Route[Master](
        "POST",
        "/v1/admin/relays/{relay_id}/rename",
        (CallerKind.OPERATOR,),
        _rename,
        "Give a relay another name.",
        body=RenameRequest,
        answer=RelayInfo,
        errors=(ErrorCode.AMBIGUOUS_RELAY, ErrorCode.NAME_TAKEN, ErrorCode.UNKNOWN_RELAY),
    ),
)
