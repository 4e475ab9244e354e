"""PASETO v4.public: the published vectors, a second implementation, and one form per token."""

import json
from pathlib import Path
from typing import Any

import pyseto
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavry_peer.protocol import paseto
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.paseto import PasetoError

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "vectors" / "paseto_v4.json").read_text()
)["tests"]
SIGNED = [vector for vector in VECTORS if vector["name"].startswith("4-S-")]
FAILING = [vector for vector in VECTORS if vector["expect-fail"]]
VECTOR_KEY = SigningKey.from_seed(bytes.fromhex(SIGNED[0]["secret-key-seed"]))

KEY = SigningKey.from_seed(b"k" * 32)
SECOND_SECRET = pyseto.Key.from_asymmetric_key_params(4, d=KEY.seed)
SECOND_PUBLIC = pyseto.Key.from_asymmetric_key_params(4, x=KEY.public_key)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

quick = settings(deadline=None, max_examples=60)


def test_the_vector_file_is_the_one_that_was_published() -> None:
    assert [vector["name"] for vector in SIGNED] == ["4-S-1", "4-S-2", "4-S-3"]
    assert [vector["name"] for vector in FAILING] == ["4-F-1", "4-F-2", "4-F-3"]


@pytest.mark.parametrize("vector", SIGNED, ids=lambda vector: vector["name"])
def test_published_vector_signs_to_the_exact_token_and_verifies(vector: dict[str, Any]) -> None:
    key = SigningKey.from_seed(bytes.fromhex(vector["secret-key-seed"]))
    assert key.public_key.hex() == vector["public-key"]
    assert key.secret_key.hex() == vector["secret-key"]
    footer, implicit = vector["footer"].encode(), vector["implicit-assertion"].encode()
    message = vector["payload"].encode()
    token = paseto.sign(message, key, footer=footer, implicit_assertion=implicit)
    assert token == vector["token"]
    parts = paseto.parse(vector["token"])
    assert parts.footer == footer
    assert paseto.verify(parts, key.public_key, implicit_assertion=implicit) == message


@pytest.mark.parametrize("vector", FAILING, ids=lambda vector: vector["name"])
def test_published_failing_vector_is_refused(vector: dict[str, Any]) -> None:
    implicit = vector["implicit-assertion"].encode()
    with pytest.raises(PasetoError):
        paseto.verify(
            paseto.parse(vector["token"]), VECTOR_KEY.public_key, implicit_assertion=implicit
        )


def test_pre_authentication_encoding_of_the_specification() -> None:
    # The worked examples of "PAE definition" in the PASETO specification.
    pae = paseto.pre_authentication_encoding
    assert pae() == bytes(8)
    assert pae(b"") == b"\x01" + bytes(7) + bytes(8)
    assert pae(b"test") == b"\x01" + bytes(7) + b"\x04" + bytes(7) + b"test"


@quick
@given(st.lists(st.binary(max_size=12), max_size=5), st.lists(st.binary(max_size=12), max_size=5))
def test_two_lists_of_pieces_never_share_an_encoding(left: list[bytes], right: list[bytes]) -> None:
    same = paseto.pre_authentication_encoding(*left) == paseto.pre_authentication_encoding(*right)
    assert same == (left == right)


@quick
@given(st.binary(min_size=1), st.binary(max_size=80), st.binary(max_size=80))
def test_ours_signs_and_pyseto_verifies(message: bytes, footer: bytes, implicit: bytes) -> None:
    token = paseto.sign(message, KEY, footer=footer, implicit_assertion=implicit)
    read = pyseto.decode(SECOND_PUBLIC, token, implicit_assertion=implicit)
    assert read.payload == message
    assert read.footer == footer


@quick
@given(st.binary(min_size=1), st.binary(max_size=80), st.binary(max_size=80))
def test_pyseto_signs_and_ours_verifies(message: bytes, footer: bytes, implicit: bytes) -> None:
    token = pyseto.encode(SECOND_SECRET, message, footer=footer, implicit_assertion=implicit)
    parts = paseto.parse(token.decode())
    assert parts.footer == footer
    assert paseto.verify(parts, KEY.public_key, implicit_assertion=implicit) == message


def test_both_implementations_make_the_same_token() -> None:
    theirs = pyseto.encode(SECOND_SECRET, b"claims", footer=b"f", implicit_assertion=b"i")
    assert paseto.sign(b"claims", KEY, footer=b"f", implicit_assertion=b"i") == theirs.decode()


