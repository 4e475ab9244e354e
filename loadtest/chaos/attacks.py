"""What strangers and users do to a relay.  Each attack goes on until it is cancelled.

They are light: what they must show is that few packets do no harm; `make bench` measures many.
Each counts what it did in `Attack.note`.
"""

import asyncio
import random
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from wavry_cp.admin.endpoints import DevRelay
from wavry_cp.admin.output import CommandError
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_peer.service.settings import parse_address

from .hostile_peer import HostilePeer, LeaseSource
from .schedule import Card
from .spoofing import Spoofer, cannot_spoof

__all__ = ["ATTACKS", "Attack", "attack_cards", "lacking_attacks"]

_TICK_S: Final = 0.02
_MOST_TICKS: Final = 5
"""After a time without a core no more than this comes at once: 100 packets at 1000 a second."""
_STORM_SESSIONS: Final = 12
_CALLS_PER_S: Final = 10
_PACKETS_PER_S: Final = 1000
"""Half a percent of what a worker drops in C."""
_REFLECTED_TIMES: Final = 3
_REFLECTED_PACKETS: Final = 200
_OVER_LIMIT_PER_S: Final = 1600
_OVER_LIMIT_BYTES: Final = 1200
"""With the rate, 15 Mbit/s: three times the limit of a relay of a run."""
_SOURCES: Final = 60


@dataclass(slots=True)
class Attack:
    """An attack under way on one relay.

    Attributes:
        relay: that is attacked.
        others: ids of the other relays.
        leases: of the attackers.
        dice: of this attack.
        victims: local ports of good peers, at 127.0.0.1.
        opened: sockets; closed by who began the attack.
        done: what was done, by name.
        harm: rules of the protocol that the relay broke.
    """

    relay: DevRelay
    others: tuple[str, ...]
    leases: LeaseSource
    dice: random.Random
    victims: Sequence[int]
    opened: ExitStack = field(default_factory=ExitStack)
    done: Counter[str] = field(default_factory=Counter)
    harm: list[str] = field(default_factory=list)

    @property
    def note(self) -> str:
        """Return what was done."""
        return ", ".join(f"{count} {what}" for what, count in sorted(self.done.items()))

    async def pair(self, host: str = "127.0.0.1") -> tuple[HostilePeer, HostilePeer]:
        """Return both sides of a session of the attackers; waits while the master is away."""
        while True:
            try:
                made = await self.leases.pair(self.relay.udp, exclude=self.others, host=host)
            except CommandError:
                self.done["leases refused"] += 1
                await asyncio.sleep(0.2)
                continue
            for side in made:
                self.opened.callback(side.close)
            return made


async def _paced(per_s: int) -> AsyncIterator[int]:
    """Count up at a rate, by the clock; what a tick missed is made up for in the next, a bit."""
    number, before_s = 0, time.monotonic()
    while True:
        await asyncio.sleep(_TICK_S)
        now_s = time.monotonic()
        due = round(per_s * min(now_s - before_s, _MOST_TICKS * _TICK_S))
        before_s = now_s
        for _ in range(due):
            number += 1
            yield number


async def _renewal_storm(attack: Attack) -> None:
    """Many sessions of two users renew at once, again and again."""
    peers: list[HostilePeer] = []
    for _ in range(_STORM_SESSIONS):
        for side in await attack.pair():
            peers.append(side)
            attack.done["presented"] += await side.present()
    while True:
        for peer in peers:
            with suppress(CommandError):
                await attack.leases.renew(peer)
        for peer in peers:
            peer.send(peer.signed(renew=True))
            attack.done["renewals"] += 1
        await asyncio.sleep(_TICK_S)


async def _short_calls(attack: Attack) -> None:
    """Two users begin and end sessions as fast as they get leases."""
    while True:
        pair = await attack.pair()
        for side in pair:
            attack.done["presented"] += await side.present()
        for side in pair:
            side.release()
            side.close()
        attack.done["calls"] += 1
        await asyncio.sleep(1 / _CALLS_PER_S)


async def _spoofed_stun(attack: Attack) -> None:
    """STUN requests in the addresses, and from the ports, of good peers."""
    spoofer = attack.opened.enter_context(Spoofer(attack.relay.udp))
    async for _ in _paced(_PACKETS_PER_S):
        port = attack.dice.choice(attack.victims)
        request = stun.build_binding_request(attack.dice.randbytes(12), padding=12)
        attack.done["requests"] += spoofer.send("127.0.0.1", port, request)


