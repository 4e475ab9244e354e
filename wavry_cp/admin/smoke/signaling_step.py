"""Signaling: both users BIND, and what one sends reaches the other."""

import time

from wavry_peer.errors import GatewayAuthError
from wavry_peer.gateway.client import GatewayClient
from wavry_peer.gateway.signaling import SignalingLink
from wavry_peer.protocol.http import signaling as wire

from .report import Passed, StepFailedError
from .stage import Line, SmokeContext

__all__ = ["accepted_call", "check_signaling"]

CANDIDATE = "candidate:1 1 udp 1 192.0.2.1 9 typ host"
"""Of the documentation network: it is passed on and never used."""


async def check_signaling(stage: SmokeContext) -> Passed:
    """Take the step.

    Raises:
        StepFailedError: a message is missing or differs, or a bad token was let in.
        GatewayError, GatewayUnreachableError: a call failed.
    """
    await stage.register()
    stage.doing = "binding with a token that nobody was given"
    async with GatewayClient(stage.gateway_url, token="0" * 43) as stranger:
        link = SignalingLink(stranger, lambda _message: None, lambda _error: None)
        try:
            await link.start()
        except GatewayAuthError:
            pass
        else:
            await link.aclose()
            raise StepFailedError("a WebSocket was bound with a token that nobody was given")

    async with stage.lines() as (caller, callee):
        stage.doing = "waiting for an offer"
        began_s = time.monotonic()
        session_id = await accepted_call(caller, callee)
        ms = 1000 * (time.monotonic() - began_s)
        stage.doing = "waiting for a candidate"
        await caller.link.send(
            wire.Candidate(
                target_username=callee.username, session_id=session_id, candidate=CANDIDATE
            )
        )
        passed_on = await callee.expect(wire.Candidate, session_id)
        if passed_on.candidate != CANDIDATE or passed_on.from_username != caller.username:
            raise StepFailedError("a candidate arrived altered")
        stage.doing = "waiting for a BYE"
        await callee.gateway.close_session(session_id)
        await caller.expect(wire.Bye, session_id)
    return Passed(
        f"two peers bound; offer, answer, candidate and bye arrived; call set up in {ms:.0f} ms; "
        "false token refused",
        {"call_ms": round(ms, 1)},
    )


async def accepted_call(caller: Line, callee: Line) -> str:
    """Make a call that the called user accepts; return its session id.

    Raises:
        StepFailedError: offer or answer is missing, or names other keys.
        GatewayError, GatewayUnreachableError: a call failed.
    """
    info = await caller.gateway.call_user(callee.username, caller.identity)
    offer = await callee.expect(wire.Offer, info.session_id)
    if (offer.from_username, offer.noise_key) != (caller.username, caller.identity.noise_key):
        raise StepFailedError("an offer arrived with another sender or key than it was sent with")
    await callee.gateway.accept_call(info.session_id, callee.identity)
    answer = await caller.expect(wire.Answer, info.session_id)
    if (answer.from_username, answer.noise_key) != (callee.username, callee.identity.noise_key):
        raise StepFailedError("an answer arrived with another sender or key than it was sent with")
    return info.session_id
