"""Metrics of a relay."""

from typing import Final

from wavry_peer.protocol.constants import RejectReason
from wavry_peer.protocol.relay_terms import LimitLayer, MasterLinkState

from .process import PROCESS, build_info
from .spec import Label, MetricSpec, closed, counter, gauge, named_by_operator

__all__ = ["RELAY"]

_DROP_REASON: Final = closed(
    "reason",
    "too_short", "too_long", "bad_magic", "bad_version", "unknown_type", "unknown_flag",
    "nil_session", "bad_body", "bad_rift", "bad_crc", "wrong_direction",
    "unknown_session", "unknown_address", "not_active", "lease_expired",
    "duplicate", "too_old", "jump_too_far", "unproved_path",
    "peer_rate", "session_rate", "global_rate", "ip_rate", "control_queue",
    "blocked", "keepalive_unknown", "lock_busy", "send_blocked", "send_failed",
)  # fmt: skip
_LAYER: Final = closed("layer", *LimitLayer)
_LEASE_STATES: Final = (
    "issued", "presented", "accepted", "active", "renewed", "expired", "revoked", "closed",
)  # fmt: skip
_RESULT: Final = closed("result", "ok", "failed")
_LISTEN: Final = named_by_operator("listen", r"\S{3,80}", 8, "WAVRY_RELAY_LISTEN")
_WORKER: Final = named_by_operator("worker", r"\d{1,3}", 256, "WAVRY_RELAY_WORKERS")


def _counter(name: str, text: str, *labels: Label) -> MetricSpec:
    return counter(f"wavry_relay_{name}", text, *labels)


def _gauge(name: str, text: str, *labels: Label) -> MetricSpec:
    return gauge(f"wavry_relay_{name}", text, *labels)


