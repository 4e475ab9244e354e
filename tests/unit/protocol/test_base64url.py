"""One text for one value: canonical base64url without padding."""

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavry_peer.protocol import base64url

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_round_trip_without_padding(data: bytes) -> None:
    text = base64url.encode(data)
    assert text + "=" * (-len(text) % 4) == base64.urlsafe_b64encode(data).decode()
    assert base64url.decode(text) == data
    assert base64url.decode(text, size=len(data)) == data


@settings(deadline=None)
@given(st.text(alphabet=ALPHABET + "=+/ \n", max_size=12) | st.text(max_size=12))
def test_a_text_is_refused_or_the_only_one_of_its_value(text: str) -> None:
    try:
        data = base64url.decode(text)
    except ValueError:
        return
    assert base64url.encode(data) == text


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AAAAA",
        "AA==",
        "AAA=",
        "=",
        "AB",
        "AAB",
        "A A",
        "AA\n",
        "\nAA",
        "AA+A",
        "AA/A",
        "\N{FULLWIDTH LATIN CAPITAL LETTER A}A",
        "AA\0",
    ],
)
def test_other_forms(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the texts of binascii differ by version.
        base64url.decode(text)


@pytest.mark.parametrize("size", [0, 1, 3])
def test_another_size(size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes"):
        base64url.decode("AAA", size=size)


@pytest.mark.parametrize(("text", "spare"), [("AA", 16), ("AAA", 4)])
def test_trailing_bits_must_be_zero(text: str, spare: int) -> None:
    assert base64url.decode(text) == bytes(len(text) - 1)
    for value in range(1, 64):
        changed = text[:-1] + ALPHABET[value]
        if value % spare:
            with pytest.raises(ValueError, match="canonical"):
                base64url.decode(changed)
        else:
            assert base64url.decode(changed)[-1] == value // spare
