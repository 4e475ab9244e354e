"""What a relay tells its master: of itself at registration, of its load in each heartbeat."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.http.api import BlockedHost

__all__ = ["RelayDescription", "RelayLoad"]


@dataclass(frozen=True, slots=True)
class RelayDescription:
    """Who the relay is, and what it tells of itself at registration."""

    identity: SigningKey
    endpoints: tuple[str, ...]
    region: str | None
    max_sessions: int
    max_bitrate_kbps: int
    version: str
    name: str | None = None
    enrolment_token_file: Path | None = None
    features: tuple[str, ...] = ("proof", "reflexive", "path-challenge")


@dataclass(frozen=True, slots=True)
class RelayLoad:
    """What a heartbeat tells, measured since the last one."""

    load_pct: float
    active_sessions: int
    bandwidth_in_kbps: int
    bandwidth_out_kbps: int
    packet_loss_pct: float
    draining: bool
    workers_wanted: int = 0
    workers_missing: int = 0
    disk_failing: bool = False
    rejects: Mapping[str, int] = field(default_factory=dict)
    blocks: tuple[BlockedHost, ...] = ()
