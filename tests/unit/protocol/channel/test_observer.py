"""Whoever sees the whole handshake, and only that, cannot decrypt (protocol.md section 4).

The same observer is let loose on deliberately broken key derivations, the one of the v1 field
implementation among them, to show that this test can fail.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterator

import pytest
from support.protocol.fakelink import SECOND, SESSION_ID, FakeLink

from wavry_peer.protocol.channel.noise import (
    HandshakeError,
    HandshakeState,
    TransportKeys,
    aead_open,
    rekey,
)
from wavry_peer.protocol.channel.wire import PROLOGUE_LABEL, ChannelKind
from wavry_peer.protocol.constants import Role

NAME = b"Noise_XX_25519_ChaChaPoly_BLAKE2s"
SECRET = b"the observer must not read this"
LABELS = [
    b"",
    b"client_to_server",
    b"server_to_client",
    b"c2s",
    b"s2c",
    b"initiator",
    b"responder",
    b"wavry",
    b"key",
    b"\x01",
    b"\x02",
]


def hkdf(hash_name: str, salt: bytes, material: bytes, info: bytes = b"") -> list[bytes]:
    """RFC 5869 / Noise HKDF: three blocks of 32 bytes."""
    secret = hmac.digest(salt, material, hash_name)
    blocks, block = [], b""
    for index in (1, 2, 3):
        block = hmac.digest(secret, block + info + bytes([index]), hash_name)
        blocks.append(block)
    return blocks


def public_handshake_hash(wire: list[tuple[Role, bytes]]) -> bytes:
    """The handshake hash, from recorded packets alone."""
    messages = {kind: next(body for _, body in wire if body[8] == kind)[9:] for kind in (1, 2, 3)}
    message_3 = messages[3][32:]  # our packet repeats the ephemeral key in front
    parts = [
        PROLOGUE_LABEL + SESSION_ID,
        messages[1][:32],
        messages[1][32:],
        messages[2][:32],
        messages[2][32:80],
        messages[2][80:],
        message_3[:48],
        message_3[48:],
    ]
    value = hashlib.blake2s(NAME).digest()
    for part in parts:
        value = hashlib.blake2s(value + part).digest()
    return value


def guesses(handshake_hash: bytes) -> Iterator[bytes]:
    """Every key that follows from public values by an obvious derivation."""
    first_chaining_key = hashlib.blake2s(NAME).digest()
    yield handshake_hash
    yield first_chaining_key
    for label in LABELS:
        for hash_name in ("blake2s", "sha256"):
            yield hashlib.new(hash_name, handshake_hash + label).digest()
            yield hashlib.new(hash_name, label + handshake_hash).digest()
            yield hmac.digest(handshake_hash, label, hash_name)
            yield hmac.digest(label, handshake_hash, hash_name)
            for salt in (b"", bytes(32), label, NAME, first_chaining_key, SESSION_ID):
                yield from hkdf(hash_name, salt, handshake_hash, label)
            yield from hkdf(hash_name, handshake_hash, label)
            yield from hkdf(hash_name, handshake_hash, first_chaining_key, label)


def observer_reads(wire: list[tuple[Role, bytes]]) -> set[bytes]:
    """What the observer can decrypt of the recorded transport packets."""
    read = set()
    keys = set(guesses(public_handshake_hash(wire)))
    keys |= {rekey(key) for key in keys}
    for body in [body for _, body in wire if body[8] == ChannelKind.DATA]:
        for key in keys:
            try:
                read.add(aead_open(key, int.from_bytes(body[:8], "big"), body[:11], body[11:]))
            except HandshakeError:
                continue
    return read


def from_the_hash(derive: Callable[[bytes], tuple[bytes, bytes]]) -> Callable[..., TransportKeys]:
    """A broken split() that takes its keys from the handshake hash."""

    def split(state: HandshakeState) -> TransportKeys:
        to_responder, to_initiator = derive(state.handshake_hash)
        if state._initiator:
            return TransportKeys(to_responder, to_initiator)
        return TransportKeys(to_initiator, to_responder)

    return split


def labelled_blake2s(value: bytes) -> tuple[bytes, bytes]:
    return (
        hashlib.blake2s(value + b"client_to_server").digest(),
        hashlib.blake2s(value + b"server_to_client").digest(),
    )


BROKEN = {
    "hkdf-blake2s": lambda value: tuple(hkdf("blake2s", value, b"")[:2]),
    "hkdf-sha256": lambda value: tuple(hkdf("sha256", b"", value, b"key")[:2]),
    "labelled": labelled_blake2s,
    "same-key": lambda value: (value, value),
    "chaining-key-without-dh": lambda value: tuple(
        hkdf("blake2s", hashlib.blake2s(NAME).digest(), value)[:2]
    ),
}


def talk() -> FakeLink:
    link = FakeLink.pair().establish()
    for role in Role:
        link.send(role, SECRET)
    link.run(SECOND)
    assert link.received(Role.CLIENT) == link.received(Role.SERVER) == [SECRET]
    return link


def test_an_observer_of_all_three_messages_reads_nothing() -> None:
    assert observer_reads(talk().wire) == set()


@pytest.mark.parametrize("derive", BROKEN.values(), ids=BROKEN.keys())
def test_the_observer_reads_keys_that_come_from_the_hash(
    derive: Callable[[bytes], tuple[bytes, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HandshakeState, "split", from_the_hash(derive))
    assert observer_reads(talk().wire) == {SECRET}


def test_the_handshake_hash_is_public_and_the_keys_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[bytes, TransportKeys]] = []
    genuine = HandshakeState.split

    def recording_split(state: HandshakeState) -> TransportKeys:
        keys = genuine(state)
        seen.append((state.handshake_hash, keys))
        return keys

    monkeypatch.setattr(HandshakeState, "split", recording_split)
    wire = talk().wire
    assert len(seen) == 2
    guessed = set(guesses(public_handshake_hash(wire)))
    for handshake_hash, keys in seen:
        assert handshake_hash == public_handshake_hash(wire)
        assert not {keys.send, keys.receive} & guessed
        assert keys.send != keys.receive
