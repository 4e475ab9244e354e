"""Key-set document: one root, every field signed, no way back, bounded."""

from collections.abc import Callable
from typing import Any

import msgspec
import nacl.bindings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wavry_peer.protocol import base64url, keyset
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.errors import KeySetError
from wavry_peer.protocol.keyset import PublishedKey
from wavry_peer.protocol.lease import TrustedKey

ROOT = SigningKey.from_seed(b"R" * 32)
OTHER_ROOT = SigningKey.from_seed(b"O" * 32)
STATUSES = ["pending", "active", "retiring", "revoked"]


def published(number: int, status: Any = "active", **changes: Any) -> PublishedKey:
    public_key = SigningKey.from_seed(bytes([number]) * 32).public_key
    wanted = {
        "kid": keyset.key_id(public_key),
        "public_key": base64url.encode(public_key),
        "status": status,
        "not_before": 100,
        "not_after": 200,
    }
    return PublishedKey(**{**wanted, **changes})


KEYS = (published(1, "retiring"), published(2, "active"))


def signed(keys: Any = KEYS, serial: int = 7, root: SigningKey = ROOT) -> bytes:
    return keyset.encode_keyset(keyset.sign_keyset(keys, serial=serial, issued_at=1000, root=root))


def read(raw: bytes, min_serial: int = 0) -> keyset.KeySet:
    return keyset.decode_keyset(raw, root_public_key=ROOT.public_key, min_serial=min_serial)


def fault(raw: bytes, min_serial: int = 0) -> str:
    with pytest.raises(KeySetError) as caught:
        read(raw, min_serial)
    return str(caught.value)


def test_what_the_root_signs_is_what_a_relay_reads() -> None:
    document = read(signed())
    assert document.keys == KEYS
    assert (document.serial, document.issued_at) == (7, 1000)
    assert keyset.trusted_keys(document) == {
        key.kid: TrustedKey(base64url.decode(key.public_key), key.status) for key in KEYS
    }


@pytest.mark.parametrize("status", STATUSES)
def test_every_status_is_handed_on(status: str) -> None:
    document = read(signed([published(1, status)]))
    assert [key.status for key in keyset.trusted_keys(document).values()] == [status]


def test_a_document_without_keys_is_allowed() -> None:
    assert keyset.trusted_keys(read(signed([]))) == {}


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 255), unique=True, max_size=keyset.MAX_KEYS),
    st.integers(1, 2**53),
    st.integers(0, 2**53),
    st.data(),
)
def test_round_trip(numbers: list[int], serial: int, issued_at: int, data: st.DataObject) -> None:
    seconds = st.integers(0, 2**53)
    keys = tuple(
        published(
            number,
            data.draw(st.sampled_from(STATUSES)),
            not_before=data.draw(seconds),
            not_after=data.draw(seconds),
        )
        for number in numbers
    )
    document = keyset.sign_keyset(keys, serial=serial, issued_at=issued_at, root=ROOT)
    assert read(keyset.encode_keyset(document), min_serial=serial) == document


# -- Trust -------------------------------------------------------------------------------------


def test_another_root_is_refused_whatever_the_document_says() -> None:
    assert "another root" in fault(signed(root=OTHER_ROOT))
    document = msgspec.json.decode(signed(root=OTHER_ROOT))
    document["root_public_key"] = base64url.encode(ROOT.public_key)
    assert "signature" in fault(msgspec.json.encode(document))


def test_the_document_may_not_name_another_root_than_the_pinned_one() -> None:
    document = msgspec.json.decode(signed())
    document["root_public_key"] = base64url.encode(OTHER_ROOT.public_key)
    assert "another root" in fault(msgspec.json.encode(document))


