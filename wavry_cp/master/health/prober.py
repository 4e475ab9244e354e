"""Runs the probes: which relay is due, at most so many at once, never in step with each other.

Strategy: one task sleeps until the next relay is due or somebody wakes it; each probe of a relay
is a task of its own, which holds a session through every endpoint at the same time.  A relay is
looked at when it first reports that it is ready, and then once in each interval, with jitter.
Only relays that this process hears are probed, so nothing is sent to who is gone.

Packets to an endpoint that never answered are few (see `probe_session`) and counted by host, so
that many registrations that name a third party's address do not add up.
"""

import asyncio
import random
import secrets
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol

import structlog

from wavry_cp.app.rate_limit import RateLimiter
from wavry_cp.app.store_errors import StoreUnavailableError
from wavry_cp.master.keys.live import LiveKeys
from wavry_peer.paths.own_lease import OwnLease
from wavry_peer.protocol import base64url
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.lease import make_claims, sign_lease
from wavry_peer.service.address_key import address_key
from wavry_peer.service.clock import Clock
from wavry_peer.service.settings import parse_address

from .probe_outcome import ProbeOutcome, ProbeTarget
from .probe_session import SIZES_BYTES, ProbePeer, ProbeSession
from .probe_sockets import ProbeSockets

__all__ = ["PROBE_SUBS", "ProbedRelays", "RelayProber"]

PROBE_SUBS: Final = {c.Role.CLIENT: "@probe-client", c.Role.SERVER: "@probe-server"}
"""No user can have these names, so that a ban of a user never ends the probes."""
LEASE_TTL_S: Final = c.LEASE_TTL_MIN_S
LIMIT_KBPS: Final = 10_000
MAX_AT_ONCE: Final = 32
"""Relays; with a round trip of 0.1 s some 50 a second; one costs 4.4 ms of CPU (measured)."""
JITTER: Final = 0.15
IDLE_S: Final = 1.0
"""How often it is looked whether a relay has become due of which nobody told."""
STRANGERS_PER_S: Final = 0.2
STRANGERS_BURST: Final = 64
"""Probes of endpoints of one host (IPv6: /64) that never let one through, three small packets
each: enough for many relays behind one address, nothing to a third party."""

_log = structlog.get_logger(__name__)


class ProbedRelays(Protocol):
    """Knows which relays there are, and takes what was found."""

    def probe_targets(self, monotonic_s: float, *, active_kid: str) -> list[ProbeTarget]:
        """Return the relays that can be probed now."""
        ...

    async def take_probes(self, relay_id: str, outcomes: Sequence[ProbeOutcome]) -> float:
        """Take the outcome of each endpoint; return seconds until the relay is due again."""
        ...


