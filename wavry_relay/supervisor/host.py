"""What surrounds a relay: the service manager, passed sockets, and where its settings come from."""

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Final, Self

from wavry_peer.service.listen_address import bound_to
from wavry_peer.service.systemd import Notifier
from wavry_relay.config import ListenAddress, RelayConfig
from wavry_relay.shm.control import WorkerRow, WorkerState
from wavry_relay.shm.segment import Segment
from wavry_relay.udp.activation import Activation, take_passed

__all__ = ["DrainReport", "Host", "any_worker_serves"]

_DRAIN_REPORT_NS: Final = 1_000_000_000
_DRAIN_EXTEND_S: Final = 15.0
"""Many reports may be lost, and a relay that hangs in its drain is still killed soon."""


@dataclass(slots=True)
class Host:
    """Surroundings of one relay; without arguments there are none.

    Attributes:
        notifier: to the service manager.
        activation: passed sockets.
        read_settings: reads the settings again; None where they cannot change.
    """

    notifier: Notifier = field(default_factory=Notifier)
    activation: Activation = field(default_factory=Activation)
    read_settings: Callable[[], RelayConfig] | None = None

    @classmethod
    def from_environ(
        cls,
        environ: MutableMapping[str, str],
        pid: int,
        read_settings: Callable[[], RelayConfig] | None = None,
    ) -> Self:
        """Take what the service manager left in the environment, so that no child finds it.

        Raises:
            ListenError: a passed socket cannot be used.
        """
        notifier = Notifier.from_environ(environ, pid)
        return cls(notifier, Activation.sort(take_passed(environ, pid)), read_settings)

    def ops_address(self, config: RelayConfig) -> ListenAddress:
        """Return where /health, /ready and /metrics will be."""
        if self.activation.ops is None:
            return config.ops_address
        return ListenAddress(*bound_to(self.activation.ops))


class DrainReport:
    """Tells the service manager of a drain, once a second."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._next_ns = 0

    def tell(self, sessions: int, mono_ns: int) -> None:
        """Say how many sessions are left, if it is time."""
        if mono_ns >= self._next_ns:
            self._next_ns = mono_ns + _DRAIN_REPORT_NS
            self._notifier.draining(sessions, _DRAIN_EXTEND_S)


def any_worker_serves(segment: Segment, mono_ns: int, hang_timeout_s: float) -> bool:
    """Tell whether the packet loop of at least one worker went round lately."""
    rows = (WorkerRow(segment, number) for number in range(segment.geometry.workers))
    return any(
        row.state == WorkerState.RUNNING and mono_ns - row.heartbeat_ns < hang_timeout_s * 1e9
        for row in rows
    )