RELAY: Final[tuple[MetricSpec, ...]] = (
    build_info("relay"),
    _gauge(
        "engine_info",
        "Always 1; the packet engine in use.",
        closed("engine", "native", "reference"),
    ),
    _gauge("start_time_seconds", "Unix time at which this process started; an upgrade changes it."),
    _gauge("ready", "1 while the relay should get new sessions, as /ready says."),
    _gauge(
        "not_ready",
        "1 for each reason why it should not.",
        closed(
            "reason",
            "stopping",
            "draining",
            "workers_missing",
            "no_keys",
            "master_registering",
            "master_failing",
        ),
    ),
    _counter("upgrades", "Hot upgrades, by result.", closed("result", "done", "failed")),
    # -- Traffic
    _counter("packets_received", "Datagrams received."),
    _counter("bytes_received", "Bytes of received datagrams (UDP payload)."),
    _counter("packets_forwarded", "Datagrams forwarded."),
    _counter("bytes_forwarded", "Bytes of forwarded datagrams (UDP payload)."),
    _counter("packets_dropped", "Datagrams dropped, by reason.", _DROP_REASON),
    _counter("bytes_dropped", "Bytes of dropped datagrams (UDP payload), by reason.", _DROP_REASON),
    _counter("limited", "Datagrams that a limit held back (soft: only counted), by layer.", _LAYER),
    _counter("limited_bytes", "Bytes of those datagrams (UDP payload), by layer.", _LAYER),
    _counter("soft_limit_packets", "Forwarded datagrams that were over their lease's soft limit."),
    _counter(
        "answers_sent",
        "Answers sent, by type.",
        closed("type", "ack", "challenge", "notice", "stun"),
    ),
    _counter("stun_answers_larger", "STUN answers larger than their bare request."),
    _counter("internal_errors", "Control packets that ended in an unexpected error."),
    _counter("log_lines_lost", "Log lines that could not be written, of supervisor and workers."),
    _counter("connections_given_up", "Connections of the ops port closed or refused: too many."),
    # -- Leases
    _counter("leases_presented", "LEASE_PRESENT and LEASE_RENEW packets with a token."),
    _counter("leases_accepted", "Leases that took a slot."),
    _counter("leases_reproved", "Accepted leases presented again with a fresh proof."),
    _counter("leases_renewed", "Leases that replaced the one of a taken slot."),
    _counter("leases_released", "Slots that their peer gave back before the lease ended."),
    _counter(
        "lease_rejects",
        "LEASE_REJECT answers, by reason.",
        closed("reason", *(reason.name.lower() for reason in RejectReason)),
    ),
    _counter(
        "lease_transitions",
        "Steps of leases and their slots from one state to another.",
        closed("from", *_LEASE_STATES),
        closed("to", *_LEASE_STATES),
    ),
    _counter("token_cache_hits", "Leases whose signature had been verified before."),
    _gauge(
        "used_leases",
        "Slots of finished sessions whose used leases are remembered until they expire.",
    ),
    _gauge(
        "used_leases_limit",
        "Such slots from which on the oldest are summed up by date (docs/scaling.md).",
    ),
    # -- Load and abuse
    _counter("sessions_shed", "New sessions that were refused to shed load."),
    _counter(
        "sessions_over_share",
        "New sessions that were refused because their user had his share of a relay that is short.",
    ),
    _gauge(
        "shedding",
        "1 while new sessions are refused, by what is nearly used up.",
        closed("cause", "sessions", "bandwidth"),
    ),
    _gauge(
        "bitrate_limit_kbps",
        "Most kbit/s that the relay forwards in all (WAVRY_RELAY_MAX_BITRATE_KBPS); 0 is no limit.",
    ),
    _gauge("cookie_gate_workers", "Workers that want a cookie before they check a signature."),
    _counter("cookie_gate_on", "How often a worker began to want cookies."),
    _counter("cookie_demanded", "Leases that were not looked at for want of a cookie."),
    _counter("block_strikes", "Bad leases of sources that had shown the cookie of their path."),
    _counter("hosts_blocked", "Hosts (IPv4 address, IPv6 /64) that were blocked for bad leases."),
    _counter("blocks_not_entered", "Blocks for which the table had no place."),
    _gauge("blocked_hosts", "Hosts that are blocked now."),
    # -- Sessions
    _counter("keepalives", "Empty LEASE_RENEW packets that were answered."),
    _counter("nat_rebinds", "Slots that moved to a new address with proof of key and path."),
    _gauge("sessions", "Live sessions, by state.", closed("state", "waiting", "active")),
    _gauge("sessions_max", "Sessions that the relay has room for."),
    _counter("sessions_created", "Sessions whose first peer was accepted."),
    _counter("sessions_activated", "Sessions whose second peer was accepted."),
    _counter(
        "sessions_closed",
        "Sessions that ended, by reason.",
        closed("reason", "second_peer", "idle", "expired", "revoked", "released"),
    ),
    _gauge("shared_memory_bytes", "Size of the shared memory segment."),
    # -- Processes and sockets
    _gauge("workers", "Worker processes, by state.", closed("state", "running", "missing")),
    _gauge("worker_heartbeat_age_seconds", "Time since a worker's last heartbeat.", _WORKER),
    _counter("worker_cpu_seconds", "CPU time of a worker process; a new one starts at 0.", _WORKER),
    _counter(
        "worker_restarts",
        "Replaced workers, by cause.",
        closed("cause", "died", "hung", "boot_failed"),
    ),
    _counter(
        "reloads",
        "Reloads of the settings, by outcome.",
        closed("outcome", "applied", "partial", "unchanged", "failed"),
    ),
    _gauge("udp_sockets", "UDP sockets; fewer than workers if those must share.", _LISTEN),
    _gauge("steering_attached", "1 if the kernel steers sessions to workers.", _LISTEN),
    _gauge(
        "socket_buffer_bytes",
        "Buffer of the UDP sockets as the kernel gave it, the smallest of each address.",
        _LISTEN,
        closed("direction", "receive", "send"),
    ),
    _gauge("draining", "1 while no new sessions are taken."),
    # -- Master and keys
    _gauge("keys", "Signing keys in use."),
    _gauge("keyset_serial", "Serial of the key set in use, 0 without one."),
    _gauge("keyset_refused", "1 if the last key set from the master was refused."),
    _gauge(
        "master_state",
        "1 for the present state of the link to the master.",
        closed("state", *MasterLinkState),
    ),
    _counter("master_registrations", "Registrations with the master, by result.", _RESULT),
    _counter("master_heartbeats", "Heartbeats to the master, by result.", _RESULT),
    _gauge(
        "master_heartbeat_age_seconds",
        "Time since the master last took a registration or heartbeat; since the start before that.",
    ),
    _gauge("revocations", "Revocations in force."),
    _gauge("revocation_number", "Last row of the master's revocation log that took effect."),
    _counter(
        "revocations_received",
        "Revocations taken from the master, by way.",
        closed("way", "stream", "poll"),
    ),
    _counter("revocations_evicted", "Revocations given up before their time: the table is full."),
    _gauge("revocations_unsaved", "1 while the disk does not take the revocations."),
    _gauge("event_stream_connected", "1 while the master's event stream is open."),
    _counter("event_connections", "Connections of the event stream, by result.", _RESULT),
    _counter("event_polls", "Polls of the master's events, by result.", _RESULT),
    _counter("event_frames_refused", "Frames and pages of the master that did not fit."),
    *PROCESS,
)
