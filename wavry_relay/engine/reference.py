"""The pure engine: the packet path in plain Python, and the meaning that the native one must match.

The conditions of forwarding are checked in one order (protocol.md section 3), all of them under
the session's lock: session active, sender known by its address, sender's lease, sequence, sender's
bucket, session's limit, global limit.  Nothing is written before the last of them has passed: a
dropped datagram moves no window and costs no allowance.
"""

import errno
import select
import socket
from collections.abc import Sequence
from typing import Final

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import stun
from wavry_peer.protocol.errors import PacketError
from wavry_peer.protocol.packets import Buffer, forward_sequence, parse_header
from wavry_peer.protocol.replay import Verdict
from wavry_peer.service.clock import Clock, Instant
from wavry_relay.engine.local_addresses import LocalAddresses, asked_address
from wavry_relay.shm.address import Address
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.layout import SESSION_ACTIVE, SHARED
from wavry_relay.shm.locks import FileLocks, LockBusyError, Locks
from wavry_relay.shm.rate_limit import (
    HEAVY_PART,
    SHORT_PART,
    Shares,
    conforms,
    cost_ns,
    soft_exceeded,
)
from wavry_relay.shm.segment import Segment
from wavry_relay.shm.sessions import SessionRecord, SlotRecord, session_words
from wavry_relay.shm.tables import Tables

from .base import (
    BATCH_DATAGRAMS,
    Answer,
    ControlKind,
    ControlPacket,
    Decision,
    Drop,
    Forward,
    SenderClass,
)
from .source_limits import OverLimitError, SourceLimits
from .verified_lease import VerifiedLease

__all__ = ["ReferenceEngine"]

_ADDRESS_CACHE_ENTRIES: Final = 65_536
"""Text forms of addresses, about 15 MB when full; a full cache is simply started again."""
_U32: Final = 0xFFFFFFFF
_CONTROL_BYTES: Final = 128
"""Room for control messages, as the native engine has it."""
_MS_NS: Final = 1_000_000

_Target = tuple[
    socket.socket, list[tuple[int, int, bytes]], tuple[str, int] | tuple[str, int, int, int]
]

_VERDICT_DROPS: Final = {
    Verdict.DUPLICATE: Drop("duplicate"),
    Verdict.TOO_OLD: Drop("too_old"),
    Verdict.JUMP_TOO_FAR: Drop("jump_too_far"),
}
_UNKNOWN_SESSION: Final = Drop("unknown_session")
_NOT_ACTIVE: Final = Drop("not_active")
_LEASE_EXPIRED: Final = Drop("lease_expired")
_UNPROVED_PATH: Final = Drop("unproved_path")
_PEER_RATE: Final = Drop("peer_rate")
_SESSION_RATE: Final = Drop("session_rate")
_GLOBAL_RATE: Final = Drop("global_rate")
_OVER_LIMIT: Final = Drop("ip_rate")
_LOCK_BUSY: Final = Drop("lock_busy")
_WRONG_DIRECTION: Final = Drop("wrong_direction")

_LEASE_TYPES: Final = (c.PacketType.LEASE_PRESENT, c.PacketType.LEASE_RENEW)


