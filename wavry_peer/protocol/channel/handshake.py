"""The two sides of the channel's handshake, without packets, queues or events.

Strategy: only the initiator keeps state and only the initiator retransmits.  The responder
derives its ephemeral key from message 1 and a secret of its own, so it answers every copy of a
message 1 with the same message 2 and remembers nothing; message 3 brings the initiator's
ephemeral key along, which is all it needs to compute the state again.  However many forged
messages 1 arrive, there is no table to fill and no half-open handshake to push out.

The responder's secret is replaced after every completed handshake: forward secrecy within a
process holds from then on, and a recorded handshake cannot be played again.  Late copies of the
completed handshake's messages are recognised by comparison, so that they get the same answers.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from .events import ChannelLimits
from .noise import KEY_BYTES, HandshakeError, HandshakeState, KeyPair, TransportKeys
from .wire import HANDSHAKE_REST_BYTES, INSTANCE_ID_BYTES, MESSAGE_1_PADDING, PROLOGUE_LABEL

__all__ = [
    "Backoff",
    "HandshakeIdentity",
    "HandshakeResult",
    "InitiatorHandshake",
    "ResponderHandshake",
]


@dataclass(frozen=True, slots=True)
class HandshakeIdentity:
    """What one side brings into each of its handshakes.

    Attributes:
        static: own long-term key pair.
        session_id: 16 bytes, bound into the handshake by the prologue.
        instance_id: random name of this process's channel.
        random_bytes: gives that many fresh secret bytes.
    """

    static: KeyPair
    session_id: bytes
    instance_id: bytes
    random_bytes: Callable[[int], bytes] = field(repr=False)

    @property
    def prologue(self) -> bytes:
        """What both sides must agree on before the first byte."""
        return PROLOGUE_LABEL + self.session_id


@dataclass(frozen=True, slots=True)
class HandshakeResult:
    """What a correct handshake gives; whether the peer is the right one is not judged yet.

    Attributes:
        keys: transport keys.
        remote_static: the peer's authenticated public key.
        remote_instance_id: the peer's `HandshakeIdentity.instance_id`.
    """

    keys: TransportKeys = field(repr=False)
    remote_static: bytes
    remote_instance_id: bytes


class Backoff:
    """Times of retransmission: the wait doubles up to a cap.

    Args:
        limits: first wait and cap.
        now_ns: when the message was sent first.

    Attributes:
        due_ns: when to send it again.
    """

    __slots__ = ("_max_ns", "_wait_ns", "due_ns")

    def __init__(self, limits: ChannelLimits, now_ns: int) -> None:
        self._wait_ns = limits.retransmit_initial_ns
        self._max_ns = limits.retransmit_max_ns
        self.due_ns = now_ns + self._wait_ns

    def advance(self, now_ns: int) -> None:
        """Note that it was sent again: wait twice as long, counted from now."""
        self._wait_ns = min(self._wait_ns * 2, self._max_ns)
        self.due_ns = now_ns + self._wait_ns


class InitiatorHandshake:
    """One handshake from the initiator's side; its messages may be sent any number of times.

    Args:
        identity: what this side brings.

    Attributes:
        message_1: rest of the MESSAGE_1 packet.
        message_3: rest of the MESSAGE_3 packet that answers the accepted message 2; None
            before one was accepted.
    """

    def __init__(self, identity: HandshakeIdentity) -> None:
        self._identity = identity
        self._state = HandshakeState(
            initiator=True,
            static=identity.static,
            generate_ephemeral=lambda: identity.random_bytes(KEY_BYTES),
            prologue=identity.prologue,
        )
        self.message_1 = self._state.write_message(MESSAGE_1_PADDING)
        self.message_3: bytes | None = None
        self._accepted_message_2: bytes | None = None

    def is_accepted(self, message_2: bytes) -> bool:
        """Return True for a copy of the message 2 that was accepted."""
        return message_2 == self._accepted_message_2

    def read_message_2(
        self, message_2: bytes, is_right_peer: Callable[[bytes], bool]
    ) -> HandshakeResult | None:
        """Read a message 2; another one may follow, from a responder that was started anew.

        Args:
            message_2: rest of the packet.
            is_right_peer: judges the authenticated static key.

        Returns:
            The result, with `message_3` ready to be sent; None if the message is correct but
            from somebody else.  Then, as after an error, nothing has changed.

        Raises:
            HandshakeError: forged, damaged, or not an answer to `message_1`.
        """
        if len(message_2) != HANDSHAKE_REST_BYTES:
            raise HandshakeError("message 2 has the wrong size")
        state = self._state.clone()
        instance_id = state.read_message(message_2)
        remote_static = state.remote_static
        if remote_static is None or not is_right_peer(remote_static):
            return None
        noise_message_3 = state.write_message(self._identity.instance_id)
        self.message_3 = self.message_1[:KEY_BYTES] + noise_message_3
        self._accepted_message_2 = message_2
        return HandshakeResult(state.split(), remote_static, instance_id)


class ResponderHandshake:
    """All handshakes from the responder's side; holds one secret and no state per handshake.

    Args:
        identity: what this side brings.
    """

    def __init__(self, identity: HandshakeIdentity) -> None:
        self._identity = identity
        self._secret = identity.random_bytes(KEY_BYTES)
        self._settled_message_1: bytes | None = None
        self._settled_message_2 = b""
        self._settled_message_3: bytes | None = None

    def answer_message_1(self, message_1: bytes) -> bytes:
        """Return the rest of the MESSAGE_2 packet that answers a message 1; the same for each copy.

        Raises:
            HandshakeError: wrong size, wrong padding, or a key of small order.
        """
        if len(message_1) != HANDSHAKE_REST_BYTES or message_1[KEY_BYTES:] != MESSAGE_1_PADDING:
            raise HandshakeError("message 1 has the wrong size or padding")
        if message_1 == self._settled_message_1:
            return self._settled_message_2
        return self._after_message_2(message_1)[1]

    def read_message_3(self, message_3: bytes) -> HandshakeResult:
        """Read a message 3 against the current secret.

        Raises:
            HandshakeError: forged, damaged, or of a handshake from before `settle`.
        """
        if len(message_3) != HANDSHAKE_REST_BYTES:
            raise HandshakeError("message 3 has the wrong size")
        state, _ = self._after_message_2(message_3[:KEY_BYTES] + MESSAGE_1_PADDING)
        instance_id = state.read_message(message_3[KEY_BYTES:])
        if state.remote_static is None or len(instance_id) != INSTANCE_ID_BYTES:
            raise HandshakeError("message 3 is incomplete")
        return HandshakeResult(state.split(), state.remote_static, instance_id)

    def is_settled(self, message_3: bytes) -> bool:
        """Return True for a copy of the message 3 that completed the latest handshake."""
        return message_3 == self._settled_message_3

    def settle(self, message_3: bytes) -> None:
        """Note that the handshake which ended with this message 3 counts.

        Replaces the secret: no other handshake begun before can be completed any more.

        Raises:
            HandshakeError: `read_message_3` would not take this message.
        """
        message_1 = message_3[:KEY_BYTES] + MESSAGE_1_PADDING
        self._settled_message_2 = self._after_message_2(message_1)[1]
        self._settled_message_1 = message_1
        self._settled_message_3 = message_3
        self._secret = self._identity.random_bytes(KEY_BYTES)

    def _after_message_2(self, message_1: bytes) -> tuple[HandshakeState, bytes]:
        remote_ephemeral = message_1[:KEY_BYTES]
        state = HandshakeState(
            initiator=False,
            static=self._identity.static,
            generate_ephemeral=lambda: self._ephemeral_for(remote_ephemeral),
            prologue=self._identity.prologue,
        )
        state.read_message(message_1)
        return state, state.write_message(self._identity.instance_id)

    def _ephemeral_for(self, remote_ephemeral: bytes) -> bytes:
        return hashlib.blake2s(remote_ephemeral, key=self._secret, person=b"wavry-re").digest()
