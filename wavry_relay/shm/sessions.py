"""Session table: fixed records, an allocation bitmap, and an open-addressed index.

Who may do what: `find` needs no lock (an index word is read whole, and whoever uses the record
locks it and looks at its id again); `claim` and `release` need the table lock; fields of a record
are changed under the record's lock.

A crash at any point leaves a table that the sweep repairs: a record is claimed in the order bitmap,
contents, state, index, and released in the order index, state, bitmap.
"""

import struct
from collections.abc import Iterator
from typing import Final

from wavry_peer.protocol.constants import GONE_AFTER_S, UNPROVED_FACTOR, Role
from wavry_peer.protocol.replay import WINDOW_WORDS, Verdict, window_check, window_commit

from . import layout
from .address import Address
from .fields import U8, U32, U64
from .layout import INDEX_DELETED, INDEX_EMPTY, SESSION, SESSION_FREE, SESSION_SHARE, SHARED, SLOT
from .segment import Segment
from .tags import Tags

__all__ = ["SessionRecord", "SessionTable", "SlotRecord", "is_silent", "session_words"]

_PAIR: Final = struct.Struct("=QQ")
_FULL: Final = (1 << 64) - 1
_WINDOW: Final = SLOT["window"].offset // 8
_ADDRESS: Final = SLOT["address"].offset // 8
_ENDPOINT: Final = SLOT["endpoint"].offset // 8
_EXPIRES: Final = SLOT["expires_ms"].offset // 8
_MARK: Final = SLOT["mark"].offset // 8
_JTI: Final = SLOT["jti"].offset // 8
_SUB: Final = SLOT["sub"].offset // 8
_SOFT: Final = SLOT["soft_kbps"].offset // 4
_HARD: Final = SLOT["hard_kbps"].offset // 4
_CNF: Final = SLOT["cnf"].offset // 4
_RECEIVED: Final = SLOT["received_ms"].offset // 4
_SLOT_WORDS: Final = SLOT.size // 8
_ZEROS: Final = memoryview(bytes(SLOT.size)).cast("Q")
"""Copied over what nobody reads meanwhile (a slot without a jti, a window under its lock): a copy
may tear, and nothing else of a record may be written by one."""
_ID: Final = SESSION["id"].offset // 8
_CLIENT_AT: Final = SESSION["client"].offset
_SERVER_AT: Final = SESSION["server"].offset
_SESSION_WORDS: Final = SESSION.size // 8
_STATE_AT: Final = SESSION["state"].offset
_CLIENT_EXPIRES: Final = _CLIENT_AT // 8 + _EXPIRES
_CLIENT_RECEIVED: Final = _CLIENT_AT // 4 + _RECEIVED
_SERVER_RECEIVED: Final = _SERVER_AT // 4 + _RECEIVED
_ACTIVE: Final = layout.SESSION_ACTIVE
SHARE_SAMPLE: Final = 1024
"""Enough to tell an eighth from a sixteenth."""
_U32: Final = 0xFFFFFFFF
_FUTURE: Final = 1 << 31


def session_words(session_id: bytes) -> tuple[int, int]:
    """Return the two words of a session id as a record keeps them."""
    high, low = _PAIR.unpack(session_id)
    return high, low


