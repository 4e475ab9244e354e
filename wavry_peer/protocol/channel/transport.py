"""Transport keys of a channel: seal, open, rekey, and the change from one handshake to the next.

Strategy: `Transport` is what one handshake gave: a sending key with its epoch, a few receiving
keys by epoch, one replay window over all epochs (sequences never start again).  A sender begins
an epoch by REKEY when the old one is used up; a receiver holds the key of the next epoch ready
and follows when the first packet of it proves authentic.  Then the key before it stays valid
for a while, for packets that were overtaken.  More than one epoch ahead is refused unread: that
needs a silence as long as a whole epoch, which no live path has.

`ChannelKeys` holds up to three of them, so that a new handshake, even a wrong one, never costs the
working keys: `current` for both directions, `candidate` whose other side has not yet shown
that it holds the keys too, and `previous` for packets still on their way.
"""

from enum import Enum

from wavry_peer.protocol.errors import LocalError
from wavry_peer.protocol.replay import ReplayWindow, Verdict

from .events import ChannelLimits, DropReason
from .noise import TAG_BYTES, HandshakeError, TransportKeys, aead_open, aead_seal, rekey
from .wire import MAX_EPOCH, TRANSPORT_HEADER, ChannelKind

__all__ = ["ChannelKeys", "Slot", "Transport"]

_DROP_OF_VERDICT = {
    Verdict.DUPLICATE: DropReason.REPLAYED,
    Verdict.TOO_OLD: DropReason.TOO_OLD,
    Verdict.JUMP_TOO_FAR: DropReason.MALFORMED,
}


class Transport:
    """Keys, epochs and replay window that came from one handshake.

    Args:
        keys: from Split().
        now_ns: begin of the first epoch.
        limits: when to rekey and how long to keep old keys.

    Attributes:
        send_epoch: epoch of the next packet sent.
        receive_epoch: highest epoch of an authentic packet received.
    """

    def __init__(self, keys: TransportKeys, now_ns: int, limits: ChannelLimits) -> None:
        self._limits = limits
        self._send_key = keys.send
        self._sent_in_epoch = 0
        self._send_epoch_began_ns = now_ns
        self.send_epoch = 0
        self._receive_keys = {0: keys.receive, 1: rekey(keys.receive)}
        self.receive_epoch = 0
        self._previous_until_ns: int | None = None
        self._window = ReplayWindow()

    def seal(self, kind: ChannelKind, sequence: int, data: bytes, now_ns: int) -> bytes:
        """Make a complete FORWARD body, in a new epoch if the old one is used up.

        Args:
            kind: a transport kind.
            sequence: never used before with these keys.
            data: content, at most `MAX_DATAGRAM_BYTES` (the caller checks).
            now_ns: time now.

        Raises:
            LocalError: epochs are used up (after 90 years of 12 h each).
        """
        if (
            self._sent_in_epoch >= self._limits.rekey_after_packets
            or now_ns - self._send_epoch_began_ns >= self._limits.rekey_after_ns
        ):
            self._begin_epoch(now_ns)
        self._sent_in_epoch += 1
        header = TRANSPORT_HEADER.pack(sequence, kind, self.send_epoch)
        return header + aead_seal(self._send_key, sequence, header, data)

    def open(self, body: bytes, now_ns: int) -> bytes | DropReason:
        """Authenticate a transport packet and return its content, or why it is dropped.

        Nothing changes unless the packet is authentic.
        """
        if len(body) < TRANSPORT_HEADER.size + TAG_BYTES:
            return DropReason.MALFORMED
        sequence, _, epoch = TRANSPORT_HEADER.unpack_from(body)
        if epoch < self.receive_epoch:
            self.forget_expired(now_ns)
        key = self._receive_keys.get(epoch)
        if key is None:
            return DropReason.EPOCH_OUT_OF_RANGE
        verdict = self._window.check(sequence)
        if verdict is not Verdict.FRESH:
            return _DROP_OF_VERDICT[verdict]
        try:
            data = aead_open(
                key, sequence, body[: TRANSPORT_HEADER.size], body[TRANSPORT_HEADER.size :]
            )
        except HandshakeError:
            return DropReason.UNAUTHENTIC
        self._window.commit(sequence)
        if epoch > self.receive_epoch:
            self._follow_epoch(epoch, now_ns)
        return data

    def get_timer(self) -> int | None:
        """Return when `forget_expired` has something to do, in ns, or None."""
        return self._previous_until_ns

    def forget_expired(self, now_ns: int) -> None:
        """Erase the receiving key of the previous epoch once its time is over."""
        if self._previous_until_ns is not None and now_ns >= self._previous_until_ns:
            self._receive_keys.pop(self.receive_epoch - 1, None)
            self._previous_until_ns = None

    def _begin_epoch(self, now_ns: int) -> None:
        if self.send_epoch == MAX_EPOCH:
            raise LocalError("key epochs are used up: open a new session")
        self._send_key = rekey(self._send_key)
        self.send_epoch += 1
        self._sent_in_epoch = 0
        self._send_epoch_began_ns = now_ns

    def _follow_epoch(self, epoch: int, now_ns: int) -> None:
        keys = self._receive_keys
        self._receive_keys = {epoch - 1: keys[epoch - 1], epoch: keys[epoch]}
        if epoch < MAX_EPOCH:
            self._receive_keys[epoch + 1] = rekey(keys[epoch])
        self.receive_epoch = epoch
        self._previous_until_ns = now_ns + self._limits.previous_keys_ns


