"""The log of a worker, set up only when there is something to say: a worker must start fast."""

from typing import Any

__all__ = ["worker_log"]


def worker_log(level: int = 0) -> Any:
    """Return a structlog logger of the role ``relay-worker``.

    Args:
        level: number of the level in force (`logging`), where the caller knows it.
    """
    import structlog

    from wavry_peer.service import logs

    if not structlog.is_configured():
        logs.configure("relay-worker")
    if level:
        logs.set_level_number(level)
    return structlog.get_logger()