class SlotRecord:
    """One peer of a session.  Units and meanings: `layout.SLOT`."""

    __slots__ = ("base", "segment")

    address_high = U64(SLOT["address"])
    address_low = U64(SLOT["address"], 1)
    endpoint = U64(SLOT["endpoint"])
    window_head = U64(SLOT["window_head"])
    expires_ms = U64(SLOT["expires_ms"])
    mark = U64(SLOT["mark"])
    tat_ns = U64(SLOT["tat"])
    soft_kbps = U32(SLOT["soft_kbps"])
    hard_kbps = U32(SLOT["hard_kbps"])
    jti = U64(SLOT["jti"])
    sub = U64(SLOT["sub"])
    cnf = U32(SLOT["cnf"])
    soft_tat_us = U32(SLOT["soft_tat_us"])
    unproved = U32(SLOT["unproved"])
    received_ms = U32(SLOT["received_ms"])

    def __init__(self, segment: Segment, base: int) -> None:
        self.segment = segment
        self.base = base

    @property
    def address(self) -> Address:
        """Where the peer is."""
        return Address(self.address_high, self.address_low, self.endpoint)

    @address.setter
    def address(self, address: Address) -> None:
        self.address_high, self.address_low, self.endpoint = address

    def is_at(self, address: Address) -> bool:
        """Return whether an occupied slot has this address."""
        words, at = self.segment.u64, self.base >> 3
        return (
            words[at + _ADDRESS + 1] == address[1]
            and words[at + _ENDPOINT] == address[2]
            and words[at + _ADDRESS] == address[0]
            and words[at + _JTI] != 0
        )

    def credit(self, received_bytes: int) -> None:
        """Let more be sent to an address that is not proved, as more came from it."""
        if self.unproved:
            more = self.unproved + UNPROVED_FACTOR * received_bytes
            self.unproved = min(more, layout.UNPROVED_MOST)

    def may_send(self, size_bytes: int) -> bool:
        """Return whether the peer proved its address, or sent enough for this."""
        return not self.unproved or self.unproved > size_bytes

    def spend(self, size_bytes: int) -> bool:
        """Take what is sent from an unproved peer's credit; False where there is not enough."""
        if not self.may_send(size_bytes):
            return False
        if self.unproved:
            self.unproved -= size_bytes
        return True

    def fill(
        self,
        address: Address,
        *,
        expires_ms: int,
        soft_kbps: int,
        hard_kbps: int,
        sub: int,
        cnf: int,
        mark: int,
        received_ms: int,
    ) -> None:
        """Write all that a lease brings, but `jti`, which says that the rest counts."""
        words, at = self.segment.u64, self.base >> 3
        halves, half = self.segment.u32, self.base >> 2
        words[at + _ADDRESS], words[at + _ADDRESS + 1], words[at + _ENDPOINT] = address
        words[at + _EXPIRES] = expires_ms
        halves[half + _SOFT] = soft_kbps
        halves[half + _HARD] = hard_kbps
        words[at + _SUB] = sub
        halves[half + _CNF] = cnf
        words[at + _MARK] = mark
        halves[half + _RECEIVED] = received_ms

    def check(self, sequence: int, max_jump: int) -> Verdict:
        """Judge a sequence with the peer's replay window; changes nothing."""
        at = (self.base >> 3) + _WINDOW
        words = self.segment.u64[at : at + WINDOW_WORDS]
        return window_check(words, self.window_head, sequence, max_jump)

    def commit(self, sequence: int) -> None:
        """Mark a sequence as received; `check` must have called it fresh."""
        at = (self.base >> 3) + _WINDOW
        words = self.segment.u64[at : at + WINDOW_WORDS]
        self.window_head = window_commit(words, self.window_head, sequence)

    def reset_window(self) -> None:
        """Start the replay window afresh."""
        self.window_head = 0
        at = (self.base >> 3) + _WINDOW
        self.segment.u64[at : at + WINDOW_WORDS] = _ZEROS[:WINDOW_WORDS]

    def clear(self) -> None:
        """Make the slot empty: `jti` first, because it says whether the rest counts."""
        self.jti = 0
        at = self.base >> 3
        self.segment.u64[at : at + _SLOT_WORDS] = _ZEROS


def is_silent(segment: Segment, slot: SlotRecord, stamp: int) -> bool:
    """Return whether a peer counts as gone: it sent nothing for `GONE_AFTER_S`."""
    return segment.elapsed_ms(stamp, slot.received_ms) >= GONE_AFTER_S * 1000


class SessionRecord:
    """One session.  Units and meanings: `layout.SESSION`."""

    __slots__ = ("base", "number", "segment")

    state = U8(SESSION["state"])
    created_ms = U32(SESSION["created_ms"])
    id_high = U64(SESSION["id"])
    id_low = U64(SESSION["id"], 1)
    tat_ns = U64(SESSION["tat"])

    def __init__(self, segment: Segment, base: int, number: int) -> None:
        self.segment = segment
        self.base = base
        self.number = number

    @property
    def session_id(self) -> bytes:
        """16 bytes."""
        return _PAIR.pack(self.id_high, self.id_low)

    def slot(self, role: int) -> SlotRecord:
        """Return the slot of a role."""
        at = _SERVER_AT if role == Role.SERVER else _CLIENT_AT
        return SlotRecord(self.segment, self.base + at)

    def slots(self) -> tuple[SlotRecord, SlotRecord]:
        """Return the client and server."""
        segment, base = self.segment, self.base
        return SlotRecord(segment, base + _CLIENT_AT), SlotRecord(segment, base + _SERVER_AT)


