"""Hot upgrade, the new relay's side: receive everything, move the workers, take the place.

Until `Predecessor.commit` has its answer this process owns nothing: it gives up by ending its own
workers, and the old relay goes on.  Where the old relay dies half-way, everything that keeps the
sessions is here already, and this one goes on alone.
"""

import asyncio
import contextlib
import os
import socket
from pathlib import Path
from typing import Final, Self

import structlog

from wavry_relay.shm.control import WorkerRow

from .descriptors import OWN_DESCRIPTORS, RelayDescriptors
from .fd_channel import ChannelEndedError, FdChannel, ProcessHandle, all_gone, why_foreign
from .messages import (
    MAX_LINE_BYTES,
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
)
from .roles import NewWorkers

__all__ = ["Predecessor"]

ANSWER_TIMEOUT_S: Final = 10.0
"""The longest the old relay takes for one answer: a hanging worker, killed after a second."""
_GONE_TIMEOUT_S: Final = 5.0

_log = structlog.get_logger(__name__)


class Predecessor:
    """The relay that is taken over.

    Attributes:
        facts: what it told.
        descriptors: what it hands over.
        counts: its counters; those of the end after `commit`.
    """

    def __init__(self, channel: FdChannel, facts: UpgradeFacts, fds: list[int]) -> None:
        self._channel = channel
        self._process = ProcessHandle(facts.pid)
        self._alone = False
        self.facts = facts
        self.counts = facts.counts
        self.descriptors = RelayDescriptors.from_fds(fds, facts.groups)

    @classmethod
    async def meet(cls, path: Path, hello: UpgradeHello) -> Self:
        """Connect to a running relay and receive what it hands over.

        Args:
            path: its control socket.
            hello: what this relay is.

        Raises:
            TakeOverError: no relay is there, or it refuses.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise TakeOverError(
                f"no relay to take over answers at {path} ({error.strerror}); start this one"
                " without --take-over"
            ) from error
        channel = FdChannel(sock)
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                facts, fds = await _receive_all(channel, hello)
        except TimeoutError:
            channel.close()
            raise TakeOverError("the running relay does not answer") from None
        except TakeOverError:
            channel.close()
            raise
        return cls(channel, facts, fds)

    async def move_workers(self, workers: NewWorkers) -> None:
        """Replace each worker of the old relay by one of ours.

        Raises:
            WorkerBootError: one of ours cannot start.
            TakeOverError: the old relay ends the upgrade.
        """
        workers.inherit()
        for number in range(workers.count):
            await workers.park(number)
            await self._ask(Release(number), Released(number), workers)
            await workers.begin(number)
            await self._tell(Begun(number), workers)

    async def commit(self, workers: NewWorkers) -> None:
        """Take the old relay's place; it lets go of what must not run twice.

        Raises:
            TakeOverError: it ends the upgrade.
        """
        answer = await self._ask(Commit(), None, workers)
        if isinstance(answer, Committed):
            self.counts = answer.counts

    async def confirm(self, workers: NewWorkers) -> None:
        """Tell the old relay that this one serves; it ends then.

        Raises:
            TakeOverError: it has ended the upgrade meanwhile.
        """
        await self._tell(Got(), workers)
        self._channel.close()
        self._process.close()

    async def give_up(self, reason: str) -> None:
        """Say why this relay ends; its workers must have ended."""
        with contextlib.suppress(TakeOverError, TimeoutError, OSError):
            async with asyncio.timeout(1):
                await self._channel.send(encode(GiveUp(reason)))
        self._channel.close()

    async def _tell(self, message: Message, workers: NewWorkers) -> None:
        if self._alone:
            return
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._channel.send(encode(message))
        except (ChannelEndedError, TimeoutError):
            await self._go_on_alone(workers)

    async def _ask(
        self, question: Message, expected: Message | None, workers: NewWorkers
    ) -> Message | None:
        if self._alone:
            return None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await self._channel.send(encode(question))
                answer = decode(await self._channel.receive())
        except ChannelEndedError:
            await self._go_on_alone(workers)
            return None
        except TimeoutError:
            raise TakeOverError("the old relay does not answer; it goes on") from None
        if isinstance(answer, Refused):
            raise TakeOverError(answer.reason)
        if answer != expected and not (expected is None and isinstance(answer, Committed)):
            raise TakeOverError("the old relay answers something unknown")
        return answer

    async def _go_on_alone(self, workers: NewWorkers) -> None:
        if not await self._process.wait(_GONE_TIMEOUT_S):
            raise TakeOverError("the old relay closed the connection; it goes on")
        own = set(workers.pids())
        rows = (WorkerRow(self.descriptors.segment, number).pid for number in range(workers.count))
        if not await all_gone((pid for pid in rows if pid not in own), _GONE_TIMEOUT_S):
            raise TakeOverError("workers of the dead relay do not end; kill them")
        self._alone = True
        _log.warning(
            "predecessor_died",
            cause="the old relay ended in the middle of the upgrade",
            next_step="none: this relay has everything and goes on alone",
        )


async def _receive_all(channel: FdChannel, hello: UpgradeHello) -> tuple[UpgradeFacts, list[int]]:
    await channel.send(encode(hello))
    line = await channel.receive()
    facts = _no_refusal(line)
    if not isinstance(facts, UpgradeFacts):
        raise TakeOverError("the running relay cannot be taken over: it is of an older version")
    peer = channel.peer
    if peer.uid != os.geteuid():
        raise TakeOverError(f"the running relay is user {peer.uid}'s; start this one as that user")
    foreign = why_foreign(peer, own_uid=os.geteuid(), said_pid=facts.pid)
    if foreign is not None:
        raise TakeOverError(foreign)
    wanted = OWN_DESCRIPTORS + sum(group.sockets for group in facts.groups)
    if facts.descriptors != wanted:
        raise TakeOverError("the running relay's descriptors are not what it says")
    came = 0
    while came < wanted:  # They stay the channel's, which closes them if this fails.
        batch = _no_refusal(await channel.receive())
        if not isinstance(batch, Descriptors) or batch.count < 1:
            raise TakeOverError("the running relay sends something unknown")
        came += batch.count
        await channel.send(encode(Got()))
    return facts, channel.take(wanted)


def _no_refusal(line: bytes) -> Message:
    if b'"error"' in line[:MAX_LINE_BYTES] and b'"type"' not in line:
        raise TakeOverError("the running relay cannot be taken over: it is of an older version")
    message = decode(line)
    if isinstance(message, Refused):
        raise TakeOverError(message.reason)
    return message
