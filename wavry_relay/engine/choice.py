"""Choosing an engine: the native one where it is built, the pure one otherwise."""

import importlib
import importlib.util
import socket
from collections.abc import Sequence
from typing import Final, cast

from wavry_peer.protocol.errors import LocalError
from wavry_relay.clock import Clock
from wavry_relay.shm.control import EngineKind
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.segment import Segment

from .base import Engine
from .reference import ReferenceEngine

__all__ = ["EngineUnavailableError", "choose_engine", "open_engine"]

_NATIVE_MODULE: Final = f"{__package__}._native"


class EngineUnavailableError(LocalError):
    """The wanted engine is not built."""


def choose_engine(wanted: str) -> EngineKind:
    """Kind of engine for a setting of ``auto``, ``reference`` or ``native``.

    Raises:
        EngineUnavailableError: ``native`` is wanted and not built, or an unknown name.
    """
    if wanted not in ("auto", "reference", "native"):
        raise EngineUnavailableError("WAVRY_RELAY_ENGINE must be auto, reference or native")
    built = importlib.util.find_spec(_NATIVE_MODULE) is not None
    if wanted == "native" and not built:
        raise EngineUnavailableError(
            "the native engine is not built; install with WAVRY_BUILD_NATIVE=require, or set"
            " WAVRY_RELAY_ENGINE=auto"
        )
    return EngineKind.NATIVE if built and wanted != "reference" else EngineKind.REFERENCE


def open_engine(
    kind: EngineKind,
    segment: Segment,
    sockets: Sequence[socket.socket],
    counters: CounterRow,
    clock: Clock,
    *,
    wake_fd: int | None = None,
) -> Engine:
    """Make the engine that the supervisor chose; `sockets` are in the order of listen addresses."""
    if kind is EngineKind.NATIVE:
        native = importlib.import_module(_NATIVE_MODULE)
        return cast(
            "Engine", native.NativeEngine(segment, sockets, counters, clock, wake_fd=wake_fd)
        )
    return ReferenceEngine(segment, sockets, counters, clock, wake_fd=wake_fd)
