"""The bench in its short form, as `make bench` starts it; in `make test` some of its parts."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.needs import LONG
from support.paths import REPOSITORY

from loadtest.bench import ENGINES, FULL, QUICK, main
from loadtest.measures.forward import ForwardCase, case_name
from loadtest.measures.upgrade import TARGET as UPGRADE_TARGET

pytestmark = [pytest.mark.xdist_group("loadtest"), pytest.mark.long]

ROOT = REPOSITORY
MEASURED = ENGINES if LONG else ("native",)
PARTS = QUICK.parts if LONG else ("forward", "flood", "admission", "memory", "kill")
LEFT_BEHIND = "WAVRY_BENCH_TEST"


def processes_of(mark):
    """Processes that inherited the environment of this test."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes():
                    found.append((entry.name, (entry / "cmdline").read_bytes()))
            except OSError:
                continue
    return found


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    directory = tmp_path_factory.mktemp("bench")
    output = directory / "out" / "bench.json"
    mark = f"{LEFT_BEHIND}={directory}"
    environment = {**os.environ, LEFT_BEHIND: str(directory), "COLUMNS": "200"}
    command = [sys.executable, "-m", "loadtest.bench", "--quick", "--repetitions", "1"]
    command += [word for engine in MEASURED for word in ("--engine", engine)]
    command += [word for part in PARTS for word in ("--part", part)]
    done = subprocess.run(
        [*command, "--output", str(output)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(output.read_text()), done.stdout, processes_of(mark)


def test_document_has_its_four_parts(quick):
    document, _, _ = quick
    assert set(document) == {"machine", "rows", "targets", "skipped"}
    assert document["machine"]["cores"] >= 1


def test_rows_are_finite_and_ordered(quick):
    for row in quick[0]["rows"]:
        assert set(row) == {"bench", "case", "metric", "unit", "median", "min", "max", "runs"}
        assert row["min"] <= row["median"] <= row["max"]
        assert all(math.isfinite(row[name]) for name in ("min", "median", "max"))
        assert row["runs"] >= 1


def test_every_subject_and_every_case_is_there_or_said_to_be_missing(quick):
    document = quick[0]
    rows = {(row["bench"], row["case"], row["metric"]): row["median"] for row in document["rows"]}
    missing = {(one["bench"], one["case"]): one["reason"] for one in document["skipped"]}
    relays = [f"relay-{engine}" for engine in MEASURED]
    for subject in ["floor-plain", "floor-mmsg", "floor-gso", "uvloop-relay", "coturn", *relays]:
        for case in QUICK.forward_cases():
            if ("forward", subject) in missing:
                assert "not installed" in missing[("forward", subject)]
                assert subject in {"uvloop-relay", "coturn"}
                continue
            assert rows[("forward", case_name(subject, case), "cpu_per_packet")] > 0
            assert rows[("forward", case_name(subject, case), "throughput")] > 0


def test_every_part_of_the_relay_is_measured(quick):
    benches = {row["bench"] for row in quick[0]["rows"]}
    always = {"forward", "comparison", "idle", "flood", "admission", "memory", "worker kill"}
    assert benches == always | ({"latency", "upgrade"} if LONG else set())
    promised = [target["name"] for target in quick[0]["targets"]]
    compared = [name for name in promised if " cost at " in name]
    assert len(promised) - len(compared) == 5 * len(MEASURED) + 4 + LONG
    assert [name for name in compared if "coturn" not in name] == [
        "relay-native cost at burst 1 per cheapest bare C forwarder",
        "relay-native cost at burst 16 per bare C forwarder with GRO and GSO",
        "uvloop-relay cost at burst 16 per relay-native",
    ]


@pytest.mark.skipif(not LONG, reason="`make test-slow` upgrades a relay under load and measures it")
def test_upgrade_is_measured_beside_the_same_load_without_one(quick):
    rows = [row for row in quick[0]["rows"] if row["bench"] == "upgrade"]
    assert {row["metric"] for row in rows} == {"packets_lost", "longest_gap", "took"}
    assert len([row for row in rows if " no upgrade at " in row["case"]]) == 2
    (target,) = [t for t in quick[0]["targets"] if t["name"] == UPGRADE_TARGET]
    assert target["ok"] == (target["got"] == 0)


def test_media_is_measured_beside_junk_that_was_really_sent(quick):
    junk = [r for r in quick[0]["rows"] if r["bench"] == "flood" and r["metric"] == "junk"]
    assert [row["case"].partition(", ")[2] for row in junk if row["min"] > 0] == [
        "one address",
        "many addresses",
    ]
    assert len(junk) == 3


def test_no_session_is_lost_with_a_worker(quick):
    lost = [row for row in quick[0]["rows"] if row["metric"] == "sessions_lost"]
    assert [row["max"] for row in lost] == [0] * len(MEASURED)


def test_planned_sessions_fit_their_memory(quick):
    memory = [t for t in quick[0]["targets"] if "shared memory for 100000" in t["name"]]
    assert [target["ok"] for target in memory] == [True] * len(MEASURED)


def test_table_names_what_was_skipped(quick):
    document, printed, _ = quick
    assert "cpu_per_packet" in printed
    for one in document["skipped"]:
        assert one["reason"].split(":")[0] in printed


def test_no_process_is_left_behind(quick):
    assert quick[2] == []


def test_full_table_has_the_sessions_and_bursts_of_the_issue():
    cases = FULL.forward_cases()
    assert {case.burst for case in cases if case.sessions == 64} == {1, 4, 16, 48}
    assert {case.sessions for case in cases} == {1, 64, 4096, 65536}
    for burst in (4, 16, 48):
        assert ForwardCase(burst, gso=True, sessions=64) in cases
        assert ForwardCase(burst, gso=False, sessions=64) in cases
    assert [case.sessions for case in cases] == sorted(case.sessions for case in cases)
    assert len(cases) == len(set(cases))


def test_a_part_that_fails_is_said_and_makes_the_exit_status_1(tmp_path, capsys):
    output = tmp_path / "bench.json"
    arguments = ["--quick", "--repetitions", "1", "--part", "memory", "--engine", "no-such-engine"]
    assert main([*arguments, "--output", str(output)]) == 1
    (skipped,) = json.loads(output.read_text())["skipped"]
    assert skipped["case"] == "relay-no-such-engine"
    assert skipped["reason"].startswith("FAILED")
    assert "FAILED" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--repetitions", "0"], ["--part", "nonsense"]])
def test_wrong_arguments_end_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
