"""The one run of this process: what it was told, where it measures, and how users reach both."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import gevent
from locust.env import Environment

from .options import LoadOptions
from .target import SystemUnderTest
from .totals import Totals

__all__ = [
    "LoadFailure",
    "LoadRun",
    "current_run",
    "now_ns",
    "set_current_run",
    "together",
    "uninterrupted",
]

_MS_NS: Final = 1_000_000
USERS_PER_PROCESS: Final = 100_000


class LoadFailure(Exception):  # noqa: N818  # a result of the system under test, not a fault of ours
    """Something that the system under test did not do, or not in time.

    Attributes:
        reason: short and stable, without anything secret: locust groups by it.
        retry_after_s: what the system asked to wait, or None.
    """

    def __init__(self, reason: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.retry_after_s = retry_after_s


@dataclass(slots=True)
class LoadRun:
    """A run.

    Attributes:
        environment: of locust.
        options: of the command line.
        target: the system under test.
        exclude_relays: ids that the master must not choose.
        totals: what this process has measured (on the master of several processes: all of them).
        started_s: monotonic time at which the first user started, 0.0 before.
        ended_s: monotonic time at which the last user was gone, 0.0 before.
        processes: that make the load.
    """

    environment: Environment
    options: LoadOptions
    target: SystemUnderTest
    exclude_relays: tuple[str, ...] = ()
    totals: Totals = field(default_factory=Totals)
    started_s: float = 0.0
    ended_s: float = 0.0
    processes: int = 1
    _user_numbers: int = 0

    def next_user_number(self) -> int:
        """Return a number that no other user of this run has, in whichever process it is."""
        self._user_numbers += 1
        process = getattr(self.environment.runner, "worker_index", 0)
        return int(process) * USERS_PER_PROCESS + self._user_numbers

    def measured(self, kind: str, latency_ns: int, failure: str | None = None) -> None:
        """Tell locust of something that is no HTTP request; `kind` is e.g. ``UDP lease present``.

        Our own totals come from the same event, see `hooks`.
        """
        request_type, _, name = kind.partition(" ")
        self.environment.events.request.fire(
            request_type=request_type,
            name=name,
            response_time=latency_ns / _MS_NS,
            response_length=0,
            exception=None if failure is None else LoadFailure(failure),
            context={},
        )

    @contextlib.contextmanager
    def measuring(self, kind: str) -> Iterator[None]:
        """Measure a block; a `LoadFailure` in it counts and goes on.

        Nothing is counted where the run ends meanwhile, or our own code fails.
        """
        started_ns = now_ns()
        try:
            yield
        except LoadFailure as failure:
            self.measured(kind, now_ns() - started_ns, failure.reason)
            raise
        else:
            self.measured(kind, now_ns() - started_ns)


_current: list[LoadRun] = []


def set_current_run(run: LoadRun) -> None:
    """Make a run the one of this process."""
    _current[:] = [run]


def current_run() -> LoadRun:
    """Return the run of this process: locust makes users itself and gives them nothing of ours.

    Raises:
        RuntimeError: there is none: users work only under ``loadtest/locustfile.py``.
    """
    if not _current:
        raise RuntimeError("no load test is set up: run locust with -f loadtest/locustfile.py")
    return _current[0]


def now_ns() -> int:
    """Return the monotonic time of this machine: both peers of a session use it."""
    return time.monotonic_ns()


def together(*functions: Callable[[], Any]) -> list[Any]:
    """Run functions at the same time, and give their results in order.

    None of them is left behind, whatever ends the wait.

    Raises:
        LoadFailure: the first of one of them.
    """

    def guarded(function: Callable[[], Any]) -> Any:
        try:
            return function()
        except LoadFailure as failure:
            return failure

    greenlets = [gevent.spawn(guarded, function) for function in functions]
    try:
        gevent.joinall(greenlets, raise_error=True)
        results = [greenlet.get() for greenlet in greenlets]
    finally:
        gevent.killall(greenlets)
    for result in results:
        if isinstance(result, LoadFailure):
            raise result
    return results


def uninterrupted(function: Callable[[], Any]) -> None:
    """Run a function to its end even if locust stops the user meanwhile; the stop comes after it.

    Accounts must be closed and places given back also where the end of the run and the end of a
    session fall together.
    """
    greenlet = gevent.spawn(function)
    try:
        greenlet.join()
    except gevent.GreenletExit:
        greenlet.join()
        raise
