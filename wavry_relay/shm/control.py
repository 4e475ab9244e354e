"""Control block: what the supervisor tells all workers, and the heartbeat rows they answer with.

The supervisor is the only writer.  The key set is written under a sequence lock: `key_epoch` is
odd while it changes, and a reader that saw an odd or a changed number reads again.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import IntEnum, IntFlag
from typing import Final

from wavry_peer.protocol.keyset import MAX_KEYS
from wavry_peer.protocol.lease import KeyId, RelayId, TrustedKey

from .fields import U32, U64
from .layout import CONTROL, KEY, WORKER
from .segment import Segment

__all__ = ["ControlBlock", "Drain", "EngineKind", "Limits", "Shedding", "WorkerRow", "WorkerState"]

_STATUSES: Final = ("pending", "active", "retiring", "revoked")
DEBUG_LEVEL: Final = 10
INFO_LEVEL: Final = 20
"""`ControlBlock.log_level`, as in `logging`, which a worker does not import."""
_READ_ATTEMPTS: Final = 1000
"""A writer is done in microseconds; one that died half-way leaves the old keys in use."""


class Drain(IntFlag):
    """Who asked to take no new sessions; the relay drains while any bit is set."""

    NONE = 0
    LOCAL = 1
    MASTER = 2
    SHUTDOWN = 4


class Shedding(IntFlag):
    """Why no new session is taken although there is room."""

    NONE = 0
    SESSIONS = 1
    BANDWIDTH = 2


class EngineKind(IntEnum):
    """Engine of all workers; two kinds lock differently and never share a segment."""

    REFERENCE = 1
    NATIVE = 2


class WorkerState(IntEnum):
    """What a worker says of itself."""

    BOOTING = 0
    RUNNING = 1


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the relay.  kbit/s and packets/s of 0 mean none; the rest must be positive.

    `network_…` 0 follow the limit of one address, `cookie_at_per_s` 0 always asks for cookies,
    `block_after` 0 blocks nobody.
    """

    skew_s: int = 30
    global_kbps: int = 0
    global_pps: int = 0
    session_kbps: int = 0
    ip_per_s: int = 50
    ip_burst: int = 100
    identity_per_s: int = 5
    identity_burst: int = 20
    network_per_s: int = 0
    network_burst: int = 0
    peer_burst_ms: int = 250
    session_burst_ms: int = 250
    global_burst_ms: int = 100
    cookie_at_per_s: int = 1000
    block_after: int = 100
    block_s: int = 600


