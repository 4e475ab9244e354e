# cython: language_level=3
"""The native engine: a thin shell around the C core, which _native.pxd declares.

It owns the buffers, turns errors into exceptions and C addresses into `Address`, and releases the
GIL in one place (`NativeEngine.run`; the locks, which may have to wait, have theirs).  What a
datagram's fate is stands in decide.c; the meaning of it in reference.py.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport UINT32_MAX, UINT64_MAX, uint8_t, uint32_t, uint64_t

import os

from wavry_relay.shm.address import Address
from wavry_peer.service.clock import Clock
from wavry_relay.shm.layout import COUNTER_ROW_BYTES, COUNTERS
from wavry_relay.shm.locks import LockBusyError
from wavry_relay.worker_log import worker_log

from .base import ControlKind, ControlPacket, Drop, Forward, SenderClass


LAYOUT_DIGEST = WAVRY_LAYOUT_DIGEST.decode("ascii")
SOURCES_DIGEST = WAVRY_SOURCES_DIGEST.decode("ascii")

cdef dict _OPEN_ERRORS = {
    WV_OPEN_NOT_A_SEGMENT: "shared memory is not a Wavry segment",
    WV_OPEN_OTHER_LAYOUT: "shared memory has another layout version; restart the whole relay",
    WV_OPEN_BAD_GEOMETRY: "shared memory is damaged: a region lies outside",
    WV_OPEN_NO_SUCH_WORKER: "the segment has no such worker",
}

cdef tuple _DROPS = tuple(
    Drop(name.removeprefix("drop_")) if name.startswith("drop_") else None for name in COUNTERS
)
cdef dict _KINDS = {int(kind): kind for kind in ControlKind}
cdef dict _SENDERS = {int(sender): sender for sender in SenderClass}


cdef inline void _to_c(object address, wv_address *out):
    out.high, out.low, out.endpoint = address


cdef inline object _to_python(const wv_address *address):
    # What `Address(…)` does, without a frame of Python.
    return tuple.__new__(Address, (address.high, address.low, address.endpoint))


cdef class NativeEngine:
    """`Engine` in C; see reference.py for the arguments.

    Args:
        busy_poll_us: ask the sockets again and again for this long before sleeping; costs a whole
            core and saves a wake-up, so 0 unless latency is worth that.
    """

    cdef wv_engine *_engine
    # A mapping of its own: the packet path must not depend on when Python lets go of a view.
    cdef void *_memory
    cdef size_t _memory_bytes
    cdef list _sockets
    cdef object _clock
    cdef uint32_t _logged
    cdef readonly object locks

    name = "native"

    def __cinit__(self):
        self._engine = NULL
        self._memory = NULL

    def __init__(self, segment, sockets, counters, clock, *, wake_fd=None, int busy_poll_us=0):
        cdef int fds[WV_MAX_SOCKETS]
        cdef wv_open_error error = WV_OPEN_OK
        cdef int wake = -1 if wake_fd is None else wake_fd
        if self._engine is not NULL:
            raise RuntimeError("an engine is made once")
        if len(sockets) > WV_MAX_SOCKETS:
            raise ValueError(f"at most {WV_MAX_SOCKETS} sockets")
        if busy_poll_us < 0:
            raise ValueError("busy_poll_us must not be negative")
        self._sockets = list(sockets)
        for number, sock in enumerate(self._sockets):
            fds[number] = sock.fileno()
        rows = segment.geometry.regions["counters"].offset
        worker = (counters._index[COUNTERS[0]] * 8 - rows) // COUNTER_ROW_BYTES
        self._memory_bytes = segment.geometry.total_bytes
        self._memory = mmap(
            NULL, self._memory_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, segment.fd, 0
        )
        if self._memory == MAP_FAILED:
            self._memory = NULL
            raise OSError(errno, os.strerror(errno))
        self._engine = wv_engine_new(
            self._memory, self._memory_bytes, worker, fds, len(self._sockets), wake, &error
        )
        if self._engine is NULL:
            code = errno
            self._forget()
            if error != WV_OPEN_OK:
                raise ValueError(_OPEN_ERRORS[error])
            raise OSError(code, os.strerror(code))
        self._clock = clock
        self._engine.frozen = type(clock) is not Clock
        self._engine.busy_poll_us = busy_poll_us
        self._logged = 0
        self.locks = NativeLocks(self)
        if self._engine.changed:
            self._log_fall_backs()

    def __dealloc__(self):
        self._forget()

    cdef void _forget(self):
        wv_engine_free(self._engine)
        self._engine = NULL
        if self._memory is not NULL:
            munmap(self._memory, self._memory_bytes)
            self._memory = NULL

    cdef wv_engine *_open(self) except NULL:
        if self._engine is NULL:
            raise RuntimeError("the engine is closed")
        return self._engine

    def decide(self, datagram, source, now):
        """Decide one datagram; see `Engine.decide`."""
        cdef wv_engine *engine = self._open()
        cdef wv_address c_address
        cdef wv_instant instant
        cdef wv_decision decision
        cdef Py_buffer view
        cdef int kind
        _to_c(source, &c_address)
        instant.mono_ns, instant.wall_ms = now
        PyObject_GetBuffer(datagram, &view, PyBUF_SIMPLE)
        try:
            kind = wv_decide(
                &engine.tables, <const uint8_t *>view.buf, <size_t>view.len, &c_address, &instant, &decision
            )
        finally:
            PyBuffer_Release(&view)
        if kind == WV_KIND_FORWARD:
            return Forward(_to_python(&decision.to))
        if kind == WV_KIND_DROP:
            return _DROPS[decision.drop]
        return ControlPacket(_KINDS[kind], bytes(datagram), source, _SENDERS[decision.sender])

    def run(self, int timeout_ms):
        """Forward for `timeout_ms`, or until something is for Python; see `Engine.run`."""
        cdef wv_engine *engine = self._open()
        cdef int result
        if engine.frozen:
            engine.now.mono_ns, engine.now.wall_ms = self._clock.now()
        with nogil:
            result = wv_run(engine, timeout_ms)
        if result == WV_RUN_FAILED:
            code = errno
            raise OSError(code, os.strerror(code))
        if engine.changed != self._logged:
            self._log_fall_backs()
        return self._take_control()

    cdef list _take_control(self):
        cdef const wv_control_packet *packet = wv_next_control(self._engine)
        packets = []
        while packet is not NULL:
            datagram = PyBytes_FromStringAndSize(<const char *>packet.datagram, packet.bytes)
            packets.append(
                tuple.__new__(
                    ControlPacket,
                    (
                        _KINDS[packet.kind],
                        datagram,
                        _to_python(&packet.from_),
                        _SENDERS[packet.sender],
                    ),
                )
            )
            packet = wv_next_control(self._engine)
        return packets

    def answer(self, list packets, list answers):
        """Send the answers of a batch; see `Engine.answer`."""
        cdef wv_engine *engine = self._open()
        cdef wv_address c_address
        cdef bytes datagram
        try:
            for packet, datagrams in zip(packets, answers, strict=True):
                if datagrams:
                    _to_c(packet.source, &c_address)
                for datagram in datagrams:
                    wv_gather(
                        engine,
                        <const uint8_t *><const char *>datagram,
                        <uint32_t>len(datagram),
                        &c_address,
                    )
        finally:  # What is gathered points into `answers`: it must not stay there.
            wv_send_gathered(engine)

    def send(self, bytes datagram, to):
        """Send a datagram; see `Engine.send`."""
        cdef wv_engine *engine = self._open()
        cdef wv_address c_address
        _to_c(to, &c_address)
        return wv_send(engine, <const uint8_t *><const char *>datagram, len(datagram), &c_address) == 0

    def admit(self, tuple session, lease, source, uint64_t mono_ns):
        """Take an ordinary lease into its slot; see `Engine.admit`."""
        cdef wv_engine *engine = self._open()
        cdef wv_address c_address
        cdef wv_lease given
        cdef wv_answer admitted
        cdef wv_admitted answer
        cdef uint64_t counter = lease.counter
        if counter == UINT64_MAX:
            return None
        _to_c(source, &c_address)
        given.id[0], given.id[1] = session
        given.jti = lease.jti
        given.sub = lease.sub
        given.mark = counter + 1
        given.expires_ms = lease.expires_ms
        given.cnf = lease.cnf
        given.kid = lease.kid
        given.issued_s = min(lease.issued_s, UINT32_MAX)
        given.soft_kbps = lease.soft_kbps
        given.hard_kbps = lease.hard_kbps
        given.role = lease.role
        given.renews = lease.renews
        given.proves = lease.proves
        given.bytes = lease.size_bytes
        admitted = wv_admit(&engine.tables, &given, &c_address, mono_ns)
        if admitted == WV_ANSWER_NO:
            return None
        if admitted == WV_ANSWER_BUSY:
            raise LockBusyError
        wv_answer_lease(&engine.tables, &given, &c_address, mono_ns, admitted, &answer)
        ack = PyBytes_FromStringAndSize(<const char *>answer.ack, WV_ACK_BYTES)
        if admitted == WV_ANSWER_YES:
            return (ack,)
        return ack, PyBytes_FromStringAndSize(<const char *>answer.challenge, WV_CHALLENGE_BYTES)

    def close(self):
        """Close the sockets and let the segment go; may be called again."""
        self._forget()
        for sock in self._sockets or ():
            sock.close()

    # -- What tests and diagnosis look at ----------------------------------------------------

    @property
    def offload(self):
        """For each socket whether trains are received (GRO) and sent (GSO)."""
        cdef wv_engine *engine = self._open()
        return [
            (bool(engine.sockets[number].gro), bool(engine.sockets[number].gso))
            for number in range(engine.socket_count)
        ]

    @property
    def statistics(self):
        """Numbers of this process: not in the segment, not in the metrics."""
        cdef wv_engine *engine = self._open()
        return {
            "receive_errors": engine.receive_errors,
            "gso_messages": engine.gso_messages,
            "retried_messages": engine.retried_messages,
            "plain_learned": engine.plain_learned,
        }

    def inject_fault(self, int error, uint32_t count, *, bint only_gso=False, uint32_t port=0):
        """Let the next `count` sends (of trains, or to a port) fail; for tests."""
        cdef wv_engine *engine = self._open()
        engine.fault.error = error
        engine.fault.count = count
        engine.fault.only_gso = only_gso
        engine.fault.port = port

    def _log_fall_backs(self):
        cdef wv_engine *engine = self._open()
        self._logged = engine.changed
        log = worker_log()
        for number in range(engine.socket_count):
            for what, on, code in (
                ("UDP_GRO", engine.sockets[number].gro, engine.sockets[number].gro_errno),
                ("UDP_SEGMENT", engine.sockets[number].gso, engine.sockets[number].gso_errno),
            ):
                if not on:
                    log.warning(
                        "offload_refused",
                        socket=number,
                        offload=what,
                        reason=os.strerror(code),
                        effect="the socket goes on without it: more CPU for each datagram",
                    )


cdef class NativeLocks:
    """`Locks` over the lock words of the records, shared with the packet path."""

    cdef NativeEngine _owner

    def __init__(self, NativeEngine owner):
        self._owner = owner

    def table(self):
        """Session index, allocation bitmap and used leases."""
        return _lock(self._owner, WV_LOCK_TABLE, 0)

    def session(self, uint64_t record):
        """One session record."""
        return _lock(self._owner, WV_LOCK_SESSION, record)

    def rate(self, uint64_t bucket_offset):
        """One rate-limit bucket, named by its offset in the segment."""
        return _lock(self._owner, WV_LOCK_RATE, bucket_offset)

    def global_rate(self):
        """The relay's global rate words; the packet path changes them without it."""
        return _lock(self._owner, WV_LOCK_GLOBAL, 0)

    def free_locks_of(self, uint32_t worker):
        """Free what a worker held if its process is gone (and reaped); how many locks that were.

        Needed where nobody waits and no replacement comes: both take such locks over themselves.
        """
        return wv_free_locks_of(&self._owner._open().tables, worker)


cdef _Lock _lock(NativeEngine owner, int kind, uint64_t which):
    cdef _Lock lock = _Lock.__new__(_Lock)
    lock._owner = owner
    lock._kind = <wv_lock_kind>kind
    lock._which = which
    return lock


cdef class _Lock:
    cdef NativeEngine _owner
    cdef wv_lock_kind _kind
    cdef uint64_t _which

    def __enter__(self):
        cdef wv_tables *tables = &self._owner._open().tables
        cdef int taken
        # A free lock is taken without giving up the GIL, which costs more than the lock.
        taken = wv_lock(tables, self._kind, self._which, 0)
        if taken == 0:
            with nogil:
                taken = wv_lock(tables, self._kind, self._which, WV_LOCK_WAIT_NS)
        if taken < 0:
            raise ValueError("there is no such lock")
        if taken == 0:
            raise LockBusyError

    def __exit__(self, *_):
        if self._owner._engine is not NULL:
            wv_unlock(&self._owner._engine.tables, self._kind, self._which)
