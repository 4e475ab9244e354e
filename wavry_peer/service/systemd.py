"""The service manager's ear: sd_notify(3) without a library.

States are lines of one datagram to the unix socket that NOTIFY_SOCKET names (a path, or ``@`` and
an abstract name).  Without the variable every call does nothing.  A manager that does not take a
state is logged once and harms nothing else: the service serves, whoever listens.
"""

import asyncio
import os
import socket
from collections.abc import Callable, MutableMapping
from typing import Final, Self

import structlog

__all__ = ["Notifier"]

_SEND_TIMEOUT_S: Final = 1.0
"""A manager whose queue is full for longer is stuck; the service must not be."""

_log = structlog.get_logger(__name__)


class Notifier:
    """Tells a service manager what a service of ours does.

    Args:
        address: of the manager's socket, "" for none.
        watchdog_us: the manager acts when no `watchdog` came for so long, 0 = it does not.
    """

    def __init__(self, address: str = "", *, watchdog_us: int = 0) -> None:
        self._address = address
        self._refused = False
        self.watchdog_us = watchdog_us if address else 0

    @classmethod
    def from_environ(cls, environ: MutableMapping[str, str], pid: int) -> Self:
        """Take NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID out of the environment.

        Args:
            environ: loses the variables, so that children do not speak for the service.
            pid: of this process; a watchdog of another one is left alone.
        """
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog_text = environ.pop("WATCHDOG_USEC", "")
        for_pid = environ.pop("WATCHDOG_PID", "") or str(pid)
        given = watchdog_text.isascii() and watchdog_text.isdigit() and for_pid == str(pid)
        return cls(address, watchdog_us=int(watchdog_text) if given else 0)

    @property
    def environment(self) -> dict[str, str]:
        """What a successor (hot upgrade) must find in its environment to speak in our place."""
        if not self._address:
            return {}
        watchdog = {"WATCHDOG_USEC": str(self.watchdog_us)} if self.watchdog_us else {}
        return {"NOTIFY_SOCKET": self._address, **watchdog}

    # -- States ----------------------------------------------------------------------------------

    def ready(self, text: str) -> None:
        """Say that the service serves (again, after `reloading`)."""
        self._send("READY=1", f"MAINPID={os.getpid()}", f"STATUS={_one_line(text)}")

    def status(self, text: str) -> None:
        """Say what the service does, for ``systemctl status``."""
        self._send(f"STATUS={_one_line(text)}")

    def main_pid(self, pid: int) -> None:
        """Name another process as the service; only the present one is believed."""
        self._send(f"MAINPID={pid}")

    def reloading(self, mono_ns: int) -> None:
        """Say that settings are being read again; `ready` ends it.

        Args:
            mono_ns: CLOCK_MONOTONIC.
        """
        self._send("RELOADING=1", f"MONOTONIC_USEC={mono_ns // 1000}")

    def stopping(self, text: str) -> None:
        """Say that the service is about to end."""
        self._send("STOPPING=1", f"STATUS={_one_line(text)}")

    def draining(self, sessions: int, extend_s: float) -> None:
        """Say that a relay waits for sessions to end, again within `extend_s` seconds."""
        self._send(
            f"EXTEND_TIMEOUT_USEC={int(extend_s * 1e6)}",
            f"STATUS=Draining: {sessions} sessions left",
        )

    def watchdog(self) -> None:
        """Tell that all is well."""
        self._send("WATCHDOG=1")

    async def keep_watchdog(self, serves: Callable[[], bool] = lambda: True) -> None:
        """Feed the watchdog for as long as the service serves; until cancelled.

        It runs in the service's own loop, so a loop that hangs starves it as well.

        Args:
            serves: asked each time.
        """
        while self.watchdog_us:
            if serves():
                self.watchdog()
            await asyncio.sleep(self.watchdog_us / 2e6)

    def _send(self, *states: str) -> None:
        if not self._address:
            return
        address = self._address
        # An abstract name begins with a zero byte, which no environment variable can hold.
        where = "\0" + address[1:] if address.startswith("@") else address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.settimeout(_SEND_TIMEOUT_S)
                sock.sendto("\n".join(states).encode(), where)
        except OSError as error:
            self._warn(error)
        else:
            self._refused = False

    def _warn(self, error: OSError) -> None:
        if self._refused:
            return
        self._refused = True
        _log.warning(
            "service_manager_unreachable",
            cause=str(error),
            next_step="check NOTIFY_SOCKET; with systemd: Type=notify and NotifyAccess=main",
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())
