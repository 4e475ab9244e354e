"""All that the relay has of its master: keys, revocations, and the two links that renew them."""

import asyncio

from wavry_peer.protocol.relay_terms import MasterLinkState

from .event_link import EventLink
from .key_ring import KeyRing
from .link import MasterLink
from .revocations import RelayRevocations

__all__ = ["MasterConnection"]


class MasterConnection:
    """The links to the master, begun and ended together.

    Args:
        keyring: keys of leases.
        revocations: in force at this relay.
        link: registration and heartbeats; None where no master is configured.
        events: the event stream, None with `link`.
    """

    def __init__(
        self,
        keyring: KeyRing,
        revocations: RelayRevocations,
        link: MasterLink | None = None,
        events: EventLink | None = None,
    ) -> None:
        self.keyring = keyring
        self.revocations = revocations
        self.link = link
        self.events = events
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        """The state of the link, OFF where there is none."""
        return self.link.state if self.link else MasterLinkState.OFF

    def begin(self) -> None:
        """Follow the master in the background."""
        if self.link is not None and self.events is not None:
            self._task = asyncio.create_task(_follow(self.link, self.events))

    async def end(self) -> None:
        """Let go of the master, which is told nothing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None

    async def farewell(self) -> None:
        """Tell the master that this relay is gone."""
        if self.link is not None:
            await self.link.farewell()


async def _follow(link: MasterLink, events: EventLink) -> None:
    """Run both until cancelled; they end together."""
    async with asyncio.TaskGroup() as group:
        group.create_task(link.run())
        group.create_task(events.run())