class RelayProber:
    """Probes the relays of a registry.

    Args:
        relays: the registry.
        keys: the active one signs the leases.
        clock: time.
        note: told every outcome, for the metrics.
        random: uniform in [0, 1).
    """

    def __init__(
        self,
        relays: ProbedRelays,
        keys: LiveKeys,
        clock: Clock,
        note: Callable[[ProbeOutcome], None] = lambda _outcome: None,
        *,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self._relays = relays
        self._keys = keys
        self._clock = clock
        self._note = note
        self._uniform = uniform
        self._peers = {role: SigningKey.from_seed(secrets.token_bytes(32)) for role in PROBE_SUBS}
        self._filler = secrets.token_bytes(max(SIZES_BYTES))
        self._due_s: dict[str, float] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._strangers = RateLimiter(STRANGERS_PER_S, STRANGERS_BURST, max_keys=4096)

    def wake(self, relay_id: str) -> None:
        """Probe a relay at once: it registered, became ready, or may take sessions again."""
        self._due_s.pop(relay_id, None)
        self._wake.set()

    async def run(self) -> None:
        """Probe until cancelled."""
        sockets = ProbeSockets()
        try:
            while True:
                wait_s = self._start_due(sockets)
                self._wake.clear()
                try:
                    async with asyncio.timeout(wait_s):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)
            sockets.close()

    # -- Schedule --------------------------------------------------------------------------

    def _start_due(self, sockets: ProbeSockets) -> float:
        """Start what is due; return the seconds until something else is."""
        now_s = self._clock.monotonic_s()
        targets = self._relays.probe_targets(now_s, active_kid=self._keys.active_kid)
        due_s = {target.relay_id: self._due_s.get(target.relay_id, now_s) for target in targets}
        self._due_s = {key: at_s for key, at_s in due_s.items() if key in self._due_s}
        for target in sorted(targets, key=lambda target: due_s[target.relay_id]):
            relay_id = target.relay_id
            if due_s[relay_id] > now_s or len(self._running) >= MAX_AT_ONCE:
                break
            if relay_id not in self._running:
                task = asyncio.create_task(self._probe(target, sockets))
                self._running[relay_id] = task
                task.add_done_callback(partial(self._ended, relay_id))
        waits_s = [at_s - now_s for key, at_s in due_s.items() if key not in self._running]
        return max(0.01, min((*waits_s, IDLE_S)))

    def _ended(self, relay_id: str, _task: asyncio.Task[None]) -> None:
        was_full = len(self._running) >= MAX_AT_ONCE
        del self._running[relay_id]
        wait_s = self._due_s.get(relay_id, 0.0) - self._clock.monotonic_s()
        if was_full or wait_s < IDLE_S:  # Else it is looked at in time anyway.
            self._wake.set()

    async def _probe(self, target: ProbeTarget, sockets: ProbeSockets) -> None:
        now_s = self._clock.monotonic_s()
        self._due_s[target.relay_id] = now_s + IDLE_S  # Until the outcome says better.
        wait_s = self._strangers_wait_s(target, now_s)
        if wait_s > 0:
            self._due_s[target.relay_id] = now_s + wait_s
            return
        try:
            outcomes = await asyncio.gather(
                *(self._session(target.relay_id, name, sockets) for name in target.endpoints)
            )
            for outcome in outcomes:
                self._note(outcome)
            next_s = await self._relays.take_probes(target.relay_id, outcomes)
        except StoreUnavailableError as error:
            _log.error("probe_not_kept", relay_id=target.relay_id, cause=str(error))
            return
        self._due_s[target.relay_id] = self._clock.monotonic_s() + next_s * self._uniform(
            1 - JITTER, 1 + JITTER
        )

    def _strangers_wait_s(self, target: ProbeTarget, now_s: float) -> float:
        hosts = [address_key(parse_address(name)[0]) for name in target.unproved]
        wait_s = max((self._strangers.wait_s(host, now_s) for host in hosts), default=0.0)
        if wait_s == 0:
            for host in hosts:
                self._strangers.check(host, now_s)
        return wait_s

    # -- One session -----------------------------------------------------------------------

    async def _session(self, relay_id: str, endpoint: str, sockets: ProbeSockets) -> ProbeOutcome:
        session_id = uuid.UUID(bytes=secrets.token_bytes(16), version=4)
        now = self._clock.now
        changed = asyncio.Event()
        probe = ProbeSession(
            endpoint,
            session_id.bytes,
            (
                self._peer(relay_id, session_id, c.Role.CLIENT),
                self._peer(relay_id, session_id, c.Role.SERVER),
            ),
            stun_id=secrets.token_bytes(12),
            filler=self._filler,
            now_ns=now().mono_ns,
        )

        def send() -> None:
            for role, datagram in probe.datagrams_to_send():
                if not sockets.send(role, endpoint, datagram):
                    probe.abandon()

        def receive(role: c.Role, datagram: bytes) -> None:
            probe.receive_datagram(role, datagram, now().mono_ns)
            send()
            changed.set()

        names = (session_id.bytes, c.STUN_COOKIE.to_bytes(4, "big") + probe.stun_id)
        sockets.listen(names, endpoint, receive)
        try:
            send()
            while probe.outcome is None:
                due_ns = probe.get_timer()
                wait_ns = 0 if due_ns is None else max(0, due_ns - now().mono_ns)
                changed.clear()
                try:
                    async with asyncio.timeout(wait_ns / 1e9):
                        await changed.wait()
                except TimeoutError:
                    sockets.read_all()
                    probe.handle_timer(now().mono_ns)
                    send()
            return probe.outcome
        finally:
            sockets.forget(names)

    def _peer(self, relay_id: str, session_id: uuid.UUID, role: c.Role) -> ProbePeer:
        key, kid, now = self._peers[role], self._keys.active_kid, self._clock.now()
        claims = make_claims(
            jti=str(uuid.UUID(bytes=secrets.token_bytes(16), version=4)),
            sub=PROBE_SUBS[role],
            sid=str(session_id),
            role=role,
            rid=relay_id,
            kid=kid,
            now_s=now.wall_ms // 1000,
            ttl_s=LEASE_TTL_S,
            soft_kbps=LIMIT_KBPS,
            hard_kbps=LIMIT_KBPS,
            cnf=base64url.encode(key.public_key),
        )
        token = sign_lease(claims, self._keys.signing_keys[kid])
        lease = OwnLease(
            token=token.encode(),
            jti=claims.jti,
            relay_id=relay_id,
            issued_ms=now.wall_ms,
            expires_ms=claims.expires_ms,
            received_ns=now.mono_ns,
        )
        return ProbePeer(key, lease)
