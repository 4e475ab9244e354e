"""The relay's key set: checked against the pinned root, cached, and put into the control block.

The pin is where trust begins.  A document whose chain leads from there to a newer root moves the
trust to that root for good: the cached document says so at the next start, and one that the old
root signs is refused from then on.
"""

import structlog

from wavry_peer.protocol import base64url
from wavry_peer.protocol.errors import KeySetError
from wavry_peer.protocol.keyset import (
    MAX_DOCUMENT_BYTES,
    KeySet,
    decode_keyset,
    encode_keyset,
    trusted_keys,
)
from wavry_relay.identity import StateDirectory, StateError
from wavry_relay.shm.control import ControlBlock

__all__ = ["KeyRing"]

_CACHE_NAME = "keyset.json"
_log = structlog.get_logger(__name__)


class KeyRing:
    """Keys that leases are verified with.

    Args:
        state: where the last good document is kept.
        control: where workers read the keys.
        root_public_key: pinned; None trusts the root of the first document (development only).
    """

    def __init__(
        self, state: StateDirectory, control: ControlBlock, root_public_key: bytes | None
    ) -> None:
        self._state = state
        self._control = control
        self._root = root_public_key
        self._pinned = root_public_key is not None
        self._uncached: bytes | None = None
        self.serial = 0
        self.key_ids: tuple[str, ...] = ()
        self.refused: str | None = None
        """Why the last document was refused, None after a good one."""

    @property
    def root(self) -> bytes | None:
        """Root public key that is trusted, None before the first document of an unpinned relay."""
        return self._root

    def go_on(self) -> None:
        """Start with the keys in the control block: another process with this root put them there.

        They may be newer than the cache, which a full disk does not take.
        """
        found = self._control.read_keys()
        if found is not None and found[1]:
            self.serial, self.key_ids = self._control.key_serial, tuple(found[1])
        else:
            self.load_cached()

    def load_cached(self) -> None:
        """Start with the document of the last run, if it still verifies."""
        if not self._pinned:
            return  # Its root would be trusted for no better reason than lying there.
        path = self._state.path / _CACHE_NAME
        try:
            with path.open("rb") as file:
                raw = file.read(MAX_DOCUMENT_BYTES + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            _log.warning(
                "keyset_cache_unreadable",
                path=str(path),
                cause=error.strerror,
                next_step="waiting for the master's key set; check the state directory",
            )
            return
        try:
            self._use(self._check(raw))
        except KeySetError as error:
            _log.warning(
                "keyset_cache_refused",
                cause=str(error),
                next_step="waiting for the master's key set; check WAVRY_RELAY_ROOT_KEY",
            )

    def accept(self, raw: bytes) -> bool:
        """Take a document from the master.

        Args:
            raw: JSON.

        Returns:
            True if it was new.

        Raises:
            KeySetError: it must be refused; the keys in use stay.
        """
        try:
            keyset = self._check(raw)
        except KeySetError as error:
            self.refused = str(error)
            raise
        self.refused = None
        if keyset.serial == self.serial:
            return False
        self._use(keyset)
        self._uncached = encode_keyset(keyset)
        self.cache_again()
        return True

    def cache_again(self) -> None:
        """Write the document that the disk did not take yet, if there is one."""
        if self._uncached is None:
            return
        told = _CACHE_NAME in self._state.unwritten
        try:
            self._state.write(_CACHE_NAME, self._uncached)
        except StateError as error:
            if told:
                return
            _log.warning(
                "keyset_not_cached",
                cause=str(error),
                next_step="free the disk; until then the relay needs the master to start",
            )
        else:
            self._uncached = None

    def _check(self, raw: bytes) -> KeySet:
        root = self._root
        if root is None:
            root = _root_of(raw)
        keyset = decode_keyset(raw, root_public_key=root, min_serial=self.serial)
        signer = base64url.decode(keyset.root_public_key)
        if self._root is not None and signer != self._root:
            _log.warning(
                "root_key_moved",
                cause="the trusted root signed a newer one",
                root_public_key=keyset.root_public_key,
                next_step="set WAVRY_RELAY_ROOT_KEY to it when convenient; the chain is kept",
            )
            self._root = signer
        if self._root is None:
            _log.warning(
                "insecure_root_trusted",
                next_step="development only: pin the root with WAVRY_RELAY_ROOT_KEY",
            )
            self._root = root
        return keyset

    def _use(self, keyset: KeySet) -> None:
        keys = trusted_keys(keyset)
        self._control.write_keys(keys, keyset.serial)
        self.serial = keyset.serial
        self.key_ids = tuple(keys)
        _log.info("keyset_in_use", serial=keyset.serial, keys=len(keys))


def _root_of(raw: bytes) -> bytes:
    import msgspec

    try:
        claimed = msgspec.json.decode(raw[: MAX_DOCUMENT_BYTES + 1], type=KeySet)
        return base64url.decode(claimed.root_public_key, size=32)
    except (msgspec.MsgspecError, ValueError) as error:
        raise KeySetError("key-set document does not fit") from error
