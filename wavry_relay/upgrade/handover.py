"""Hot upgrade, the old relay's side: start a successor, give it everything, or take it back.

Whatever goes wrong before the commit ends in `_take_back`: the successor is ended, its workers
die with it, and the workers that had been released start again.  So a failed upgrade costs those
workers' sessions a pause of one worker start, and nothing else.  Every step has a time limit.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog

from wavry_peer.service.listen_address import bound_to
from wavry_relay.shm.control import WorkerRow

from .descriptors import RelayDescriptors
from .fd_channel import BATCH_DESCRIPTORS, FdChannel, ProcessHandle, all_gone, why_foreign
from .messages import (
    Begun,
    Commit,
    Committed,
    Descriptors,
    GiveUp,
    Got,
    Message,
    Refused,
    Release,
    Released,
    TakeOverError,
    UpgradeFacts,
    UpgradeHello,
    decode,
    encode,
    why_unfit,
)
from .roles import OldWorkers, RelayOwner, UpgradableRelay

__all__ = ["Handover", "HandoverOutcome", "successor_command"]

CONNECT_TIMEOUT_S: Final = 30.0
"""A relay starts in half a second; an overloaded host may need many of them."""
STEP_TIMEOUT_S: Final = 45.0
"""Longest silence of a successor: it starts a worker meanwhile (20 s to load, 20 s to open)."""
BEGIN_TIMEOUT_S: Final = 5.0
"""A parked worker begins within milliseconds; meanwhile its share of the sessions waits."""
_SEND_TIMEOUT_S: Final = 5.0
_GONE_TIMEOUT_S: Final = 5.0

_log = structlog.get_logger(__name__)
Progress = Callable[[str], Awaitable[None]]


def successor_command() -> list[str]:
    """Return this process's own command line: it runs newly installed code."""
    given = [word for word in sys.orig_argv[1:] if word != "--take-over"]
    return [sys.executable, *given, "--take-over"]


class HandoverOutcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an upgrade ended; an answer of the control socket.

    Attributes:
        upgraded: whether the successor serves.
        pid: of the successor.
        from_version: of this relay.
        to_version: of the successor.
        workers: that moved.
        error: ``upgrade_refused`` (nothing was begun) or ``upgrade_failed`` (taken back).
        message: why, and what to do.
    """

    upgraded: bool
    pid: int = 0
    from_version: str = ""
    to_version: str = ""
    workers: int = 0
    error: str = ""
    message: str = ""


@dataclass(slots=True)
class _Attempt:
    """One upgrade that was asked for here (and not by a successor started by hand)."""

    pid: int
    outcome: asyncio.Future[HandoverOutcome]
    progress: Progress


class Handover:
    """Hands one relay over.

    Args:
        relay: that is handed over.
        own: what this relay says of itself.
        descriptors: what the successor receives.
        workers: are replaced by the successor's, one after the other.
        owner: lets go of the relay, or holds on to it.
        environment: what a successor needs beside this process's own.
    """

    def __init__(
        self,
        relay: UpgradableRelay,
        own: UpgradeHello,
        descriptors: RelayDescriptors,
        workers: OldWorkers,
        owner: RelayOwner,
        environment: Mapping[str, str],
    ) -> None:
        self._relay = relay
        self._own = own
        self._descriptors = descriptors
        self._workers = workers
        self._owner = owner
        self._environment = environment
        self._attempt: _Attempt | None = None
        self._serving: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[object]] = set()
        self._committed = False

    # -- Asked for here --------------------------------------------------------------------------

    def begin(self) -> None:
        """Upgrade in the background (SIGUSR2); the log tells the outcome."""
        task: asyncio.Task[object] = asyncio.create_task(self.upgrade())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def upgrade(self, progress: Progress | None = None) -> HandoverOutcome:
        """Start a successor and hand over to it.

        Args:
            progress: told each step.
        """
        refusal = self._why_not_now()
        if refusal is None and os.getpid() == 1:
            refusal = (
                "this relay is process 1 of its container, which ends with it; start the new"
                " container with `wavry-relay run --take-over`, sharing the state directory and"
                " the PID, IPC and network namespaces"
            )
        if refusal is not None:
            _log.warning("upgrade_refused", cause=refusal, next_step="see the cause")
            return HandoverOutcome(upgraded=False, error="upgrade_refused", message=refusal)
        try:
            process = self._start_successor()
        except OSError as error:
            return self._failed(f"the new relay cannot be started: {error.strerror}")
        outcome: asyncio.Future[HandoverOutcome] = asyncio.get_running_loop().create_future()
        self._attempt = _Attempt(process.pid, outcome, progress or _in_silence)
        _log.info("upgrade_started", successor_pid=process.pid)
        try:
            await self._tell(f"new relay started (pid {process.pid})")
            return await self._watch(process, outcome)
        finally:
            self._attempt = None

    def _start_successor(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(  # noqa: S603 - our own command line
            successor_command(), stdin=subprocess.DEVNULL, env=os.environ | self._environment
        )

    async def _watch(
        self, process: subprocess.Popen[bytes], outcome: asyncio.Future[HandoverOutcome]
    ) -> HandoverOutcome:
        """Wait for the outcome, or tell why the successor never came to take over."""
        handle = ProcessHandle(process.pid)
        try:
            gone = asyncio.ensure_future(handle.wait(CONNECT_TIMEOUT_S))
            either: set[asyncio.Future[Any]] = {gone, outcome}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if self._serving is not None or outcome.done():
                return await outcome
            if handle.is_gone:
                cause = f"the new relay ended at its start (exit code {process.wait()})"
                return self._failed(f"{cause}; its messages are in this relay's log")
            handle.kill()
            process.wait()
            return self._failed(f"the new relay said nothing for {CONNECT_TIMEOUT_S:g} s")
        finally:
            # A failed one must not stay a zombie; one that took over outlives this process, and
            # its handle would warn that it does.
            if process.poll() is None:
                process.returncode = 0
            handle.close()

    def _why_not_now(self) -> str | None:
        if self._relay.stopping:
            return "the relay is stopping"
        if self._committed or self._attempt is not None or self._serving is not None:
            return "an upgrade is under way; wait for its end"
        return None

    def _failed(self, cause: str) -> HandoverOutcome:
        self._relay.upgrades["failed"] += 1
        _log.error(
            "upgrade_failed",
            cause=cause,
            next_step="this relay goes on; repair the cause and upgrade again",
        )
        return HandoverOutcome(
            upgraded=False, error="upgrade_failed", message=f"{cause}; the old relay goes on"
        )

    async def _tell(self, text: str) -> None:
        if self._attempt is not None:
            with contextlib.suppress(ConnectionError):
                await self._attempt.progress(text)

    # -- A successor is here ---------------------------------------------------------------------

    async def serve(self, channel: FdChannel, hello: UpgradeHello) -> None:
        """Answer a successor until it has everything, or nothing; closes the channel."""
        refusal = self._why_refused(channel, hello)
        if refusal is not None:
            with contextlib.suppress(TakeOverError, TimeoutError):
                await _send(channel, Refused(refusal))
            channel.close()
            outcome = self._failed(refusal)
            self._tell_outcome(outcome)
            return
        self._serving = asyncio.create_task(self._serve(channel, hello))
        try:
            await asyncio.wait({self._serving})
        finally:
            self._serving = None

    async def abort(self) -> None:
        """End an upgrade that is under way and take everything back (the relay must stop)."""
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait({self._serving})

    def _why_refused(self, channel: FdChannel, hello: UpgradeHello) -> str | None:
        peer = channel.peer
        foreign = why_foreign(peer, own_uid=os.geteuid(), said_pid=hello.pid)
        if foreign is not None:
            return foreign
        if self._relay.stopping:
            return "the relay is stopping"
        if self._committed or self._serving is not None:
            return "an upgrade is under way"
        if self._attempt is not None and self._attempt.pid != peer.pid:
            return "an upgrade to another process is under way"
        return why_unfit(
            hello,
            own=self._own,
            groups=self._descriptors.group_facts(),
            ops=bound_to(self._descriptors.ops_socket),
        )

    async def _serve(self, channel: FdChannel, hello: UpgradeHello) -> None:
        successor = ProcessHandle(hello.pid)
        control = self._relay.tables.control
        limits = control.limits
        _log.info("handing_over", successor_pid=hello.pid, to_version=hello.version)
        try:
            try:
                await self._give_descriptors(channel)
                moved = await self._give_workers(channel)
                await self._tell("handing over the rest")
                await self._commit(channel)
            except (TakeOverError, TimeoutError, asyncio.CancelledError) as error:
                cause = _cause(error)
                with contextlib.suppress(TakeOverError, TimeoutError):
                    await _send(channel, Refused(cause))
                channel.close()
                # One that hangs is not waited for: sessions of moved workers stand still.
                grace_s = 0.0 if isinstance(error, TimeoutError) else _GONE_TIMEOUT_S
                await self._take_back(successor, grace_s)
                control.limits = limits  # The successor wrote those of its own settings.
                self._tell_outcome(self._failed(cause))
                return
            outcome = HandoverOutcome(
                upgraded=True,
                pid=hello.pid,
                from_version=self._own.version,
                to_version=hello.version,
                workers=moved,
            )
            _log.info("handed_over", successor_pid=hello.pid, to_version=hello.version)
            self._tell_outcome(outcome)
            self._owner.leave(hello.pid)
        finally:
            channel.close()
            successor.close()

    def _tell_outcome(self, outcome: HandoverOutcome) -> None:
        if self._attempt is not None and not self._attempt.outcome.done():
            self._attempt.outcome.set_result(outcome)

    async def _give_descriptors(self, channel: FdChannel) -> None:
        fds, groups = self._descriptors.fds(), self._descriptors.group_facts()
        counts = self._relay.counts()
        facts = UpgradeFacts(self._own.version, os.getpid(), len(fds), groups, counts)
        await _send(channel, facts)
        for first in range(0, len(fds), BATCH_DESCRIPTORS):
            batch = fds[first : first + BATCH_DESCRIPTORS]
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                await channel.send(encode(Descriptors(len(batch))), batch)
            if not isinstance(await _receive(channel), Got):
                raise TakeOverError("the new relay does not take the descriptors")

    async def _give_workers(self, channel: FdChannel) -> int:
        workers = self._workers
        moved: set[int] = set()
        while not isinstance(message := await _receive(channel), Commit):
            if not isinstance(message, Release) or not 0 <= message.worker < workers.count:
                raise TakeOverError("the new relay asks for something unknown")
            await workers.release(message.worker)
            await _send(channel, Released(message.worker))
            if await _receive(channel, BEGIN_TIMEOUT_S) != Begun(message.worker):
                raise TakeOverError("the new relay does not let its worker begin")
            moved.add(message.worker)
            await self._tell(f"worker {message.worker} of {workers.count} moved")
        if len(moved) != workers.count:
            raise TakeOverError("the new relay left workers behind")
        return len(moved)

    async def _commit(self, channel: FdChannel) -> None:
        """Let go, and take everything back unless the successor confirms that it serves."""
        await self._owner.let_go()
        try:
            counts = self._relay.counts()
            upgrades = {**counts.upgrades, "done": counts.upgrades.get("done", 0) + 1}
            await _send(channel, Committed(msgspec.structs.replace(counts, upgrades=upgrades)))
            self._committed = isinstance(await _receive(channel), Got)
        finally:
            if not self._committed:
                await self._owner.hold_on()
        if not self._committed:
            raise TakeOverError("the new relay does not confirm")

    async def _take_back(self, successor: ProcessHandle, grace_s: float) -> None:
        if not await successor.wait(grace_s):
            successor.kill()
            await successor.wait(_GONE_TIMEOUT_S)
        workers = self._workers
        own = set(workers.pids())
        rows = (WorkerRow(self._descriptors.segment, number).pid for number in range(workers.count))
        # The kernel kills them with their supervisor; a row must never have two writers.
        if not await all_gone((pid for pid in rows if pid not in own), _GONE_TIMEOUT_S):
            _log.error(
                "successor_workers_left",
                cause="workers of the failed upgrade do not end",
                next_step="kill them: they write the same rows as this relay's workers",
            )
        await workers.reclaim()


async def _in_silence(_text: str) -> None:
    return None


async def _send(channel: FdChannel, message: Message) -> None:
    async with asyncio.timeout(_SEND_TIMEOUT_S):
        await channel.send(encode(message))


async def _receive(channel: FdChannel, timeout_s: float | None = None) -> Message:
    async with asyncio.timeout(STEP_TIMEOUT_S if timeout_s is None else timeout_s):
        message = decode(await channel.receive())
    if isinstance(message, GiveUp):
        raise TakeOverError(f"the new relay gave up: {message.reason}")
    return message


def _cause(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the new relay did not go on in time"
    if isinstance(error, asyncio.CancelledError):
        return "the old relay was told to stop"
    return str(error)
