"""Reads a backup: its list alone, or all of it, each item checked against its checksum."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from wavry_peer.protocol.errors import LocalError

from .contents import Item, Manifest
from .making import MANIFEST_LENGTH_BYTES
from .sealed_file import BackupFileError, SealedReader, Secret

__all__ = ["Backup", "opened_backup"]

MAX_MANIFEST_BYTES: Final = 1 << 20

TakeBytes = Callable[[bytes], object]


class Backup:
    """An open backup whose checksum is right and whose secret fits."""

    def __init__(self, manifest: Manifest, content: "_Content") -> None:
        self.manifest = manifest
        self._content = content

    def read_items(self, take: Callable[[Item], TakeBytes]) -> None:
        """Read everything, once.

        Args:
            take: gives for each item, in order, the function that takes its bytes.

        Raises:
            BackupFileError: altered, cut off, or an item has another checksum.
        """
        for item in self.manifest.items:
            put, digest = take(item), hashlib.sha256()
            for block in self._content.read(item.size):
                digest.update(block)
                put(block)
            if digest.hexdigest() != item.sha256:
                raise BackupFileError(f"{item.kind} {item.name} in this backup is damaged")
        self._content.expect_end()

    def verify(self) -> None:
        """Read everything and keep nothing; raises as `read_items`."""
        self.read_items(lambda _item: lambda _block: None)


@contextmanager
def opened_backup(path: Path, ask_secret: Callable[[str], Secret]) -> Iterator[Backup]:
    """Open a backup, check it as a whole and read its list.

    Raises:
        BackupFileError: no backup, damaged, of a newer version, or the secret is another one.
        LocalError: the file cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from error
    with file:
        try:
            content = _Content(file, ask_secret)
            manifest = content.read_manifest()
        except msgspec.MsgspecError as error:
            raise BackupFileError(
                f"{path}: the list in this backup is not one that this version knows"
            ) from error
        except BackupFileError as error:
            raise BackupFileError(f"{path}: {error}") from error
        yield Backup(manifest, content)


class _Content:
    """The decrypted stream, read by length."""

    def __init__(self, file: BinaryIO, ask_secret: Callable[[str], Secret]) -> None:
        self._chunks = SealedReader.open(file, ask_secret).chunks()
        self._waiting = b""

    def read(self, size: int) -> Iterator[bytes]:
        while size > 0:
            if not self._waiting:
                self._waiting = next(self._chunks, b"")
                if not self._waiting:
                    raise BackupFileError("this backup ends before its last item")
            block, self._waiting = self._waiting[:size], self._waiting[size:]
            size -= len(block)
            yield block

    def read_manifest(self) -> Manifest:
        length = int.from_bytes(b"".join(self.read(MANIFEST_LENGTH_BYTES)))
        if length > MAX_MANIFEST_BYTES:
            raise BackupFileError("the list in this backup is too long")
        return msgspec.json.decode(b"".join(self.read(length)), type=Manifest)

    def expect_end(self) -> None:
        if self._waiting or any(self._chunks):
            raise BackupFileError("this backup holds more than its list says")