class ReferenceEngine:
    """`Engine` in pure Python with recvfrom and sendto.

    Args:
        segment: shared memory.
        sockets: non-blocking, in the order of the listen addresses; owned from here on.
        counters: row of this worker.
        clock: read once for each datagram.
        wake_fd: `run` returns early when it is readable.
    """

    name = "reference"

    def __init__(
        self,
        segment: Segment,
        sockets: Sequence[socket.socket],
        counters: CounterRow,
        clock: Clock,
        *,
        wake_fd: int | None = None,
    ) -> None:
        self.locks: Locks = FileLocks(segment.fd)
        self._segment = segment
        self._sockets = list(sockets)
        self._counters = counters
        self._clock = clock
        tables = Tables(segment, self.locks)
        self._control, self._table = tables.control, tables.sessions
        self._limits = SourceLimits(tables, counters)
        shared = segment.geometry.regions["shared"].offset
        self._bits_tat_at = (shared + SHARED["global_bits_tat"].offset) // 8
        self._packets_tat_at = (shared + SHARED["global_packets_tat"].offset) // 8
        self._locals = LocalAddresses(segment, self.locks)
        self._shares = Shares(segment)
        self._sources: dict[tuple[int, tuple[str | int, ...]], Address] = {}
        self._targets: dict[Address, _Target] = {}
        self._buffer = bytearray(c.RECEIVE_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._poll = select.poll()
        self._by_fd = {sock.fileno(): number for number, sock in enumerate(self._sockets)}
        for sock in self._sockets:
            sock.settimeout(0)  # the native engine lets its socket wait
            self._poll.register(sock, select.POLLIN)
        if wake_fd is not None:
            self._poll.register(wake_fd, select.POLLIN)

    # -- Decisions ---------------------------------------------------------------------------

    def decide(self, datagram: Buffer, source: Address, now: Instant) -> Decision:
        """Decide one datagram; see `Engine.decide`."""
        try:
            decision = self._decide(datagram, source, now)
            if isinstance(decision, ControlPacket):
                sender = self._limits.judge(decision.kind, datagram, source, now)
                decision = decision._replace(sender=sender)
        except PacketError as error:
            decision = Drop(error.reason)
        except OverLimitError:
            decision = _OVER_LIMIT
        except LockBusyError:
            decision = _LOCK_BUSY
        if isinstance(decision, Drop):
            self._counters.add_drop(decision.reason, len(datagram))
        return decision

    def _decide(self, datagram: Buffer, source: Address, now: Instant) -> Decision:
        try:
            header = parse_header(datagram)
        except PacketError:
            if stun.is_stun(datagram):
                return ControlPacket(ControlKind.STUN, bytes(datagram), source)
            raise
        if header.type == c.PacketType.FORWARD:
            return self._decide_forward(datagram, header.session_id, source, now)
        if header.type in _LEASE_TYPES:
            return ControlPacket(ControlKind.LEASE, bytes(datagram), source)
        return _WRONG_DIRECTION

    def _decide_forward(
        self, datagram: Buffer, session_id: bytes, source: Address, now: Instant
    ) -> Decision:
        sequence = forward_sequence(memoryview(datagram)[c.HEADER_BYTES :])
        high, low = session_words(session_id)
        record = self._table.find(high, low)
        if record is None:
            return _UNKNOWN_SESSION
        with self.locks.session(record.number):
            if not self._table.holds(record, high, low):
                return _UNKNOWN_SESSION
            client, server = record.slots()
            if client.is_at(source):
                sender, receiver = client, server
            elif server.is_at(source):
                sender, receiver = server, client
            else:
                return ControlPacket(ControlKind.UNKNOWN_PATH, bytes(datagram), source)
            if record.state != SESSION_ACTIVE:
                return _NOT_ACTIVE
            if now.wall_ms >= sender.expires_ms:
                return _LEASE_EXPIRED
            verdict = sender.check(sequence, c.REPLAY_MAX_JUMP)
            if verdict is not Verdict.FRESH:
                return _VERDICT_DROPS[verdict]
            if not receiver.may_send(len(datagram)):
                return _UNPROVED_PATH
            refused = self._charge(record, sender, len(datagram), now.mono_ns)
            if refused is not None:
                return refused
            receiver.spend(len(datagram))
            sender.credit(len(datagram))
            sender.commit(sequence)
            sender.received_ms = self._segment.milliseconds(now.mono_ns)
            return Forward(receiver.address)

    def _charge(
        self, record: SessionRecord, sender: SlotRecord, size: int, now_ns: int
    ) -> Drop | None:
        """Take a datagram from all allowances, or from none and say which one refuses."""
        control = self._control
        burst_ns = control.peer_burst_ms * _MS_NS
        peer_tat = _bit_rate(sender.tat_ns, sender.hard_kbps, size, now_ns, burst_ns)
        if not peer_tat:
            return _PEER_RATE
        session_tat = 0
        if session_kbps := control.session_kbps:
            burst_ns = control.session_burst_ms * _MS_NS
            session_tat = _bit_rate(record.tat_ns, session_kbps, size, now_ns, burst_ns)
            if not session_tat:
                return _SESSION_RATE
        if not self._charge_global(sender.sub, size, now_ns):
            return _GLOBAL_RATE
        sender.tat_ns = peer_tat
        if session_tat:
            record.tat_ns = session_tat
        self._count_soft(sender, size, now_ns)
        return None

    def _charge_global(self, sub: int, size: int, now_ns: int) -> bool:
        kbps, pps = self._control.global_kbps, self._control.global_pps
        if not kbps and not pps:
            return True
        words = self._segment.u64
        burst_ns = self._control.global_burst_ms * _MS_NS
        limits = []
        if kbps:
            limits.append((self._bits_tat_at, cost_ns(size, kbps)))
        if pps:
            limits.append((self._packets_tat_at, 1_000_000_000 // pps))
        with self.locks.global_rate():
            place, share = None, 0
            if any(words[at] > now_ns + burst_ns // SHORT_PART for at, _ in limits):
                most = max(cost for _, cost in limits)
                place, share = self._shares.judge(sub, most, now_ns, burst_ns)
                if place is not None and not share:
                    burst_ns //= HEAVY_PART
            tats = [conforms(words[at], now_ns, burst_ns, cost) for at, cost in limits]
            if not all(tats):
                return False
            for (at, _), tat_ns in zip(limits, tats, strict=True):
                words[at] = tat_ns
            if place is not None and share:
                words[place] = share
            return True

    def _count_soft(self, sender: SlotRecord, size: int, now_ns: int) -> None:
        """Count what is over the soft limit; it is forwarded all the same."""
        soft_kbps = sender.soft_kbps
        if soft_kbps:
            burst_us = self._control.peer_burst_ms * 1000
            exceeded, sender.soft_tat_us = soft_exceeded(
                sender.soft_tat_us, now_ns // 1000 & _U32, size, soft_kbps, burst_us
            )
            if not exceeded:
                return
        self._counters.add("soft_limit_packets")
        self._counters.add("soft_limit_bytes", size)

    # -- Datagrams ---------------------------------------------------------------------------

    def run(self, timeout_ms: int) -> list[ControlPacket]:
        """One round; see `Engine.run`."""
        control: list[ControlPacket] = []
        for fd, _ in self._poll.poll(timeout_ms):
            listen = self._by_fd.get(fd)
            if listen is not None:
                self._receive(listen, control)
        return sorted(control, key=_is_stranger)  # stable

    def _receive(self, listen: int, control: list[ControlPacket]) -> None:
        receive = self._sockets[listen].recvmsg_into
        packets = size_sum = forwarded = forwarded_bytes = 0
        for _ in range(BATCH_DATAGRAMS):
            try:
                size, control_data, _, sockaddr = receive([self._buffer], _CONTROL_BYTES)
            except BlockingIOError:
                break
            except OSError:
                # A pending ICMP error of an earlier send; it belongs to no datagram of ours.
                continue
            packets += 1
            size_sum += size
            asked = asked_address(control_data) if control_data else None
            local = self._locals.number(listen, *asked) if asked else listen
            source = self._source(local, sockaddr)
            # The clock is read for each datagram: a lease ends at that packet, not at that batch.
            decision = self.decide(self._view[:size], source, self._clock.now())
            if isinstance(decision, Forward):
                if self._transmit(self._view[:size], decision.to):
                    forwarded += 1
                    forwarded_bytes += size
            elif isinstance(decision, ControlPacket):
                control.append(decision)
        add = self._counters.add
        add("received_packets", packets)
        add("received_bytes", size_sum)
        add("forwarded_packets", forwarded)
        add("forwarded_bytes", forwarded_bytes)

    def _source(self, listen: int, sockaddr: tuple[str | int, ...]) -> Address:
        key = (listen, sockaddr)
        address = self._sources.get(key)
        if address is None:
            if len(self._sources) >= _ADDRESS_CACHE_ENTRIES:
                self._sources.clear()
            address = self._sources[key] = Address.from_sockaddr(sockaddr, listen=listen)
        return address

    def _transmit(self, datagram: Buffer, to: Address) -> bool:
        try:
            sock, control, sockaddr = self._targets.get(to) or self._target(to)
            sock.sendmsg([datagram], control, 0, sockaddr)
        except BlockingIOError:
            self._counters.add_drop("send_blocked", len(datagram))
            return False
        except OSError:
            self._counters.add_drop("send_failed", len(datagram))
            return False
        return True

    def _target(self, to: Address) -> _Target:
        """Find the socket that a peer wrote to, and how to send from the address it wrote to.

        Where there is no such socket (the list of listen addresses changed), the first that can
        carry the family.
        """
        local = self._locals.entry(to.listen)
        listen = to.listen if local is None else local.listen
        wanted = socket.AF_INET if to.family == 4 else socket.AF_INET6
        control = []
        asked = self._sockets[listen : listen + 1]
        if asked and asked[0].family in (wanted, socket.AF_INET6):
            if local is not None:
                control.append(local.control(asked[0].family))
        else:
            asked = [sock for sock in self._sockets if sock.family == wanted]
            if not asked:
                raise OSError(errno.EADDRNOTAVAIL, "no socket can carry this family")
        is_v6 = asked[0].family == socket.AF_INET6
        target = asked[0], control, to.sockaddr_v6 if is_v6 else to.sockaddr
        if len(self._targets) >= _ADDRESS_CACHE_ENTRIES:
            self._targets.clear()
        self._targets[to] = target
        return target

    def answer(self, packets: list[ControlPacket], answers: list[Answer]) -> None:
        """Send the answers of a batch; see `Engine.answer`."""
        for packet, datagrams in zip(packets, answers, strict=True):
            for datagram in datagrams:
                self._transmit(datagram, packet.source)

    def send(self, datagram: bytes, to: Address) -> bool:
        """Send a datagram; see `Engine.send`."""
        return self._transmit(datagram, to)

    def admit(
        self,
        session: tuple[int, int],  # noqa: ARG002  # of the seam
        lease: VerifiedLease,  # noqa: ARG002  # of the seam
        source: Address,  # noqa: ARG002  # of the seam
        mono_ns: int,  # noqa: ARG002  # of the seam
    ) -> Answer | None:
        """Leave every lease to the rules in Python."""
        return None

    def close(self) -> None:
        """Close the sockets."""
        self._view.release()
        for sock in self._sockets:
            sock.close()


def _is_stranger(packet: ControlPacket) -> bool:
    return packet.sender is SenderClass.STRANGER


def _bit_rate(tat_ns: int, kbps: int, size: int, now_ns: int, burst_ns: int) -> int:
    """`conforms` for a datagram under a hard limit; a limit of 0 lets nothing through."""
    if not kbps:
        return 0
    return conforms(tat_ns, now_ns, burst_ns, cost_ns(size, kbps))
