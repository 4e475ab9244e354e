"""What ties the load tests to locust: options, the target, shapes, totals, the verdict.

Exit status: 0 every objective was kept; 1 one was broken; 2 wrong usage; 3 the system under test
cannot be reached; 4 it does not take the service token.
"""

import importlib.metadata
import logging
import os
import platform
import signal
import sys
import time
from argparse import Namespace
from datetime import UTC, datetime
from typing import Any, Final, NoReturn

import gevent
import greenlet
import msgspec
from locust import LoadTestShape
from locust import log as locust_log
from locust.env import Environment
from locust.event import Events
from locust.runners import WORKER_REPORT_INTERVAL, MasterRunner, Runner, WorkerRunner

from loadtest.machine import describe_machine
from loadtest.users.wavry_user import WavryUser

from . import results as r
from .load_run import LoadFailure, LoadRun, set_current_run
from .options import OptionsError, add_options, read_options
from .reachable import PreflightError, check_gateway, check_master
from .shapes import CONSTANT, Plan, make_plan
from .slo import Check, Objectives, ObjectivesError, judge, read_objectives
from .target import TargetError, find_target
from .timeline import MIN_INTERVAL_S, Timeline
from .totals import Totals

__all__ = ["register"]

EXIT_USAGE: Final = 2
TOTALS_KEY: Final = "wavry_totals"
SOFTWARE: Final = ("wavry", "locust", "gevent", "geventhttpclient", "websocket-client")
WORKERS_END_S: Final = 30.0
_MS_NS: Final = 1_000_000

_log = logging.getLogger(__name__)


class PlannedShape(LoadTestShape):
    """Follows a plan; made by hand, so that locust does not find it by itself."""

    abstract = True
    use_common_options = True

    def __init__(self, plan: Plan) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # locust is typed in part
        self._plan = plan

    def tick(self) -> tuple[int, float] | None:
        """Return users and users per second now; None at the end."""
        time_s = self.get_run_time()  # type: ignore[no-untyped-call]  # as above
        stage = self._plan.at(time_s)
        return None if stage is None else (stage.users, stage.users_per_s)


def register(events: Events) -> None:
    """Listen to locust."""
    events.init_command_line_parser.add_listener(lambda parser, **_: add_options(parser))
    events.init.add_listener(lambda environment, **_: _set_up(environment))


def _leave(text: str, status: int) -> NoReturn:
    sys.stderr.write(f"error: {text}\n")
    sys.exit(status)


def _set_up(environment: Environment) -> None:
    try:
        options = read_options(environment.parsed_options or Namespace())
        objectives = read_objectives(options.objectives)
        target = find_target(os.environ, options.target)
        load = LoadRun(environment, options, target)
        set_current_run(load)
        if options.results is not None:
            options.results.parent.mkdir(parents=True, exist_ok=True)
        if options.shape != CONSTANT:
            _follow_plan(environment, load)
        services = {user.service for user in _user_classes(environment)}
        if "gateway" in services:
            check_gateway(target.need_gateway())
        if "master" in services:
            load.exclude_relays = check_master(*target.need_master(), only=options.relay_id)
    except (OptionsError, ObjectivesError, TargetError, ValueError) as error:
        _leave(str(error), EXIT_USAGE)
    except OSError as error:
        _leave(f"--results: {error.strerror}", EXIT_USAGE)
    except PreflightError as error:
        _leave(str(error), error.exit_status)
    # Raised wherever the program is, Ctrl-C could end the reader of a user's socket instead.
    gevent.signal_handler(signal.SIGINT, _interrupt, gevent.getcurrent())
    environment.events.request.add_listener(lambda **event: _count(load.totals, **event))
    if isinstance(environment.runner, WorkerRunner):
        environment.events.report_to_master.add_listener(
            lambda data, **_: _report(load.totals, data)
        )
        return
    if isinstance(environment.runner, MasterRunner):
        environment.events.worker_report.add_listener(
            lambda data, **_: _take_report(load.totals, data)
        )
    _judge_at_the_end(environment, load, objectives)


def _user_classes(environment: Environment) -> list[type[WavryUser]]:
    return [user for user in environment.user_classes if issubclass(user, WavryUser)]


def _follow_plan(environment: Environment, load: LoadRun) -> None:
    options = load.options
    if options.run_s is None and not isinstance(environment.runner, WorkerRunner):
        raise OptionsError(f"--shape {options.shape} needs --run-time")
    plan = make_plan(
        options.shape,
        peak=options.peak_users,
        duration_s=options.run_s or 1.0,
        steps=options.steps,
    )
    if isinstance(environment.runner, WorkerRunner):
        return
    runner = environment.runner
    shape = PlannedShape(plan)
    shape.runner = runner
    environment.shape_class = shape
    if runner is not None:
        # Locust listens to SIGTERM only after a shape has ended: sessions would not be closed.
        gevent.signal_handler(signal.SIGTERM, _end_shape, runner)


