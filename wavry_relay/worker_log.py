"""The log of a worker, set up only when there is something to say: a worker must start fast."""

from typing import Any

__all__ = ["worker_log"]


def worker_log() -> Any:
    """A structlog logger of the role ``relay-worker``."""
    import structlog

    from wavry_peer import logs

    if not structlog.is_configured():
        logs.configure("relay-worker")
    return structlog.get_logger()
