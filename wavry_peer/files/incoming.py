"""Where a received file goes: a safe name, a temporary file, and one atomic step at the end."""

import contextlib
import errno
import hashlib
import os
import shutil
import unicodedata
from pathlib import Path
from typing import Final

from wavry_peer.errors import TransferError

__all__ = ["IncomingFile", "safe_name"]

MAX_NAME_BYTES: Final = 240
"""A file system allows 255; the rest is for the temporary name's additions."""
_HASH_BLOCK_BYTES: Final = 1 << 20
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


def safe_name(offered: str) -> str:
    """Return the name under which a file that somebody else named may be stored.

    Only the last part of a path (of any system) is used.  Control, formatting and other unprintable
    characters become ``_``, and so does a leading dot or dash: nobody else may hide a file, plant
    a ``.profile``, or make one that looks like an option.

    Raises:
        TransferError: ``bad_name``: nothing usable is left.
    """
    last = offered.replace("\\", "/").rstrip("/").rpartition("/")[2]
    name = "".join("_" if _is_unprintable(c) else c for c in last).strip()
    if name in ("", ".", ".."):
        raise TransferError("bad_name", "the offered file has no usable name")
    if name[0] in ".-~":
        name = "_" + name[1:]
    raw = name.encode(errors="replace")
    if len(raw) > MAX_NAME_BYTES:
        stem, dot, suffix = name.rpartition(".")
        tail = (dot + suffix).encode(errors="replace") if stem else b""
        tail = tail if len(tail) <= 16 else b""
        raw = raw[: MAX_NAME_BYTES - len(tail)] + tail
    return raw.decode(errors="ignore")


def _is_unprintable(character: str) -> bool:
    # Cc control, Cf formatting (writing direction!), Cs surrogates, Zl Zp line breaks.
    return unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


class IncomingFile:
    """A file on its way in; nothing has its final name before it is complete and checked.

    Args:
        directory: where it goes; must exist.
        name: from `safe_name`.
        size_bytes: of the whole content.
        unique: makes the temporary name unlike that of other transfers.
        force: replace an existing file.

    Raises:
        TransferError: ``exists``, ``no_space`` or ``disk_error``.

    Attributes:
        path: the final name.
    """

    def __init__(
        self, directory: Path, name: str, size_bytes: int, *, unique: str, force: bool
    ) -> None:
        self.path = directory / name
        self._size_bytes = size_bytes
        self._force = force
        self._temporary = directory / f".{name[:200]}.{unique}.part"
        if not force and (self.path.exists() or self.path.is_symlink()):
            raise self._exists()
        try:
            if shutil.disk_usage(directory).free < size_bytes:
                raise TransferError("no_space", f"there is no room for it in {directory}")
            self._descriptor = os.open(
                self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666
            )
        except OSError as error:
            text = f"cannot write to {directory}: {error.strerror}"
            raise TransferError("disk_error", text) from error

    def write(self, offset: int, data: bytes) -> None:
        """Put bytes in their place.

        Raises:
            OSError: the disk does not take them.
        """
        while data:
            written = os.pwrite(self._descriptor, data, offset)
            offset += written
            data = data[written:]

    def matches(self, sha256: bytes) -> bool:
        """Read everything back and compare the hash; takes a second for each gigabyte or so.

        Raises:
            OSError: the disk does not give it back.
        """
        digest = hashlib.sha256()
        offset = 0
        while block := os.pread(self._descriptor, _HASH_BLOCK_BYTES, offset):
            digest.update(block)
            offset += len(block)
        return offset == self._size_bytes and digest.digest() == sha256

    def commit(self) -> None:
        """Give the file its name, in one step that others see whole or not at all.

        Raises:
            TransferError: ``exists`` (it came into being meanwhile) or ``disk_error``.
        """
        try:
            os.fsync(self._descriptor)
            if self._force:
                self._temporary.replace(self.path)
            else:
                self._link()
        except OSError as error:
            text = f"cannot store {self.path}: {error.strerror}"
            raise TransferError("disk_error", text) from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove what is temporary; again, or after `commit`, it does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            with contextlib.suppress(FileNotFoundError):
                self._temporary.unlink()

    def _link(self) -> None:
        try:
            os.link(self._temporary, self.path)
        except FileExistsError:
            raise self._exists() from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A file system without hard links: the name is taken first, then filled.
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except FileExistsError:
                raise self._exists() from None
            self._temporary.replace(self.path)

    def _exists(self) -> TransferError:
        return TransferError("exists", f"{self.path} exists; use --force to replace it")
