"""Connections that only wait use up no service: others are answered, and the log stays small."""

import socket
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.control.gateway import GatewayProcess
from support.control.master import MasterProcess
from support.relay.host import few_descriptors
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess

HELD = 300
SAID = (
    b"",
    b"GET /health HTTP/1.1\r\n",
    b"POST /auth/login HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{",
    (
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ),
)
"""Silence, half a head, half a body, and a WebSocket that never names its user."""


def check_answers(pid: int, url: str, log: Callable[[], str]) -> None:
    """Hold idle connections of one address, and ask from another."""
    port = urlsplit(url).port
    lines_before = len(log().splitlines())
    with few_descriptors(pid, 40), ExitStack() as held:
        for number in range(HELD):
            one = held.enter_context(
                socket.create_connection(
                    ("127.0.0.1", port), timeout=20, source_address=("127.0.0.2", 0)
                )
            )
            one.send(SAID[number % len(SAID)])
        for _ in range(5):
            with urllib.request.urlopen(f"{url}/health", timeout=20) as answer:
                assert answer.status == 200
    with urllib.request.urlopen(f"{url}/metrics", timeout=20) as answer:
        given_up = [
            float(line.split()[1])
            for line in answer.read().decode().splitlines()
            if "connections_given_up_total" in line and not line.startswith("#")
        ]
    assert given_up[0] > HELD / 2
    lines = log().splitlines()[lines_before:]
    assert 1 <= sum("connections_short" in line for line in lines) <= 2
    assert len(lines) < 100
    assert "Traceback" not in "".join(lines)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MasterProcess]:
    with MasterProcess(tmp_path_factory.mktemp("master")) as process:
        yield process


def test_master_answers_beside_hundreds_of_idle_connections(master: MasterProcess) -> None:
    assert master.process is not None
    check_answers(master.process.pid, master.url, master.log.read_text)


def test_gateway_answers_beside_hundreds_of_idle_connections(
    tmp_path: Path, master: MasterProcess
) -> None:
    gateway = GatewayProcess(tmp_path / "gateway", master.url)
    gateway.start()
    assert gateway.process is not None
    try:
        check_answers(gateway.process.pid, gateway.url, lambda: gateway.log)
    finally:
        gateway.process.terminate()
        gateway.process.wait(20)


def test_ops_port_answers_beside_hundreds_of_idle_connections(tmp_path: Path) -> None:
    with RelayProcess(tmp_path, Mint()) as relay:
        check_answers(relay.facts["pid"], relay.facts["ops_url"], relay.log)
