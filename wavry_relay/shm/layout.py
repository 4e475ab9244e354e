"""Every offset of the shared memory, once.

Strategy: records are declared as rows of (name, width, count); `_record` gives each field the
next offset and refuses one that is not naturally aligned, so nothing is ever padded in
silence and a C struct made from the same rows has the same offsets.  Numbers are in native byte
order, because only processes of one host share them.  All 64-bit words are 8-byte aligned
in the segment: they are read and written as whole words (`memoryview.cast("Q")`, or atomics in
C), never through `struct`, which tears.

Regions follow each other in the order of `Geometry.regions`; their offsets are also written into
the head, so that a reader needs no arithmetic of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from wavry_peer.protocol import constants as c
from wavry_peer.protocol.keyset import MAX_KEYS
from wavry_peer.protocol.replay import WINDOW_WORDS

from .lease_states import TRANSITIONS, counter_name

__all__ = [
    "BLOCK",
    "CONTROL",
    "COUNTERS",
    "COUNTER_ROW_BYTES",
    "DROP_BYTES_AHEAD",
    "HEAD",
    "INDEX_DELETED",
    "INDEX_EMPTY",
    "KEY",
    "LAYOUT_VERSION",
    "LEASE_HISTORY",
    "LEASE_ORIGIN",
    "LIMITED_BYTES_AHEAD",
    "LOCAL_ADDRESS",
    "LOCAL_ADDRESSES",
    "MAGIC_WORD",
    "RATE_BUCKET",
    "REVOCATION",
    "REVOCATION_SLOTS",
    "SESSION",
    "SESSION_SHARE",
    "SHARED",
    "SHARE_BUCKET",
    "SHARE_WAYS",
    "SLOT",
    "USED_LEASE",
    "WORKER",
    "Field",
    "Geometry",
    "Record",
    "Region",
]

MAGIC_WORD: Final = int.from_bytes(b"WAVRYSHM", "little")
LAYOUT_VERSION: Final = 9
"""Grows with every change of an offset: processes of two versions never share a segment."""

PAGE_BYTES: Final = 4096
MAX_WORKERS: Final = 256
MAX_SESSIONS: Final = 10_000_000


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record: offset and width in bytes; `count` > 1 makes an array."""

    name: str
    offset: int
    width: int
    count: int = 1

    @property
    def bytes(self) -> int:
        """Size of the field."""
        return self.width * self.count


@dataclass(frozen=True, slots=True)
class Record:
    """A fixed-size record; its size is a multiple of 8."""

    name: str
    size: int
    fields: Mapping[str, Field]

    def __getitem__(self, name: str) -> Field:
        return self.fields[name]


def _record(name: str, *rows: tuple[str, int] | tuple[str, int, int], size: int = 0) -> Record:
    fields: dict[str, Field] = {}
    offset = 0
    for row in rows:
        field = Field(row[0], offset, row[1], row[2] if len(row) == 3 else 1)
        if offset % field.width:
            raise ValueError(f"{name}.{field.name} at {offset} is not aligned to {field.width}")
        fields[field.name] = field
        offset += field.bytes
    total = size or offset
    if offset > total or total % 8:
        raise ValueError(f"{name} has {offset} bytes, record size is {total}")
    return Record(name, total, fields)


HEAD: Final = _record(
    "head",
    ("magic", 8),
    ("version", 4),
    ("workers", 4),
    ("max_sessions", 4),
    ("index_slots", 4),
    ("used_slots", 4),
    ("counters", 4),
    ("total_bytes", 8),
    ("boot_ns", 8),
    ("at_control", 8),
    ("at_shared", 8),
    ("at_workers", 8),
    ("at_counters", 8),
    ("at_ip_rates", 8),
    ("at_identity_rates", 8),
    ("at_network_rates", 8),
    ("at_strike_rates", 8),
    ("at_blocks", 8),
    ("at_bitmap", 8),
    ("at_index", 8),
    ("at_used_leases", 8),
    ("at_revocations", 8),
    ("at_lease_origins", 8),
    ("at_local_addresses", 8),
    ("at_shares", 8),
    ("at_sessions", 8),
    size=PAGE_BYTES,
)
"""First page.  `boot_ns` is CLOCK_MONOTONIC at creation: 32-bit millisecond stamps in session
records count from it, modulo 2^32 (49 days), and are only compared by difference."""

KEY: Final = _record(
    "key",
    ("kid_bytes", 1),
    ("status", 1),
    ("reserved", 1, 6),
    ("public_key", 1, 32),
    ("kid", 1, 64),
)

