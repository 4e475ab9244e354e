"""Key sets: pinned root, serials, cache, development mode."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.relay.mint import Mint
from support.relay.world import World, open_world

from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.errors import KeySetError
from wavry_peer.protocol.keyset import encode_keyset, link_root, sign_keyset
from wavry_relay.identity import StateDirectory
from wavry_relay.master.key_ring import KeyRing


@pytest.fixture
def world() -> Iterator[World]:
    with open_world() as world:
        world.control.write_keys({}, 0)
        yield world


def ring(world: World, path: Path, mint: Mint | None) -> KeyRing:
    return KeyRing(StateDirectory(path), world.control, mint.root.public_key if mint else None)


def document(mint: Mint, serial: int = 1) -> bytes:
    return encode_keyset(mint.keyset(serial=serial))


def test_accepted_keys_reach_the_workers(world: World, tmp_path: Path) -> None:
    keys = ring(world, tmp_path, world.mint)
    assert keys.accept(document(world.mint, 3))
    read = world.control.read_keys()
    assert read is not None
    assert read[1] == world.mint.trusted()
    assert (keys.serial, world.control.key_serial) == (3, 3)
    world.peer().accept()


def test_same_serial_changes_nothing(world: World, tmp_path: Path) -> None:
    keys = ring(world, tmp_path, world.mint)
    keys.accept(document(world.mint))
    epoch = world.control.key_epoch
    assert not keys.accept(document(world.mint))
    assert world.control.key_epoch == epoch


def test_lower_serial_is_refused_and_the_keys_stay(world: World, tmp_path: Path) -> None:
    keys = ring(world, tmp_path, world.mint)
    keys.accept(document(world.mint, 5))
    with pytest.raises(KeySetError, match="serial 4"):
        keys.accept(document(world.mint, 4))
    assert keys.serial == 5
    assert keys.refused is not None
    keys.accept(document(world.mint, 6))
    assert keys.refused is None


def test_another_root_is_refused(world: World, tmp_path: Path) -> None:
    keys = ring(world, tmp_path, world.mint)
    with pytest.raises(KeySetError, match="another root"):
        keys.accept(document(Mint()))
    assert keys.key_ids == ()


def test_relay_starts_with_the_cached_document(world: World, tmp_path: Path) -> None:
    ring(world, tmp_path, world.mint).accept(document(world.mint, 7))
    again = ring(world, tmp_path, world.mint)
    again.load_cached()
    assert again.serial == 7
    with pytest.raises(KeySetError, match="serial 6"):
        again.accept(document(world.mint, 6))


def test_cache_of_another_root_or_damaged_is_not_used(world: World, tmp_path: Path) -> None:
    keys = ring(world, tmp_path, world.mint)
    for raw in (document(Mint()), b"{", b"x" * 20_000):
        (tmp_path / "keyset.json").write_bytes(raw)
        keys.load_cached()
        assert keys.serial == 0


def test_development_mode_trusts_the_first_root_and_then_pins_it(
    world: World, tmp_path: Path
) -> None:
    (tmp_path / "keyset.json").write_bytes(document(Mint()))
    keys = ring(world, tmp_path, None)
    keys.load_cached()
    assert keys.serial == 0
    for raw in (b"{", b"[]"):
        with pytest.raises(KeySetError):
            keys.accept(raw)
    keys.accept(document(world.mint))
    with pytest.raises(KeySetError, match="another root"):
        keys.accept(document(Mint(), 2))


def test_full_disk_does_not_stop_a_key_change(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = ring(world, tmp_path, world.mint)
    (tmp_path / ".keyset.json.new").mkdir()  # the temporary file cannot be made
    assert keys.accept(document(world.mint))
    assert keys.serial == 1


def test_reader_waits_for_a_writer_and_keeps_its_keys(world: World) -> None:
    world.control.write_keys(world.mint.trusted(), 1)
    peer = world.peer()
    peer.accept()
    world.control.key_epoch += 1  # a writer that died half-way
    assert world.control.read_keys() is None
    peer.accept()
    world.control.key_epoch += 1
    peer.accept()


NEW_ROOT = SigningKey.from_seed(b"N" * 32)


def moved_document(mint: Mint, serial: int) -> bytes:
    """Signed by a new root, with the link by which the old one names it."""
    link = link_root(mint.root, NEW_ROOT.public_key, issued_at=1)
    return encode_keyset(
        sign_keyset(
            mint.keyset().keys, serial=serial, issued_at=2, root=NEW_ROOT, root_chain=(link,)
        )
    )


def test_a_new_root_signed_by_the_old_one_is_accepted_and_cached(
    world: World, tmp_path: Path
) -> None:
    keys = ring(world, tmp_path, world.mint)
    keys.accept(document(world.mint, 3))
    assert keys.accept(moved_document(world.mint, 4))
    again = ring(world, tmp_path, world.mint)  # still pins the old root
    again.load_cached()
    assert again.serial == 4
    for moved in (keys, again):
        with pytest.raises(KeySetError, match="another root"):
            moved.accept(document(world.mint, 5))
        assert moved.serial == 4


def test_a_relay_that_pins_the_new_root_reads_the_cache_of_before(
    world: World, tmp_path: Path
) -> None:
    ring(world, tmp_path, world.mint).accept(moved_document(world.mint, 4))
    again = KeyRing(StateDirectory(tmp_path), world.control, NEW_ROOT.public_key)
    again.load_cached()
    assert again.serial == 4


def test_a_document_that_the_disk_did_not_take_is_written_when_it_does(
    world: World, tmp_path: Path
) -> None:
    """What heartbeats tell of the disk is `unwritten`."""
    state = StateDirectory(tmp_path / "state")
    keys = KeyRing(state, world.control, world.mint.root.public_key)
    keys.cache_again()
    blocked = state.path / ".keyset.json.new"
    blocked.mkdir()
    keys.accept(document(world.mint, 7))
    assert state.unwritten == {"keyset.json"}
    keys.cache_again()
    assert state.unwritten == {"keyset.json"}
    blocked.rmdir()
    keys.cache_again()
    assert state.unwritten == set()
    again = ring(world, state.path, world.mint)
    again.load_cached()
    assert again.serial == 7
