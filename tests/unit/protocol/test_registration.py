"""Proof of a relay's identity at registration."""

from hypothesis import given, settings
from hypothesis import strategies as st

from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.registration import sign_challenge, verify_challenge

RELAY = SigningKey.from_seed(b"r" * 32)
OTHER = SigningKey.from_seed(b"o" * 32)


@settings(deadline=None, max_examples=30)
@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32))
def test_only_this_key_and_this_challenge(challenge: bytes, another: bytes) -> None:
    signature = sign_challenge(RELAY, challenge)
    assert verify_challenge(RELAY.public_key, challenge, signature)
    assert verify_challenge(RELAY.public_key, another, signature) == (challenge == another)
    assert not verify_challenge(OTHER.public_key, challenge, signature)


def test_the_label_keeps_other_signatures_of_the_key_out() -> None:
    challenge = bytes(range(32))
    assert not verify_challenge(RELAY.public_key, challenge, RELAY.sign(challenge))
    assert sign_challenge(RELAY, challenge) == RELAY.sign(b"wavry-relay-register-v1" + challenge)


def test_wrong_sizes_are_a_plain_no() -> None:
    signature = sign_challenge(RELAY, bytes(32))
    assert not verify_challenge(b"", bytes(32), signature)
    assert not verify_challenge(RELAY.public_key, bytes(32), b"")
    assert not verify_challenge(RELAY.public_key, bytes(32), signature[:63])
