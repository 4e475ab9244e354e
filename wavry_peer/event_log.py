"""Log of the peer as a library: the standard `logging`, silent unless the application wants it.

Events are short stable names with fields, as in the services; but a library must not write to an
application's output by itself, as an unconfigured structlog would.
"""

import logging

__all__ = ["EventLog"]


class EventLog:
    """Events of one module.

    Args:
        name: the module's ``__name__``.
    """

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, **fields: object) -> None:
        """Log what explains what a user sees."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Log what is wrong and the user should look at."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, error: BaseException) -> None:
        """Log a fault of ours, with its traceback."""
        self._logger.error(event, exc_info=error)

    def _log(self, level: int, event: str, fields: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            text = " ".join(f"{key}={value!r}" for key, value in fields.items())
            self._logger.log(level, "%s %s", event, text)