def test_an_empty_message_is_signed_too() -> None:
    parts = paseto.parse(paseto.sign(b"", KEY))
    assert paseto.verify(parts, KEY.public_key) == b""


@pytest.mark.parametrize("implicit", [b"", b"another", b"assertion "])
def test_another_implicit_assertion_does_not_verify(implicit: bytes) -> None:
    parts = paseto.parse(paseto.sign(b"claims", KEY, implicit_assertion=b"assertion"))
    with pytest.raises(PasetoError, match="signature"):
        paseto.verify(parts, KEY.public_key, implicit_assertion=implicit)


def test_footer_cannot_be_taken_away_exchanged_or_added() -> None:
    bare = paseto.sign(b"claims", KEY)
    with_footer = paseto.sign(b"claims", KEY, footer=b"one")
    other_footer = paseto.sign(b"claims", KEY, footer=b"two").rpartition(".")[2]
    body = with_footer.rpartition(".")[0]
    for token in (body, f"{body}.{other_footer}", f"{bare}.{other_footer}"):
        with pytest.raises(PasetoError, match="signature"):
            paseto.verify(paseto.parse(token), KEY.public_key)


@pytest.mark.parametrize("public_key", [b"", KEY.public_key[:31], KEY.public_key + b"\0"])
def test_a_key_of_the_wrong_size_verifies_nothing(public_key: bytes) -> None:
    with pytest.raises(PasetoError, match="signature"):
        paseto.verify(paseto.parse(paseto.sign(b"claims", KEY)), public_key)


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token + "=",
        lambda token: token + "==",
        lambda token: token + ".",
        lambda token: token + ".Zg.Zg",
        lambda token: "." + token,
        lambda token: token.replace("v4.public.", "v4.public.."),
        lambda token: token + "\n",
        lambda token: " " + token,
        lambda token: token[:40] + "\n" + token[40:],
        lambda token: token[:40] + " " + token[40:],
        lambda token: token.replace("v4.public.", "V4.public."),
        lambda token: token.replace("v4.public.", "v4.local."),
        lambda token: token.replace("v4.public.", "v3.public."),
        lambda token: token.replace("v4.public.", "v4.public.+"),
        lambda token: token.replace("v4.public.", "v4.public./"),
        lambda token: token.replace("v4.public.", "v4.public.\N{LATIN SMALL LETTER E WITH ACUTE}"),
        lambda token: token.replace("v4.public.", "v4.public.\N{FULLWIDTH DIGIT ONE}"),
        lambda token: token[:-1] + "\0",
        lambda token: "",
        lambda token: "v4.public.",
        lambda token: "v4.public." + "A" * 84,
    ],
)
def test_what_is_not_exactly_a_token_is_refused(change: Any) -> None:
    token = paseto.sign(b"claims", KEY)
    assert paseto.verify(paseto.parse(token), KEY.public_key) == b"claims"
    with pytest.raises(PasetoError):
        paseto.parse(change(token))


@pytest.mark.parametrize("part", ["body", "footer"])
@pytest.mark.parametrize("size", [1, 2])
def test_set_trailing_bits_are_refused(part: str, size: int) -> None:
    # Two characters stand for one byte and leave 4 bits over, three for two bytes and leave 2.
    # 64 bytes of signature and `message` of these sizes end in such a character.
    message = b"m" * (2 + size if part == "body" else 2)
    footer = b"f" * size
    assert (len(message) + 64) % 3 == (size if part == "body" else 0)
    head, body, footer_text = paseto.sign(message, KEY, footer=footer).rsplit(".", 2)
    text = body if part == "body" else footer_text
    spare = 16 if size == 1 else 4
    value = ALPHABET.index(text[-1])
    assert value % spare == 0
    for bits in range(1, spare):
        changed = text[:-1] + ALPHABET[value + bits]
        parts = [head, changed, footer_text] if part == "body" else [head, body, changed]
        with pytest.raises(PasetoError, match="canonical"):
            paseto.parse(".".join(parts))


@quick
@given(
    st.text(max_size=200) | st.from_regex(r"v4\.public\.[A-Za-z0-9_\-.=]{0,150}", fullmatch=True)
)
def test_garbage_raises_nothing_but_paseto_error(token: str) -> None:
    try:
        parts = paseto.parse(token)
    except PasetoError:
        return
    with pytest.raises(PasetoError):
        paseto.verify(parts, KEY.public_key)


def test_repr_of_parts_is_not_a_token() -> None:
    parts = paseto.parse(paseto.sign(b"claims", KEY))
    assert "signature" not in repr(parts)
