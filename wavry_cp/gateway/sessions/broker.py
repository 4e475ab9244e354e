"""The gateway's side of the master: leases for the two users of a session, or a fast clear error.

Every call has one total time-out below 2 s.  What the master refuses keeps its code where a user
can act on it; everything else is ``relay_unavailable``, and the log says why.
"""

from collections.abc import Callable
from typing import Final, TypeVar

import aiohttp
import msgspec
import structlog

from wavry_cp.app.refusal import RefusedError
from wavry_cp.gateway.metrics import GatewayMetrics
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.errors import MessageError
from wavry_peer.protocol.http.admin import TokenCheck, TokenCheckRequest
from wavry_peer.protocol.http.api import (
    LeaseParty,
    LeaseRequest,
    LeaseResponse,
    RelaySessionRequest,
    RenewRequest,
    RenewResponse,
)
from wavry_peer.protocol.http.codes import ErrorCode
from wavry_peer.service.clock import Clock
from wavry_peer.service.http_client import CallError, JsonAnswer, JsonCaller

from .breaker import Breaker
from .rules import CallSession, lease_keys

__all__ = ["Broker", "unavailable"]

Answer = TypeVar("Answer", bound=msgspec.Struct)

PASSED_ON: Final = {
    ErrorCode.NO_RELAY_AVAILABLE: "no relay is free now; try again shortly",
    ErrorCode.RELAY_MODE_OFF: "the operator has switched relays off for now; try again later",
    ErrorCode.BANNED: "one of the two users is banned; ask the operator",
    ErrorCode.LOCKDOWN: "the operator has closed the service for now; try again later",
    ErrorCode.REVOKED: "the operator revoked this session; make a new call, or ask the operator",
    ErrorCode.STALE_JTI: "this is not the newest lease of the session; use the newest",
    ErrorCode.RATE_LIMITED: "the master is limited now; try again shortly",
}
"""Codes of the master that a user can act on."""
PROBE_FRESH_S: Final = 5.0
PROBE_TIMEOUT_S: Final = 1.0

_log = structlog.get_logger(__name__)


class _Unanswered(Exception):  # noqa: N818  # private, and not an error of the caller's
    """The master gave no answer that can be used; the text is the cause for the log."""


