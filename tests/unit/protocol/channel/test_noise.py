"""Noise XX: published vectors, a second implementation, and what is refused."""

import json
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wavry_peer.protocol.channel.noise import (
    CipherState,
    HandshakeError,
    HandshakeState,
    KeyPair,
    aead_open,
    aead_seal,
    diffie_hellman,
    rekey,
)
from wavry_peer.protocol.errors import LocalError, ProtocolError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from noise.connection import Keypair, NoiseConnection

VECTORS = json.loads((Path(__file__).parent / "vectors" / "noise_xx.json").read_text())["vectors"]
NAME = b"Noise_XX_25519_ChaChaPoly_BLAKE2s"
STATIC = {True: KeyPair.from_private(b"\x01" * 32), False: KeyPair.from_private(b"\x02" * 32)}
EPHEMERAL = {True: b"\x03" * 32, False: b"\x04" * 32}


def make_state(initiator: bool, prologue: bytes = b"p") -> HandshakeState:
    return HandshakeState(
        initiator=initiator,
        static=STATIC[initiator],
        generate_ephemeral=lambda: EPHEMERAL[initiator],
        prologue=prologue,
    )


def complete(initiator: HandshakeState, responder: HandshakeState) -> None:
    for writer, reader in [(initiator, responder), (responder, initiator), (initiator, responder)]:
        reader.read_message(writer.write_message())


@pytest.mark.parametrize("vector", VECTORS, ids=[v["origin"] for v in VECTORS])
def test_published_vector(vector: dict) -> None:
    assert vector["protocol_name"].encode() == NAME
    states = [
        HandshakeState(
            initiator=side == "init",
            static=KeyPair.from_private(bytes.fromhex(vector[f"{side}_static"])),
            generate_ephemeral=lambda side=side: bytes.fromhex(vector[f"{side}_ephemeral"]),
            prologue=bytes.fromhex(vector[f"{side}_prologue"]),
        )
        for side in ("init", "resp")
    ]
    handshake, transport = vector["messages"][:3], vector["messages"][3:]
    for index, message in enumerate(handshake):
        writer, reader = states[index % 2], states[1 - index % 2]
        written = writer.write_message(bytes.fromhex(message["payload"]))
        assert written.hex() == message["ciphertext"]
        assert reader.read_message(written).hex() == message["payload"]
    assert states[0].handshake_hash == states[1].handshake_hash
    if "handshake_hash" in vector:
        assert states[0].handshake_hash.hex() == vector["handshake_hash"]
    assert (
        states[0].remote_static == KeyPair.from_private(bytes.fromhex(vector["resp_static"])).public
    )
    assert (
        states[1].remote_static == KeyPair.from_private(bytes.fromhex(vector["init_static"])).public
    )

    keys = [state.split() for state in states]
    senders = [CipherState(keys[0].send), CipherState(keys[1].send)]
    receivers = [CipherState(keys[0].receive), CipherState(keys[1].receive)]
    first = 1 if vector["origin"].startswith("snow") else 0
    for index, message in enumerate(transport, start=first):
        sealed = senders[index % 2].encrypt_with_ad(b"", bytes.fromhex(message["payload"]))
        assert sealed.hex() == message["ciphertext"]
        assert receivers[1 - index % 2].decrypt_with_ad(b"", sealed).hex() == message["payload"]


def test_the_vectors_are_from_three_sources_and_cover_transport() -> None:
    assert len({v["origin"] for v in VECTORS}) == 3
    assert any("handshake_hash" in v for v in VECTORS)
    assert any(len(v["messages"]) > 3 for v in VECTORS)


@pytest.mark.parametrize("we_initiate", [True, False])
@pytest.mark.parametrize("prologue", [b"", b"wavry" * 20])
def test_interoperates_with_noiseprotocol(we_initiate: bool, prologue: bytes) -> None:
    ours = make_state(we_initiate, prologue)
    theirs = NoiseConnection.from_name(NAME)
    if we_initiate:
        theirs.set_as_responder()
    else:
        theirs.set_as_initiator()
    theirs.set_keypair_from_private_bytes(Keypair.STATIC, STATIC[not we_initiate].private)
    theirs.set_prologue(prologue)
    theirs.start_handshake()

    for index in range(3):
        payload = b"payload %d" % index
        if (index % 2 == 0) == we_initiate:
            assert bytes(theirs.read_message(ours.write_message(payload))) == payload
        else:
            assert ours.read_message(bytes(theirs.write_message(payload))) == payload

    assert ours.is_complete
    assert ours.remote_static == STATIC[not we_initiate].public
    assert ours.handshake_hash == theirs.get_handshake_hash()
    keys = ours.split()
    sending, receiving = CipherState(keys.send), CipherState(keys.receive)
    for index in range(3):
        if index == 2:
            sending.rekey()
            receiving.rekey()
            theirs.rekey_inbound_cipher()
            theirs.rekey_outbound_cipher()
        assert bytes(theirs.decrypt(sending.encrypt_with_ad(b"", b"to you"))) == b"to you"
        assert receiving.decrypt_with_ad(b"", bytes(theirs.encrypt(b"to me"))) == b"to me"


