"""Root chain: from any pinned root to the one that signs today, and by no other way."""

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from wavry_peer.protocol import base64url, keyset
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.errors import KeySetError

ROOTS = tuple(SigningKey.from_seed(bytes([number]) * 32) for number in range(1, 5))
STRANGER = SigningKey.from_seed(b"S" * 32)


def chain(*roots: SigningKey) -> tuple[keyset.RootLink, ...]:
    return tuple(
        keyset.link_root(old, new.public_key, issued_at=100 + number)
        for number, (old, new) in enumerate(itertools.pairwise(roots))
    )


def document(
    root: SigningKey = ROOTS[-1], links: tuple[keyset.RootLink, ...] = chain(*ROOTS)
) -> bytes:
    return keyset.encode_keyset(
        keyset.sign_keyset((), serial=9, issued_at=1000, root=root, root_chain=links)
    )


def read(raw: bytes, pinned: SigningKey) -> keyset.KeySet:
    return keyset.decode_keyset(raw, root_public_key=pinned.public_key)


@pytest.mark.parametrize("pinned", ROOTS)
def test_every_root_of_the_chain_is_a_pin_that_leads_to_the_last(pinned: SigningKey) -> None:
    assert read(document(), pinned).serial == 9


def test_a_root_outside_of_the_chain_is_another_root() -> None:
    with pytest.raises(KeySetError, match="another root"):
        read(document(), STRANGER)


def test_a_chain_that_ends_before_the_signing_root_is_refused() -> None:
    with pytest.raises(KeySetError, match="another root"):
        read(document(links=chain(*ROOTS[:-1])), ROOTS[0])


def test_a_document_without_its_chain_is_good_for_the_newest_pin_only() -> None:
    assert read(document(links=()), ROOTS[-1]).serial == 9
    with pytest.raises(KeySetError, match="another root"):
        read(document(links=()), ROOTS[0])


def test_a_link_that_the_old_root_did_not_sign_is_refused() -> None:
    forged = msgspec.structs.replace(
        keyset.link_root(STRANGER, STRANGER.public_key, issued_at=1),
        previous=base64url.encode(ROOTS[0].public_key),
    )
    with pytest.raises(KeySetError, match="does not verify"):
        read(document(STRANGER, (forged,)), ROOTS[0])


def test_a_new_root_may_not_come_without_its_own_signature_of_the_document() -> None:
    raw = msgspec.json.decode(document(ROOTS[0], chain(*ROOTS[:2])))
    raw["root_public_key"] = base64url.encode(ROOTS[1].public_key)
    with pytest.raises(KeySetError, match="root signature"):
        read(msgspec.json.encode(raw), ROOTS[0])


TAMPERED: dict[str, Callable[[list[dict[str, Any]]], None]] = {
    "issued_at": lambda links: links[1].update(issued_at=7),
    "public_key": lambda links: links[1].update(public_key=base64url.encode(STRANGER.public_key)),
    "signature": lambda links: links[1].update(signature="A" * 86),
    "signature of another link": lambda links: links[1].update(signature=links[0]["signature"]),
    "previous": lambda links: links[1].update(previous=base64url.encode(STRANGER.public_key)),
    "link left out": lambda links: links.pop(1),
    "order": lambda links: links.reverse(),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_each_link_is_signed_whole(name: str) -> None:
    raw = msgspec.json.decode(document())
    TAMPERED[name](raw["root_chain"])
    with pytest.raises(KeySetError):
        read(msgspec.json.encode(raw), ROOTS[0])


def test_damage_before_the_pin_does_not_matter() -> None:
    raw = msgspec.json.decode(document())
    raw["root_chain"][0]["signature"] = "A" * 86
    assert read(msgspec.json.encode(raw), ROOTS[1]).serial == 9


def test_a_document_without_a_chain_looks_as_before() -> None:
    assert b"root_chain" not in document(links=())


def test_the_chain_is_bounded() -> None:
    links = chain(*ROOTS) * 6
    with pytest.raises(KeySetError, match="does not fit"):
        read(document(links=links), ROOTS[0])
