# cython: language_level=3
"""The native engine: a thin shell around fastpath.c.

It owns the buffers, turns errors into exceptions and C addresses into `Address`, and releases the
GIL in one place (`NativeEngine.run`; the locks, which may have to wait, have theirs).  What a
datagram's fate is stands in decide.c; the meaning of it in reference.py.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.errno cimport errno
from libc.stdint cimport UINT32_MAX, UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t

import os

from wavry_peer.protocol.constants import MAX_TOKEN_BYTES as _MAX_TOKEN_BYTES
from wavry_peer.protocol.paseto import PasetoError, UnverifiedToken
from wavry_relay.shm.address import Address
from wavry_peer.service.clock import SystemClock
from wavry_relay.shm.layout import COUNTER_ROW_BYTES, COUNTERS
from wavry_relay.shm.locks import LockBusyError
from wavry_relay.worker_log import worker_log

from .base import ControlKind, ControlPacket, Drop, Forward


cdef extern from *:
    """
    #ifndef WAVRY_LAYOUT_DIGEST
    #error "build with setup.py: it passes the digests of the sources"
    #endif
    """
    const char *WAVRY_LAYOUT_DIGEST
    const char *WAVRY_SOURCES_DIGEST


cdef extern from "<sys/mman.h>" nogil:
    const int PROT_READ
    const int PROT_WRITE
    const int MAP_SHARED
    void *MAP_FAILED
    void *mmap(void *address, size_t size, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t size)


cdef extern from "fastpath.h" nogil:
    enum:
        WV_MAX_SOCKETS
        WV_KIND_DROP
        WV_KIND_LEASE
        WV_KIND_STUN
        WV_KIND_UNKNOWN_PATH
        WV_KIND_FORWARD
        WV_LOCK_TABLE
        WV_LOCK_SESSION
        WV_LOCK_RATE
        WV_LOCK_GLOBAL
        WV_RUN_FAILED

    const uint64_t WV_LOCK_WAIT_NS

    cdef enum wv_lock_kind:
        pass
    cdef enum wv_run_result:
        pass
    cdef enum wv_open_error:
        WV_OPEN_OK
        WV_OPEN_NOT_A_SEGMENT
        WV_OPEN_OTHER_LAYOUT
        WV_OPEN_BAD_GEOMETRY
        WV_OPEN_NO_SUCH_WORKER

    struct wv_address:
        uint64_t high
        uint64_t low
        uint64_t endpoint

    struct wv_instant:
        uint64_t mono_ns
        uint64_t wall_ms

    struct wv_decision:
        uint32_t drop
        wv_address to

    struct wv_tables:
        uint16_t lock_value

    struct wv_socket:
        int fd
        int gro
        int gso
        int gro_errno
        int gso_errno

    struct wv_control_packet:
        wv_address from_ "from"
        uint32_t kind
        uint32_t bytes
        uint8_t *datagram

    struct wv_fault:
        int error
        uint32_t count
        int only_gso
        uint32_t port

    struct wv_engine:
        wv_tables tables
        wv_socket *sockets
        uint32_t socket_count
        int frozen
        uint32_t busy_poll_us
        wv_instant now
        wv_fault fault
        uint32_t changed
        uint32_t control_count
        uint64_t receive_errors
        uint64_t gso_messages
        uint64_t retried_messages
        uint64_t plain_learned
        wv_control_packet *control

    wv_engine *wv_engine_new(void *base, uint64_t size, uint32_t worker, const int *fds,
                             uint32_t fd_count, int wake_fd, wv_open_error *error)
    void wv_engine_free(wv_engine *engine)
    int wv_run(wv_engine *engine, int timeout_ms)
    int wv_send(wv_engine *engine, const uint8_t *datagram, size_t size, const wv_address *to)
    int wv_decide(wv_tables *tables, const uint8_t *datagram, size_t size, const wv_address *source,
                  const wv_instant *now, wv_decision *decision)
    int wv_lock(wv_tables *tables, wv_lock_kind kind, uint64_t which, uint64_t wait_ns)
    void wv_unlock(wv_tables *tables, wv_lock_kind kind, uint64_t which)
    int wv_free_locks_of(wv_tables *tables, uint32_t worker)


cdef extern from "admit.h" nogil:
    struct wv_lease:
        uint64_t id[2]
        uint64_t jti
        uint64_t sub
        uint64_t mark
        uint64_t expires_ms
        uint32_t cnf
        uint32_t kid
        uint32_t issued_s
        uint32_t soft_kbps
        uint32_t hard_kbps
        uint8_t role
        uint8_t renews

    cdef enum wv_answer:
        WV_ANSWER_NO
        WV_ANSWER_YES
        WV_ANSWER_BUSY

    wv_answer wv_allow_source(wv_tables *tables, const wv_address *source, uint64_t purpose,
                              uint64_t now_ns)
    wv_answer wv_seat(wv_tables *tables, const wv_lease *lease, const wv_address *source,
                      uint64_t now_ns)


cdef extern from "token.h" nogil:
    enum:
        WV_SIGNATURE_BYTES

    struct wv_token:
        size_t message_bytes
        size_t footer_bytes

    int wv_parse_token(const uint8_t *token, size_t size, uint8_t *out, wv_token *parts)


LAYOUT_DIGEST = WAVRY_LAYOUT_DIGEST.decode("ascii")
SOURCES_DIGEST = WAVRY_SOURCES_DIGEST.decode("ascii")

cdef enum:
    MAX_TOKEN_BYTES = 1100

if MAX_TOKEN_BYTES != _MAX_TOKEN_BYTES:
    raise ImportError("token size of constants.py and the engine differ")

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

if _KINDS != {
    WV_KIND_LEASE: ControlKind.LEASE,
    WV_KIND_STUN: ControlKind.STUN,
    WV_KIND_UNKNOWN_PATH: ControlKind.UNKNOWN_PATH,
}:
    raise ImportError("control kinds of base.py and decide.h differ")


cdef inline void _to_c(object address, wv_address *out):
    out.high, out.low, out.endpoint = address


cdef inline object _to_python(const wv_address *address):
    return Address(address.high, address.low, address.endpoint)


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
    cdef readonly object lane

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
        self._engine.frozen = type(clock) is not SystemClock
        self._engine.busy_poll_us = busy_poll_us
        self._logged = 0
        self.locks = NativeLocks(self)
        self.lane = NativeLane(self)
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
        cdef wv_address place
        cdef wv_instant instant
        cdef wv_decision decision
        cdef Py_buffer view
        cdef int kind
        _to_c(source, &place)
        instant.mono_ns, instant.wall_ms = now
        PyObject_GetBuffer(datagram, &view, PyBUF_SIMPLE)
        try:
            kind = wv_decide(
                &engine.tables, <const uint8_t *>view.buf, <size_t>view.len, &place, &instant, &decision
            )
        finally:
            PyBuffer_Release(&view)
        if kind == WV_KIND_FORWARD:
            return Forward(_to_python(&decision.to))
        if kind == WV_KIND_DROP:
            return _DROPS[decision.drop]
        return ControlPacket(_KINDS[kind], bytes(datagram), source)

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
        if engine.control_count == 0:
            return ()
        return self._take_control()

    cdef list _take_control(self):
        cdef wv_control_packet *packet
        cdef uint32_t number
        packets = []
        for number in range(self._engine.control_count):
            packet = &self._engine.control[number]
            datagram = PyBytes_FromStringAndSize(<const char *>packet.datagram, packet.bytes)
            packets.append(
                ControlPacket(_KINDS[packet.kind], datagram, _to_python(&packet.from_))
            )
        return packets

    def send(self, bytes datagram, to):
        """Send an answer; see `Engine.send`."""
        cdef wv_engine *engine = self._open()
        cdef wv_address place
        _to_c(to, &place)
        return wv_send(engine, <const uint8_t *><const char *>datagram, len(datagram), &place) == 0

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


cdef class NativeLane:
    """`AdmissionLane` over admit.c."""

    cdef NativeEngine _owner

    def __init__(self, NativeEngine owner):
        self._owner = owner

    @staticmethod
    def parse_token(bytes token):
        """As `paseto.parse`."""
        cdef uint8_t out[MAX_TOKEN_BYTES]
        cdef wv_token parts
        cdef const char *at = <const char *>out
        if len(token) > MAX_TOKEN_BYTES or not wv_parse_token(
            <const uint8_t *><const char *>token, len(token), out, &parts
        ):
            raise PasetoError("not a v4.public token")
        return UnverifiedToken(
            PyBytes_FromStringAndSize(at, parts.message_bytes),
            PyBytes_FromStringAndSize(at + parts.message_bytes, WV_SIGNATURE_BYTES),
            PyBytes_FromStringAndSize(
                at + parts.message_bytes + WV_SIGNATURE_BYTES, parts.footer_bytes
            ),
        )

    def allow_source(self, source, uint64_t purpose, uint64_t mono_ns):
        """Take one packet from the allowances of an address and of its network."""
        cdef wv_address place
        _to_c(source, &place)
        return _yes(wv_allow_source(&self._owner._open().tables, &place, purpose, mono_ns))

    def seat(self, tuple words, lease, source, uint64_t mono_ns):
        """Put an ordinary lease into its slot; False: not ordinary, nothing changed."""
        cdef wv_address place
        cdef wv_lease given
        cdef object counter = lease.counter
        if counter is not None and counter == UINT64_MAX:
            return False
        _to_c(source, &place)
        given.id[0], given.id[1] = words
        given.jti = lease.jti
        given.sub = lease.sub
        given.mark = lease.datagram if counter is None else <uint64_t>counter + 1
        given.expires_ms = lease.expires_ms
        given.cnf = lease.cnf
        given.kid = lease.kid
        given.issued_s = min(lease.issued_s, UINT32_MAX)
        given.soft_kbps = lease.soft_kbps
        given.hard_kbps = lease.hard_kbps
        given.role = lease.role
        given.renews = lease.renews
        return _yes(wv_seat(&self._owner._open().tables, &given, &place, mono_ns))


cdef bint _yes(wv_answer answer) except -1:
    if answer == WV_ANSWER_BUSY:
        raise LockBusyError
    return answer == WV_ANSWER_YES


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
