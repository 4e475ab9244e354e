"""Runbooks bring back what is broken: each fault is made, and then the page is typed.
Here the pages themselves, gateway, master and keys; relays: test_runbooks_relays.py.

A test makes its fault in a small data centre (runbook_world.py), looks that it hurts, types the
blocks of the page as they stand there, compares what they print, and then makes a new call and
looks at the old ones.
"""

import contextlib
import re
import signal
import time

import pytest
from support.machines.runbook import (
    RUNBOOKS,
    SECTIONS,
    Runbook,
    missing_lines,
    parse_runbook,
    read_runbook,
)
from support.machines.runbook_faults import Holder
from support.machines.runbook_world import GATEWAY, GATEWAY_URL, MASTER, World
from support.paths import REPOSITORY
from support.system.live_sessions import Live, Users
from support.system.small_disk import fill_disk

RULES = REPOSITORY / "docker" / "prometheus" / "rules" / "wavry.yml"
PAGES = sorted(path.name for path in RUNBOOKS.glob("*.md") if path.name != "README.md")
GONE, FULL_DISK = "The process is gone or hangs", "The disk is full"

# -- The pages themselves --------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_form_that_people_expect(name: str) -> None:
    page = read_runbook(name)
    assert page.sections == SECTIONS
    used = set(re.findall(r"\$\{?([A-Z_]{3,})", " ".join(b.commands for b in page.blocks)))
    assert used <= page.settings, "a variable that nobody set"
    access = {"WAVRY_GATEWAY_URL", "WAVRY_MASTER_URL", "WAVRY_ADMIN_TOKEN_FILE"}
    assert access <= page.settings, "wavryctl needs them"
    assert page.settings - access <= used | {"WAVRY_RELAY_STATE_DIR"}, "set and never used"
    assert name in (RUNBOOKS / "README.md").read_text()
    for case in page.cases:
        assert f'"{case}"' in page.text, f"nothing sends the reader to {case!r}"


def test_every_alert_names_a_page_and_each_page_lists_just_its_alerts() -> None:
    alerts = re.findall(r"- alert: (\w+)$.*?^ +runbook: (\S+)$", RULES.read_text(), re.M | re.S)
    assert len(alerts) == RULES.read_text().count("- alert:"), "an alert without a runbook"
    for name in PAGES:
        page = read_runbook(name)
        section = page.text.split("## Symptom and alert")[1].split("## ")[0]
        named = set(re.findall(r"`(Wavry\w+)`", section))
        assert named == {alert for alert, path in alerts if path == f"docs/runbooks/{name}"}, name
    assert {path for _, path in alerts} <= {f"docs/runbooks/{name}" for name in PAGES}


def test_expected_lines_are_compared_in_their_order() -> None:
    output = "┃ a    ┃ b ┃\n│ one  │ 2 │\nend"
    assert missing_lines(("a … b", "one …", "end"), output) == []
    assert missing_lines(("one 2",), output) == []
    assert missing_lines(("end", "one …"), output) == ["one …"]
    assert missing_lines(("one 3",), output) == ["one 3"]


def test_blocks_know_their_place_their_case_and_their_output() -> None:
    page = parse_runbook(
        "x.md",
        "## Set these first\n```sh\nexport A=1   # one\n```\n## Confirm\n```sh\nfirst\n```\n"
        "### Odd\nOn the relay's host:\n```sh\nsecond $A\nthird\n```\n```text\nout …\n```\n",
    )
    assert page.settings == {"A"}
    first, second = page.of_case("Odd")
    assert (first.place, first.case, first.may_fail) == ("operator", "", True)
    assert (second.place, second.commands) == ("relay", "second $A\nthird")
    assert second.expected == ("out …",)
    assert page.of_case("") == [first]


# -- Gateway ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_gateway_gone_or_hanging(
    world: World, users: Users, lives: list[Live], how: signal.Signals
) -> None:
    world.control.signal(GATEWAY, how)
    assert not world.answers(GATEWAY_URL)
    follow_with_sessions(world, users, read_runbook("gateway-unhealthy.md"), GONE, lives)


def test_gateway_with_a_full_disk(world: World, users: Users, lives: list[Live]) -> None:
    archived = world.control.journal / "system.archived"
    fill_disk(archived)
    assert users.calls_fail()
    assert "SQLITE_FULL" in world.typed("wavryctl status", may_fail=True)
    pid = world.control.pid(GATEWAY)
    follow_with_sessions(world, users, read_runbook("gateway-unhealthy.md"), FULL_DISK, lives)
    assert not archived.exists()
    assert world.control.pid(GATEWAY) == pid, "no restart was needed"


# -- Master ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
def test_master_gone_or_hanging(
    world: World, users: Users, lives: list[Live], how: signal.Signals
) -> None:
    world.control.signal(MASTER, how)
    assert users.calls_fail()
    began_s = time.monotonic()
    follow_with_sessions(world, users, read_runbook("master-unhealthy.md"), "", lives)
    assert max(live.longest_gap_s(began_s) for live in lives) < 5, "nobody noticed"


# -- Keys ------------------------------------------------------------------------------------------


def test_bad_key_rotation(world: World, users: Users, lives: list[Live]) -> None:
    """A cache before the master holds the old document, and somebody forces the rotation."""
    page = read_runbook("bad-key-rotation.md")
    before_repair = SECTIONS[: SECTIONS.index("Follow up")]
    world.typed("curl -s -m 5 http://10.20.0.2:8092/.well-known/wavry-keys.json")
    holder = Holder(world)
    assert (holder.present(), holder.renew()) == ("ack", "ack")
    with contextlib.closing(holder), world.proxy.caching():
        world.typed("wavryctl keys rotate --timeout 1 --force --no-wait --reason 'in a hurry'")
        assert users.calls_fail()
        rejects = 'wavry_relay_lease_rejects_total{reason="unknown_key"}'
        assert holder.renew() == "UNKNOWN_KEY"
        assert world.metric(rejects) > 0
        results = world.follow(page, sections=before_repair)
        looks = re.findall(r"unknown_key\"} (\d+)", results[-1][1])
        assert looks[0] == looks[1]
        users.calls_work()
        with contextlib.closing(Holder(world)) as other:
            assert other.present() == "ack"
    world.follow(page, sections=("Follow up",))
    users.calls_work()
    for live in lives:
        live.goes_on()


def follow_with_sessions(
    world: World, users: Users, page: Runbook, case: str, lives: list[Live]
) -> None:
    """Type a page; then a new call works, and the old ones never changed their relay."""
    paths = [live.path for live in lives]
    world.follow(page, case)
    users.calls_work()
    for live in lives:
        live.goes_on()
    assert [live.path for live in lives] == paths
