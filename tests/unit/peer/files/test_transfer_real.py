"""File transfer over real sockets, through the stub relay."""

import asyncio
import os
import stat
from pathlib import Path

import pytest
from support.peer.peer_world import PeerWorld, eventually

import wavry_peer
from wavry_peer.files.transfer import Received, Sent, receive_file, send_file


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    directory = tmp_path / "inbox"
    directory.mkdir()
    return directory


def make_file(directory: Path, size: int, name: str = "source.bin") -> Path:
    path = directory / name
    path.write_bytes(os.urandom(size))
    return path


async def transfer(world: PeerWorld, source: Path, inbox: Path) -> tuple[Sent, Received]:
    async with world.pair() as (alice, bob):
        receiving = asyncio.create_task(receive_file(bob, inbox))
        sent = await send_file(alice, source)
        return sent, await receiving


async def test_twenty_megabytes_in_a_few_seconds(world, tmp_path, inbox) -> None:
    source = make_file(tmp_path, 20_000_000)
    shown: list[int] = []
    async with world.pair() as (alice, bob):
        receiving = asyncio.create_task(
            receive_file(bob, inbox, on_progress=lambda done, _total: shown.append(done))
        )
        async with asyncio.timeout(120):
            sent = await send_file(alice, source)
            received = await receiving
    assert received.path.read_bytes() == source.read_bytes()
    assert sent.sha256 == received.sha256
    # All of it in one process: sender, relay and receiver share one core here.
    busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert sent.seconds < 10 * busy
    assert sent.chunks_repeated < sent.chunks_sent * 0.05
    assert shown == sorted(shown)
    assert shown[-1] == 20_000_000


@pytest.mark.parametrize("size", [0, 1, 1362, 1363, 1364, 100_000])
async def test_sizes_at_the_edges(world, tmp_path, inbox, size: int) -> None:
    source = make_file(tmp_path, size)
    sent, received = await transfer(world, source, inbox)
    assert received.path.read_bytes() == source.read_bytes()
    assert (sent.size_bytes, received.size_bytes) == (size, size)
    assert [path.name for path in inbox.iterdir()] == ["source.bin"], "nothing temporary is left"


async def test_loss_on_a_real_path(world, tmp_path, inbox) -> None:
    source = make_file(tmp_path, 300_000)
    async with world.pair() as (alice, bob):
        world.relay.loss = 0.2
        receiving = asyncio.create_task(receive_file(bob, inbox))
        async with asyncio.timeout(20):
            sent = await send_file(alice, source)
            received = await receiving
    assert received.path.read_bytes() == source.read_bytes()
    assert sent.chunks_repeated > 0


async def test_an_existing_file_is_not_replaced(world, tmp_path, inbox) -> None:
    source = make_file(tmp_path, 1000)
    (inbox / "source.bin").write_bytes(b"precious")
    async with world.pair() as (alice, bob):
        receiving = asyncio.create_task(receive_file(bob, inbox))
        with pytest.raises(wavry_peer.TransferError) as at_sender:
            await send_file(alice, source)
        with pytest.raises(wavry_peer.TransferError) as at_receiver:
            await receiving
        assert at_sender.value.code == at_receiver.value.code == "exists"
        assert (inbox / "source.bin").read_bytes() == b"precious"
        # And with force it is, as a whole.
        receiving = asyncio.create_task(receive_file(bob, inbox, force=True))
        await send_file(alice, source)
        assert (await receiving).path.read_bytes() == source.read_bytes()


async def test_a_file_that_comes_into_being_meanwhile_is_not_replaced(
    world, tmp_path, inbox
) -> None:
    source = make_file(tmp_path, 50_000)
    async with world.pair() as (alice, bob):

        def wants(name: str, _size: int) -> bool:
            asyncio.get_running_loop().call_soon((inbox / name).write_bytes, b"precious")
            return True

        receiving = asyncio.create_task(receive_file(bob, inbox, wants=wants))
        with pytest.raises(wavry_peer.TransferError, match="already"):
            await send_file(alice, source)
        with pytest.raises(wavry_peer.TransferError, match="exists"):
            await receiving
    assert [path.read_bytes() for path in inbox.iterdir()] == [b"precious"]


