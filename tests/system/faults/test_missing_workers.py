"""A relay that cannot start its workers says so, serves on with what it has, and recovers."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

from support.relay.host import few_descriptors
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.waiting import wait_until


def passes(client: UdpPeer, server: UdpPeer) -> bool:
    server.sock.settimeout(0.2)
    client.forward(b"media")
    with suppress(TimeoutError):
        return server.receive()[1] == b"media"
    return False


def test_every_session_passes_while_a_worker_cannot_be_started(tmp_path: Path) -> None:
    mint = Mint()
    with (
        RelayProcess(tmp_path, mint) as relay,
        active_session(relay, mint) as one,
        active_session(relay, mint) as two,
        active_session(relay, mint) as three,
    ):
        sessions = (one, two, three)
        pid = relay.facts["pid"]
        with few_descriptors(pid):
            os.kill(relay.worker_pids()[0], signal.SIGKILL)
            wait_until(
                lambda: relay.health()["status"] == "degraded", timeout_s=20, what="degraded"
            )
            for pair in sessions:
                wait_until(lambda pair=pair: passes(*pair), timeout_s=20, what="a session")
            assert relay.get("/health")[0] == 200
            assert relay.get("/ready")[0] == 503
            os.kill(relay.worker_pids()[1], signal.SIGKILL)
            wait_until(lambda: relay.get("/health")[0] == 503, timeout_s=20, what="503")
            assert json.loads(relay.get("/health")[1])["status"] == "down"
        wait_until(lambda: relay.health()["status"] == "ok", timeout_s=30, what="recovery")
        for pair in sessions:
            wait_until(lambda pair=pair: passes(*pair), timeout_s=20, what="a session")
        assert relay.events("worker_not_started")


def test_sigterm_to_the_whole_process_group_starts_no_worker(tmp_path: Path) -> None:
    mint = Mint()
    relay = RelayProcess(tmp_path, mint, WAVRY_RELAY_DRAIN_TIMEOUT_S="2")
    with relay, active_session(relay, mint) as (client, server):
        pids = [relay.facts["pid"], *relay.worker_pids()]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        wait_until(lambda: passes(client, server), timeout_s=1.5, what="a draining session")
        assert relay.wait(20) == 0
        assert len(relay.events("worker_ready")) == 2
        assert not relay.events("worker_replaced")
