"""Reload: reads the settings again and puts in force what can change in a running relay.

What is read is checked as a whole before anything changes.  A field whose declaration says ``live``
takes effect at once; the others keep their values, are named in a warning, and are named again at
each reload until a restart (or an upgrade) puts them in force.
"""

import asyncio
import dataclasses
from typing import Any

import structlog

from wavry_peer.protocol.errors import LocalError
from wavry_peer.service import logs
from wavry_peer.service.clock import Clock
from wavry_peer.service.settings import differing, is_live, variable_of
from wavry_relay.config import RelayConfig
from wavry_relay.udp.listening import resize_buffers

from .assembly import RelayParts
from .host import Host

__all__ = ["Reloader"]

_log = structlog.get_logger(__name__)


class Reloader:
    """Keeps the settings in force of one relay.

    Args:
        config: settings that the relay started with.
        host: reads them again.
        parts: of the relay, where new values are put in force.
        clock: time.

    Attributes:
        config: settings in force.
    """

    def __init__(self, config: RelayConfig, host: Host, parts: RelayParts, clock: Clock) -> None:
        self.config = config
        self._host = host
        self._parts = parts
        self._clock = clock

    async def follow(self, hangup: asyncio.Event) -> None:
        """Reload whenever the event is set; until cancelled."""
        while True:
            await hangup.wait()
            hangup.clear()
            self.reload()

    def reload(self) -> dict[str, Any]:
        """Read the settings again.

        Returns:
            ``outcome`` (one of `RELOAD_OUTCOMES`), the variables that ``changed`` and those that
            ``needs_restart``, and the ``error``, None unless it failed.
        """
        notifier, relay = self._host.notifier, self._parts.relay
        if relay.stopping:  # The service manager has been told that there is no way back.
            answer = self._reload()
        else:
            notifier.reloading(self._clock.now().mono_ns)
            answer = self._reload()
            notifier.ready(f"{self._parts.figures.summary}; last reload: {answer['outcome']}")
        relay.reloads[answer["outcome"]] += 1
        return answer

    def _reload(self) -> dict[str, Any]:
        read = self._host.read_settings
        try:
            wanted = read() if read is not None else self.config
        except LocalError as error:
            _log.error(
                "reload_failed",
                cause=str(error),
                next_step="correct the settings and reload; the relay goes on with those it has",
            )
            return _answer("failed", error=str(error))
        names = differing(self.config, wanted)
        live = [name for name in names if is_live(RelayConfig, name)]
        waiting = [name for name in names if name not in live]
        changes = {name: getattr(wanted, name) for name in live}
        self.config = dataclasses.replace(self.config, **changes)
        self._put_in_force(frozenset(live))
        changed, needs_restart = _variables(live), _variables(waiting)
        if waiting:
            _log.warning(
                "settings_need_restart",
                settings=needs_restart,
                cause="they cannot change in a running relay, which goes on with the old values",
                next_step="needs a restart or an upgrade of the relay",
            )
        outcome = "partial" if waiting else "applied" if live else "unchanged"
        _log.info("reloaded", outcome=outcome, changed=changed)
        return _answer(outcome, changed=changed, needs_restart=needs_restart)

    def _put_in_force(self, changed: frozenset[str]) -> None:
        config, relay = self.config, self._parts.relay
        if "log_level" in changed:
            logs.set_level(config.log_level)
            relay.tables.control.log_level = logs.level_number(config.log_level)
        if "hang_timeout_s" in changed:
            self._parts.pool.set_hang_timeout(config.hang_timeout_s)
        if "socket_buffer_bytes" in changed:
            resize_buffers(relay.groups, config.socket_buffer_bytes)
        # drain_timeout_s and shed_at_pct are read from here while they are needed.
        relay.tables.control.limits = config.limits
        relay.load.max_bitrate_kbps = config.max_bitrate_kbps
        if "max_bitrate_kbps" in changed and relay.master.link is not None:
            relay.master.link.tell_capacity(config.max_bitrate_kbps)


def _variables(names: list[str]) -> list[str]:
    return [variable_of(RelayConfig, name) for name in names]


def _answer(outcome: str, **facts: Any) -> dict[str, Any]:
    return {"outcome": outcome, "changed": [], "needs_restart": [], "error": None, **facts}
