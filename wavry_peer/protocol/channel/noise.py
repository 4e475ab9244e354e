"""Noise_XX_25519_ChaChaPoly_BLAKE2s (Noise Protocol Framework, revision 34).

Strategy: the three state objects of the Noise specification, section 5, reduced to the one
pattern and the one cipher suite that Wavry speaks.  The XX pattern is a table of tokens;
`HandshakeState` walks it.  Primitives come from libsodium (pynacl) and `hashlib`.

Two choices beyond the specification:

* A Diffie-Hellman result of all zeros is refused.  XX does not need it for secrecy, but no
  honest peer ever sends such a key.
* `HandshakeState.read_message` changes nothing when it fails, so that a forged message
  cannot destroy a handshake that is under way.

Transport keys come from Split() and from nothing else.  The handshake hash is public:
whoever sees the three messages can compute it (protocol.md section 4).
"""

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Self

from nacl.bindings import (
    crypto_aead_chacha20poly1305_ietf_decrypt,
    crypto_aead_chacha20poly1305_ietf_encrypt,
    crypto_scalarmult,
    crypto_scalarmult_base,
)
from nacl.exceptions import CryptoError

from wavry_peer.protocol.errors import LocalError, ProtocolError

__all__ = [
    "KEY_BYTES",
    "MAX_MESSAGE_BYTES",
    "PROTOCOL_NAME",
    "TAG_BYTES",
    "CipherState",
    "HandshakeError",
    "HandshakeState",
    "KeyPair",
    "SymmetricState",
    "TransportKeys",
    "aead_open",
    "aead_seal",
    "diffie_hellman",
    "rekey",
]

PROTOCOL_NAME: Final = b"Noise_XX_25519_ChaChaPoly_BLAKE2s"
KEY_BYTES: Final = 32
HASH_BYTES: Final = 32
TAG_BYTES: Final = 16
MAX_MESSAGE_BYTES: Final = 65535
"""Noise section 3: no Noise message is longer."""
RESERVED_NONCE: Final = (1 << 64) - 1
"""Noise section 5.1: used by REKEY and never by a message."""

_ZERO_KEY: Final = bytes(KEY_BYTES)
_XX_PATTERN: Final = (("e",), ("e", "ee", "s", "es"), ("s", "se"))


