"""On which path a session sends while it moves from one relay to another, sans I/O.

Strategy: make before break.  A path that its relay has acknowledged is only a *candidate* while
another one works: the other peer may not be there yet.  So both peers go on sending on the old path
and probe the new one, several times a second; a probe is an authenticated packet of the channel
that says how far its sender is::

    PROBING   I am here                 -> the other side answers HEARD
    HEARD     I hear you here           -> both directions work: whoever reads this switches
    USING     I send here from now on   -> whoever reads this knows that the old path falls silent
    SETTLED   I know that you do, too   -> needs no answer

Data counts as SETTLED: it is only sent on a path in use.  Each side is asked until it has answered,
so a lost probe costs one interval.  An old path is closed when the other side is known to use a
newer one *and* nothing came on the old one for a while.

What goes wrong leaves the old path in use: a candidate that is not proved in time is given up, and
a path on which nothing comes right after the switch is left again.  When the path in use
itself is gone, the best of the others takes over at once, proved or not.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from wavry_peer.protocol.channel.wire import ProbeStage

__all__ = ["CandidateFailed", "PathRetired", "PathSwitch", "PathSwitched", "SwitchEvent"]

Key = TypeVar("Key", bound=Hashable)

_MS_NS: Final = 1_000_000
RETIRE_NS: Final = 2_000 * _MS_NS
"""An old path goes on receiving until it was silent for so long: more than a packet's way."""
PATIENCE_NS: Final = 10_000 * _MS_NS
"""The other peer learns of the new relay from the gateway, and may have to connect to it again."""
REVERT_NS: Final = 500 * _MS_NS
"""Both directions of the path were just proved, so a probe is answered within a round trip; after
several of them without an answer it is broken."""
PROBE_MIN_NS: Final = 20 * _MS_NS
PROBE_MAX_NS: Final = 250 * _MS_NS
_PROBE_AGE_SHARE: Final = 8
"""The wait between two probes is this part of the candidate's age: 20 ms at first, 50 ms after
0.4 s, 250 ms when the other side is long in coming."""
_ANSWER_NS: Final = 5 * _MS_NS
"""Least time between two answers on a path: each probe of the other side causes at most one."""


@dataclass(frozen=True, slots=True)
class PathSwitched(Generic[Key]):
    """Send on this path from now on."""

    key: Key


@dataclass(frozen=True, slots=True)
class PathRetired(Generic[Key]):
    """Nobody uses this path any more: close it."""

    key: Key


@dataclass(frozen=True, slots=True)
class CandidateFailed(Generic[Key]):
    """The other peer did not show up on this path: close it, and perhaps look for another."""

    key: Key


SwitchEvent = PathSwitched[Key] | PathRetired[Key] | CandidateFailed[Key]


@dataclass(slots=True)
class _Path:
    order: tuple[int, str]
    began_ns: int
    heard: bool = False
    """Something authentic came on it, or it was in use."""
    settled: bool = False
    """The other side is known to use it; counts only for the path in use."""
    last_heard_ns: int = 0
    probe_due_ns: int = 0
    last_probe_ns: int = -(1 << 62)
    close_ns: int | None = None


