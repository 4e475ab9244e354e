"""The canary of a release check: starts one, reads its metrics, looks through its logs.

``python -m tests.release.canary logs|metrics`` are lines of docs/checklist.md; what they need is
in the environment, as for every line: where the services are (WAVRY_DEV_DIR, or the variables of
wavryctl), CANARY_LOGS, CANARY_RELAY_OPS, and CANARY_BEFORE, the reading of the begin.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import typer
from prometheus_client.parser import text_string_to_metric_families

from wavry_cp.admin.endpoints import find_endpoints
from wavry_cp.admin.output import CommandError

from .metric_rules import Reading, Sample, faults

__all__ = ["CanaryError", "local_canary", "log_faults", "read_metrics", "remote_canary", "store"]

START_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 30.0
HTTP_TIMEOUT_S: Final = 10.0
SHOWN_LINES: Final = 20
_BAD_LEVELS: Final = ("error", "critical")
_REMOTE: Final = ("WAVRY_GATEWAY_URL", "WAVRY_MASTER_URL", "WAVRY_ADMIN_TOKEN_FILE")

app = typer.Typer(help="Looks at the canary of a release check.", no_args_is_help=True)


class CanaryError(Exception):
    """There is no canary, or it does not answer."""


# -- One to look at --------------------------------------------------------------------------------


@contextlib.contextmanager
def local_canary(directory: Path, environ: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """A system of this checkout for the length of a block; gives the variables that name it.

    Args:
        directory: for its data; what is there goes.
        environ: of its processes, but for settings of another system.

    Raises:
        CanaryError: it does not start.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    kept = {name: text for name, text in environ.items() if not name.startswith("WAVRY_")}
    command = [sys.executable, "-m", "wavry_cp.admin", "dev", "up", "--relays", "2"]
    command += ["--workers", "1", "--data", str(directory)]
    log_path = directory / "dev-up.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, env=kept, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (directory / "dev.json").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise CanaryError(f"no canary: {log_path.read_text(errors='replace').strip()}")
            time.sleep(0.05)
        yield {"WAVRY_DEV_DIR": str(directory), "CANARY_LOGS": str(directory / "logs")}
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def remote_canary(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that name a deployment.

    Raises:
        CanaryError: one is missing.
    """
    missing = [name for name in _REMOTE if not environ.get(name)]
    if missing:
        raise CanaryError(f"a remote canary needs {', '.join(missing)} in the environment")
    return {name: environ[name] for name in _REMOTE}


# -- Metrics ---------------------------------------------------------------------------------------


def read_metrics(environ: Mapping[str, str]) -> Reading:
    """Metrics of every service that the environment names.

    Raises:
        CanaryError: one does not answer, or nothing is named.
    """
    try:
        places = find_endpoints(environ)
        token = places.admin_token()
        pages = {
            "gateway": (places.need_gateway(), token),
            "master": (places.need_master(), token),
        }
    except CommandError as error:
        raise CanaryError(str(error)) from error
    pages |= {f"relay {relay.relay_id}": (relay.ops_url, "") for relay in places.relays}
    named = environ.get("CANARY_RELAY_OPS", "").split()
    pages |= {f"relay at {url}": (url, "") for url in named}
    return {name: _samples(name, url, token) for name, (url, token) in pages.items()}


def _samples(service: str, url: str, token: str) -> dict[Sample, float]:
    if not url.startswith(("http://", "https://")):
        raise CanaryError(f"{service}: {url} is no http:// or https:// URL")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(url.rstrip("/") + "/metrics", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=HTTP_TIMEOUT_S) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
    except (OSError, ValueError) as error:
        cause = f"status {error.code}" if isinstance(error, urllib.error.HTTPError) else error
        raise CanaryError(f"{service}: {url}/metrics does not answer ({cause})") from error
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def store(reading: Reading, path: Path) -> None:
    """Keep a reading for the metrics line."""
    rows = {
        service: [[name, dict(labels), value] for (name, labels), value in samples.items()]
        for service, samples in reading.items()
    }
    path.write_text(json.dumps(rows))


def _stored(path: Path) -> Reading:
    try:
        rows: dict[str, list[Any]] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CanaryError(f"no reading of the canary's begin in {path}: {error}") from error
    return {
        service: {(name, tuple(sorted(labels.items()))): value for name, labels, value in samples}
        for service, samples in rows.items()
    }


# -- Logs ------------------------------------------------------------------------------------------


def log_faults(paths: list[Path]) -> tuple[list[str], int]:
    """Lines that should not be in the logs of a healthy system, and how many lines there are.

    A line is JSON with a level, as the services write it, or something that broke through.

    Raises:
        CanaryError: there is no log.
    """
    files = [
        file for path in paths for file in (sorted(path.glob("*.log")) if path.is_dir() else [path])
    ]
    if not files:
        raise CanaryError(f"no log in {' '.join(map(str, paths)) or 'CANARY_LOGS (not set)'}")
    found, count = [], 0
    for file in files:
        try:
            lines = file.read_text(errors="replace").splitlines()
        except OSError as error:
            raise CanaryError(f"{file}: {error.strerror}") from error
        count += len(lines)
        found += [f"{file.name}: {line}" for line in lines if _is_bad(line)]
    if not count:
        raise CanaryError("the logs are empty: are these the right files?")
    return found, count


def _is_bad(line: str) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return line.startswith("Traceback ") or "Sanitizer" in line
    return isinstance(event, dict) and event.get("level") in _BAD_LEVELS


# -- Lines of the checklist ------------------------------------------------------------------------


def _tell(found: list[str], well: str) -> None:
    for text in found[:SHOWN_LINES]:
        typer.echo(text)
    if len(found) > SHOWN_LINES:
        typer.echo(f"and {len(found) - SHOWN_LINES} more")
    if not found:
        typer.echo(well)
    raise typer.Exit(1 if found else 0)


@app.command()
def logs() -> None:
    """Look for errors and tracebacks in CANARY_LOGS.

    Example: CANARY_LOGS=build/canary.log python -m tests.release.canary logs
    """
    try:
        found, count = log_faults(
            [Path(text) for text in os.environ.get("CANARY_LOGS", "").split()]
        )
    except CanaryError as error:
        typer.echo(str(error))
        raise typer.Exit(1) from error
    _tell(found, f"{count} lines, no error and no traceback")


@app.command()
def metrics() -> None:
    """Compare the metrics of all services with those of the canary's begin (CANARY_BEFORE).

    Example: CANARY_BEFORE=build/release/before.json python -m tests.release.canary metrics
    """
    try:
        before = _stored(Path(os.environ.get("CANARY_BEFORE", "build/release/before.json")))
        after = read_metrics(os.environ)
    except CanaryError as error:
        typer.echo(str(error))
        raise typer.Exit(1) from error
    _tell(faults(before, after), f"{len(after)} services, nothing rose that should not")


if __name__ == "__main__":
    app()