class HandshakeError(ProtocolError):
    """A handshake or transport message from the network that does not fit or is forged."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """An X25519 key pair.

    Attributes:
        private: 32 bytes, never shown by `repr`.
        public: 32 bytes.
    """

    private: bytes = field(repr=False)
    public: bytes

    @classmethod
    def from_private(cls, private: bytes) -> Self:
        """Compute the public half.

        Raises:
            LocalError: `private` is not 32 bytes.
        """
        if len(private) != KEY_BYTES:
            raise LocalError(f"an X25519 private key has {KEY_BYTES} bytes, not {len(private)}")
        return cls(private, crypto_scalarmult_base(private))


@dataclass(frozen=True, slots=True)
class TransportKeys:
    """What Split() gives to one side: 32 bytes to send with, 32 bytes to receive with."""

    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)


def diffie_hellman(private: bytes, public: bytes) -> bytes:
    """Return the X25519 of 32-byte keys.

    Raises:
        HandshakeError: `public` is not 32 bytes, or the result is all zeros (a point of
            small order, which no honest peer sends).
    """
    if len(public) != KEY_BYTES:
        raise HandshakeError("remote public key has the wrong length")
    try:
        shared = crypto_scalarmult(private, public)
    except CryptoError:
        raise HandshakeError("remote public key is a point of small order") from None
    if hmac.compare_digest(shared, _ZERO_KEY):
        raise HandshakeError("remote public key is a point of small order")
    return shared


def aead_seal(key: bytes, counter: int, associated_data: bytes, plaintext: bytes) -> bytes:
    """Encrypt (Noise section 12.3): ChaCha20-Poly1305 with an explicit counter.

    Args:
        key: 32 bytes.
        counter: u64; never twice for one key.  On the cipher's nonce it is 4 zero bytes and
            the counter in little-endian order.
        associated_data: authenticated, not encrypted.
        plaintext: any length.

    Returns:
        The ciphertext, `TAG_BYTES` longer than the plaintext.
    """
    nonce = b"\0\0\0\0" + counter.to_bytes(8, "little")
    return crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, associated_data, nonce, key)


def aead_open(key: bytes, counter: int, associated_data: bytes, ciphertext: bytes) -> bytes:
    """Decrypt (Noise section 12.3): the inverse of `aead_seal`.

    Raises:
        HandshakeError: the ciphertext is shorter than a tag or is not authentic.
    """
    if len(ciphertext) < TAG_BYTES:
        raise HandshakeError("ciphertext is shorter than its tag")
    nonce = b"\0\0\0\0" + counter.to_bytes(8, "little")
    try:
        return crypto_aead_chacha20poly1305_ietf_decrypt(ciphertext, associated_data, nonce, key)
    except CryptoError:
        raise HandshakeError("ciphertext is not authentic") from None


def rekey(key: bytes) -> bytes:
    """Return the next key (REKEY, Noise section 4.2); the old one cannot be computed back."""
    return aead_seal(key, RESERVED_NONCE, b"", _ZERO_KEY)[:KEY_BYTES]


def _hkdf(chaining_key: bytes, input_key: bytes) -> tuple[bytes, bytes]:
    temporary = hmac.digest(chaining_key, input_key, "blake2s")
    first = hmac.digest(temporary, b"\x01", "blake2s")
    return first, hmac.digest(temporary, first + b"\x02", "blake2s")


class CipherState:
    """Noise section 5.1: a key and the implicit nonce of the next message.

    Without a key it passes data through unchanged, as the specification wants.
    """

    __slots__ = ("key", "nonce")

    def __init__(self, key: bytes | None = None) -> None:
        self.key = key
        self.nonce = 0

    def clone(self) -> "CipherState":
        """Return a copy that goes its own way."""
        twin = CipherState(self.key)
        twin.nonce = self.nonce
        return twin

    def encrypt_with_ad(self, associated_data: bytes, plaintext: bytes) -> bytes:
        """Encrypt with the next nonce.

        Raises:
            LocalError: the nonces of this key are used up.
        """
        if self.key is None:
            return plaintext
        if self.nonce == RESERVED_NONCE:
            raise LocalError("nonces of this key are used up: rekey earlier")
        ciphertext = aead_seal(self.key, self.nonce, associated_data, plaintext)
        self.nonce += 1
        return ciphertext

    def decrypt_with_ad(self, associated_data: bytes, ciphertext: bytes) -> bytes:
        """Decrypt with the next nonce; on failure the nonce stays.

        Raises:
            HandshakeError: not authentic.
            LocalError: the nonces of this key are used up.
        """
        if self.key is None:
            return ciphertext
        if self.nonce == RESERVED_NONCE:
            raise LocalError("nonces of this key are used up: rekey earlier")
        plaintext = aead_open(self.key, self.nonce, associated_data, ciphertext)
        self.nonce += 1
        return plaintext

    def rekey(self) -> None:
        """Replace the key by REKEY of it; the nonce goes on."""
        if self.key is not None:
            self.key = rekey(self.key)


class SymmetricState:
    """Noise section 5.2: chaining key, handshake hash and the cipher of the handshake."""

    __slots__ = ("chaining_key", "cipher", "handshake_hash")

    def __init__(self, protocol_name: bytes = PROTOCOL_NAME) -> None:
        if len(protocol_name) <= HASH_BYTES:
            self.handshake_hash = protocol_name.ljust(HASH_BYTES, b"\0")
        else:
            self.handshake_hash = hashlib.blake2s(protocol_name).digest()
        self.chaining_key = self.handshake_hash
        self.cipher = CipherState()

    def clone(self) -> "SymmetricState":
        """Return a copy that goes its own way."""
        twin = SymmetricState.__new__(SymmetricState)
        twin.handshake_hash = self.handshake_hash
        twin.chaining_key = self.chaining_key
        twin.cipher = self.cipher.clone()
        return twin

    def mix_key(self, input_key: bytes) -> None:
        """Feed a Diffie-Hellman result into the chaining key and take a new cipher key."""
        self.chaining_key, key = _hkdf(self.chaining_key, input_key)
        self.cipher = CipherState(key)

    def mix_hash(self, data: bytes) -> None:
        """Bind `data` into the handshake hash."""
        self.handshake_hash = hashlib.blake2s(self.handshake_hash + data).digest()

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        """Encrypt (once there is a key) and bind the ciphertext into the hash."""
        ciphertext = self.cipher.encrypt_with_ad(self.handshake_hash, plaintext)
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt_and_hash(self, ciphertext: bytes) -> bytes:
        """Decrypt what `encrypt_and_hash` gave.

        Raises:
            HandshakeError: not authentic.
        """
        plaintext = self.cipher.decrypt_with_ad(self.handshake_hash, ciphertext)
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """Return two transport keys: initiator to responder, responder to initiator."""
        return _hkdf(self.chaining_key, b"")


class HandshakeState:
    """One XX handshake of one side (Noise section 5.3).

    Messages alternate and the initiator writes first: `write_message`, `read_message`,
    `write_message`; then `split`.

    Attributes:
        remote_static: the other side's public key once its message authenticated it.
        remote_ephemeral: the other side's ephemeral public key.
    """

    def __init__(
        self,
        *,
        initiator: bool,
        static: KeyPair,
        generate_ephemeral: Callable[[], bytes],
        prologue: bytes = b"",
    ) -> None:
        """Begin a handshake.

        Args:
            initiator: True on the side that writes the first message.
            static: own long-term key pair.
            generate_ephemeral: gives 32 fresh secret bytes; called once.
            prologue: bytes that both sides must hold equal, or the handshake fails.
        """
        self._initiator = initiator
        self._static = static
        self._generate_ephemeral = generate_ephemeral
        self._ephemeral: KeyPair | None = None
        self._symmetric = SymmetricState()
        self._symmetric.mix_hash(prologue)
        self._position = 0
        self.remote_static: bytes | None = None
        self.remote_ephemeral: bytes | None = None

    @property
    def is_complete(self) -> bool:
        """True after the third message."""
        return self._position == len(_XX_PATTERN)

    @property
    def handshake_hash(self) -> bytes:
        """32 bytes that name this handshake.  Public: a channel binding, never a key."""
        return self._symmetric.handshake_hash

    def clone(self) -> "HandshakeState":
        """Return a copy that goes its own way, for a message that may yet be refused."""
        twin = HandshakeState.__new__(HandshakeState)
        twin.__dict__.update(self.__dict__, _symmetric=self._symmetric.clone())
        return twin

    def write_message(self, payload: bytes = b"") -> bytes:
        """Return the next message of this side, with `payload` inside.

        The payload of message 1 travels in the clear; that of message 2 is secret to
        whoever holds the initiator's ephemeral key; that of message 3 is fully protected.

        Raises:
            LocalError: it is the other side's turn, the handshake is complete, or the
                message would be longer than `MAX_MESSAGE_BYTES`.
            HandshakeError: the remote key gives an all-zero Diffie-Hellman result.
        """
        symmetric = self._symmetric
        message = bytearray()
        for step in self._take_turn(writing=True):
            if step == "e":
                if self._ephemeral is None:
                    self._ephemeral = KeyPair.from_private(self._generate_ephemeral())
                message += self._ephemeral.public
                symmetric.mix_hash(self._ephemeral.public)
            elif step == "s":
                message += symmetric.encrypt_and_hash(self._static.public)
            else:
                symmetric.mix_key(self._mix_of(step))
        message += symmetric.encrypt_and_hash(payload)
        if len(message) > MAX_MESSAGE_BYTES:
            raise LocalError(f"a Noise message has at most {MAX_MESSAGE_BYTES} bytes")
        self._position += 1
        return bytes(message)

    def read_message(self, message: bytes) -> bytes:
        """Read the other side's next message and return its payload.

        Raises:
            HandshakeError: too short, too long, forged, or with a key of small order.  The
                state is then as it was before the call.
            LocalError: it is this side's turn, or the handshake is complete.
        """
        tokens = self._take_turn(writing=False)
        before = (self._symmetric.clone(), self.remote_static, self.remote_ephemeral)
        try:
            payload = self._read(tokens, message)
        except HandshakeError:
            self._symmetric, self.remote_static, self.remote_ephemeral = before
            raise
        self._position += 1
        return payload

    def split(self) -> TransportKeys:
        """Return the transport keys of the finished handshake.

        Raises:
            LocalError: the handshake is not complete.
        """
        if not self.is_complete:
            raise LocalError("split needs a complete handshake")
        to_responder, to_initiator = self._symmetric.split()
        if self._initiator:
            return TransportKeys(send=to_responder, receive=to_initiator)
        return TransportKeys(send=to_initiator, receive=to_responder)

    def _take_turn(self, *, writing: bool) -> tuple[str, ...]:
        if self.is_complete:
            raise LocalError("the handshake is complete: use the transport keys")
        if writing != ((self._position % 2 == 0) == self._initiator):
            raise LocalError("it is the other side's turn in this handshake")
        return _XX_PATTERN[self._position]

    def _read(self, tokens: tuple[str, ...], message: bytes) -> bytes:
        if len(message) > MAX_MESSAGE_BYTES:
            raise HandshakeError("handshake message is too long")
        symmetric = self._symmetric
        rest = message
        for step in tokens:
            if step == "e":
                key, rest = _take(rest, KEY_BYTES)
                self.remote_ephemeral = key
                symmetric.mix_hash(key)
            elif step == "s":
                sealed, rest = _take(rest, KEY_BYTES + TAG_BYTES)
                self.remote_static = symmetric.decrypt_and_hash(sealed)
            else:
                symmetric.mix_key(self._mix_of(step))
        return symmetric.decrypt_and_hash(rest)

    def _mix_of(self, step: str) -> bytes:
        # The first letter names the initiator's key, the second the responder's.
        local, remote = (step[0], step[1]) if self._initiator else (step[1], step[0])
        pair = self._ephemeral if local == "e" else self._static
        public = self.remote_ephemeral if remote == "e" else self.remote_static
        if pair is None or public is None:
            raise LocalError("the pattern asks for a key that is not there yet")
        return diffie_hellman(pair.private, public)


def _take(data: bytes, length: int) -> tuple[bytes, bytes]:
    if len(data) < length:
        raise HandshakeError("handshake message is too short")
    return data[:length], data[length:]
