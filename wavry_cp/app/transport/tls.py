"""TLS of gateway and master: certificate and key in files, read again when they change.

A certificate lives for weeks and a service for months, so whoever renews it only writes the files.
A pair that does not fit (half written, another key, a key that others can read) changes nothing:
the old certificate stays in use, and log, /health and a metric say so.
"""

import os
import ssl
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.secret_files import file_mark, is_open_to_others

__all__ = ["TlsFileError", "TlsFiles", "tls_state"]

LOOK_EVERY_S: Final = 1.0

_log = structlog.get_logger(__name__)


class TlsFileError(LocalError):
    """A certificate or key file is missing, open to others, or does not fit the other one."""


class TlsFiles:
    """The certificate of a service.

    Args:
        certificate: PEM file with the certificate and its chain.
        key: PEM file with its key, for the service's user alone.
        role: of the variables that name them, e.g. ``"MASTER"``.
        monotonic_s: seconds.

    Raises:
        TlsFileError: they do not fit.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        role: str,
        *,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._certificate, self._key = certificate, key
        self._variables = f"WAVRY_{role}_TLS_CERTIFICATE_FILE", f"WAVRY_{role}_TLS_KEY_FILE"
        self._monotonic_s = monotonic_s
        self._look_at_s = monotonic_s() + LOOK_EVERY_S
        self._seen = self._marks()
        self._context = self._read()
        self._is_stale = False

    @classmethod
    def of(cls, certificate: Path | None, key: Path | None, role: str) -> "TlsFiles | None":
        """Return the certificate of a service, None where its settings name none.

        Raises:
            TlsFileError: the files do not fit.
        """
        return cls(certificate, key, role) if certificate and key else None

    @property
    def is_stale(self) -> bool:
        """Whether the files changed and could not be taken; looks, as no client may come anew."""
        self.context()
        return self._is_stale

    def context(self) -> ssl.SSLContext:
        """Return what the next connection is served with."""
        if (now_s := self._monotonic_s()) >= self._look_at_s:
            self._look_at_s = now_s + LOOK_EVERY_S
            if (marks := self._marks()) != self._seen:
                self._seen = marks
                self._take()
        return self._context

    def _take(self) -> None:
        try:
            self._context = self._read()
        except TlsFileError as error:
            self._is_stale = True
            _log.error(
                "tls_files_refused",
                cause=str(error),
                effect="new connections get the certificate that was read before",
                next_step="write both files again; they are looked at with each connection",
            )
        else:
            self._is_stale = False
            _log.info("tls_files_read", certificate=str(self._certificate))

    def _marks(self) -> tuple[tuple[int, ...], ...]:
        return file_mark(self._certificate), file_mark(self._key)

    def _read(self) -> ssl.SSLContext:
        for variable, path in zip(self._variables, (self._certificate, self._key), strict=True):
            try:
                with path.open("rb") as file:
                    mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            except OSError as error:
                raise TlsFileError(f"{variable} {path}: {error.strerror}") from error
            if path == self._key and is_open_to_others(path, mode):
                raise TlsFileError(
                    f"{variable} {path} is open to others (mode {mode:04o}): chmod 600 it"
                )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            # A key under a password would else be asked for at the terminal.
            context.load_cert_chain(self._certificate, self._key, password=lambda: "")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = getattr(error, "reason", None) or type(error).__name__
            raise TlsFileError(
                f"{self._variables[0]} {self._certificate} and {self._variables[1]} {self._key}"
                f" are no certificate and its key without a password ({reason})"
            ) from error
        return context


def tls_state(tls: TlsFiles | None) -> str:
    """Return what /health says of a service's certificate."""
    if tls is None:
        return "off"
    return "stale" if tls.is_stale else "ok"
