"""What a relay signs at registration: every part of it counts."""

from hypothesis import given
from hypothesis import strategies as st

from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.registration import sign_registration, verify_registration

RELAY = SigningKey.from_seed(b"r" * 32)
OTHER = SigningKey.from_seed(b"o" * 32)
MASTER = b"m" * 32
claims = st.tuples(
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.lists(st.sampled_from(["192.0.2.1:1", "192.0.2.1:12", "[2001:db8::1]:1"]), max_size=3),
)


@given(claims, claims)
def test_only_this_key_challenge_master_and_these_endpoints(claim, another):
    signature = sign_registration(RELAY, *claim)
    assert verify_registration(RELAY.public_key, signature, *claim)
    assert verify_registration(RELAY.public_key, signature, *another) == (claim == another)
    assert not verify_registration(OTHER.public_key, signature, *claim)


def test_pieces_do_not_run_into_each_other():
    signature = sign_registration(RELAY, b"c" * 32, MASTER, ["192.0.2.1:12", "3"])
    assert not verify_registration(
        RELAY.public_key, signature, b"c" * 32, MASTER, ["192.0.2.1:1", "23"]
    )


def test_a_bare_signature_of_the_challenge_is_not_enough():
    challenge = b"c" * 32
    assert not verify_registration(
        RELAY.public_key, RELAY.sign(challenge), challenge, MASTER, ["192.0.2.1:1"]
    )
