"""What every engine does: receive, decide, forward, and hand control packets to Python.

A decision is a pure function of the datagram, its source, the time and the shared tables; the
conformance suite (tests/support/engine) asks for it directly and every engine must answer alike.
"""

from enum import IntEnum
from typing import Final, NamedTuple, Protocol

from wavry_peer.protocol.packets import Buffer
from wavry_peer.service.clock import Instant
from wavry_relay.shm.address import Address
from wavry_relay.shm.locks import Locks

from .verified_lease import VerifiedLease

__all__ = [
    "BATCH_DATAGRAMS",
    "Answer",
    "ControlKind",
    "ControlPacket",
    "Decision",
    "Drop",
    "Engine",
    "Forward",
    "SenderClass",
]

BATCH_DATAGRAMS: Final = 64
"""Datagrams that one round takes from one socket: enough to spread the cost of polling, few enough
that a round of nothing but leases (0.2 ms each) stays far below the hang time-out."""


class ControlKind(IntEnum):
    """Why a packet goes to Python."""

    LEASE = 1
    STUN = 2
    UNKNOWN_PATH = 3
    """FORWARD of a live session from an address that is neither slot's."""


class SenderClass(IntEnum):
    """What is known of who sent a control packet (protocol.md, "Allowances")."""

    STRANGER = 0
    PROVED = 1
    """Its cookie shows that its sender receives at its address."""
    SLOT = 2
    """It came from the address and port of a live slot of its session."""


class Drop(NamedTuple):
    """The datagram is dropped; `reason` is a drop counter's name without ``drop_``."""

    reason: str


class Forward(NamedTuple):
    """The datagram goes, byte for byte, to this address."""

    to: Address


class ControlPacket(NamedTuple):
    """The datagram is for the admission; an allowance of its source was charged for it."""

    kind: ControlKind
    datagram: bytes
    source: Address
    sender: SenderClass = SenderClass.STRANGER


Answer = tuple[bytes, ...]
"""Datagrams for the sender of a control packet, mostly one."""

Decision = Drop | Forward | ControlPacket


class Engine(Protocol):
    """A packet path over the shared tables.

    Attributes:
        name: ``"reference"`` or ``"native"``.
        locks: how this engine locks the tables; the admission must use the same.
    """

    name: str
    locks: Locks

    def decide(self, datagram: Buffer, source: Address, now: Instant) -> Decision:
        """Decide one datagram, with every effect on the tables and no I/O.

        Drops are counted here, forwarded packets where they are sent.  A control packet over an
        allowance of its source is a drop.
        """

    def run(self, timeout_ms: int) -> list[ControlPacket]:
        """One round: wait for datagrams, forward one batch of each socket.

        Returns early when the wake descriptor is readable.

        Args:
            timeout_ms: longest wait.

        Returns:
            Control packets: few, so that media waits only shortly, and those of live slots and
            proved addresses first.
        """

    def answer(self, packets: list[ControlPacket], answers: list[Answer]) -> None:
        """Send the answers of a batch, in order to each sender; what is not taken is counted."""

    def send(self, datagram: bytes, to: Address) -> bool:
        """Send a datagram; False where the kernel did not take it (counted)."""

    def admit(
        self, session: tuple[int, int], lease: VerifiedLease, source: Address, mono_ns: int
    ) -> Answer | None:
        """Take a verified lease into its slot, in the ordinary cases; needs the table lock.

        Worth a quarter of the admissions per second.  Tables and counters are then those that the
        rules in Python (`LeaseSlots`) would have left.

        Args:
            session: its id, as `session_words`.
            lease: verified.
            source: of the packet.
            mono_ns: CLOCK_MONOTONIC.

        Returns:
            What the peer is answered: the ACK, and a challenge where its address is not proved.
            None where the rules in Python must decide; then nothing was changed.

        Raises:
            LockBusyError: a lock is held by a stopped process.
        """

    def close(self) -> None:
        """Give up the sockets."""
