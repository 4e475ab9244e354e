"""Users of the load tests: what locust runs, and the parts that need no locust.

Importing locust patches the whole process (gevent).  So everything that only computes (shapes,
media, meters, objectives, results, options) imports neither locust nor gevent, and a test holds
that; the modules that do are named in `PATCHING_MODULES`.
"""

from typing import Final

__all__ = ["PATCHING_MODULES"]

PATCHING_MODULES: Final = frozenset(
    {
        "calling_user",
        "gateway_user",
        "hooks",
        "lease_keeper",
        "load_run",
        "master_user",
        "media_stream",
        "online_user",
        "peers",
        "relay_channel",
        "relay_user",
        "service_calls",
        "session_user",
        "signaling_socket",
        "timeline",
        "wavry_user",
    }
)
