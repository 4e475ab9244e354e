"""Ed25519: published vectors, no malleability, no weak keys, no secret in a repr."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavry_peer.protocol import ed25519
from wavry_peer.protocol.ed25519 import SigningKey, verify
from wavry_peer.protocol.errors import LocalError

# RFC 8032 section 7.1, TEST 1 to TEST 3: seed, public key, message, signature.
RFC_8032 = [
    (
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        (
            "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
            "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
        ),
    ),
    (
        "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        (
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
            "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
        ),
    ),
    (
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        (
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
            "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
        ),
    ),
]
KEY = SigningKey.from_seed(b"k" * 32)
ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_published_vectors(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey.from_seed(bytes.fromhex(seed))
    assert key.public_key.hex() == public
    assert key.seed.hex() == seed
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert verify(key.public_key, bytes.fromhex(message), bytes.fromhex(signature))


@settings(deadline=None, max_examples=50)
@given(st.binary(min_size=32, max_size=32), st.binary(max_size=300), st.integers(0, 511))
def test_signatures_verify_and_changed_ones_do_not(seed: bytes, message: bytes, bit: int) -> None:
    key = SigningKey.from_seed(seed)
    signature = key.sign(message)
    assert len(signature) == ed25519.SIGNATURE_BYTES
    assert verify(key.public_key, message, signature)
    assert not verify(key.public_key, message + b"\0", signature)
    changed = bytearray(signature)
    changed[bit // 8] ^= 1 << bit % 8
    assert not verify(key.public_key, message, bytes(changed))


def test_the_second_form_of_a_signature_is_refused() -> None:
    """S + L verifies in careless implementations; one token must have one signature."""
    signature = KEY.sign(b"message")
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    assert not verify(KEY.public_key, b"message", signature[:32] + scalar.to_bytes(32, "little"))


def test_a_public_key_of_small_order_verifies_nothing() -> None:
    """With the neutral element as key, R = [S]B would "sign" every message."""
    neutral = b"\1" + bytes(31)
    for key in (neutral, bytes(32)):
        assert not verify(key, b"any message", neutral + bytes(32))


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_wrong_sizes_do_not_verify(size: int) -> None:
    signature = KEY.sign(b"m")
    assert not verify(bytes(size), b"m", signature)
    assert not verify((KEY.public_key * 2)[:size], b"m", signature)
    if size != 64:
        assert not verify(KEY.public_key, b"m", signature[:size])
    assert not verify(KEY.public_key, b"m", signature + bytes(1))


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_seed_has_32_bytes(size: int) -> None:
    with pytest.raises(LocalError, match="32 bytes") as caught:
        SigningKey.from_seed(b"s" * size)
    assert "ssss" not in str(caught.value)


def test_repr_shows_the_public_key_only() -> None:
    key = SigningKey.from_seed(b"the seed of a key, quite secret!")
    for text in (repr(key), str(key), f"{key}", repr([key])):
        assert repr(key.public_key) in text
        assert "secret" not in text
        assert repr(key.seed)[2:-1] not in text


def test_a_key_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KEY.public_key = b""  # type: ignore[misc]