CONTROL: Final = _record(
    "control",
    ("hash_key", 8, 2),
    ("tag_key", 8, 4),
    ("cookie_key", 8, 4),
    ("drain", 4),
    ("engine", 4),
    ("skew_s", 4),
    ("global_kbps", 4),
    ("global_pps", 4),
    ("session_kbps", 4),
    ("ip_per_s", 4),
    ("ip_burst", 4),
    ("identity_per_s", 4),
    ("identity_burst", 4),
    ("network_per_s", 4),
    ("network_burst", 4),
    ("peer_burst_ms", 4),
    ("session_burst_ms", 4),
    ("global_burst_ms", 4),
    ("cookie_at_per_s", 4),
    ("block_after", 4),
    ("block_s", 4),
    ("shedding", 4),
    ("log_level", 4),
    ("key_count", 4),
    ("relay_id_bytes", 4),
    ("key_epoch", 8),
    ("key_serial", 8),
    ("revocation_epoch", 8),
    ("revocation_count", 8),
    ("relay_id", 1, 64),
    ("keys", 1, KEY.size * MAX_KEYS),
    size=PAGE_BYTES,
)
"""Written by the supervisor alone, read by every worker.  `key_epoch` is a sequence lock around
`key_count`, `key_serial` and `keys`: odd while they are being written.  `revocation_epoch` and
`revocation_count` belong to `shm.revocations`."""

SHARED: Final = _record(
    "shared",
    ("global_bits_tat", 8),
    ("global_packets_tat", 8),
    ("allocation_hint", 8),
    ("used_leases", 8),
    ("table_lock", 8),
    ("global_lock", 8),
    ("blocks_until_ms", 8),
    ("used_floor_s", 8),
    ("share_second", 8),
    ("share_users", 8),
    ("share_users_before", 8),
    size=128,
)
"""Words that every worker writes, each under its lock.  The lock words are the native engine's
(see `SESSION`)."""

WORKER: Final = _record(
    "worker",
    ("heartbeat_ns", 8),
    ("booted_ns", 8),
    ("rounds", 8),
    ("pid", 4),
    ("state", 4),
    ("holds_session", 8),
    ("holds_rate", 8),
    ("generation", 4),
    ("owner_pids", 4, 2),
    ("cookie_gate", 4),
    size=64,
)
"""One cache line for each worker, written by it (and reset by the supervisor at a spawn).

`cookie_gate` is 1 while the worker wants cookies.  The four before it are the native engine's: the
session record + 1 and the offset of the rate bucket that it locked last (written before the lock
is taken, so a dead worker's locks are found without a search), how often an engine was opened for
this worker number, and the processes of the last even and the last odd opening.  Neither the
supervisor nor a replacement may reset them."""

RATE_WAYS: Final = 3
RATE_BUCKET: Final = _record(
    "rate_bucket",
    ("tags", 8, RATE_WAYS),
    ("tats", 8, RATE_WAYS),
    ("overflow_tat", 8),
    ("lock", 8),
    size=64,
)
"""One cache line: three keys with their GCRA words and one word that all other keys of the
bucket share."""

SHARE_WAYS: Final = 3
SHARE_BUCKET: Final = _record(
    "share_bucket",
    ("subs", 8, SHARE_WAYS),
    ("tats", 8, SHARE_WAYS),
    ("seconds", 4, SHARE_WAYS),
    ("reserved", 4),
)
"""One cache line: three identities with what each sent of its share of the relay, and the second
of the monotonic clock in which each was seen last (modulo 2^32)."""

IP_RATE_BUCKETS: Final = 16_384
"""49 152 addresses that are limited at the same moment, in 1 MiB."""
MIN_IDENTITY_BUCKETS: Final = 4096
NETWORK_RATE_BUCKETS: Final = 4096
STRIKE_RATE_BUCKETS: Final = 1024

BLOCK: Final = _record(
    "block",
    ("host", 8),
    ("until_ms", 8),
    ("since_ms", 8),
    ("family", 4),
    ("reason", 4),
)
"""A blocked IPv4 address or IPv6 /64: `Address.host_key`, wall clock times, a `RejectReason`.
`until_ms` 0 = free."""

BLOCK_SLOTS: Final = 4096

SLOT: Final = _record(
    "slot",
    ("address", 8, 2),
    ("endpoint", 8),
    ("window_head", 8),
    ("window", 8, WINDOW_WORDS),
    ("expires_ms", 8),
    ("mark", 8),
    ("tat", 8),
    ("soft_kbps", 4),
    ("hard_kbps", 4),
    ("jti", 8),
    ("sub", 8),
    ("cnf", 4),
    ("soft_tat_us", 4),
    ("unproved", 4),
    ("received_ms", 4),
)
"""One peer of a session.  `jti` 0 = empty slot.  `mark` is the highest proof counter + 1.
`unproved` is 0 once the peer proved its address by a cookie, until then 1 + the bytes that may
still be sent there.  `address` and `endpoint` are the words of `wavry_relay.shm.address`."""

