"""Leases: each side gets its own, and the relay takes the good one and no other."""

from collections.abc import Mapping

from wavry_cp.admin.client import ask
from wavry_peer.home.identity import Identity
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http import signaling as wire
from wavry_peer.protocol.http.api import Credentials
from wavry_peer.protocol.lease import KeyId, TrustedKey
from wavry_peer.protocol.packets import LeaseAck

from .lease_probe import LeaseProbe
from .lease_rules import check_credentials, published_keys
from .report import Passed, StepFailedError
from .signaling_step import accepted_call
from .stage import SmokeContext

__all__ = ["check_lease", "forged"]


async def check_lease(stage: SmokeContext) -> Passed:
    """Take the step.

    Raises:
        StepFailedError: a lease is not what it should be, or the relay takes a bad one.
        GatewayError, GatewayUnreachableError, CommandError: a call failed.
    """
    keys = await _keys(stage)
    async with stage.lines() as (caller, callee):
        session_id = await accepted_call(caller, callee)
        stage.doing = "waiting for a pair of leases"
        own = await caller.gateway.request_relay(session_id)
        news = await callee.expect(wire.RelayCredentials, session_id)
        others = _as_credentials(news)
        if own.token == others.token or own.relay_id != others.relay_id:
            raise StepFailedError("both users were handed the same lease, or different relays")
        for line, credentials, role in (
            (caller, own, c.Role.CLIENT),
            (callee, others, c.Role.SERVER),
        ):
            claims = check_credentials(
                credentials,
                username=line.username,
                role=role,
                session_id=session_id,
                identity_key=line.identity.identity_key,
                keys=keys,
            )
        stage.doing = f"presenting leases to relay {own.relay_id}"
        refused = await _present(own, others, caller.identity)
        await caller.gateway.close_session(session_id)
    signature = "signature checked" if keys is not None else "signature not checked (no master URL)"
    lifetime_s = (claims.exp - claims.iat).total_seconds()
    return Passed(
        f"each side its own lease at {own.relay_id} for {lifetime_s:.0f} s, {signature}; relay "
        f"took the good one and refused {', '.join(refused)}",
        {"lifetime_s": lifetime_s},
    )


async def _keys(stage: SmokeContext) -> Mapping[KeyId, TrustedKey] | None:
    url = stage.endpoints.master_url
    if url is None:
        return None
    stage.doing = "fetching the key set"
    answer = await ask("master", url, "/.well-known/wavry-keys.json")
    if answer.status == 503:
        raise StepFailedError(
            "the master gives no key set (503)", "is it locked down? `wavryctl status`"
        )
    if answer.status != 200:
        raise StepFailedError(f"the master gives no key set: status {answer.status}")
    return published_keys(answer.raw)


async def _present(own: Credentials, others: Credentials, identity: Identity) -> list[str]:
    """Present bad leases first: the good one then shows that the relay was not closed."""
    session_id = bytes.fromhex(own.session_id.replace("-", ""))
    refused: list[str] = []
    async with LeaseProbe.open((own.addr, *own.addrs), session_id) as probe:
        for what, token, role, key, reason in (
            (
                "a forged one",
                forged(own.token),
                c.Role.CLIENT,
                identity.signing,
                c.RejectReason.INVALID_SIGNATURE,
            ),
            (
                "one in the other's role",
                own.token,
                c.Role.SERVER,
                identity.signing,
                c.RejectReason.INVALID_SIGNATURE,
            ),
            (
                "a stolen one",
                others.token,
                c.Role.SERVER,
                identity.signing,
                c.RejectReason.PROOF_REQUIRED,
            ),
        ):
            await probe.ask(token, role, key, reason)
            refused.append(what)
        await probe.ask(own.token, c.Role.CLIENT, identity.signing, LeaseAck)
        probe.release(own.token, c.Role.CLIENT, identity.signing)
    return refused


def forged(token: str) -> str:
    """Return the lease with one bit of its claims changed."""
    at = len("v4.public.") + 20
    return token[:at] + ("B" if token[at] == "A" else "A") + token[at + 1 :]


def _as_credentials(news: wire.RelayCredentials) -> Credentials:
    return Credentials(
        session_id=news.session_id,
        relay_id=news.relay_id,
        token=news.token,
        addr=news.addr,
        addrs=news.addrs,
        role="client" if news.role == "client" else "server",
        expires_at=news.expires_at,
    )