def _interrupt(main: greenlet.greenlet) -> None:
    gevent.get_hub().loop.run_callback(main.throw, KeyboardInterrupt)


def _end_shape(runner: Runner) -> None:
    # Not `quit`: locust itself quits when the shape is over, and two at a time would kill users
    # that are just closing their sessions.
    if runner.shape_greenlet is not None:
        runner.shape_greenlet.kill(block=False)


# -- Totals ----------------------------------------------------------------------------


def _count(
    totals: Totals,
    *,
    request_type: str,
    name: str,
    response_time: float,
    exception: BaseException | None = None,
    **_: Any,
) -> None:
    failure = None
    if exception is not None:
        is_ours = isinstance(exception, LoadFailure)
        failure = str(exception) if is_ours else type(exception).__name__
    totals.request(f"{request_type} {name}").add(int(response_time * _MS_NS), failure)


def _report(totals: Totals, data: dict[str, Any]) -> None:
    """Hand the master what came since the last report."""
    data[TOTALS_KEY] = msgspec.json.encode(totals)
    totals.clear()


def _take_report(totals: Totals, data: dict[str, Any]) -> None:
    raw = data.pop(TOTALS_KEY, None)
    if raw is not None:
        totals.merge(msgspec.json.decode(raw, type=Totals))


# -- The end ---------------------------------------------------------------------------


def _judge_at_the_end(environment: Environment, load: LoadRun, objectives: Objectives) -> None:
    runner = environment.runner
    timeline = Timeline(
        load.totals,
        lambda: runner.user_count if runner is not None else 0,
        load.options.run_s,
        WORKER_REPORT_INTERVAL if isinstance(runner, MasterRunner) else MIN_INTERVAL_S,
    )
    started_at = datetime.now(UTC).isoformat(timespec="seconds")
    machine = describe_machine()

    def begin(**_: Any) -> None:
        load.started_s = time.monotonic()
        if isinstance(runner, MasterRunner):
            load.processes = runner.worker_count
        timeline.start()

    def end(**_: Any) -> None:
        load.ended_s = time.monotonic()
        timeline.stop()

    def conclude(**_: Any) -> None:
        if runner is not None:
            runner.stop()  # after Ctrl-C locust would stop users only when the verdict is given
        checks = _checks(environment, load, objectives)
        ok = all(check.ok for check in checks)
        environment.process_exit_code = 0 if ok else 1
        for check in checks:
            if not check.ok:
                _log.error("objective %s", check.line())
        _log.info("%d of %d objectives kept", sum(check.ok for check in checks), len(checks))
        if load.options.results is None:
            return
        document = r.Results(
            started_at=started_at,
            duration_s=round(max(0.0, load.ended_s - load.started_s), 2),
            machine=machine,
            software=_software(),
            target={
                "kind": load.target.kind,
                "gateway_url": load.target.gateway_url,
                "master_url": load.target.master_url,
                "relay": load.options.relay_id,
                "region": load.options.region,
            },
            load=_load(environment, load),
            requests=r.describe_requests(load.totals),
            media=r.describe_media(load.totals),
            timeline=timeline.moments,
            checks=checks,
            ok=ok,
        )
        try:
            r.write_results(load.options.results, document)
        except OSError as error:
            _log.error("--results cannot be written: %s", error.strerror)
            environment.process_exit_code = 1

    if isinstance(runner, MasterRunner) and load.options.is_headless:
        environment.events.test_stop.add_listener(lambda **_: _await_workers(runner))
    environment.events.test_start.add_listener(begin)
    environment.events.test_stop.add_listener(end)
    environment.events.quitting.add_listener(conclude)


def _await_workers(runner: MasterRunner) -> None:
    """Wait for the last reports: Locust does for half a second, and sessions may need longer."""
    runner.send_message("quit")
    deadline_s = time.monotonic() + WORKERS_END_S
    while runner.clients and time.monotonic() < deadline_s:
        gevent.sleep(0.05)


def _checks(environment: Environment, load: LoadRun, objectives: Objectives) -> list[Check]:
    runner = environment.runner
    faults = sum(row["count"] for row in runner.exceptions.values()) if runner is not None else 0
    return judge(
        objectives,
        load.totals,
        wants_media=any(user.streams_media for user in _user_classes(environment)),
        faults=faults + int(locust_log.unhandled_greenlet_exception),
    )


def _software() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in SOFTWARE}
    return {"python": platform.python_version(), **versions}


def _load(environment: Environment, load: LoadRun) -> r.OfferedLoad:
    options = load.options
    return r.OfferedLoad(
        users=sorted(user.__name__ for user in environment.user_classes),
        shape=options.shape,
        peak_users=options.peak_users,
        processes=load.processes,
        media_kbps=round(options.media.kbps, 1),
        packets_per_s=round(options.media.packets_per_s, 1),
    )
