# cython: language_level=3
"""What the shell knows of the C core: the declarations, and nothing else."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t


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
        int sender
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
        uint32_t sender
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
        uint64_t receive_errors
        uint64_t gso_messages
        uint64_t retried_messages
        uint64_t plain_learned

    wv_engine *wv_engine_new(void *base, uint64_t size, uint32_t worker, const int *fds,
                             uint32_t fd_count, int wake_fd, wv_open_error *error)
    void wv_engine_free(wv_engine *engine)
    int wv_run(wv_engine *engine, int timeout_ms)
    const wv_control_packet *wv_next_control(wv_engine *engine)
    int wv_send(wv_engine *engine, const uint8_t *datagram, size_t size, const wv_address *to)
    void wv_gather(wv_engine *engine, const uint8_t *datagram, uint32_t size, const wv_address *to)
    void wv_send_gathered(wv_engine *engine)
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
        uint8_t proves
        uint32_t bytes

    struct wv_admitted:
        uint8_t *ack
        uint8_t *challenge

    cdef enum wv_answer:
        WV_ANSWER_NO
        WV_ANSWER_YES
        WV_ANSWER_BUSY
        WV_ANSWER_UNPROVED

    wv_answer wv_admit(wv_tables *tables, const wv_lease *lease, const wv_address *source,
                       uint64_t now_ns)
    void wv_answer_lease(wv_tables *tables, const wv_lease *lease, const wv_address *source,
                         uint64_t now_ns, wv_answer admitted, wv_admitted *answer)
    enum:
        WV_ACK_BYTES
        WV_CHALLENGE_BYTES
