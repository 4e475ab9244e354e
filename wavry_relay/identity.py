"""The relay's own key: made on first boot, kept in a file of mode 0600, the same ever after."""

import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from wavry_peer.protocol import base64url
from wavry_peer.protocol.ed25519 import SEED_BYTES, SigningKey
from wavry_peer.protocol.errors import LocalError

__all__ = ["StateDirectory", "StateError"]

_KEY_NAME: Final = "identity.key"
_LOCK_NAME: Final = "relay.lock"


class StateError(LocalError):
    """The state directory cannot be used."""


class StateDirectory:
    """Where a relay keeps its identity and its copy of the key set.

    Args:
        path: made with mode 0700 if missing.

    Raises:
        StateError: it cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unwritten: set[str] = set()
        """Names of files whose last writing failed."""
        self._lock_fd = -1
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StateError(
                f"state directory {path} cannot be made ({error.strerror}); set"
                " WAVRY_RELAY_STATE_DIR"
            ) from error

    def lock(self) -> None:
        """Claim the directory for this process.

        Raises:
            StateError: another relay runs in it.
        """
        try:
            fd = os.open(self.path / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateError(f"{self.path / _LOCK_NAME}: {error.strerror}") from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise StateError(
                f"another relay is running with the state directory {self.path}; stop it, or set"
                " WAVRY_RELAY_STATE_DIR to a directory of its own"
            ) from error
        self._lock_fd = fd

    @property
    def lock_fd(self) -> int:
        """The descriptor that holds the lock; whoever gets a copy holds it too."""
        return self._lock_fd

    def adopt_lock(self, fd: int) -> None:
        """Hold the directory by the descriptor of a relay that is taken over.

        Raises:
            StateError: the descriptor is not this directory's lock.
        """
        try:
            ours = os.path.samestat(os.fstat(fd), (self.path / _LOCK_NAME).stat())
        except OSError as error:
            raise StateError(f"{self.path / _LOCK_NAME}: {error.strerror}") from error
        if not ours:
            raise StateError(f"the relay that is taken over does not run in {self.path}")
        self._lock_fd = fd

    def unlock(self) -> None:
        """Give the directory up."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def identity(self, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> SigningKey:
        """Return the relay's key; make it if there is none.

        Raises:
            StateError: the file is readable by others, or not a key.
        """
        path = self.path / _KEY_NAME
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return self._make_identity(random_bytes)
        except OSError as error:
            raise StateError(f"{path}: {error.strerror}") from error
        with os.fdopen(fd) as file:
            if os.fstat(fd).st_mode & 0o077:
                raise StateError(f"{path} is open to other users; run: chmod 600 {path}")
            try:
                seed = base64url.decode(file.read(256).strip(), size=SEED_BYTES)
            except ValueError as error:
                raise StateError(
                    f"{path} is not a relay key; restore it, or remove it to become a new relay"
                ) from error
        return SigningKey.from_seed(seed)

    def _make_identity(self, random_bytes: Callable[[int], bytes]) -> SigningKey:
        key = SigningKey.from_seed(random_bytes(SEED_BYTES))
        self.write(_KEY_NAME, base64url.encode(key.seed).encode() + b"\n")
        return key

    def write(self, name: str, data: bytes) -> None:
        """Write a file of mode 0600 so that it is there whole or not at all.

        Raises:
            StateError: the disk does not take it.
        """
        path = self.path / name
        temporary = path.with_name(f".{name}.new")
        try:
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
            temporary.replace(path)
        except OSError as error:
            self.unwritten.add(name)
            raise StateError(f"{path} cannot be written: {error.strerror}") from error
        self.unwritten.discard(name)