class SessionTable:
    """All sessions of a relay."""

    def __init__(self, segment: Segment, tags: Tags) -> None:
        self._segment = segment
        self._tags = tags
        regions = segment.geometry.regions
        self._records_at = regions["sessions"].offset
        self._index_at = regions["index"].offset // 8
        self._bitmap = regions["bitmap"]
        self._hint_at = (regions["shared"].offset + SHARED["allocation_hint"].offset) // 8
        self._mask = segment.geometry.index_slots - 1

    def has_slot_at(self, source: Address) -> bool:
        """Return whether a live slot is at the host of an address, whatever its port.

        Needs no lock, and walks over all records that ever were in use: 3 ms for 65 536.
        """
        word, family = key = source.host_key
        half = _ADDRESS + (1 if family == 4 else 0)
        first, words = self._records_at // 8, self._segment.u64
        stride, in_use = SESSION.size // 8, self._in_use()
        for at in (_CLIENT_AT // 8, _SERVER_AT // 8):
            begin = first + at + half
            hosts = words[begin : begin + in_use * stride : stride].tolist()
            if word in hosts and any(
                host == word and self._is_live_at(number, key) for number, host in enumerate(hosts)
            ):
                return True
        return False

    def _in_use(self) -> int:
        """Return the number behind the highest record that is taken."""
        bitmap = self._bitmap
        at = bitmap.offset // 8
        taken = self._segment.u64[at : at + bitmap.count].tolist()
        last = max((number for number, word in enumerate(taken) if word), default=-1)
        return min((last + 1) * 64, self._segment.geometry.max_sessions)

    def _is_live_at(self, number: int, key: tuple[int, int]) -> bool:
        record = self.record(number)
        return record.state != SESSION_FREE and any(
            slot.jti and slot.address.host_key == key for slot in record.slots()
        )

    def record(self, number: int) -> SessionRecord:
        """Return the record of a number that `find`, `claim` or `live` gave."""
        return SessionRecord(self._segment, self._records_at + number * SESSION.size, number)

    def find(self, high: int, low: int) -> SessionRecord | None:
        """Look a session up by the words of its id; needs no lock.

        The record may be released or reused before the caller locks it: lock it, then ask
        `holds` again.
        """
        words, index_at, mask = self._segment.u64, self._index_at, self._mask
        digest = self._tags.pair(high, low)
        tag = digest >> 32
        for step in range(mask + 1):
            word = words[index_at + (digest + step & mask)]
            if word == INDEX_EMPTY:
                return None
            if word >> 32 == tag and word != INDEX_DELETED:
                record = self.record((word & 0xFFFFFFFF) - 1)
                if self.holds(record, high, low):
                    return record
        return None

    @staticmethod
    def holds(record: SessionRecord, high: int, low: int) -> bool:
        """Return whether a record is (still) the live record of a session id."""
        words, at = record.segment.u64, record.base >> 3
        return (
            words[at + _ID + 1] == low and words[at + _ID] == high and record.state != SESSION_FREE
        )

    def claim(self, high: int, low: int, created_ms: int) -> SessionRecord | None:
        """Take a free record for a new session; needs the table lock.

        Returns:
            The record in state WAITING with two empty slots, or None if all are taken.
        """
        number = self._allocate()
        if number is None:
            return None
        record = self.record(number)
        for slot in record.slots():
            slot.clear()
        record.id_high, record.id_low = high, low
        record.tat_ns = 0
        record.created_ms = created_ms
        record.state = layout.SESSION_WAITING
        words = self._segment.u64
        digest = self._tags.pair(high, low)
        for step in range(self._mask + 1):
            at = self._index_at + (digest + step & self._mask)
            if words[at] in (INDEX_EMPTY, INDEX_DELETED):
                words[at] = (digest >> 32) << 32 | number + 1
                break
        return record

    def _allocate(self) -> int | None:
        words = self._segment.u64
        first = self._bitmap.offset // 8
        count = self._bitmap.count
        hint = words[self._hint_at] % count
        for step in range(count):
            at = (hint + step) % count
            free = ~words[first + at] & _FULL
            while free:
                bit = free & -free
                number = at * 64 + bit.bit_length() - 1
                if number < self._segment.geometry.max_sessions:
                    words[first + at] |= bit
                    words[self._hint_at] = at
                    return number
                free ^= bit
        return None

    def release(self, record: SessionRecord) -> None:
        """Give a record back; needs the table lock and the record's."""
        words = self._segment.u64
        digest = self._tags.pair(record.id_high, record.id_low)
        wanted = (digest >> 32) << 32 | record.number + 1
        for step in range(self._mask + 1):
            at = digest + step & self._mask
            word = words[self._index_at + at]
            if word == INDEX_EMPTY:
                break
            if word == wanted:
                self._delete(at)
                break
        record.state = SESSION_FREE
        for slot in record.slots():
            slot.clear()
        self.free_bit(record.number)

    def _delete(self, at: int) -> None:
        """Remove an index word.

        A run of deleted words before an empty one becomes empty, so that they do not pile up.
        A reader that walks by misses nothing: the run ends there.
        """
        words = self._segment.u64
        words[self._index_at + at] = INDEX_DELETED
        if words[self._index_at + (at + 1 & self._mask)] != INDEX_EMPTY:
            return
        while words[self._index_at + at] == INDEX_DELETED:
            words[self._index_at + at] = INDEX_EMPTY
            at = at - 1 & self._mask

    def free_bit(self, number: int) -> None:
        """Mark a record as free in the bitmap; needs the table lock."""
        at = self._bitmap.offset // 8 + number // 64
        self._segment.u64[at] &= ~(1 << number % 64) & _FULL

    def live(self, first_word: int = 0, words: int | None = None) -> Iterator[SessionRecord]:
        """Yield the records whose bit is set in a range of bitmap words (64 records each)."""
        end = self._bitmap.count if words is None else min(first_word + words, self._bitmap.count)
        base = self._bitmap.offset // 8
        for at in range(first_word, end):
            taken = self._segment.u64[base + at]
            while taken:
                bit = taken & -taken
                yield self.record(at * 64 + bit.bit_length() - 1)
                taken ^= bit

    def doubtful(
        self, word: int, now_wall_ms: int, stamp: int, idle_ms: int
    ) -> Iterator[SessionRecord]:
        """Return the records of a bitmap word (64) that are in use and that a sweep must look at.

        The others are active, and their client's lease has not expired and no peer's last
        datagram is `idle_ms` old.  Four fields of all 64 records are read at a time (each whole,
        without a lock): a relay with 100 000 sessions asks this of each every two seconds.

        Args:
            word: number of the bitmap word.
            now_wall_ms: unix milliseconds.
            stamp: now, as `Segment.milliseconds`.
            idle_ms: age of a datagram that makes a session doubtful.
        """
        taken = self._segment.u64[self._bitmap.offset // 8 + word]
        if not taken:
            return
        first = word * 64
        count = min(64, self._segment.geometry.max_sessions - first)
        at = self._records_at + first * SESSION.size
        end = at + count * SESSION.size
        states = self._segment.u8[at + _STATE_AT : end : SESSION.size].tolist()
        expiries = self._segment.u64[(at >> 3) + _CLIENT_EXPIRES : end >> 3 : _SESSION_WORDS]
        halves, step = self._segment.u32, 2 * _SESSION_WORDS
        clients = halves[(at >> 2) + _CLIENT_RECEIVED : end >> 2 : step].tolist()
        servers = halves[(at >> 2) + _SERVER_RECEIVED : end >> 2 : step].tolist()
        rows = zip(states, expiries.tolist(), clients, servers, strict=True)
        for number, (state, expires_ms, client_ms, server_ms) in enumerate(rows):
            # As in `Segment.elapsed_ms`: what seems half of the range old is from the future.
            if (
                state == _ACTIVE
                and expires_ms > now_wall_ms
                and not idle_ms <= (stamp - client_ms & _U32) < _FUTURE
                and not idle_ms <= (stamp - server_ms & _U32) < _FUTURE
            ):
                continue
            if taken >> number & 1:
                yield self.record(first + number)

    @property
    def bitmap_words(self) -> int:
        """Words of the allocation bitmap."""
        return self._bitmap.count

    def count_taken(self) -> int:
        """Return the number of records in use, from the bitmap."""
        bits = self._segment.u8[self._bitmap.offset : self._bitmap.end]
        return int.from_bytes(bits, "little").bit_count()

    def is_nearly_full(self) -> bool:
        """Return whether no more than one record is left for `SESSION_SHARE` that are taken."""
        taken = self.count_taken()
        return taken >= SESSION_SHARE * (self._segment.geometry.max_sessions - taken)

    def has_a_large_share(self, sub: int) -> bool:
        """Return whether an identity has a slot in one of `SESSION_SHARE` records or more.

        Of a large table, about `SHARE_SAMPLE` records are looked at: this is asked for each new
        session of a relay that is nearly full.
        """
        records = self._segment.geometry.max_sessions
        step = max(1, records // SHARE_SAMPLE)
        end = (self._records_at >> 3) + records * _SESSION_WORDS
        words, held = self._segment.u64, 0
        for at in (_CLIENT_AT, _SERVER_AT):
            first = (self._records_at + at >> 3) + _SUB
            held += words[first : end : step * _SESSION_WORDS].tolist().count(sub)
        return SESSION_SHARE * held * step >= records

    def count_states(self) -> tuple[int, int]:
        """Return the number of sessions that wait for their second peer, and of active ones."""
        start = self._records_at + SESSION["state"].offset
        end = self._records_at + self._segment.geometry.max_sessions * SESSION.size
        states = bytes(self._segment.u8[start : end : SESSION.size])
        return states.count(layout.SESSION_WAITING), states.count(layout.SESSION_ACTIVE)
