"""Body of a healthy relay's ``/health``."""

import time
from typing import Any

RELAY = "rly-1"


def relay_health(**changes: Any) -> dict[str, Any]:
    """Body of a healthy relay; a change of a part leaves the rest of the part as it is."""
    body: dict[str, Any] = {
        "status": "ok", "relay_id": RELAY, "version": "1", "pid": 7, "now": int(time.time()),
        "not_before_skew_s": 30, "started_at": 0, "uptime_s": 60, "upgrades": {},
        "engine": {"name": "native", "pure_python": False},
        "udp": ["10.0.0.7:4500"],
        "workers": {
            "wanted": 2, "running": 2, "pids": [8, 9], "restarts": {}, "heartbeat_age_ms": [1, 1],
        },
        "sessions": {"waiting": 0, "active": 1, "max": 100},
        "used_leases": {"remembered": 0, "limit": 100},
        "draining": [], "shedding": [], "cookie_gates": 0, "blocks": 0,
        "keys": {"serial": 3, "kids": ["k"], "refused": None, "fetch_error": None},
        "master": {"state": "registered", "error": None, "events": True},
        "revocations": {"in_force": 0, "number": 0, "saved": True},
    }  # fmt: skip
    for name, change in changes.items():
        body[name] = body[name] | change if isinstance(change, dict) else change
    return body
