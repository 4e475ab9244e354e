"""The relay paths of one session and the leases that keep them open.

Strategy: there is one active path, and for a moment a second one while the session moves to another
relay; `PathSwitch` says which of them to send on, and when the old one is not needed any more.
Two tasks talk to the gateway: one renews the lease, one asks for another relay when ours fails or
says that it drains.  Both try again until the lease ends, and with it the session.

That a relay drains is a hint that anybody can forge.  So the gateway is asked without a word
against the relay: its master knows whether it drains, and whether there is another one.  If it
names the same relay again, nothing has changed but the lease, and the next hints have to wait
(`DrainHints`).
"""

import asyncio
import dataclasses
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from wavry_peer.errors import (
    GatewayAuthError,
    GatewayError,
    GatewayUnreachableError,
    LeaseMismatchError,
    PeerError,
    SessionClosedError,
    SessionFailedError,
)
from wavry_peer.event_log import EventLog
from wavry_peer.protocol.channel.wire import ProbeStage
from wavry_peer.protocol.constants import NoticeCode, RejectReason, Role
from wavry_peer.protocol.http.api import Credentials
from wavry_peer.protocol.http.codes import ErrorCode

from .drain_hints import DrainHints
from .environment import Environment, LeaseBroker
from .events import (
    BodyReceived,
    PathChanged,
    PathsEnded,
    PathsEvent,
    PathsStatistics,
    ProbeDue,
)
from .own_lease import OwnLease, read_own_lease
from .path_switch import CandidateFailed, PathRetired, PathSwitch, PathSwitched
from .refusals import ENDED_BY_GATEWAY, refusal_text
from .relay import RelayPath
from .relay_events import (
    ForwardReceived,
    LeaseRenewed,
    NoticeReceived,
    PathEvent,
    PathFailed,
    PathLimits,
    PathReady,
    RenewalFailed,
)
from .relay_link import RelayLink
from .renewal import RenewalSchedule
from .terms import SessionTerms

__all__ = ["RelayPaths"]

_log = EventLog(__name__)

SERVER_PATIENCE_S: Final = 5.0
"""The caller asks for another relay; the called side only if nothing came for so long, so
that not both ask at once."""

LEAVE_SPREAD_S: Final = 1.0
"""All sessions of a relay learn at the same time that it drains; they ask within so long."""

MAX_EXCLUDED: Final = 32
"""As many as a request may name."""

_SECOND_NS: Final = 1_000_000_000
_MAX_SLEEP_S: Final = 5.0
_ORDERED_CODES: Final = frozenset({ErrorCode.REVOKED, ErrorCode.BANNED})
"""An operator wanted it: the user is told in the gateway's words."""
_GONE_CODES: Final = _ORDERED_CODES | {
    ErrorCode.SESSION_CLOSED,
    ErrorCode.UNKNOWN_SESSION,
    ErrorCode.NOT_FOUND,
}


