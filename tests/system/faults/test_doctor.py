"""Each fault is made in a real system, and the doctor must name the layer that is broken."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.relay.host import few_descriptors
from support.system.doctor import Patient, failed, root
from support.system.system import get_json
from support.waiting import wait_until

SHIFTED_CLOCK = """
import time
_time, _time_ns, _shift_s = time.time, time.time_ns, {shift_s}
time.time = lambda: _time() + _shift_s
time.time_ns = lambda: _time_ns() + _shift_s * 1_000_000_000
"""
"""``sitecustomize`` of a child process whose host has a wrong clock."""


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Patient]:
    with Patient(tmp_path_factory.mktemp("doctor") / "services") as running:
        running.wait_until_well()
        yield running


def test_a_healthy_system_is_well_in_everything(patient: Patient) -> None:
    answer = patient.examine(code=0)
    assert {one["verdict"] for one in answer["findings"]} == {"ok"}, answer["findings"]
    assert (answer["broken_layer"], answer["root"]) == (None, None)
    assert answer["summary"].startswith("nothing is broken")
    seen = {(one["check"], one["subject"]) for one in answer["findings"]}
    relay = patient.relay_id
    for check, subject in (
        ("reachable", "gateway"), ("reachable", "master"), ("reachable", relay),
        ("master link", "gateway"), ("master link", relay), ("udp", relay), ("clock", relay),
        ("same key set", relay), ("unknown key", relay), ("pool", "relays"),
        ("revocations", relay), ("errors", "gateway"), ("errors", "master"),
    ):  # fmt: skip
        assert (check, subject) in seen
    table = patient.ctl("doctor", "--watch", "0.1")
    assert table.exit_code == 0
    assert "not looked at: the ops port of" in table.stdout.splitlines()[0]


def test_without_a_token_or_with_a_wrong_one_it_says_what_it_could_not_see(
    patient: Patient,
) -> None:
    answer = patient.examine(code=0, token="none")
    unknown = [one["check"] for one in answer["findings"] if one["verdict"] == "unknown"]
    assert unknown == ["admin token"]
    checked = {one["check"]: one["verdict"] for one in answer["findings"]}
    assert (checked["same key set"], checked["udp"], checked["pool"]) == ("ok", "ok", "ok")
    wrong = patient.examine(code=1, token="x" * 43)
    assert root(wrong) == ("here", "admin token", "-")
    assert "x" * 43 not in json.dumps(wrong)


def test_a_gateway_that_is_down_is_named(patient: Patient) -> None:
    patient.kill("gateway")
    try:
        answer = patient.examine(code=3)
    finally:
        patient.start("gateway")
    assert root(answer) == ("gateway", "reachable", "gateway")
    assert "refused" in answer["root"]["evidence"]
    assert list(failed(answer)) == ["gateway: reachable"]


def test_a_master_that_is_down_is_named_and_explains_the_rest(patient: Patient) -> None:
    patient.kill("master")
    try:
        wait_until(lambda: patient.link_state() != "registered", what="the relay notices")
        answer = patient.examine(code=3)
    finally:
        patient.start("master")
    assert root(answer) == ("master", "reachable", "master")
    consequences = failed(answer)
    assert consequences.pop("master: reachable") == ""
    assert consequences == {
        "gateway: master link": "master: reachable",
        f"{patient.relay_id}: master link": "master: reachable",
    }
    patient.wait_until_well()
    patient.examine(code=0)


def test_a_relay_that_is_down_is_named_whatever_the_master_thinks(patient: Patient) -> None:
    patient.kill("relay")
    try:
        at_once = patient.examine(code=3)
        assert root(at_once) == ("relay", "reachable", patient.relay_id)

        def offline() -> bool:
            listed = json.loads(patient.ctl("relays", "list", "--json").stdout)
            return bool(listed["relays"][0]["state"] == "OFFLINE")

        wait_until(offline, what="the master misses it")
        later = patient.examine(code=3)
        from_afar = patient.examine(code=3, ops=False)
    finally:
        patient.start("relay")
    for answer in (later, from_afar):
        assert root(answer) == ("relay", "reachable", patient.relay_id)
        assert failed(answer)["relays: pool"] == f"{patient.relay_id}: reachable"
    assert "OFFLINE" in from_afar["root"]["evidence"]
    assert "port is closed" in from_afar["root"]["evidence"]
    patient.wait_until_well()


def test_a_drained_pool_is_named_with_who_and_why(patient: Patient) -> None:
    patient.order("relays", "drain", patient.relay_id, "--reason", "new kernel")
    try:
        answer = patient.examine(code=1)
        by_counts = patient.examine(code=1, token="none")
    finally:
        patient.order("relays", "undrain", patient.relay_id)
    assert root(answer) == ("relay", "pool", "relays")
    assert "is drained (by admin" in answer["root"]["evidence"]
    assert "new kernel" in answer["root"]["evidence"]
    assert f"wavryctl relays undrain {patient.relay_id}" in answer["root"]["next_step"]
    assert root(by_counts) == ("relay", "pool", "relays")
    assert "1 DRAINING" in by_counts["root"]["evidence"]
    patient.wait_until_well()
    wait_until(lambda: patient.ctl("doctor", "--watch", "0.1").exit_code == 0, what="well again")


@pytest.mark.parametrize(
    ("order", "revert", "check"),
    [
        (("relay-mode", "off"), ("relay-mode", "on"), "relay mode"),
        (("lockdown", "on"), ("lockdown", "off"), "lockdown"),
    ],
    ids=["relay mode off", "lockdown"],
)
def test_a_kill_switch_is_named_with_who_and_why(
    patient: Patient, order: tuple[str, ...], revert: tuple[str, ...], check: str
) -> None:
    patient.order(*order, "--reason", "abuse wave")
    try:
        answer = patient.examine(code=1)
        nameless = patient.examine(code=1, token="none")
    finally:
        patient.order(*revert)
    assert root(answer) == ("master", check, "master")
    assert "by admin" in answer["root"]["evidence"]
    assert "abuse wave" in answer["root"]["evidence"]
    assert " ".join(("wavryctl", *revert)) in answer["root"]["next_step"]
    assert root(nameless) == ("master", check, "master")
    assert "abuse wave" not in json.dumps(nameless), "that is for operators"


@pytest.mark.parametrize(("name", "shift_s"), [("relay", 120), ("gateway", -120), ("master", -120)])
def test_a_wrong_clock_is_named(patient: Patient, tmp_path: Path, name: str, shift_s: int) -> None:
    (tmp_path / "sitecustomize.py").write_text(SHIFTED_CLOCK.format(shift_s=shift_s))
    patient.settings[name]["PYTHONPATH"] = str(tmp_path)
    patient.kill(name)
    try:
        patient.start(name)
        patient.wait_until_well()
        answer = patient.examine(code=1)
    finally:
        del patient.settings[name]["PYTHONPATH"]
        patient.kill(name)
        patient.start(name)
        patient.wait_until_well()
    subject = patient.relay_id if name == "relay" else name
    assert root(answer) == (name, "clock", subject)
    way = "120 s ahead of" if shift_s > 0 else "120 s behind"
    assert way in answer["root"]["evidence"]
    # The master gives a relay with such a clock nothing new: that follows from it.
    assert [key for key, cause in failed(answer).items() if not cause] == [f"{subject}: clock"]


def test_missing_workers_are_named_without_the_ops_url(patient: Patient) -> None:
    """The heartbeat says it at once, the master gives nothing new, and all ends by itself."""

    def state() -> str:
        listed = json.loads(patient.ctl("relays", "list", "--json").stdout)
        return str(listed["relays"][0]["state"])

    health = get_json(patient.ops_url + "/health")
    with few_descriptors(health["pid"]):
        os.kill(health["workers"]["pids"][0], signal.SIGKILL)
        wait_until(lambda: state() == "DEGRADED", what="the master notices")
        answer = patient.examine(code=1, ops=False)
        table = patient.ctl("relays", "list").stdout
    assert root(answer) == ("relay", "reachable", patient.relay_id)
    assert "workers run" in answer["root"]["evidence"]
    assert failed(answer)["relays: pool"] == f"{patient.relay_id}: reachable"
    assert "DEGRADED" in table
    wait_until(lambda: state() == "ACTIVE", timeout_s=30, what="recovery")
