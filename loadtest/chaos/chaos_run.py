"""One run: faults in one lane, attacks in another, sessions in all of it, a line each minute."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from loadtest.media.histogram import Histogram

from .attacks import ATTACKS, Attack, attack_cards, lacking_attacks
from .faults import FAULTS, FaultError, fault_cards, lacking_faults
from .hostile_peer import LeaseSource
from .journal import SETTLED_S, Death, Incident, Journal
from .report import Minute, Summary, incident_line, minute_line, recoveries
from .schedule import Card, Turn, turns
from .sessions import MediaPair, RunTime
from .spoofing import own_udp_ports
from .system import ChaosSystem, ServiceUnderTest
from .verdict import judge

__all__ = ["ChaosOptions", "run_chaos"]

_POLL_S: Final = 0.02
_DEATH_S: Final = 0.5
_SETTLE_S: Final = 2.0
_LAG_S: Final = 0.05
LONGEST_PAUSE_S: Final = 8.0
LEASE_TTL_S: Final = 180
"""Short, so that leases are renewed while something is wrong."""
SETTINGS: Final = {
    "WAVRY_LOG_LEVEL": "debug",
    "WAVRY_MASTER_LEASE_TTL_S": str(LEASE_TTL_S),
    "WAVRY_RELAY_MAX_BITRATE_KBPS": "5000",
    "WAVRY_RELAY_MAX_SESSIONS": "200",
    "WAVRY_GATEWAY_REGISTER_PER_MINUTE": "6000",
    "WAVRY_GATEWAY_REGISTER_BURST": "1000",
    "WAVRY_GATEWAY_LOGIN_PER_MINUTE": "6000",
    "WAVRY_GATEWAY_LOGIN_BURST": "1000",
}
"""Relays are small, so that a light attack fills them; all peers log in from one address."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """How a run is made.

    Attributes:
        seed: of all that is random in it.
        seconds: how long it lasts at least: every kind comes once, however short it is.
        sessions: pairs of peers.
        relays: how many.
        workers: of each relay.
        pace: of faults, attacks and pauses; 1 for times as in real life.
        every_s: between two lines.
        patience_s: who has not recovered from a fault by then has not recovered.
        tells_all: show each fault when it is over, not only one that is not.
    """

    seed: int
    seconds: float = 3600.0
    sessions: int = 10
    relays: int = 2
    workers: int = 2
    pace: float = 1.0
    every_s: float = 60.0
    patience_s: float = 60.0
    tells_all: bool = False


async def run_chaos(
    options: ChaosOptions, directory: Path, *, show: Callable[[str], None]
) -> Summary:
    """Run it.

    Args:
        options: how.
        directory: for the system; must not exist.
        show: takes each line.

    Raises:
        CommandError, PeerError: system or sessions did not come up.
        SystemDiedError: a service did not start again.
    """
    system = ChaosSystem(
        directory, relays=options.relays, workers=options.workers, settings=SETTINGS
    )
    async with system.up():
        return await _ChaosRun(options, system, show).run()


class _ChaosRun:
    def __init__(
        self, options: ChaosOptions, system: ChaosSystem, show: Callable[[str], None]
    ) -> None:
        self._options, self._system, self._show = options, system, show
        self._journal = Journal()
        self._times = RunTime()
        self._minutes: list[Minute] = []
        self._dying: set[str] = set()
        self._late, self._late_before = Histogram(), Histogram()
        self._held_up_s = 0.0
        names = {relay.relay_id: name for name, relay in system.relays_by_name.items()}
        self._pairs = [
            MediaPair(f"pair-{number}", self._journal, self._times, self._late, names)
            for number in range(options.sessions)
        ]

    async def run(self) -> Summary:
        description = self._system.description
        if description is None:
            raise FaultError("the system has no description: it did not start")
        self._journal.skipped = lacking_faults(self._system) | lacking_attacks()
        async with contextlib.AsyncExitStack() as stack:
            for pair in self._pairs:
                peers = self._system.directory / "peers"
                await stack.enter_async_context(pair.talking(description.gateway_url, peers))
            leases = LeaseSource(
                description.master_url, Path(description.service_token_file).read_text().strip()
            )
            self._show(f"seed {self._options.seed}: {len(self._pairs)} sessions are up")
            async with _beside(self._lines(), self._deaths(), self._lag()):
                await asyncio.gather(self._faults(), self._attacks(leases))
                ended_s = self._times.now_s()
                await self._settle()
            return self._summary(ended_s)

    # -- Lanes -----------------------------------------------------------------------------------

    async def _faults(self) -> None:
        cards = fault_cards(self._system, pace=self._options.pace)
        for turn in self._turns("faults", cards):
            await asyncio.sleep(turn.pause_s)
            if self._is_over(turn):
                return
            await self._fault(turn)

    async def _fault(self, turn: Turn) -> None:
        service = self._system.services[turn.target]
        incident = Incident(turn.kind, turn.target, is_attack=False, began_s=self._times.now_s())
        self._journal.incidents.append(incident)
        touched = [pair for pair in self._pairs if turn.target in pair.relays]
        if turn.kind == "service_killed":
            self._dying.add(turn.target)
            self._journal.deaths.append(Death(turn.target, self._times.now_s(), asked=True))
        try:
            async with FAULTS[turn.kind](self._system, service, turn.dice) as incident.note:
                await asyncio.sleep(turn.lasts_s)
        except FaultError as error:
            self._journal.found(str(error))
        self._dying.discard(turn.target)
        incident.lifted_s = since_s = self._times.now_s()
        incident.recovered_s = await self._recovery(service, touched, since_s)
        if self._options.tells_all or incident.recovered_s is None:
            self._show(incident_line(incident))

    async def _recovery(
        self, service: ServiceUnderTest, touched: Sequence[MediaPair], since_s: float
    ) -> float | None:
        """Wait until nothing of a fault is left; when that was, or None."""
        while self._times.now_s() < since_s + self._options.patience_s:
            if all(pair.carried_since(since_s) for pair in touched) and await service.is_well():
                return self._times.now_s()
            await asyncio.sleep(_POLL_S)
        return None

    async def _attacks(self, leases: LeaseSource) -> None:
        cards = attack_cards(tuple(self._system.relays_by_name), pace=self._options.pace)
        for turn in self._turns("attacks", cards):
            await asyncio.sleep(turn.pause_s)
            if self._is_over(turn):
                return
            incident = Incident(turn.kind, turn.target, is_attack=True, began_s=self._times.now_s())
            self._journal.incidents.append(incident)
            relays = self._system.relays_by_name
            others = tuple(one.relay_id for name, one in relays.items() if name != turn.target)
            attack = Attack(relays[turn.target], others, leases, turn.dice, own_udp_ports())
            try:
                await _for_a_while(ATTACKS[turn.kind](attack), turn.lasts_s)
            finally:
                attack.opened.close()
                incident.lifted_s = self._times.now_s()
                incident.note = attack.note
            for harm in attack.harm:
                self._journal.found(f"{turn.kind}: {harm}")

    async def _deaths(self) -> None:
        while True:
            await asyncio.sleep(_DEATH_S)
            for service in self._system.services.values():
                if not self._is_dead(service):
                    continue
                await asyncio.sleep(_DEATH_S)  # A relay that is upgraded writes its file anew.
                if not self._is_dead(service):
                    continue
                self._journal.deaths.append(Death(service.name, self._times.now_s(), asked=False))
                await self._system.start_again(service)

    def _is_dead(self, service: ServiceUnderTest) -> bool:
        return service.name not in self._dying and not service.is_alive

    async def _lag(self) -> None:
        """Notice when this process itself gets no core: that is no fault of a relay."""
        while True:
            began_s = self._times.now_s()
            await asyncio.sleep(_LAG_S)
            self._held_up_s = max(self._held_up_s, self._times.now_s() - began_s - _LAG_S)

    async def _lines(self) -> None:
        while True:
            await asyncio.sleep(self._options.every_s)
            self._system.trim_logs()
            self._line()

    # -- What is seen ----------------------------------------------------------------------------

    def _turns(self, lane: str, cards: Sequence[Card]) -> Iterator[Turn]:
        pause_s = LONGEST_PAUSE_S * self._options.pace
        return turns(f"{self._options.seed}/{lane}", cards, longest_pause_s=pause_s)

    def _is_over(self, turn: Turn) -> bool:
        return turn.deck > 1 and self._times.now_s() >= self._options.seconds

    def _line(self) -> None:
        now_s = self._times.now_s()
        since_s = self._minutes[-1].ends_s if self._minutes else 0.0
        sent, missing = self._journal.datagrams.between(
            max(0.0, since_s - SETTLED_S), max(0.0, now_s - SETTLED_S)
        )
        late = self._late.since(self._late_before)
        self._late_before = self._late.copy()
        began = sum(since_s <= one.began_s < now_s for one in self._journal.incidents)
        alive = sum(pair.is_alive for pair in self._pairs)
        minute = Minute(
            round(now_s, 1), alive, len(self._journal.lost), sent, missing,
            late.percentile_ms(0.99), round(1000 * self._held_up_s), began,
        )  # fmt: skip
        self._held_up_s = 0.0
        self._minutes.append(minute)
        self._show(minute_line(minute, recoveries(self._journal)))

    async def _settle(self) -> None:
        """Every session must carry datagrams once nothing is wrong any more."""
        calm_s, patience_s = self._times.now_s(), self._options.patience_s
        while self._times.now_s() < calm_s + patience_s:
            if all(pair.carried_since(calm_s) for pair in self._pairs):
                break
            await asyncio.sleep(_POLL_S)
        for pair in self._pairs:
            if not pair.carried_since(calm_s):
                self._journal.found(f"{pair.name} was silent for {patience_s:g} s after the end")
        await asyncio.sleep(_SETTLE_S)

    def _summary(self, ended_s: float) -> Summary:
        self._line()
        verdict = judge(self._journal, ended_s=ended_s)
        sent, missing = self._journal.datagrams.between(0, ended_s)
        return Summary(
            seed=self._options.seed,
            seconds=round(ended_s, 1),
            sessions=self._options.sessions,
            sent=sent,
            missing=missing,
            minutes=self._minutes,
            recoveries=recoveries(self._journal),
            skipped=self._journal.skipped,
            incidents=self._journal.incidents,
            verdict=verdict,
            ok=not verdict.faults,
        )


@contextlib.asynccontextmanager
async def _beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Let works go on for the length of a block; one that fails ends the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()


async def _for_a_while(work: Coroutine[Any, Any, None], lasts_s: float) -> None:
    """Let a work go on so long, and end it.

    It is cancelled until it has heard it: an HTTP client whose own time-out falls into the same
    moment takes a first cancellation for that.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task}, timeout=lasts_s)
    finally:
        while not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_DEATH_S)
    if not task.cancelled():
        task.result()
