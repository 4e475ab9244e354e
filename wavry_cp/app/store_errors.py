"""What a store raises beside the answers of its interface."""

from wavry_peer.protocol.errors import LocalError, WavryError

__all__ = ["StoreUnavailableError", "StoreVersionError"]


class StoreUnavailableError(WavryError):
    """The store cannot answer now: disk full, locked, overloaded or closed.

    Nothing of the failed call was kept, so that the caller may try again; over HTTP it is 503.
    """


class StoreVersionError(LocalError):
    """The database was written by a newer program (or another one) and is left untouched."""