class ControlBlock:
    """The control block of a segment.  Fields: `layout.CONTROL`."""

    drain = U32(CONTROL["drain"])
    engine = U32(CONTROL["engine"])
    skew_s = U32(CONTROL["skew_s"])
    global_kbps = U32(CONTROL["global_kbps"])
    global_pps = U32(CONTROL["global_pps"])
    session_kbps = U32(CONTROL["session_kbps"])
    ip_per_s = U32(CONTROL["ip_per_s"])
    ip_burst = U32(CONTROL["ip_burst"])
    identity_per_s = U32(CONTROL["identity_per_s"])
    identity_burst = U32(CONTROL["identity_burst"])
    network_per_s = U32(CONTROL["network_per_s"])
    network_burst = U32(CONTROL["network_burst"])
    peer_burst_ms = U32(CONTROL["peer_burst_ms"])
    session_burst_ms = U32(CONTROL["session_burst_ms"])
    global_burst_ms = U32(CONTROL["global_burst_ms"])
    cookie_at_per_s = U32(CONTROL["cookie_at_per_s"])
    block_after = U32(CONTROL["block_after"])
    block_s = U32(CONTROL["block_s"])
    shedding = U32(CONTROL["shedding"])
    log_level = U32(CONTROL["log_level"])
    relay_id_bytes = U32(CONTROL["relay_id_bytes"])
    key_count = U32(CONTROL["key_count"])
    key_epoch = U64(CONTROL["key_epoch"])
    key_serial = U64(CONTROL["key_serial"])
    revocation_epoch = U64(CONTROL["revocation_epoch"])
    revocation_count = U64(CONTROL["revocation_count"])

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self.base = segment.geometry.regions["control"].offset

    def initialise(
        self,
        relay_id: RelayId,
        limits: Limits,
        engine: EngineKind,
        random_bytes: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        """Fill a fresh control block: boot keys, identity, limits."""
        for name in ("hash_key", "tag_key", "cookie_key"):
            field = CONTROL[name]
            self._write(field.offset, random_bytes(field.bytes))
        encoded = relay_id.encode()
        self._write(CONTROL["relay_id"].offset, encoded)
        self.relay_id_bytes = len(encoded)
        self.engine = engine
        self.limits = limits
        self.log_level = INFO_LEVEL

    def _write(self, offset: int, data: bytes) -> None:
        at = self.base + offset
        self.segment.u8[at : at + len(data)] = data

    def _read(self, offset: int, size: int) -> bytes:
        at = self.base + offset
        return bytes(self.segment.u8[at : at + size])

    @property
    def relay_id(self) -> RelayId:
        """Id of the relay."""
        raw = self._read(CONTROL["relay_id"].offset, self.relay_id_bytes)
        return RelayId(raw.decode())

    @property
    def cookie_key(self) -> bytes:
        """32 bytes that path cookies are made with."""
        return self._read(CONTROL["cookie_key"].offset, CONTROL["cookie_key"].bytes)

    @property
    def limits(self) -> Limits:
        """Limits of the relay."""
        return Limits(**{field.name: getattr(self, field.name) for field in fields(Limits)})

    @limits.setter
    def limits(self, limits: Limits) -> None:
        for field in fields(Limits):
            setattr(self, field.name, getattr(limits, field.name))

    def write_keys(self, keys: Mapping[KeyId, TrustedKey], serial: int) -> None:
        """Replace the key set (at most 16 keys, as the document allows)."""
        if len(keys) > MAX_KEYS:
            raise ValueError(f"at most {MAX_KEYS} keys")
        rows = bytearray()
        for kid, key in keys.items():
            name = kid.encode()
            row = bytearray(KEY.size)
            row[KEY["kid_bytes"].offset] = len(name)
            row[KEY["status"].offset] = _STATUSES.index(key.status)
            start = KEY["public_key"].offset
            row[start : start + len(key.public_key)] = key.public_key
            start = KEY["kid"].offset
            row[start : start + len(name)] = name
            rows += row
        self.key_epoch += 1
        self._write(CONTROL["keys"].offset, bytes(rows))
        self.key_count = len(keys)
        self.key_serial = serial
        self.key_epoch += 1

    def read_keys(self) -> tuple[int, dict[KeyId, TrustedKey]] | None:
        """Return the epoch and key set, or None while a writer does not finish."""
        for _ in range(_READ_ATTEMPTS):
            before = self.key_epoch
            if before & 1:
                continue
            raw = self._read(CONTROL["keys"].offset, KEY.size * min(self.key_count, MAX_KEYS))
            if self.key_epoch == before:
                return before, _parse_keys(raw)
        return None


def _parse_keys(raw: bytes) -> dict[KeyId, TrustedKey]:
    keys = {}
    for at in range(0, len(raw), KEY.size):
        row = raw[at : at + KEY.size]
        start = KEY["kid"].offset
        kid = row[start : start + row[KEY["kid_bytes"].offset]].decode()
        start = KEY["public_key"].offset
        public_key = row[start : start + KEY["public_key"].bytes]
        keys[KeyId(kid)] = TrustedKey(public_key, _STATUSES[row[KEY["status"].offset]])
    return keys


class WorkerRow:
    """Heartbeat row of one worker."""

    heartbeat_ns = U64(WORKER["heartbeat_ns"])
    booted_ns = U64(WORKER["booted_ns"])
    rounds = U64(WORKER["rounds"])
    pid = U32(WORKER["pid"])
    state = U32(WORKER["state"])
    generation = U32(WORKER["generation"])
    cookie_gate = U32(WORKER["cookie_gate"])

    def __init__(self, segment: Segment, worker: int) -> None:
        self.segment = segment
        self.base = segment.geometry.regions["workers"].offset + worker * WORKER.size
