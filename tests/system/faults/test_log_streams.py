"""A log that cannot be written takes nothing down: full disk, reader gone, reader stalled."""

import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from support.control.gateway import GatewayProcess
from support.control.master import MasterProcess
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.waiting import wait_until

from wavry_peer.protocol.constants import RELEASE_COOKIE


@pytest.fixture(params=["full", "gone", "stalled"])
def bad_log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Output of every process that the test starts: a write fails at once, or blocks for ever."""
    if request.param == "full":
        reader, writer = -1, os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
    if request.param == "gone":
        os.close(reader)
    elif request.param == "stalled":
        os.set_blocking(writer, False)
        for size in (4096, 1):
            with pytest.raises(BlockingIOError):
                while True:
                    os.write(writer, bytes(size))
        os.set_blocking(writer, True)
    start = subprocess.Popen.__init__

    def start_with_bad_log(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **{**options, "stdout": writer, "stderr": writer})

    monkeypatch.setattr(subprocess.Popen, "__init__", start_with_bad_log)
    yield writer
    for fd in {writer} | ({reader} if request.param == "stalled" else set()):
        os.close(fd)


def carries(client: UdpPeer, server: UdpPeer) -> bool:
    """Whether one of a few datagrams comes: what a killed worker had in hand is gone with it."""
    server.sock.settimeout(0.2)
    client.forward(b"still here")
    with suppress(TimeoutError):
        return server.receive()[1] == b"still here"
    return False


@pytest.mark.usefixtures("bad_log")
@pytest.mark.parametrize("engine", ["native", "reference"])
def test_a_relay_serves_on_and_replaces_its_workers(tmp_path: Path, engine: str) -> None:
    mint = Mint()
    relay = RelayProcess(tmp_path, mint, WAVRY_RELAY_ENGINE=engine, WAVRY_RELAY_LOG_LEVEL="debug")
    with relay, ExitStack() as stack:
        client, server = stack.enter_context(active_session(relay, mint))
        for _ in range(20):  # Each end of a session is a line of a worker.
            with active_session(relay, mint) as (one, _):
                one.sock.send(one.present_datagram(renew=True, cookie=RELEASE_COOKIE))
        first = relay.worker_pids()
        assert len(first) == 2
        for pid in first:  # Each replacement is a line of the supervisor.
            os.kill(pid, signal.SIGKILL)
        wait_until(
            lambda: (
                len(set(relay.worker_pids()) - set(first)) == 2 and relay.get("/health")[0] == 200
            ),
            timeout_s=20,
            what="two new workers",
        )
        wait_until(lambda: carries(client, server), timeout_s=20, what="a datagram of the session")


@pytest.mark.usefixtures("bad_log")
def test_master_and_gateway_start_serve_and_stop(tmp_path: Path) -> None:
    with MasterProcess(tmp_path / "master") as master:
        gateway = GatewayProcess(tmp_path / "gateway", master.url)
        gateway.start()
        try:
            for url in (master.url, gateway.url):
                for _ in range(20):
                    with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                        assert answer.status == 200
        finally:
            assert gateway.process is not None
            gateway.process.terminate()
            assert gateway.process.wait(15) == 0
        assert master.stop() == 0
