"""The runner: tiny checklists, and the real canary lines against a real canary."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.paths import REPOSITORY
from support.system.system import clean_environment, get_text
from support.waiting import is_alive, wait_until

from tests.release.canary import CanaryError, local_canary, log_faults, remote_canary
from tests.release.check import Check
from tests.release.checklist import choose, read_checklist

HEAD = "| line | on | it shows | command |\n|---|---|---|---|\n"
LINES = read_checklist(REPOSITORY / "docs" / "checklist.md")
TREE = "format,lint,tests"


def command(tmp_path: Path, *rows: tuple[str, str]) -> list[str]:
    checklist = tmp_path / "checklist.md"
    checklist.write_text(HEAD + "".join(f"| {n} | tree | x | `{c}` |\n" for n, c in rows))
    words = [sys.executable, "-m", "tests.release.check", "--checklist", str(checklist)]
    return [*words, "--directory", str(tmp_path / "out")]


def run(words: list[str], **environ: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words, cwd=REPOSITORY, env=clean_environment(**environ), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


# -- Tiny checklists -------------------------------------------------------------------------------

ROWS = (("first", "echo fine"), ("second", "echo broken >&2; exit 3"), ("third", "exit 0"))


def test_one_line_that_fails_fails_the_check_and_the_others_are_run(tmp_path: Path) -> None:
    done = run(command(tmp_path, *ROWS))
    assert done.returncode == 1
    verdicts = [line.split(" (")[0] for line in done.stdout.splitlines() if line[:1] in "pf"]
    assert verdicts == ["pass  first", "fail  second", "pass  third"]
    assert "        broken\n        exit status 3\n" in done.stdout
    assert "2 of 3 lines pass" in done.stdout
    assert "failed: second" in done.stdout
    assert (tmp_path / "out" / "first.log").read_text() == "fine\n"


def test_all_pass(tmp_path: Path) -> None:
    done = run([*command(tmp_path, *ROWS), "--skip", "second"])
    assert (done.returncode, done.stderr) == (0, "")
    assert "2 of 2 lines pass" in done.stdout


def test_json_has_each_verdict(tmp_path: Path) -> None:
    done = run([*command(tmp_path, *ROWS), "--json"])
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["ok"] is False
    assert [(line["name"], line["verdict"]) for line in said["lines"]] == [
        ("first", "pass"), ("second", "fail"), ("third", "pass"),
    ]  # fmt: skip
    assert said["lines"][1]["why"] == "broken\nexit status 3"
    assert said["lines"][0]["seconds"] >= 0
    assert "pass  first" in done.stderr


def test_name_that_is_no_line_is_wrong_usage(tmp_path: Path) -> None:
    done = run([*command(tmp_path, *ROWS), "--only", "fourth"])
    assert done.returncode == 2
    assert "no such line: fourth; there are first, second, third" in done.stderr


def test_a_part_of_a_line_that_fails_fails_it(tmp_path: Path) -> None:
    """As in a shell script with set -e and an unset variable."""
    rows = (("a", "false; true"), ("b", "echo $NOT_SET_ANYWHERE"))
    done = run(command(tmp_path, *rows))
    assert "0 of 2 lines pass" in done.stdout


def test_interrupt_ends_the_line_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    words = command(tmp_path, ("long", f"echo $$ > {pid_file}; exec sleep 1000"))
    process = subprocess.Popen(
        words, cwd=REPOSITORY, env=clean_environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), what="the line")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in said
    assert not is_alive(int(pid_file.read_text()))


# -- Logs, and canaries that are none --------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "is_bad"),
    [
        ('{"event": "serving", "level": "info"}', False),
        ('{"event": "sockets_shared", "level": "warning"}', False),
        ('{"event": "unhandled_error", "level": "error"}', True),
        ("Traceback (most recent call last):", True),
        ("==1==ERROR: AddressSanitizer: heap-use-after-free", True),
        ("some text", False),
        ("[1, 2]", False),
    ],
)
def test_bad_lines_of_logs(tmp_path: Path, line: str, is_bad: bool) -> None:
    (tmp_path / "relay.log").write_text(f"{line}\n")
    found, count = log_faults([tmp_path])
    assert (len(found), count) == (is_bad, 1)


def test_logs_that_are_not_there_are_no_good_logs(tmp_path: Path) -> None:
    for paths in ([], [tmp_path], [tmp_path / "none.log"]):
        with pytest.raises(CanaryError):
            log_faults(paths)
    (tmp_path / "empty.log").touch()
    with pytest.raises(CanaryError, match="empty"):
        log_faults([tmp_path])


def test_remote_canary_must_be_named() -> None:
    with pytest.raises(CanaryError, match="WAVRY_MASTER_URL, WAVRY_ADMIN_TOKEN_FILE"):
        remote_canary({"WAVRY_GATEWAY_URL": "https://x", "WAVRY_MASTER_URL": ""})


def test_canary_that_does_not_answer_fails_its_lines(tmp_path: Path) -> None:
    (verdict,) = Check(tmp_path / "out", canary=str(tmp_path)).run(choose(LINES, only="metrics"))
    assert verdict.verdict == "fail"
    assert "dev.json does not exist" in verdict.why


# -- A real one ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("canary") / "data"
    with local_canary(directory, os.environ) as named:
        assert named["WAVRY_DEV_DIR"] == str(directory)
        yield directory
    assert not (directory / "dev.json").exists()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("out")


def described(canary: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((canary / "dev.json").read_text())
    return facts


def test_every_canary_line_passes_on_a_healthy_system(canary: Path, out: Path) -> None:
    verdicts = Check(out, canary=str(canary)).run(choose(LINES, skip=TREE))
    assert {verdict.name: verdict.verdict for verdict in verdicts} == {
        line.name: "pass" for line in LINES if line.on_canary
    }, "\n".join(verdict.why for verdict in verdicts)
    assert "4 services" in (out / "metrics.log").read_text()


def test_deployment_is_named_by_variables(canary: Path, out: Path, tmp_path: Path) -> None:
    facts = described(canary)
    words = [sys.executable, "-m", "tests.release.check", "--canary", "remote"]
    words += ["--only", "auth smoke,logs,metrics", "--directory", str(tmp_path)]
    done = run(
        words,
        WAVRY_GATEWAY_URL=facts["gateway_url"],
        WAVRY_MASTER_URL=facts["master_url"],
        WAVRY_ADMIN_TOKEN_FILE=facts["admin_token_file"],
        CANARY_RELAY_OPS=" ".join(relay["ops_url"] for relay in facts["relays"]),
        CANARY_LOGS=str(canary / "logs"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 services" in (tmp_path / "metrics.log").read_text()


def test_worker_that_died_fails_the_metrics_line(canary: Path, out: Path) -> None:
    relay = described(canary)["relays"][0]
    health = json.loads(get_text(relay["ops_url"] + "/health"))
    os.kill(health["workers"]["pids"][0], signal.SIGKILL)
    wait_until(
        lambda: 'worker_restarts_total{cause="died"} 1' in get_text(relay["ops_url"] + "/metrics"),
        what="the replacement",
    )
    check = Check(out, canary=str(canary), keep=True)
    (verdict,) = check.run(choose(LINES, only="metrics"))
    assert verdict.verdict == "fail"
    assert f"relay {relay['relay_id']}: wavry_relay_worker_restarts_total" in verdict.why
    assert "rose from 0 to 1" in verdict.why