class Broker:
    """Client of the master, made inside a running event loop.

    `service_token` is asked for each call: the operator may replace it at any time.
    """

    def __init__(
        self,
        base_url: str,
        service_token: Callable[[], str],
        *,
        timeout_s: float,
        clock: Clock,
        metrics: GatewayMetrics,
    ) -> None:
        self._clock = clock
        self._metrics = metrics
        self._breaker = Breaker()
        self._probed_at_s = -PROBE_FRESH_S
        self._probe_result = "unknown"
        self._probe_error = ""
        self._call_error = ""
        self._base_url = base_url.rstrip("/")
        self._service_token = service_token
        self._http = JsonCaller(aiohttp.ClientTimeout(total=timeout_s))

    @property
    def error(self) -> str:
        """Why the last probe or call got no usable answer; empty where it got one."""
        return self._probe_error or self._call_error

    async def close(self) -> None:
        """Close the connections to the master."""
        await self._http.close()

    async def issue(self, session: CallSession, wanted: RelaySessionRequest) -> LeaseResponse:
        """Ask for a pair of leases: the caller is the client, the called user the server.

        Raises:
            RefusedError: ``identity_key_required``, ``relay_unavailable`` (no usable answer in
                time), or a code of `PASSED_ON`.
        """
        caller_key, callee_key = lease_keys(session)
        body = LeaseRequest(
            client=LeaseParty(sub=session.caller, cnf=caller_key),
            server=LeaseParty(sub=session.callee, cnf=callee_key),
            session_id=session.session_id,
            region=wanted.region,
            exclude_relays=wanted.exclude_relays,
        )
        answer = await self._call("issue", "/v1/leases", body, LeaseResponse)
        if answer.session_id != session.session_id or not answer.relay.endpoints:
            _log.error("master_answer_unfit", call="issue", next_step="check the master's version")
            raise unavailable()
        return answer

    async def renew(self, session: CallSession, role: c.Role, jti: str) -> RenewResponse:
        """Renew the lease `jti` of one role.

        Raises:
            RefusedError: ``relay_gone`` (ask for another relay), or as in `issue`.
        """
        body = RenewRequest(
            session_id=session.session_id,
            role="client" if role is c.Role.CLIENT else "server",
            jti=jti,
        )
        return await self._call("renew", "/v1/leases/renew", body, RenewResponse)

    async def check_admin_token(self, body: TokenCheckRequest) -> TokenCheck:
        """Ask who shows a named admin token.

        Raises:
            RefusedError: the master gives no usable answer.
        """
        return await self._call("check_token", "/v1/admin/tokens/check", body, TokenCheck)

    async def probe(self) -> str:
        """Return the state of the master, asked every few seconds: ``ok`` or ``unreachable``."""
        now_s = self._clock.monotonic_s()
        if now_s - self._probed_at_s >= PROBE_FRESH_S:
            self._probed_at_s = now_s
            try:
                timeout = aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S)
                answer = await self._http.call("GET", f"{self._base_url}/health", timeout=timeout)
                well = answer.status == 200
                self._probe_error = "" if well else f"/health: status {answer.status}"
            except CallError as error:
                self._probe_error = f"/health: {error}"
            self._probe_result = "unreachable" if self._probe_error else "ok"
        return self._probe_result

    async def _call(self, name: str, path: str, body: msgspec.Struct, kind: type[Answer]) -> Answer:
        if not self._breaker.allows(self._clock.monotonic_s()):
            self._metrics.master_calls.labels(name, "skipped").inc()
            raise unavailable()
        started_s = self._clock.monotonic_s()
        try:
            url = self._base_url + path
            answer = await self._http.call("POST", url, body, token=self._service_token())
            usable = self._read(name, answer, kind)
        except RefusedError:
            self._succeeded()
            raise
        except (_Unanswered, CallError) as error:
            self._breaker.failed(self._clock.monotonic_s())
            self._metrics.master_calls.labels(name, "failed").inc()
            self._call_error = f"{path}: {error}"
            _log.warning(
                "master_call_failed", call=name, cause=str(error), next_step="check the master"
            )
            raise unavailable() from error
        else:
            self._succeeded()
            return usable
        finally:
            self._metrics.master_seconds.labels(name).observe(self._clock.monotonic_s() - started_s)

    def _succeeded(self) -> None:
        self._breaker.succeeded()
        self._call_error = ""

    def _read(self, name: str, answer: JsonAnswer, kind: type[Answer]) -> Answer:
        status = answer.status
        if status in {200, 201}:
            try:
                body = answer.read(kind)
            except MessageError as error:
                raise _Unanswered(f"answer does not fit: {error}") from error
            self._metrics.master_calls.labels(name, "ok").inc()
            return body
        refusal = answer.error_body()
        if refusal is None:
            raise _Unanswered(f"status {status} without an error body")
        code = refusal.error
        if code in PASSED_ON:
            known = ErrorCode[code.upper()]
            self._metrics.master_calls.labels(name, "refused").inc()
            raise RefusedError(
                known, PASSED_ON[known], retry_after_s=1 if status in {429, 503} else 0
            )
        if code == ErrorCode.BUSY_SESSION:
            self._metrics.master_calls.labels(name, "refused").inc()
            raise RefusedError(
                ErrorCode.BUSY, "this session is being changed; again", retry_after_s=1
            )
        if status in {404, 409}:
            self._metrics.master_calls.labels(name, "refused").inc()
            raise RefusedError(
                ErrorCode.RELAY_GONE, "this relay or lease is gone; ask for a relay again"
            )
        if status < 500 and status not in {401, 403}:
            # The master is well, this one request is not: no reason to stop asking for others.
            self._metrics.master_calls.labels(name, "refused").inc()
            _log.error("master_refused", call=name, status=status, code=code[:64])
            raise unavailable()
        raise _Unanswered(f"status {status}, code {code[:64]}")


def unavailable() -> RefusedError:
    """Return the one answer for a master that does not answer."""
    return RefusedError(
        ErrorCode.RELAY_UNAVAILABLE,
        "relays cannot be asked for now; sessions that run go on, try again shortly",
        retry_after_s=1,
    )