@given(position=st.integers(0, 2), data=st.data())
def test_a_changed_message_is_refused_and_changes_nothing(
    position: int, data: st.DataObject
) -> None:
    initiator, responder = make_state(True), make_state(False)
    for index in range(3):
        writer, reader = (initiator, responder) if index % 2 == 0 else (responder, initiator)
        message = writer.write_message(b"x")
        if index == position and index > 0:  # Message 1 has nothing that authenticates it yet.
            bit = data.draw(st.integers(0, len(message) * 8 - 1))
            forged = bytearray(message)
            forged[bit // 8] ^= 1 << bit % 8
            before = reader.handshake_hash, reader.remote_static, reader.remote_ephemeral
            with pytest.raises(HandshakeError):
                reader.read_message(bytes(forged))
            assert (reader.handshake_hash, reader.remote_static, reader.remote_ephemeral) == before
        reader.read_message(message)
    assert initiator.split().send == responder.split().receive


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("length", [0, 1, 31, 32, 47, 48, 63])
def test_a_short_message_is_refused(index: int, length: int) -> None:
    initiator, responder = make_state(True), make_state(False)
    for step in range(3):
        writer, reader = (initiator, responder) if step % 2 == 0 else (responder, initiator)
        message = writer.write_message(b"")
        if step == index and length < len(message):
            with pytest.raises(HandshakeError):
                reader.read_message(message[:length])
        reader.read_message(message)


def test_a_message_beyond_65535_bytes_is_refused() -> None:
    with pytest.raises(LocalError):
        make_state(True).write_message(bytes(65535))
    with pytest.raises(HandshakeError):
        make_state(False).read_message(bytes(range(32)) + bytes(65535))


SMALL_ORDER_POINTS = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]
"""RFC 7748 section 6.1 (all-zero outputs) and the known points of small order on Curve25519."""


@pytest.mark.parametrize("point", SMALL_ORDER_POINTS)
def test_a_key_of_small_order_is_refused(point: bytes) -> None:
    with pytest.raises(HandshakeError):
        diffie_hellman(b"\x05" * 32, point)
    responder = make_state(False)
    responder.read_message(point)
    with pytest.raises(HandshakeError):
        responder.write_message()


def test_an_all_zero_result_is_refused_even_if_the_library_gives_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "wavry_peer.protocol.channel.noise.crypto_scalarmult", lambda n, p: bytes(32)
    )
    with pytest.raises(HandshakeError):
        diffie_hellman(b"\x05" * 32, b"\x09" + bytes(31))


def test_another_prologue_is_refused() -> None:
    initiator, responder = make_state(True, b"session a"), make_state(False, b"session b")
    responder.read_message(initiator.write_message())
    with pytest.raises(HandshakeError):
        initiator.read_message(responder.write_message())


def test_a_clone_goes_its_own_way() -> None:
    initiator, responder = make_state(True), make_state(False)
    responder.read_message(initiator.write_message())
    twin = initiator.clone()
    twin.read_message(responder.write_message())
    assert initiator.remote_static is None
    assert twin.remote_static == STATIC[False].public


def test_misuse_is_a_local_error() -> None:
    initiator, responder = make_state(True), make_state(False)
    for misuse in (responder.write_message, lambda: initiator.read_message(bytes(32))):
        with pytest.raises(LocalError):
            misuse()
    with pytest.raises(LocalError):
        initiator.split()
    complete(initiator, responder)
    with pytest.raises(LocalError):
        initiator.write_message()
    with pytest.raises(LocalError):
        KeyPair.from_private(bytes(31))
    assert issubclass(HandshakeError, ProtocolError)


def test_no_secret_in_repr() -> None:
    initiator, responder = make_state(True), make_state(False)
    complete(initiator, responder)
    keys = initiator.split()
    text = repr(STATIC[True]) + repr(keys)
    for secret in (STATIC[True].private, keys.send, keys.receive):
        assert repr(secret)[2:-1] not in text


def test_the_reserved_nonce_is_never_used() -> None:
    cipher = CipherState(b"k" * 32)
    cipher.nonce = (1 << 64) - 2
    cipher.encrypt_with_ad(b"", b"last")
    with pytest.raises(LocalError):
        cipher.encrypt_with_ad(b"", b"one too many")
    with pytest.raises(LocalError):
        cipher.decrypt_with_ad(b"", bytes(16))


def test_a_failed_decryption_keeps_the_nonce() -> None:
    sender, receiver = CipherState(b"k" * 32), CipherState(b"k" * 32)
    sealed = sender.encrypt_with_ad(b"ad", b"data")
    for bad in (b"", sealed[:15], sealed[:-1] + bytes([sealed[-1] ^ 1])):
        with pytest.raises(HandshakeError):
            receiver.decrypt_with_ad(b"ad", bad)
    assert receiver.decrypt_with_ad(b"ad", sealed) == b"data"


def test_rfc_8439_aead_vector() -> None:
    # RFC 8439 section 2.8.2 has a nonce that no Noise counter gives; A.5 (nonce 00000000
    # 0102030405060708) does: the counter is 0x0807060504030201.
    key = bytes.fromhex("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0")
    ad = bytes.fromhex("f33388860000000000004e91")
    sealed = aead_seal(key, 0x0807060504030201, ad, b"Internet-Drafts")
    assert sealed[:15] == bytes.fromhex("64a0861575861af460f062c79be643")
    assert aead_open(key, 0x0807060504030201, ad, sealed) == b"Internet-Drafts"


def test_rekey_is_one_way_and_differs() -> None:
    first = b"k" * 32
    assert len({first, rekey(first), rekey(rekey(first))}) == 3
