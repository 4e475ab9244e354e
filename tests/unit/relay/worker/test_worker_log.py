"""A worker's first log line comes from its packet loop: it may not import anything large."""

import json
import subprocess
import sys

import pytest
from support.paths import REPOSITORY

from wavry_relay.worker_log import worker_log

FIRST_LINES = """
import sys
import wavry_relay.worker.process
before = set(sys.modules)
from wavry_relay.worker_log import worker_log
worker_log().info("first", cause="a test")
try:
    raise ValueError("a fault")
except ValueError as error:
    worker_log().error("second", exc_info=error)
print(len(set(sys.modules) - before), "structlog" in sys.modules)
"""


def test_first_lines_import_nothing() -> None:
    command = [sys.executable, "-c", FIRST_LINES]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "False"]
    first, second = map(json.loads, done.stderr.splitlines())
    assert (first["role"], first["level"], first["cause"]) == ("relay-worker", "info", "a test")
    assert "ValueError: a fault" in second["exception"]


def test_what_is_below_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    log = worker_log(30)
    log.debug("no")
    log.info("no")
    log.warning("yes", role="its own")
    (line,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["event"], line["role"]) == ("yes", "its own")
    assert line["timestamp"].endswith("Z")
    assert len(line["timestamp"]) == len("2026-11-28T07:03:35.805338Z")
