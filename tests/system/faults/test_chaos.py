"""The short form of `make chaos`: every fault and every attack once, and no session is lost."""

import asyncio
from pathlib import Path

import pytest
from support.needs import lack, need_native
from support.system.services import Services

from loadtest.chaos.attacks import ATTACKS
from loadtest.chaos.chaos_run import ChaosOptions, run_chaos
from loadtest.chaos.faults import FAULTS
from loadtest.chaos.journal import Journal
from loadtest.chaos.report import summary_lines
from loadtest.chaos.sessions import MediaPair, RunTime
from loadtest.chaos.verdict import judge
from loadtest.media.histogram import Histogram
from wavry_cp.admin.client import ask_json
from wavry_peer.protocol.http.relay_events import RevokeRequest, RevokeResponse

SEED = 18
"""Most faults hit relays, but the death of all of a service: a dead relay is left after 25 s."""


def test_no_session_is_lost_whatever_happens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_native()
    options = ChaosOptions(
        SEED, seconds=0, sessions=3, pace=0.05, every_s=10.0, patience_s=180.0, tells_all=True
    )
    summary = asyncio.run(run_chaos(options, tmp_path / "system", show=print))
    print(*summary_lines(summary), sep="\n")
    assert summary.ok, capsys.readouterr().out
    assert not summary.verdict.losses
    came = {one.kind for one in summary.incidents}
    assert came | summary.skipped.keys() == FAULTS.keys() | ATTACKS.keys()
    if summary.skipped:  # All else has passed; in CI nothing may be missing.
        lack(", ".join(f"{kind} ({reason})" for kind, reason in summary.skipped.items()))


async def test_a_session_that_somebody_ended_is_noticed_and_makes_a_run_fail(
    tmp_path: Path,
) -> None:
    journal, times = Journal(), RunTime()
    with Services(tmp_path / "services") as services:
        names = {services.ready["relay"]["relay_id"]: "relay-0"}
        pair = MediaPair("pair-0", journal, times, Histogram(), names)
        async with pair.talking(services.gateway_url, tmp_path / "peers"), asyncio.timeout(120):
            while not pair.carried_since(0.01):  # noqa: ASYNC110 - peers have no event for it
                await asyncio.sleep(0.05)
            assert pair.is_alive
            await ask_json(
                "master",
                services.ready["master"]["url"],
                "/v1/leases/revoke",
                RevokeResponse,
                method="POST",
                token=(services.directory / "admin.token").read_text(),
                body=RevokeRequest(sub="pair-0-caller", reason="chaos"),
            )
            while not journal.lost:  # noqa: ASYNC110 - nor has a journal
                await asyncio.sleep(0.05)
    verdict = judge(journal, ended_s=times.now_s())
    (loss,) = verdict.losses
    assert not loss.excused
    assert verdict.faults
    assert [relay for _, relay in loss.session.relays] == ["relay-0"]
    assert "revoked" in loss.session.reason
    sent, missing = journal.datagrams.between(0, times.now_s() + 1)
    assert 0 < sent - missing <= sent