class PathSwitch(Generic[Key]):
    """Decides between the paths of one session.

    The owner calls `ready`, `heard`, `prefer` and `gone` as things happen, and after each call, or
    `handle_timer`, drains `next_event` and sends `probes_to_send`.  Times are nanoseconds of any
    clock that never goes back.

    Attributes:
        active: path to send on, or None.
    """

    def __init__(self) -> None:
        self.active: Key | None = None
        self._paths: dict[Key, _Path] = {}
        self._events: deque[SwitchEvent[Key]] = deque()
        self._probes: dict[Key, None] = {}

    @property
    def is_moving(self) -> bool:
        """True while data that comes in must be told to `heard`."""
        return len(self._paths) > 1

    def __contains__(self, key: Key) -> bool:
        return key in self._paths

    def ready(self, key: Key, order: tuple[int, str], now_ns: int, *, can_probe: bool) -> None:
        """Add a path that its relay has acknowledged.

        Args:
            key: of the path.
            order: both peers move towards the path with the greatest; equal on both sides.
            now_ns: time now.
            can_probe: whether the channel has keys; without them nothing can be proved, nor lost,
                and the newest path is used at once.
        """
        path = self._paths[key] = _Path(order, now_ns, last_heard_ns=now_ns)
        active = None if self.active is None else self._paths[self.active]
        if active is None:
            self._activate(key, now_ns)
        elif order < active.order:
            path.close_ns = now_ns + RETIRE_NS if active.settled else None
        elif can_probe:
            self._probe(key)
        else:
            self._activate(key, now_ns)

    def prefer(self, key: Key, order: tuple[int, str], now_ns: int) -> None:
        """Make a path the newest that both peers have already and were told to use."""
        path = self._paths.get(key)
        if path is None:
            return
        path.order = order
        path.began_ns = path.last_heard_ns = now_ns
        path.close_ns = None
        path.settled = len(self._paths) == 1
        if not path.settled:
            self._probe(key)

    def heard(self, key: Key, stage: ProbeStage, now_ns: int) -> None:
        """Note an authentic packet on a path; data counts as `ProbeStage.SETTLED`."""
        path = self._paths.get(key)
        active = None if self.active is None else self._paths[self.active]
        if path is None or active is None:
            return
        path.last_heard_ns = now_ns
        if path.order < active.order:
            # On its way out: an answer would invite the other side to a path about to be closed.
            return
        path.heard = True
        if path is not active and stage >= ProbeStage.HEARD:
            self._activate(key, now_ns)
        if key == self.active and stage >= ProbeStage.USING and not path.settled:
            path.settled = True
            self._retire_older(path, now_ns)
        if stage < ProbeStage.SETTLED and now_ns - path.last_probe_ns >= _ANSWER_NS:
            self._probe(key)

    def gone(self, key: Key, now_ns: int) -> None:
        """Forget a path that failed or was closed."""
        if self._paths.pop(key, None) is None:
            return
        self._probes.pop(key, None)
        if key == self.active:
            self.active = None
            if self._paths:
                rest = self._paths
                self._activate(max(rest, key=lambda k: (rest[k].heard, rest[k].order)), now_ns)

    def probes_to_send(self, now_ns: int) -> list[tuple[Key, ProbeStage]]:
        """Take the probes that are due: on which path, saying what."""
        due, self._probes = self._probes, {}
        probes = []
        for key in due:
            path = self._paths[key]
            path.last_probe_ns = now_ns
            age_ns = now_ns - path.began_ns
            wait_ns = min(max(age_ns // _PROBE_AGE_SHARE, PROBE_MIN_NS), PROBE_MAX_NS)
            path.probe_due_ns = now_ns + wait_ns
            probes.append((key, self._stage(key)))
        return probes

    def next_event(self) -> SwitchEvent[Key] | None:
        """Take the oldest event, or None."""
        return self._events.popleft() if self._events else None

    def get_timer(self) -> int | None:
        """Return when to call `handle_timer`, in ns of the caller's clock; None for never."""
        times_ns = []
        for key, path in self._paths.items():
            if path.close_ns is not None:
                times_ns.append(path.close_ns)
            elif self._is_asking(key):
                times_ns.append(path.probe_due_ns)
        return min(times_ns, default=None)

    def handle_timer(self, now_ns: int) -> None:
        """Do what is due; calling it early does no harm."""
        for key, path in tuple(self._paths.items()):
            if key not in self._paths:
                continue
            if path.close_ns is not None:
                self._close_if_silent(key, path, now_ns)
            elif self._is_asking(key):
                self._ask_on(key, path, now_ns)

    # -- Inside --------------------------------------------------------------------------

    def _stage(self, key: Key) -> ProbeStage:
        path = self._paths[key]
        if key == self.active:
            return ProbeStage.SETTLED if path.settled else ProbeStage.USING
        return ProbeStage.HEARD if path.heard else ProbeStage.PROBING

    def _is_asking(self, key: Key) -> bool:
        """Return whether a path waits for something that the other side must say."""
        path = self._paths[key]
        if key == self.active:
            return not path.settled
        return self.active is not None and path.order > self._paths[self.active].order

    def _ask_on(self, key: Key, path: _Path, now_ns: int) -> None:
        if key == self.active:
            if len(self._paths) == 1:
                path.settled = True  # Nothing to close, and nowhere else to go.
                return
            if now_ns - max(path.last_heard_ns, path.began_ns) >= REVERT_NS:
                self._revert(path, now_ns)
        elif now_ns - path.began_ns >= PATIENCE_NS:
            self._forget(key)
            self._events.append(CandidateFailed(key))
            return
        if now_ns >= path.probe_due_ns:
            self._probe(key)

    def _activate(self, key: Key, now_ns: int) -> None:
        path = self._paths[key]
        path.close_ns = None
        path.began_ns = path.last_heard_ns = now_ns
        path.settled = len(self._paths) == 1
        path.heard = True
        self.active = key
        self._events.append(PathSwitched(key))
        self._probe(key)

    def _revert(self, path: _Path, now_ns: int) -> None:
        """Go back to an older path: the one in use fell silent before the move was over."""
        older = {k: p for k, p in self._paths.items() if p.order < path.order and p.heard}
        if not older:
            return
        path.heard = False
        path.began_ns = now_ns
        back = max(older, key=lambda k: older[k].last_heard_ns)
        older[back].close_ns = None
        older[back].settled = True
        self.active = back
        self._events.append(PathSwitched(back))

    def _retire_older(self, newest: _Path, now_ns: int) -> None:
        for path in self._paths.values():
            if path.order < newest.order and path.close_ns is None:
                path.close_ns = now_ns + RETIRE_NS

    def _close_if_silent(self, key: Key, path: _Path, now_ns: int) -> None:
        path.close_ns = max(path.close_ns or 0, path.last_heard_ns + RETIRE_NS)
        if now_ns >= path.close_ns:
            self._forget(key)
            self._events.append(PathRetired(key))

    def _forget(self, key: Key) -> None:
        del self._paths[key]
        self._probes.pop(key, None)

    def _probe(self, key: Key) -> None:
        self._probes[key] = None