async def _cookie_junk(attack: Attack) -> None:
    """Bad leases with a good cookie, from the address that good peers share with him."""
    one, _ = await attack.pair()
    await one.present()
    wrong = attack.dice.randbytes(c.SIGNATURE_BYTES)
    async for _ in _paced(_PACKETS_PER_S):
        attack.done["bad leases"] += one.send(one.signed()[: -c.SIGNATURE_BYTES] + wrong)


async def _reflector(attack: Attack) -> None:
    """Put a slot at an address that never asked, and send there."""
    while True:
        victim, sender = await attack.pair(_some_host(attack.dice))
        spoofed = victim.signed()
        asked = len(spoofed) * victim.send(spoofed)
        await sender.present()
        async for number in _paced(_PACKETS_PER_S):
            attack.done["datagrams"] += sender.forward(bytes(1000))
            if number == _REFLECTED_PACKETS:
                break
        await asyncio.sleep(_TICK_S)
        got = victim.received_bytes()
        attack.done["bytes reflected"] += got
        if got > _REFLECTED_TIMES * asked:
            attack.harm.append(f"{got} bytes went to an address that had sent {asked}")
        for side in (victim, sender):
            side.close()


async def _over_limit(attack: Attack) -> None:
    """Send three times what the whole relay may forward."""
    one, other = await attack.pair()
    for side in (one, other):
        attack.done["presented"] += await side.present()
    async for _ in _paced(_OVER_LIMIT_PER_S):
        attack.done["datagrams"] += one.forward(bytes(_OVER_LIMIT_BYTES))
        attack.done["bytes through"] += other.received_bytes()


def _junk(dice: random.Random) -> bytes:
    """Return a datagram of any type, well formed up to its header."""
    kind = dice.choice([*c.PacketType, 0x00, 0x7F, 0xFF])
    roll = dice.random()
    if roll < 0.1:
        return dice.randbytes(dice.randrange(1600))
    if roll < 0.2:
        return stun.build_binding_request(dice.randbytes(12))
    head = bytes((c.MAGIC, c.VERSION, kind, dice.choice((0, 0, 1, 2, 0xFF)))) + dice.randbytes(16)
    if kind in (c.PacketType.LEASE_PRESENT, c.PacketType.LEASE_RENEW):
        token = b"v4.public." + dice.randbytes(300).hex().encode()
        return packets.build_present(
            head[4:], c.Role.CLIENT, token, sign=lambda _: dice.randbytes(64)
        )
    return head + dice.randbytes(dice.randrange(1400))


async def _flood(attack: Attack, hosts: Sequence[str]) -> None:
    sources = [attack.opened.enter_context(_socket_at(host)) for host in hosts]
    target = parse_address(attack.relay.udp)
    async for _ in _paced(_PACKETS_PER_S):
        with suppress(OSError):  # Full, or the relay is away.
            attack.dice.choice(sources).sendto(_junk(attack.dice), target)
            attack.done["datagrams"] += 1


def _socket_at(host: str) -> socket.socket:
    opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    opened.settimeout(0)
    opened.bind((host, 0))
    return opened


def _some_host(dice: random.Random) -> str:
    return f"127.66.{dice.randrange(256)}.{dice.randrange(1, 255)}"


async def _flood_from_one(attack: Attack) -> None:
    """Junk of every type from one address."""
    await _flood(attack, [_some_host(attack.dice)])


async def _flood_from_many(attack: Attack) -> None:
    """Junk of every type from many addresses."""
    await _flood(attack, [_some_host(attack.dice) for _ in range(_SOURCES)])


ATTACKS: Final[dict[str, Callable[[Attack], Coroutine[Any, Any, None]]]] = {
    "renewal_storm": _renewal_storm,
    "short_calls": _short_calls,
    "spoofed_stun": _spoofed_stun,
    "cookie_junk": _cookie_junk,
    "reflector": _reflector,
    "over_limit": _over_limit,
    "flood_from_one": _flood_from_one,
    "flood_from_many": _flood_from_many,
}


def lacking_attacks() -> dict[str, str]:
    """Return the attacks that cannot be made on this machine, and why."""
    reason = cannot_spoof()
    return {} if reason is None else {"spoofed_stun": reason}


def attack_cards(relays: Sequence[str], *, pace: float) -> list[Card]:
    """Return a card of each attack that can be made here; `pace` as for faults."""
    lacking = lacking_attacks()
    return [
        Card(kind, tuple(relays), 5 * pace, 20 * pace) for kind in ATTACKS if kind not in lacking
    ]