class RelayPaths:
    """Sends over the active path, receives from all, renews, and moves.

    The owner drains `next_event` after `wake` was called and after `handle_timer`, then calls
    `flush` and asks `get_timer`.

    Args:
        terms: what the session is about.
        broker: gives leases.
        environment: clocks, and randomness for jitter.
        limits: of each path.
        wake: called in the loop when there may be events.  A function and not an
            `asyncio.Event`: a waiting task would cost a turn of the loop for each datagram.

    Attributes:
        links: open paths, the newest last.
        active: the one that carries the session now, or None.
        latest: the one that carries it or carried it last, perhaps closed; None before the first.
        can_probe: whether the channel has keys to make probes with; the owner sets it.
        failure: why the last path failed, after "the relay"; empty before the first.
    """

    def __init__(
        self,
        terms: SessionTerms,
        broker: LeaseBroker,
        environment: Environment,
        limits: PathLimits,
        wake: Callable[[], None],
    ) -> None:
        self.links: list[RelayLink] = []
        self.active: RelayLink | None = None
        self.latest: RelayLink | None = None
        self.can_probe = False
        self.failure = ""
        self._terms = terms
        self._broker = broker
        self._clock = environment.clock
        self._unix_us = environment.unix_us
        self._rng = environment.rng
        self._limits = limits
        self._wake = wake
        self._counts = PathsStatistics()
        self._events: deque[PathsEvent] = deque()
        self._switch: PathSwitch[RelayLink] = PathSwitch()
        self._newest_lease: OwnLease | None = None
        self._hints = DrainHints()
        self._closed = asyncio.Event()
        self._renewal: RenewalSchedule | None = None
        self._renewal_wake = asyncio.Event()
        self._failed_relays: dict[str, None] = {}
        self._move: asyncio.Task[None] | None = None
        self._move_must_leave = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._counter = 0
        self._renewal_cause = ""

    def adopt(self, credentials: Credentials) -> None:
        """Take a lease of this session: the first, the next, or one on another relay.

        Raises:
            LeaseMismatchError: it is not ours.
            SessionFailedError: there is no route to the relay.
        """
        if self._closed.is_set():
            return
        now_ns = self._clock()
        lease = read_own_lease(
            credentials.token,
            session_id=self._terms.id_bytes,
            role=self._terms.role,
            public_key=self._terms.identity.signing.public_key,
            now_ns=now_ns,
        )
        link = self._usable_link(lease.relay_id)
        newest = self._newest_lease if self.links else None
        if newest is not None and lease.token == newest.token:
            if link is None or link.path.knows(newest):
                return
            # The relay did not take it, and the gateway has no other for a while.  Its life counts
            # from when we got it first.
            lease = newest
        elif newest is not None and _order(lease) < _order(newest):
            # Two requests crossed, and both sides end up with the later pair.
            return
        if link is None:
            self._open_link(lease, (credentials.addr, *credentials.addrs), now_ns)
        else:
            # Never a second path to one relay: it would take the slot away from the first.
            link.path.renew(lease, now_ns)
            if link is not self.links[-1]:
                self.links.remove(link)
                self.links.append(link)
                self._switch.prefer(link, _order(lease), now_ns)
                self._follow_switch(now_ns)
        self._newest_lease = lease
        self._wake()

    def send(self, body: bytes) -> None:
        """Queue a channel packet; without a path it is lost, as on a network."""
        if self.active is not None:
            self.active.path.send(body)

    def flush(self) -> None:
        """Send what is queued on all paths."""
        for link in self.links:
            link.flush()

    def next_event(self, now_ns: int) -> PathsEvent | None:
        """Take the oldest event, or None.

        Events of a path are followed only as they are taken here: what a body proves must be
        known before what came after it is judged.
        """
        while not self._closed.is_set():
            if self._events:
                return self._events.popleft()
            for link in self.links:
                if (event := link.path.next_event()) is not None:
                    break
            else:
                return None
            if isinstance(event, ForwardReceived):
                return BodyReceived(link, event.body)
            self._on_path_event(link, event, now_ns)
        return None

    def heard(self, link: RelayLink, stage: ProbeStage, now_ns: int) -> None:
        """Note what an authentic packet proves about the path it came on.

        Args:
            link: from `BodyReceived`.
            stage: of a probe; data counts as `ProbeStage.SETTLED`.
            now_ns: time now.
        """
        # Data on the only path, which is nearly every packet, tells nothing new.
        if self._switch.is_moving or stage is not ProbeStage.SETTLED:
            self._switch.heard(link, stage, now_ns)
            self._follow_switch(now_ns)

    def statistics(self) -> PathsStatistics:
        """Return the counters up to now, as a copy that does not change."""
        relay_drops = dict(self._counts.relay_drops)
        total = dataclasses.replace(self._counts, relay_drops=relay_drops)
        for link in self.links:
            total.add(link.path.statistics, link.socket_statistics)
        return total

    def get_timer(self) -> int | None:
        """Return when to call `handle_timer`, in ns; None for never."""
        times_ns = [link.path.get_timer() for link in self.links]
        times_ns.append(self._switch.get_timer())
        return min((t for t in times_ns if t is not None), default=None)

    def handle_timer(self, now_ns: int) -> None:
        """Do what is due."""
        for link in self.links:
            link.path.handle_timer(now_ns)
        self._switch.handle_timer(now_ns)
        self._follow_switch(now_ns)

    def close(self) -> None:
        """Close all paths and stop the tasks; `wait_closed` waits for their end."""
        self._closed.set()
        for link in tuple(self.links):
            self._drop_link(link)
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()

    async def wait_closed(self) -> None:
        """Wait until every task has ended."""
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- Paths -------------------------------------------------------------------------

    def _open_link(self, lease: OwnLease, addresses: Sequence[str], now_ns: int) -> None:
        # Unix microseconds, and never lower than before: a restarted peer begins higher.
        self._counter = max(self._unix_us(), self._counter + (1 << 20))
        path = RelayPath(
            session_id=self._terms.id_bytes,
            role=self._terms.role,
            lease=lease,
            sign=self._terms.identity.signing.sign,
            first_counter=self._counter,
            limits=self._limits,
        )
        link = RelayLink.open(path, addresses, clock=self._clock, on_activity=self._wake)
        self.links.append(link)
        link.path.start(now_ns)

    def _on_path_event(self, link: RelayLink, event: PathEvent, now_ns: int) -> None:
        match event:
            case PathReady():
                self._on_path_ready(link, now_ns)
            case LeaseRenewed():
                self._counts.renewals += 1
                if link is self.links[-1]:
                    self._use_lease(link.path.lease)
            case RenewalFailed():
                self._counts.renewal_failures += 1
                _log.info("relay_refused_renewal", reason=refusal_text(event.reason))
            case PathFailed():
                self._on_path_failed(link, event.reason, now_ns)
            case NoticeReceived():
                self._on_notice(link, event.code, now_ns)

    def _on_path_ready(self, link: RelayLink, now_ns: int) -> None:
        # From here on the master knows only this lease; the old path lives on its old one.
        self._use_lease(link.path.lease)
        order = _order(link.path.lease)
        self._switch.ready(link, order, now_ns, can_probe=self.can_probe)
        self._follow_switch(now_ns)

    def _follow_switch(self, now_ns: int) -> None:
        while (event := self._switch.next_event()) is not None:
            match event:
                case PathSwitched():
                    self._take_over(event.key)
                case PathRetired():
                    self._drop_link(event.key)
                case CandidateFailed():
                    self._on_candidate_failed(event.key)
        for link, stage in self._switch.probes_to_send(now_ns):
            self._events.append(ProbeDue(link, stage))

    def _take_over(self, link: RelayLink) -> None:
        if self.latest is not None and self.latest is not link:
            self._counts.path_changes += 1
            _log.info("moved_to_relay", relay_id=link.relay_id)
        self.active = self.latest = link
        self._hints = DrainHints()
        self._events.append(PathChanged())

    def _on_candidate_failed(self, link: RelayLink) -> None:
        _log.info(
            "peer_not_at_relay",
            relay_id=link.relay_id,
            next_step="the session stays where it is and asks for another relay",
        )
        self._drop_link(link)
        self._failed_relays[link.relay_id] = None
        self._begin_move(self._patience_s(), "the other peer did not come to the new relay")

    def _on_path_failed(
        self, link: RelayLink, reason: RejectReason | int | None, now_ns: int
    ) -> None:
        self.failure = refusal_text(reason)
        _log.info("relay_path_failed", relay_id=link.relay_id, reason=self.failure)
        was_ready = link in self._switch
        self._drop_link(link)
        self._switch.gone(link, now_ns)
        self._follow_switch(now_ns)
        if reason is None and link.other_addresses and not was_ready:
            # Perhaps only this address family does not get through.
            try:
                self._open_link(link.path.lease, link.other_addresses, now_ns)
            except SessionFailedError:
                _log.info("no_route_to_relay", relay_id=link.relay_id)
            else:
                return
        self._failed_relays[link.relay_id] = None
        if not self.links or not was_ready:
            self._begin_move(self._patience_s(), f"the relay {self.failure}")

    def _patience_s(self) -> float:
        return 0.0 if self._terms.role is Role.CLIENT else SERVER_PATIENCE_S

    def _drop_link(self, link: RelayLink) -> None:
        if link in self.links:
            self.links.remove(link)
            link.path.release()
            link.flush()
            self._counts.add(link.path.statistics, link.socket_statistics)
            link.close()
        if self.active is link:
            self.active = None

    def _usable_link(self, relay_id: str) -> RelayLink | None:
        return next((x for x in self.links if x.relay_id == relay_id and x.usable), None)

    def _on_notice(self, link: RelayLink, code: NoticeCode | int, now_ns: int) -> None:
        # A hint only: it makes us ask the gateway now and then, and nothing more.
        if link is not self.active:
            return
        if code in (NoticeCode.DRAINING, NoticeCode.SHUTDOWN):
            self._hints.heard(now_ns)
            if self._hints.is_due(now_ns) and link is self.links[-1]:
                self._hints.followed(now_ns)
                delay_s = self._patience_s() + self._rng.random() * LEAVE_SPREAD_S
                self._begin_move(delay_s, "the relay drains", must_leave=False)
            return
        asks_for_renewal = code in (NoticeCode.EXPIRING, NoticeCode.REVOKED)
        if asks_for_renewal and self._renewal is not None and not link.has_hastened_renewal:
            link.has_hastened_renewal = True
            self._renewal.hasten(now_ns)
            self._renewal_wake.set()

    # -- Leases ------------------------------------------------------------------------

    def _use_lease(self, lease: OwnLease) -> None:
        self._renewal_cause = ""
        if self._renewal is None:
            self._renewal = RenewalSchedule(lease, self._rng.random)
            self._spawn(self._renew_forever(self._renewal))
        else:
            self._renewal.restart(lease)
            self._renewal_wake.set()

    async def _renew_forever(self, renewal: RenewalSchedule) -> None:
        # An answer that ends the session closes us from inside this task, which is not cancelled.
        while not self._closed.is_set():
            await self._sleep_until_due(renewal)
            now_ns = self._clock()
            if renewal.is_expired(now_ns):
                cause = f": {self._renewal_cause}" if self._renewal_cause else ""
                text = f"the lease ended and the gateway gave no other{cause}; call again"
                self._end(SessionClosedError(text, by_remote=False))
                return
            jti = renewal.lease.jti
            # Until the relay has acknowledged the next lease, this is a try that failed.
            renewal.failed(now_ns)
            try:
                self.adopt(await self._broker.renew(self._terms.session_id, jti))
            except (GatewayError, GatewayUnreachableError) as error:
                self._counts.renewal_failures += 1
                self._on_renewal_error(renewal, error)
            except (LeaseMismatchError, SessionFailedError) as error:
                self._counts.renewal_failures += 1
                _log.warning("renewal_unusable", cause=str(error))

    def _on_renewal_error(self, renewal: RenewalSchedule, error: PeerError) -> None:
        _log.info("renewal_failed", cause=str(error))
        self._renewal_cause = str(error)
        if not isinstance(error, GatewayError):
            return
        if error.code in _GONE_CODES:
            self._end(_ended_by_gateway(error))
        elif error.status == 409:
            # An answer of the gateway was lost and our lease is not the newest, or the relay
            # is out of service: only a fresh pair of leases helps.
            self._begin_move(0.0, error.code)
        elif error.retry_after_s is not None:
            renewal.failed(self._clock(), error.retry_after_s)

    async def _sleep_until_due(self, renewal: RenewalSchedule) -> None:
        while True:
            now_ns = self._clock()
            due_ns = min(renewal.due_ns, renewal.expires_ns)
            if now_ns >= due_ns:
                return
            self._renewal_wake.clear()
            try:
                # In short pieces: after the machine slept, the loop's own clock is behind.
                async with asyncio.timeout(min((due_ns - now_ns) / _SECOND_NS, _MAX_SLEEP_S)):
                    await self._renewal_wake.wait()
            except TimeoutError:
                continue

    def _begin_move(self, delay_s: float, why: str, *, must_leave: bool = True) -> None:
        if self._move is not None and not self._move.done():
            if self._move_must_leave or not must_leave or self._move is asyncio.current_task():
                return
            self._move.cancel()  # it would give up once the hints end
        self._move_must_leave = must_leave
        self._move = self._spawn(self._ask_for_relay(delay_s, why, must_leave=must_leave))

    async def _ask_for_relay(self, delay_s: float, why: str, *, must_leave: bool) -> None:
        before = self._newest_lease
        wait_s = 0.5
        await asyncio.sleep(delay_s)
        # The other side may be faster: then we have its lease already.
        while not self._closed.is_set() and self._newest_lease is before:
            if not must_leave and not self._hints.is_fresh(self._clock()):
                return
            exclude = tuple(self._failed_relays)[-MAX_EXCLUDED:]
            try:
                self.adopt(await self._broker.request_relay(self._terms.session_id, exclude))
            except (GatewayError, GatewayUnreachableError) as error:
                if isinstance(error, GatewayAuthError) or (
                    isinstance(error, GatewayError) and error.code in _GONE_CODES
                ):
                    text = f"{why}, and there is no other: {error}"
                    ordered = error.code in _ORDERED_CODES
                    self._end(
                        _ended_by_gateway(error)
                        if ordered
                        else SessionClosedError(text, by_remote=False)
                    )
                    return
                if isinstance(error, GatewayError) and error.status == 503:
                    # None but those that failed: perhaps one of them is back.
                    self._failed_relays.clear()
                _log.info("no_other_relay_yet", cause=str(error), why=why)
            except (LeaseMismatchError, SessionFailedError) as error:
                _log.info("relay_unusable", cause=str(error))
            else:
                return
            await asyncio.sleep(wait_s * (0.5 + 0.5 * self._rng.random()))
            wait_s = min(wait_s * 2, 10.0)

    def _end(self, error: PeerError) -> None:
        self._events.append(PathsEnded(error))
        self._wake()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _ended_by_gateway(error: PeerError) -> SessionClosedError:
    ordered = isinstance(error, GatewayError) and error.code in _ORDERED_CODES
    return SessionClosedError(str(error) if ordered else ENDED_BY_GATEWAY, by_remote=False)


def _order(lease: OwnLease) -> tuple[int, str]:
    # Both sides see every pair of leases, so both choose the same relay.
    return lease.issued_ms, lease.relay_id
