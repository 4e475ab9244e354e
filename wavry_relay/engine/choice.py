"""Choosing an engine: the native one where it is built, the pure one otherwise."""

import importlib
import importlib.util
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final, cast

from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.clock import Clock
from wavry_relay.shm.control import EngineKind
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.segment import Segment

from .base import Engine
from .c_header import header_digest
from .reference import ReferenceEngine
from .sources import digest_of, native_sources

__all__ = ["EngineUnavailableError", "choose_engine", "load_engine", "open_engine"]

_NATIVE_MODULE: Final = f"{__package__}._native"


class EngineUnavailableError(LocalError):
    """The wanted engine is not built, or not from these sources."""


def choose_engine(wanted: str) -> EngineKind:
    """Kind of engine for a setting of ``auto``, ``reference`` or ``native``.

    Raises:
        EngineUnavailableError: ``native`` is wanted and not built, the extension that is there
            was built from other sources (``auto`` too: a stale file must not hide a
            broken build), or an unknown name.
    """
    if wanted not in ("auto", "reference", "native"):
        raise EngineUnavailableError("WAVRY_RELAY_ENGINE must be auto, reference or native")
    if wanted == "reference":
        return EngineKind.REFERENCE
    missing = _why_missing()
    if missing is None:
        return EngineKind.NATIVE
    if wanted == "native":
        raise EngineUnavailableError(
            f"{missing}; install with WAVRY_BUILD_NATIVE=require, or set WAVRY_RELAY_ENGINE=auto"
        )
    import structlog

    structlog.get_logger().warning(
        "native_engine_missing",
        reason=missing,
        effect="the pure engine forwards, at a fraction of the speed",
        next_step="install with WAVRY_BUILD_NATIVE=require, or set WAVRY_RELAY_ENGINE=reference",
    )
    return EngineKind.REFERENCE


def _why_missing() -> str | None:
    """Reason why the native engine cannot be used, None where it can."""
    if importlib.util.find_spec(_NATIVE_MODULE) is None:
        return "the native engine is not built"
    try:
        native = importlib.import_module(_NATIVE_MODULE)
    except ImportError as error:
        return f"the native engine cannot be loaded ({error})"
    _refuse_stale(str(native.LAYOUT_DIGEST), str(native.SOURCES_DIGEST))
    return None


def _refuse_stale(layout_digest: str, sources_digest: str) -> None:
    """Compare an extension with the layout in use and with the sources beside it, if any."""
    here = Path(__file__).parent
    fits = layout_digest == header_digest()
    if fits and (sources := native_sources(here)):
        fits = sources_digest == digest_of(sources)
    if not fits:
        raise EngineUnavailableError(
            "the native engine was built from other sources than these; build it again"
            " (WAVRY_BUILD_NATIVE=require python setup.py build_ext --inplace), delete"
            f" {here.name}/_native*.so, or set WAVRY_RELAY_ENGINE=reference"
        )


def load_engine(kind: EngineKind) -> None:
    """Load and check what `open_engine` will need, so that opening takes no time.

    Raises:
        EngineUnavailableError: as `open_engine`.
    """
    if kind is EngineKind.NATIVE:
        missing = _why_missing()
        if missing is not None:
            raise EngineUnavailableError(missing)


def open_engine(
    kind: EngineKind,
    segment: Segment,
    sockets: Sequence[socket.socket],
    counters: CounterRow,
    clock: Clock,
    *,
    wake_fd: int | None = None,
    busy_poll_us: int = 0,
) -> Engine:
    """Make the engine that the supervisor chose; `sockets` are in the order of listen addresses.

    Args:
        kind: from `choose_engine`.
        segment: shared memory.
        sockets: non-blocking; owned by the engine from here on.
        counters: row of this worker.
        clock: time.
        wake_fd: `Engine.run` returns early when it is readable.
        busy_poll_us: the native engine polls this long before it sleeps; a whole core for
            less latency, so 0 unless that is wanted.  The pure engine always sleeps.

    Raises:
        EngineUnavailableError: the native engine was chosen and is not there, or is stale.
    """
    load_engine(kind)
    if kind is EngineKind.NATIVE:
        native = importlib.import_module(_NATIVE_MODULE)
        return cast(
            "Engine",
            native.NativeEngine(
                segment, sockets, counters, clock, wake_fd=wake_fd, busy_poll_us=busy_poll_us
            ),
        )
    return ReferenceEngine(segment, sockets, counters, clock, wake_fd=wake_fd)