class Slot(Enum):
    """Which keys of a `ChannelKeys` opened a packet."""

    CURRENT = "current"
    CANDIDATE = "candidate"
    PREVIOUS = "previous"


class ChannelKeys:
    """The transports of a channel across handshakes.

    Args:
        limits: how long `previous` is kept.

    Attributes:
        current: sends and receives; None before the first handshake.
        candidate: receives; becomes `current` with the first authentic packet.
        previous: receives, until `current` has been in use by the peer for a while.
    """

    def __init__(self, limits: ChannelLimits) -> None:
        self._limits = limits
        self.current: Transport | None = None
        self.candidate: Transport | None = None
        self.previous: Transport | None = None
        self._previous_until_ns: int | None = None

    def install(self, transport: Transport) -> None:
        """Make a transport current; the one before it goes on receiving."""
        self.previous = self.current
        self._previous_until_ns = None
        self.current = transport
        self.candidate = None

    def open(self, body: bytes, now_ns: int) -> tuple[Slot, bytes] | DropReason:
        """Open a packet with whichever keys fit; a candidate that fits is installed.

        Returns:
            The slot whose keys fitted, as it was before, and the content; or the reason
            that the current keys had for refusing it.
        """
        reason: DropReason | None = None
        for slot, transport in (
            (Slot.CURRENT, self.current),
            (Slot.CANDIDATE, self.candidate),
            (Slot.PREVIOUS, self.previous),
        ):
            if transport is None:
                continue
            opened = transport.open(body, now_ns)
            if isinstance(opened, bytes):
                if slot is Slot.CANDIDATE:
                    self.install(transport)
                if slot is not Slot.PREVIOUS:
                    self._start_to_retire_previous(now_ns)
                return slot, opened
            reason = reason or opened
        return reason or DropReason.NO_KEYS

    def get_timer(self) -> int | None:
        """Return when `forget_expired` has something to do, in ns, or None."""
        times_ns = [self._previous_until_ns]
        times_ns += [t.get_timer() for t in (self.current, self.candidate, self.previous) if t]
        return min((t for t in times_ns if t is not None), default=None)

    def forget_expired(self, now_ns: int) -> None:
        """Erase keys whose time is over."""
        if self._previous_until_ns is not None and now_ns >= self._previous_until_ns:
            self.previous = None
            self._previous_until_ns = None
        for transport in (self.current, self.candidate, self.previous):
            if transport is not None:
                transport.forget_expired(now_ns)

    def clear(self) -> None:
        """Erase everything."""
        self.current = self.candidate = self.previous = None
        self._previous_until_ns = None

    def _start_to_retire_previous(self, now_ns: int) -> None:
        # Not earlier: until the peer uses the new keys it may know only the old ones.
        if self.previous is not None and self._previous_until_ns is None:
            self._previous_until_ns = now_ns + self._limits.previous_keys_ns