UNPROVED_MOST: Final = 1 << 30
"""Where `unproved` stops to grow."""

SESSION: Final = _record(
    "session",
    ("lock", 2),
    ("state", 1),
    ("reserved", 1),
    ("created_ms", 4),
    ("id", 8, 2),
    ("tat", 8),
    ("client", 8, SLOT.size // 8),
    ("server", 8, SLOT.size // 8),
)
"""`lock` is for the native engine: owner's worker number + 1 in the low 9 bits, the owner's
generation modulo 128 above, 0 where nobody holds it.  The lock words of other records are the
same in their first two bytes.  The reference engine locks byte ranges of the file instead."""

SESSION_FREE: Final = 0
SESSION_WAITING: Final = 1
SESSION_ACTIVE: Final = 2

SESSION_SHARE: Final = 8
"""While fewer than a ninth of the records are left, no user who has an eighth of them gets more."""

INDEX_EMPTY: Final = 0
INDEX_DELETED: Final = (1 << 64) - 1
"""An index word is tag (upper 32 bits of the hash) and record number + 1."""

LEASE_HISTORY: Final = 3
"""Leases of a slot that are denied by tag.  A peer that renews once in the life of a lease has one
or two that have not expired."""

USED_LEASE: Final = _record(
    "used_lease",
    ("tag", 8),
    ("sub", 8),
    ("counter", 8),
    ("jti", 8),
    ("until_ms", 8),
    ("denied", 4, LEASE_HISTORY),
    ("denied_issued_s", 4, LEASE_HISTORY),
    ("issued_s", 4),
    ("floor_s", 4),
)
"""A slot that nobody holds any more: `Leftover` of `shm.leases`.  `tag` is `Tags.slot`."""

MIN_USED_SLOTS: Final = 4096

REVOCATION: Final = _record(
    "revocation", ("kind", 8), ("tag", 8, 2), ("issued_until_s", 8), ("expires_s", 8)
)
"""One entry of the revocation log; see `shm.revocations`.  `tag` is the tag of a lease, identity or
key (the second word is 0), or the two words of a session id."""

REVOCATION_SLOTS: Final = 16_384
"""The 10 000 that a master keeps in force, and room to append between two rewrites; 640 KiB."""

LEASE_ORIGIN: Final = _record(
    "lease_origin",
    ("kid", 4, 2),
    ("issued_s", 4, 2),
    ("until_ms", 8, 2),
    ("denied", 4, 2 * LEASE_HISTORY),
    ("denied_issued_s", 4, 2 * LEASE_HISTORY),
    ("floor_s", 4, 2),
)
"""Key and time of issue of a session's two leases, client first, and the leases that each slot
denies: what a revocation or a renewal asks for and a packet never does, so it stays out of the
session record's cache lines."""

LOCAL_ADDRESS: Final = _record("local_address", ("address", 8, 2), ("origin", 8))
"""An address of this host that a peer wrote to at a wildcard socket; see `engine.local_addresses`.
`origin` is the number of the listen address + 1, and the IPv6 scope id above it; 0 = free."""

LOCAL_ADDRESSES: Final = 1024
"""Of a host; what is written to further ones is answered from the kernel's choice."""

_DROPS: Final = (
    "too_short", "too_long", "bad_magic", "bad_version", "unknown_type", "unknown_flag",
    "nil_session", "bad_body", "bad_rift", "bad_crc",
    "wrong_direction", "unknown_session", "unknown_address", "not_active", "lease_expired",
    "duplicate", "too_old", "jump_too_far", "unproved_path",
    "peer_rate", "session_rate", "global_rate", "ip_rate", "control_queue",
    "blocked", "keepalive_unknown", "lock_busy", "send_blocked", "send_failed",
)  # fmt: skip

COUNTERS: Final[tuple[str, ...]] = (
    "received_packets",
    "received_bytes",
    "forwarded_packets",
    "forwarded_bytes",
    "soft_limit_packets",
    *(f"drop_{reason}" for reason in _DROPS),
    "lease_presented",
    "lease_accepted",
    "lease_reproved",
    "lease_renewed",
    "lease_released",
    "keepalives",
    "nat_rebind",
    "session_created",
    "session_activated",
    "session_closed_second_peer",
    "session_closed_idle",
    "session_closed_expired",
    "session_closed_revoked",
    "session_closed_released",
    *(counter_name(before, after) for before, after in TRANSITIONS),
    *(f"reject_{reason.name.lower()}" for reason in c.RejectReason),
    "limited_slot",
    "limited_host",
    "limited_network",
    "limited_identity",
    "sessions_shed",
    "sessions_over_share",
    "cookie_demanded",
    "cookie_gate_on",
    "block_strikes",
    "hosts_blocked",
    "blocks_not_entered",
    "sent_acks",
    "sent_challenges",
    "sent_notices",
    "stun_answers",
    "stun_answers_larger",
    "token_cache_hits",
    "internal_errors",
    "log_lines_lost",
    *(f"dropped_bytes_{reason}" for reason in _DROPS),
    "soft_limit_bytes",
    "limited_bytes_slot",
    "limited_bytes_host",
    "limited_bytes_network",
    "limited_bytes_identity",
)
"""Names of the words of a counter row, in order.  `drop_…` are datagrams that were dropped,
`dropped_bytes_…` (in the same order) their bytes, `reject_…` leases that were answered with
LEASE_REJECT."""

DROP_BYTES_AHEAD: Final = COUNTERS.index(f"dropped_bytes_{_DROPS[0]}") - COUNTERS.index(
    f"drop_{_DROPS[0]}"
)
"""How far the word of a reason's bytes is behind the word of its datagrams."""

LIMITED_BYTES_AHEAD: Final = COUNTERS.index("limited_bytes_slot") - COUNTERS.index("limited_slot")
"""The same of a layer of limits."""

COUNTER_ROW_BYTES: Final = (len(COUNTERS) * 8 + 63) // 64 * 64


@dataclass(frozen=True, slots=True)
class Region:
    """A run of equal records in the segment."""

    name: str
    offset: int
    record_bytes: int
    count: int

    @property
    def end(self) -> int:
        """Offset of the first byte behind the region."""
        return self.offset + self.record_bytes * self.count


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()


@dataclass(frozen=True)
class Geometry:
    """Sizes of everything, from the two numbers that an operator chooses.

    Raises:
        ValueError: a number is out of range.
    """

    workers: int
    max_sessions: int

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= MAX_WORKERS:
            raise ValueError(f"workers must be 1 to {MAX_WORKERS}")
        if not 1 <= self.max_sessions <= MAX_SESSIONS:
            raise ValueError(f"max_sessions must be 1 to {MAX_SESSIONS}")

    @cached_property
    def index_slots(self) -> int:
        """Words of the session index: at most half full, so a probe is short."""
        return _power_of_two(2 * self.max_sessions)

    @cached_property
    def used_slots(self) -> int:
        """Entries for used leases: three quarters filled, for one and a half times the sessions."""
        return max(MIN_USED_SLOTS, 4 * self.max_sessions)

    @cached_property
    def identity_buckets(self) -> int:
        """Buckets of the identity limit.

        All peers of a full relay may renew within a second, and each must find a word of its own
        or, in the bucket's overflow word, the allowance of two or three.
        """
        return max(MIN_IDENTITY_BUCKETS, self.max_sessions)

    @cached_property
    def regions(self) -> dict[str, Region]:
        """All regions, in the order of their offsets; each begins at a multiple of 64."""
        rows = (
            ("head", HEAD.size, 1),
            ("control", CONTROL.size, 1),
            ("shared", SHARED.size, 1),
            ("workers", WORKER.size, self.workers),
            ("counters", COUNTER_ROW_BYTES, self.workers),
            ("ip_rates", RATE_BUCKET.size, IP_RATE_BUCKETS),
            ("identity_rates", RATE_BUCKET.size, self.identity_buckets),
            ("network_rates", RATE_BUCKET.size, NETWORK_RATE_BUCKETS),
            ("strike_rates", RATE_BUCKET.size, STRIKE_RATE_BUCKETS),
            ("blocks", BLOCK.size, BLOCK_SLOTS),
            ("bitmap", 8, (self.max_sessions + 63) // 64),
            ("index", 8, self.index_slots),
            ("used_leases", USED_LEASE.size, self.used_slots),
            ("revocations", REVOCATION.size, REVOCATION_SLOTS),
            ("lease_origins", LEASE_ORIGIN.size, self.max_sessions),
            ("local_addresses", LOCAL_ADDRESS.size, LOCAL_ADDRESSES),
            ("shares", SHARE_BUCKET.size, self.max_sessions),
            ("sessions", SESSION.size, self.max_sessions),
        )
        regions = {}
        offset = 0
        for name, record_bytes, count in rows:
            regions[name] = Region(name, offset, record_bytes, count)
            offset = (regions[name].end + 63) // 64 * 64
        return regions

    @property
    def total_bytes(self) -> int:
        """Size of the segment, whole pages."""
        end = self.regions["sessions"].end
        return (end + PAGE_BYTES - 1) // PAGE_BYTES * PAGE_BYTES
