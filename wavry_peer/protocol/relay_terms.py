"""Words about relays that bodies, metrics, orders and commands share; each list stands once."""

from enum import StrEnum

__all__ = [
    "DegradedCause",
    "DrainOrder",
    "Enrolment",
    "LimitLayer",
    "MasterLinkState",
    "ProbeFault",
    "RelayState",
    "ReportedState",
]


class RelayState(StrEnum):
    """State of a relay at its master.

    PROBATION (it came in by the open door), DEGRADED (see `DegradedCause`) and OFFLINE are
    never stored.
    """

    NEW = "NEW"
    PROBATION = "PROBATION"
    ACTIVE = "ACTIVE"
    DEGRADED = "DEGRADED"
    DRAINING = "DRAINING"
    OFFLINE = "OFFLINE"
    BANNED = "BANNED"


class DegradedCause(StrEnum):
    """Why a relay that is there gets no new sessions."""

    CLOCK = "clock"
    DISK = "disk"
    LOSS = "loss"
    PROBES = "probes"
    """The master's own sessions do not get through."""
    WORKERS = "workers"


class Enrolment(StrEnum):
    """By what a relay came to be known to its master."""

    TOKEN = "token"
    """A one-time token of `wavryctl relays enrol`."""
    LISTED = "listed"
    """Its id is on the list of the master's settings."""
    POOL = "pool"
    """The service token of a managed pool."""
    APPROVED = "approved"
    """An operator approved it; also who was registered before there was enrolment."""
    OPEN = "open"
    """Nobody knows it: it came in by the open door."""


class ProbeFault(StrEnum):
    """What is wrong with an endpoint of a relay, by how far a session of the master's own got."""

    SILENT = "silent"
    """No answer of any kind: the relay, or the network between, or the master's own."""
    REFUSED = "refused"
    UNACKNOWLEDGED = "unacknowledged"
    NO_PAYLOAD = "no_payload"
    ONE_WAY = "one_way"
    LARGE_LOST = "large_lost"
    ALTERED = "altered"


class ReportedState(StrEnum):
    """State that a relay's heartbeat reports."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"


class MasterLinkState(StrEnum):
    """How a relay stands with its master."""

    OFF = "off"
    REGISTERING = "registering"
    REGISTERED = "registered"
    FAILING = "failing"


class DrainOrder(StrEnum):
    """Order to take no new sessions, or to take them again."""

    DRAIN = "drain"
    UNDRAIN = "undrain"


class LimitLayer(StrEnum):
    """Layer of a relay's limits, from a live slot and the single address to the whole relay."""

    SLOT = "slot"
    HOST = "host"
    NETWORK = "network"
    IDENTITY = "identity"
    SOFT = "soft"
    PEER = "peer"
    SESSION = "session"
    GLOBAL = "global"
