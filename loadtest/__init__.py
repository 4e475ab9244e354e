"""Load tests and the performance table: real relay processes, a native packet generator, floors.

Importing locust patches the whole process (gevent).  So what only computes (shapes, media, meters,
objectives, results, options) imports neither locust nor gevent, and a test holds that; what does
is named in `PATCHING_MODULES`.
"""

from typing import Final

__all__ = ["PATCHING_MODULES"]

PATCHING_MODULES: Final = frozenset(
    {
        "loadtest.locustfile",
        "loadtest.media.peers",
        "loadtest.media.stream",
        "loadtest.run.hooks",
        "loadtest.run.load_run",
        "loadtest.run.timeline",
        "loadtest.users",
    }
)
"""`loadtest.users` stands for all its modules."""
