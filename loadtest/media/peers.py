"""One end of a stream of media over a relay: as it is, or inside the end-to-end channel."""

import os
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from gevent.event import Event

from loadtest.run.load_run import LoadFailure, now_ns
from loadtest.users.relay_channel import RelayChannel
from wavry_peer.home.identity import Identity
from wavry_peer.paths.own_lease import OwnLease
from wavry_peer.protocol.channel.channel import Channel
from wavry_peer.protocol.channel.events import (
    ChannelClosed,
    ChannelFailed,
    DataReceived,
    HandshakeCompleted,
)
from wavry_peer.protocol.constants import FORWARD_SEQUENCE_BYTES, Role

__all__ = ["MediaPeer", "PlainPeer", "SecurePeer"]

_HANDSHAKE_TURN_S: Final = 0.05


def _ignore(_payload: bytes, _now_ns: int) -> None:
    """Drop payloads that come before anybody asked for them."""


class MediaPeer(Protocol):
    """One end of a stream.

    Attributes:
        channel: to the relay.
        on_payload: called in the event loop with each datagram of the other end and the time.
    """

    channel: RelayChannel
    on_payload: Callable[[bytes, int], None]

    def send(self, payloads: Iterable[bytes]) -> None:
        """Send datagrams to the other end."""

    def tick(self) -> None:
        """Do what is due."""

    def failure(self) -> str | None:
        """Return why nothing can be sent any more, or None."""

    def close(self) -> None:
        """End this end."""


class PlainPeer:
    """FORWARD bodies of a sequence and a payload: what a relay sees, without the encryption.

    Args:
        address: of the relay.
        session_id: 16 bytes.
        role: our slot.
        lease: ours.
        identity: that the lease is bound to.
    """

    def __init__(
        self, address: str, *, session_id: bytes, role: Role, lease: OwnLease, identity: Identity
    ) -> None:
        self.on_payload: Callable[[bytes, int], None] = _ignore
        self._sequence = 0
        self.channel = RelayChannel(
            address,
            session_id=session_id,
            role=role,
            lease=lease,
            signing=identity.signing,
            on_body=self._on_body,
        )

    def send(self, payloads: Iterable[bytes]) -> None:
        """Send datagrams to the other end."""
        self.channel.send(self._numbered(payload) for payload in payloads)

    def tick(self) -> None:
        """Do what is due."""
        self.channel.tick()

    def failure(self) -> str | None:
        """Return why nothing can be sent any more, or None."""
        return self.channel.failure

    def close(self) -> None:
        """Give the place at the relay back."""
        self.channel.close()

    def _numbered(self, payload: bytes) -> bytes:
        self._sequence += 1
        return self._sequence.to_bytes(FORWARD_SEQUENCE_BYTES, "big") + payload

    def _on_body(self, body: bytes, now: int) -> None:
        self.on_payload(body[FORWARD_SEQUENCE_BYTES:], now)


class SecurePeer:
    """The end-to-end channel of a real session: Noise handshake, encrypted datagrams.

    Args:
        address: of the relay.
        session_id: 16 bytes.
        role: our slot; the client begins the handshake.
        lease: ours.
        identity: of this peer.
        remote_noise_key: 32 bytes, the key that signaling named for the other peer.
    """

    def __init__(
        self,
        address: str,
        *,
        session_id: bytes,
        role: Role,
        lease: OwnLease,
        identity: Identity,
        remote_noise_key: bytes,
    ) -> None:
        self.on_payload: Callable[[bytes, int], None] = _ignore
        self._failure: str | None = None
        self._established = Event()
        self._secure = Channel(
            role=role,
            session_id=session_id,
            static_private=identity.noise.private,
            verify_remote_static=lambda key: key == remote_noise_key,
            random_bytes=os.urandom,
        )
        self.channel = RelayChannel(
            address,
            session_id=session_id,
            role=role,
            lease=lease,
            signing=identity.signing,
            on_body=self._on_body,
        )

    def shake_hands(self) -> None:
        """Begin the channel and wait until both sides have the keys.

        Raises:
            LoadFailure: the other side did not, or was somebody else.
        """
        self._secure.start(now_ns())
        self._settle()
        while not self._established.wait(_HANDSHAKE_TURN_S):
            self.tick()
            failure = self.failure()
            if failure is not None:
                raise LoadFailure(failure)

    def send(self, payloads: Iterable[bytes]) -> None:
        """Send datagrams to the other end."""
        now = now_ns()
        for payload in payloads:
            self._secure.send(payload, now)
        self._flush()

    def tick(self) -> None:
        """Do what is due."""
        self._secure.handle_timer(now_ns())
        self._settle()
        self.channel.tick()

    def failure(self) -> str | None:
        """Return why nothing can be sent any more, or None."""
        return self._failure or self.channel.failure

    def close(self) -> None:
        """Say goodbye to the other end and give the place at the relay back."""
        self._secure.close(now_ns())
        self._flush()
        self.channel.close()

    def _on_body(self, body: bytes, now: int) -> None:
        self._secure.receive_datagram(body, now)
        self._settle()

    def _settle(self) -> None:
        while (event := self._secure.next_event()) is not None:
            match event:
                case DataReceived():
                    self.on_payload(event.data, now_ns())
                case HandshakeCompleted():
                    self._established.set()
                case ChannelFailed():
                    self._failure = f"handshake failed: {event.reason.value}"
                case ChannelClosed():
                    if event.by_remote:
                        self._failure = "the other peer closed the channel"
        self._flush()

    def _flush(self) -> None:
        bodies = self._secure.datagrams_to_send()
        if bodies:
            self.channel.send(bodies)
