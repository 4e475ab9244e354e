"""Turns for work that costs a core: networks take turns, so a flood of guesses waits for itself.

Strategy: whoever may begin next is the oldest of the network (IPv4 address, IPv6 /48) whose turn it
is, and each network has one turn in each round.  So an honest login waits for one guess of each
attacking network, not for all of theirs.  What waits is bounded for each account and network, and
in all: where the queue is full the network that holds the most gives a place up.
"""

import asyncio
import ipaddress
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, Self

from wavry_cp.app.refusal import RefusedError
from wavry_peer.protocol.http.codes import ErrorCode

__all__ = ["FairQueue", "Party", "login_network"]

MAX_PER_ACCOUNT: Final = 4
MAX_PER_NETWORK: Final = 8


class Party(NamedTuple):
    """For whom work is done: the account that it is about, and the network that asks."""

    account: str
    network: str

    @classmethod
    def of(cls, account: str, address: str) -> Self:
        """Return the party of an account and an `address_key`."""
        return cls(account, login_network(address))


def login_network(address: str) -> str:
    """Return what counts as one network of guessers, of an `address_key`: the IPv6 /48 around it.

    Whoever has a /48 has 65536 times a /64.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return address
    return str(ipaddress.IPv6Network((found, 48), strict=False).network_address)


class _Place:
    def __init__(self, party: Party) -> None:
        self.party = party
        self.turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class FairQueue:
    """Lets `concurrency` parties work at once and at most `max_waiting` wait."""

    def __init__(self, *, concurrency: int, max_waiting: int) -> None:
        self._free = concurrency
        self._max_waiting = max_waiting
        self._waiting: OrderedDict[str, deque[_Place]] = OrderedDict()
        self._by_account: Counter[str] = Counter()
        self._count = 0

    @asynccontextmanager
    async def turn(self, party: Party) -> AsyncIterator[None]:
        """Wait for a turn, and hold it for the block.

        Raises:
            RefusedError: ``busy``: too many wait, of this account, this network, or in all.
        """
        if self._free:
            self._free -= 1
        else:
            await self._wait(party)
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, party: Party) -> None:
        own = self._waiting.get(party.network, ())
        if self._by_account[party.account] >= MAX_PER_ACCOUNT or len(own) >= MAX_PER_NETWORK:
            raise _busy()
        if self._count >= self._max_waiting:
            self._make_room(len(own) + 1)
        place = _Place(party)
        self._waiting.setdefault(party.network, deque()).append(place)
        self._by_account[party.account] += 1
        self._count += 1
        try:
            await place.turn
        except asyncio.CancelledError:
            if place.turn.cancelled():
                self._remove(place)
            elif place.turn.exception() is None:
                self._pass_on()  # The turn came, and nobody is there to take it.
            raise

    def _make_room(self, needed: int) -> None:
        """Send away the newest of the network that holds most, if that is more than `needed`."""
        crowd = max(self._waiting.values(), key=len, default=None)
        if crowd is None or len(crowd) <= needed:
            raise _busy()
        place = crowd[-1]
        self._remove(place)
        place.turn.set_exception(_busy())

    def _pass_on(self) -> None:
        if not self._waiting:
            self._free += 1
            return
        network, places = next(iter(self._waiting.items()))
        place = places[0]
        self._waiting.move_to_end(network)
        self._remove(place)
        place.turn.set_result(None)

    def _remove(self, place: _Place) -> None:
        network, account = place.party.network, place.party.account
        places = self._waiting[network]
        places.remove(place)
        if not places:
            del self._waiting[network]
        self._by_account[account] -= 1
        if not self._by_account[account]:
            del self._by_account[account]
        self._count -= 1


def _busy() -> RefusedError:
    return RefusedError(
        ErrorCode.BUSY, "too many logins at once, try again shortly", retry_after_s=1
    )