TAMPERED: dict[str, Callable[[dict[str, Any]], None]] = {
    "serial": lambda d: d.update(serial=8),
    "issued_at": lambda d: d.update(issued_at=1001),
    "kid": lambda d: d["keys"][0].update(kid="another"),
    "public_key": lambda d: d["keys"][1].update(public_key=published(3).public_key),
    "status": lambda d: d["keys"][0].update(status="active"),
    "not_before": lambda d: d["keys"][0].update(not_before=99),
    "not_after": lambda d: d["keys"][1].update(not_after=0),
    "not_before left out": lambda d: d["keys"][0].pop("not_before"),
    "order": lambda d: d["keys"].reverse(),
    "key taken away": lambda d: d["keys"].pop(),
    "all keys taken away": lambda d: d["keys"].clear(),
    "key added": lambda d: d["keys"].append(msgspec.to_builtins(published(3))),
    "key doubled": lambda d: d["keys"].append(d["keys"][0]),
    "statuses exchanged": lambda d: (
        d["keys"][0].update(status="active"),
        d["keys"][1].update(status="retiring"),
    ),
    "signature": lambda d: d.update(signature="A" * 86),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_the_signature_covers_every_field(name: str) -> None:
    document = msgspec.json.decode(signed())
    TAMPERED[name](document)
    assert document != msgspec.json.decode(signed())
    assert "root signature" in fault(msgspec.json.encode(document))


def test_tampering_was_tried_with_every_field_there_is() -> None:
    """A field added later must be signed, and tried here; links of the chain sign themselves."""
    fields = {*keyset.KeySet.__struct_fields__, *PublishedKey.__struct_fields__}
    assert fields - {"keys", "root_public_key", "root_chain"} <= TAMPERED.keys()


def test_fields_cannot_flow_into_one_another() -> None:
    """Moving a digit from one number to its neighbour changes the signed bytes."""
    document = msgspec.json.decode(signed([published(1, not_before=12, not_after=3)]))
    document["keys"][0].update(not_before=1, not_after=23)
    assert "root signature" in fault(msgspec.json.encode(document))


def test_a_lower_serial_is_refused_and_the_same_one_is_not() -> None:
    raw = signed(serial=7)
    assert read(raw, min_serial=7).serial == 7
    assert "below 8" in fault(raw, min_serial=8)


def test_a_key_id_named_twice_is_refused_though_signed() -> None:
    twice = [published(1), published(2, kid=published(1).kid)]
    assert "twice" in fault(signed(twice))


# -- Shape and bounds --------------------------------------------------------------------------


def test_number_of_keys() -> None:
    most = [published(number) for number in range(keyset.MAX_KEYS)]
    assert len(read(signed(most)).keys) == keyset.MAX_KEYS
    assert "keys" in fault(signed([*most, published(99)]))


def test_the_largest_document_is_under_the_size_bound() -> None:
    keys = [
        published(number, "retiring", kid=f"{number:064}", not_before=2**53, not_after=2**53)
        for number in range(keyset.MAX_KEYS)
    ]
    assert len(signed(keys, serial=2**53)) < keyset.MAX_DOCUMENT_BYTES


def test_size_bound() -> None:
    raw = signed()
    padded = raw + b" " * (keyset.MAX_DOCUMENT_BYTES - len(raw))
    assert read(padded).serial == 7
    assert "16 KiB" in fault(padded + b" ")


def changed_document(**changes: Any) -> bytes:
    return msgspec.json.encode({**msgspec.json.decode(signed()), **changes})


def changed_key(**changes: Any) -> bytes:
    document = msgspec.json.decode(signed())
    document["keys"][0].update(changes)
    return msgspec.json.encode(document)


KEY_TEXT = KEYS[0].public_key


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"serial":\xff}',
        b"[" * 10_000,
        signed()[:-1],
        signed() + b"{}",
        changed_document(serial=0),
        changed_document(serial=-1),
        changed_document(serial=2**53 + 1),
        changed_document(serial=10**400),
        changed_document(serial=7.5),
        changed_document(serial="7"),
        changed_document(serial=True),
        changed_document(issued_at=-1),
        changed_document(keys=None),
        changed_document(keys={}),
        changed_document(extra=1),
        changed_document(root_public_key=KEY_TEXT[:-1]),
        changed_document(root_public_key=KEY_TEXT + "="),
        changed_document(root_public_key=base64url.encode(ROOT.public_key) + "\n"),
        changed_document(signature=""),
        changed_document(signature="A" * 86 + "\n"),
        changed_document(signature="A" * 85 + "B"),
        changed_key(kid=""),
        changed_key(kid="k" * 65),
        changed_key(public_key="A" * 42 + "B"),
        changed_key(public_key=KEY_TEXT + "\n"),
        changed_key(status="trusted"),
        changed_key(status=None),
        changed_key(not_before=-1),
        changed_key(not_after=2**53 + 1),
        changed_key(secret_key="x"),
    ],
)
def test_documents_that_do_not_fit(raw: bytes) -> None:
    text = fault(raw)
    assert "does not fit" in text or "not valid JSON" in text


@settings(deadline=None, max_examples=80)
@given(st.binary(max_size=200) | st.data())
def test_garbage_raises_nothing_but_key_set_error(source: Any) -> None:
    raw = source
    if not isinstance(raw, bytes):
        mutated = bytearray(signed())
        for _ in range(source.draw(st.integers(1, 3))):
            mutated[source.draw(st.integers(0, len(mutated) - 1))] = source.draw(
                st.integers(0, 255)
            )
        raw = bytes(mutated)
    try:
        document = read(raw)
    except KeySetError:
        return
    assert document == read(signed())


# -- Names that must never change --------------------------------------------------------------


def test_ids_are_stable() -> None:
    key = bytes(range(32))
    assert keyset.key_id(key) == "73be2029e1398869"
    assert keyset.relay_id(key) == "rly-b283e5502ee7543a34e0ee01"


@settings(deadline=None)
@given(st.binary(min_size=32, max_size=32))
def test_ids_agree_with_libsodium(key: bytes) -> None:
    blake2b = nacl.bindings.crypto_generichash_blake2b_salt_personal
    assert keyset.key_id(key) == blake2b(key, digest_size=8, person=b"wavry-kid").hex()
    relay = blake2b(key, digest_size=12, person=b"wavry-relay").hex()
    assert keyset.relay_id(key) == f"rly-{relay}"
