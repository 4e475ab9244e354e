"""Words about relays that bodies, metrics, orders and commands share; each list stands once."""

from enum import StrEnum

__all__ = ["DrainOrder", "LimitLayer", "MasterLinkState", "RelayState", "ReportedState"]


class RelayState(StrEnum):
    """State of a relay at its master.  DEGRADED (it lacks workers) and OFFLINE are never stored."""

    NEW = "NEW"
    ACTIVE = "ACTIVE"
    DEGRADED = "DEGRADED"
    DRAINING = "DRAINING"
    OFFLINE = "OFFLINE"
    BANNED = "BANNED"


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
