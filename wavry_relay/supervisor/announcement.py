"""What a relay says of itself when it starts: warnings, the line that it serves, the ready file."""

import os
from pathlib import Path

import msgspec
import structlog

from wavry_peer.protocol.errors import LocalError
from wavry_relay.config import ListenAddress
from wavry_relay.ops.status import RelayStatus
from wavry_relay.shm.control import EngineKind

__all__ = ["announce", "warn_of"]

_log = structlog.get_logger(__name__)


def announce(status: RelayStatus, ops_url: str, ready_file: Path | None) -> None:
    """Tell that the relay serves, and where.

    Raises:
        LocalError: the ready file cannot be written.
    """
    facts = {
        "relay_id": status.relay_id,
        "udp": [group.endpoint for group in status.groups],
        "ops_url": ops_url,
        "pid": os.getpid(),
        "worker_pids": status.pool.pids(),
    }
    _log.info("serving", engine=status.engine_name, **facts)
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
