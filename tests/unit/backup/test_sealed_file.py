"""The encrypted file of a backup: what a wrong key, a cut or a changed byte does."""

import hashlib
import io
import os
from pathlib import Path

import pytest
from nacl.pwhash import argon2id

from wavry_cp.backup import sealed_file
from wavry_cp.backup.sealed_file import (
    CHUNK_BYTES,
    BackupFileError,
    SealedReader,
    SealedWriter,
    Secret,
    new_identity,
    parse_recipient,
)
from wavry_peer.protocol.errors import LocalError

PASSPHRASE = "correct horse battery staple"


@pytest.fixture(autouse=True)
def cheap_passphrase(monkeypatch):
    monkeypatch.setattr(argon2id, "OPSLIMIT_MODERATE", argon2id.OPSLIMIT_MIN)
    monkeypatch.setattr(argon2id, "MEMLIMIT_MODERATE", argon2id.MEMLIMIT_MIN)


def sealed(path: Path, content: bytes, passphrase=PASSPHRASE, recipient=None) -> Path:
    with path.open("wb") as file:
        writer = SealedWriter(file, passphrase, recipient)
        for start in range(0, len(content), 50_000):
            writer.write(content[start : start + 50_000])
        writer.close()
    return path


def opened(path: Path, secret: Secret) -> bytes:
    with path.open("rb") as file:
        return b"".join(SealedReader.open(file, lambda _method: secret).chunks())


def with_right_checksum(content: bytes) -> bytes:
    return content + hashlib.sha256(content).digest()


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 300_000])
def test_what_was_written_is_read(tmp_path, size):
    content = os.urandom(size)
    path = sealed(tmp_path / "b", content)
    assert opened(path, Secret(PASSPHRASE)) == content
    assert size < 32 or content[:32] not in path.read_bytes()


def test_a_recipient_opens_it_and_a_passphrase_or_another_key_does_not(tmp_path):
    identity, recipient = new_identity()
    path = sealed(tmp_path / "b", b"rows", None, parse_recipient(recipient))
    assert opened(path, Secret(identity=identity)) == b"rows"
    for wrong in (Secret(identity=new_identity()[0]), Secret(PASSPHRASE)):
        with pytest.raises(BackupFileError, match=recipient):
            opened(path, wrong)


def test_a_recipient_with_a_slip_is_refused():
    recipient = new_identity()[1]
    for wrong in (recipient[:-1], recipient[:20] + "AAAA" + recipient[24:], "", "age1xyz"):
        with pytest.raises(LocalError, match="no recipient"):
            parse_recipient(wrong)


def test_a_wrong_passphrase_is_told_from_damage(tmp_path):
    path = sealed(tmp_path / "b", b"rows" * 50_000)
    with pytest.raises(BackupFileError, match="not the one of this backup"):
        opened(path, Secret("another passphrase"))
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:-200_000], whole[:100], whole[:500] + b"?" + whole[501:]):
        path.write_bytes(damaged)
        with pytest.raises(BackupFileError, match="damaged or cut off"):
            opened(path, Secret(PASSPHRASE))
    for foreign in (b"", b"SQLite format 3\0" + bytes(100)):
        path.write_bytes(foreign)
        with pytest.raises(BackupFileError, match="no backup of Wavry"):
            opened(path, Secret(PASSPHRASE))


def test_who_makes_the_checksum_right_again_is_found_out_by_the_encryption(tmp_path):
    path = sealed(tmp_path / "b", b"rows" * 50_000)
    inner = path.read_bytes()[:-32]
    head_bytes = int.from_bytes(inner[9:13])
    first = 13 + head_bytes + 24
    chunk = CHUNK_BYTES + 17
    cut = inner[: first + chunk]
    swapped = (
        inner[:first] + inner[first + chunk : first + 2 * chunk] + inner[first : first + chunk]
    )
    for altered in (cut, swapped + inner[first + 2 * chunk :], inner + b"more"):
        path.write_bytes(with_right_checksum(altered))
        with pytest.raises(BackupFileError, match=r"cut off|altered"):
            opened(path, Secret(PASSPHRASE))


def test_a_newer_format_is_named(tmp_path):
    path = sealed(tmp_path / "b", b"rows")
    inner = bytearray(path.read_bytes()[:-32])
    inner[8] = 9
    path.write_bytes(with_right_checksum(bytes(inner)))
    with pytest.raises(BackupFileError, match="format 9"):
        opened(path, Secret(PASSPHRASE))


def test_a_strangers_file_cannot_make_us_use_all_memory(tmp_path):
    head = sealed_file._Head("passphrase", salt="A" * 22, passes=3, memory_bytes=1 << 40)
    raw = sealed_file.msgspec.json.encode(head)
    start = sealed_file.MAGIC + sealed_file._LENGTHS.pack(1, len(raw)) + raw + bytes(24)
    file = tmp_path / "b"
    file.write_bytes(with_right_checksum(start + bytes(17)))
    with pytest.raises(BackupFileError, match="more memory"):
        opened(file, Secret(PASSPHRASE))


def test_memory_of_a_writer_is_bounded():
    writer = SealedWriter(io.BytesIO(), PASSPHRASE, None)
    writer.write(bytes(10 * CHUNK_BYTES))
    assert len(writer._waiting) <= CHUNK_BYTES