async def test_refusals_reach_the_sender(world, tmp_path, inbox) -> None:
    source = make_file(tmp_path, 5000)
    async with world.pair() as (alice, bob):
        for options, code in (
            ({"max_bytes": 4999}, "too_large"),
            ({"wants": lambda _name, _size: False}, "refused"),
        ):
            receiving = asyncio.create_task(receive_file(bob, inbox, **options))
            with pytest.raises(wavry_peer.TransferError) as caught:
                await send_file(alice, source)
            assert caught.value.code == code
            with pytest.raises(wavry_peer.TransferError):
                await receiving
    assert list(inbox.iterdir()) == []


async def test_a_cancelled_sender_leaves_nothing_at_the_receiver(world, tmp_path, inbox) -> None:
    source = make_file(tmp_path, 50_000_000)
    async with world.pair() as (alice, bob):
        receiving = asyncio.create_task(receive_file(bob, inbox))
        sending = asyncio.create_task(send_file(alice, source))
        await eventually(lambda: list(inbox.iterdir()))
        sending.cancel()
        with pytest.raises(wavry_peer.TransferError, match="cancelled"):
            async with asyncio.timeout(5):
                await receiving
    assert list(inbox.iterdir()) == []


async def test_a_closed_session_ends_both_sides(world, tmp_path, inbox) -> None:
    source = make_file(tmp_path, 50_000_000)
    async with world.pair() as (alice, bob):
        receiving = asyncio.create_task(receive_file(bob, inbox))
        sending = asyncio.create_task(send_file(alice, source))
        await eventually(lambda: list(inbox.iterdir()))
        await bob.aclose()
        for task in (sending, receiving):
            with pytest.raises(wavry_peer.SessionClosedError):
                async with asyncio.timeout(5):
                    await task
    assert list(inbox.iterdir()) == []


async def test_a_full_disk_is_told_to_the_sender(world, tmp_path, inbox, monkeypatch) -> None:
    source = make_file(tmp_path, 50_000)

    def pwrite(*_arguments: object) -> int:
        raise OSError(28, "No space left on device")

    async with world.pair() as (alice, bob):
        monkeypatch.setattr(os, "pwrite", pwrite)
        receiving = asyncio.create_task(receive_file(bob, inbox))
        with pytest.raises(wavry_peer.TransferError) as caught:
            await send_file(alice, source)
        assert caught.value.code == "disk_error"
        with pytest.raises(wavry_peer.TransferError):
            await receiving
    assert list(inbox.iterdir()) == []


async def test_a_file_that_changes_while_it_is_sent_is_refused(world, tmp_path, inbox) -> None:
    source = make_file(tmp_path, 200_000)
    async with world.pair() as (alice, bob):

        def wants(_name: str, _size: int) -> bool:
            with source.open("r+b") as file:
                file.write(b"changed")
                file.truncate(100_000)
            return True

        receiving = asyncio.create_task(receive_file(bob, inbox, wants=wants))
        with pytest.raises(wavry_peer.TransferError) as caught:
            await send_file(alice, source)
        assert caught.value.code == "hash_mismatch"
        with pytest.raises(wavry_peer.TransferError):
            await receiving
    assert list(inbox.iterdir()) == []


async def test_the_received_file_has_the_rights_of_a_new_file(world, tmp_path, inbox) -> None:
    source = make_file(tmp_path, 10)
    source.chmod(0o777)
    usual = tmp_path / "usual"
    usual.touch()
    _, received = await transfer(world, source, inbox)
    assert stat.S_IMODE(received.path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


async def test_a_directory_cannot_be_sent(world, tmp_path) -> None:
    async with world.pair() as (alice, _bob):
        with pytest.raises(wavry_peer.LocalError, match="regular file"):
            await send_file(alice, tmp_path)
        with pytest.raises(wavry_peer.LocalError, match="cannot be read"):
            await send_file(alice, tmp_path / "absent")
