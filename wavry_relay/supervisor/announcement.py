"""What a relay says of itself when it starts: warnings, the line that it serves, the ready file."""

import os
from pathlib import Path

import msgspec
import structlog

from wavry_peer.protocol.errors import LocalError
from wavry_relay.config import ListenAddress, RelayConfig
from wavry_relay.shm.control import EngineKind
from wavry_relay.shm.layout import Geometry

from .assembly import RelayParts

__all__ = ["announce", "warn_of", "warn_of_kept_settings"]

_log = structlog.get_logger(__name__)


def announce(parts: RelayParts, ops_url: str, ready_file: Path | None) -> None:
    """Tell that the relay serves, and where.

    Raises:
        LocalError: the ready file cannot be written.
    """
    relay = parts.relay
    facts = {
        "relay_id": relay.relay_id,
        "udp": [group.endpoint for group in relay.groups],
        "ops_url": ops_url,
        "pid": os.getpid(),
        "worker_pids": parts.pool.pids(),
    }
    _log.info("serving", engine=parts.figures.engine_name, **facts)
    if ready_file is not None:
        temporary = ready_file.with_name(f".{ready_file.name}.new")
        try:
            temporary.write_bytes(msgspec.json.encode(facts))
            temporary.replace(ready_file)
        except OSError as error:
            raise LocalError(f"ready file cannot be written: {error.strerror}") from error


def warn_of(ops: ListenAddress, root: bytes | None, kind: EngineKind) -> None:
    """Tell loudly what nobody should run on a network."""
    if root is None:
        _log.warning(
            "insecure_dev_mode",
            cause="no root key is pinned: whoever answers for the master can sign leases",
            next_step="set WAVRY_RELAY_ROOT_KEY; never run this on a network",
        )
    if kind is EngineKind.REFERENCE:
        _log.warning(
            "reference_engine",
            cause="packets are handled in pure Python",
            next_step="build the native engine (WAVRY_BUILD_NATIVE=require) for full speed",
        )
    if not ops.is_loopback:
        _log.warning(
            "ops_open",
            cause="/metrics and /health are reachable from other hosts",
            next_step="set WAVRY_RELAY_OPS_LISTEN to a loopback address or firewall the port",
        )


def warn_of_kept_settings(config: RelayConfig, kept: Geometry) -> None:
    """Tell which settings an upgraded relay does not follow: its shared memory stays as it is."""
    for name, wanted, present in (
        ("WAVRY_RELAY_WORKERS", config.worker_count, kept.workers),
        ("WAVRY_RELAY_MAX_SESSIONS", config.max_sessions, kept.max_sessions),
    ):
        if wanted != present:
            _log.warning(
                "setting_kept",
                setting=name,
                wanted=wanted,
                kept=present,
                cause="the shared memory of the running relay stays as it is",
                next_step="drain and restart the relay for another number",
            )
