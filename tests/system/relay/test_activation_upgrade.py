"""Hot upgrade of a relay on passed sockets, under a service manager that believes one process."""

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.relay.host import HostedRelay, StrictManager, environment_of, udp_sockets
from support.relay.mint import Mint
from support.relay.udp_peer import NumberedStream, active_session
from support.waiting import wait_until
from typer.testing import CliRunner

from wavry_relay.cli import app

MINT = Mint()


@pytest.fixture
def passed() -> Iterator[list[tuple[str, socket.socket]]]:
    with ExitStack() as stack:
        ops = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        sockets = [*udp_sockets(2), *udp_sockets(2, "::1")]
        for sock in sockets:
            stack.enter_context(sock)
        yield [("relay", sock) for sock in sockets] + [("ops", ops)]


def upgrade(relay: HostedRelay) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["upgrade", "--state-dir", str(relay.state_dir)])
    assert done.exit_code == 0, done.output + relay.log()
    outcome: dict[str, Any] = json.loads(done.stdout)
    relay.follow()
    assert relay.facts["pid"] == outcome["pid"]
    return outcome


def socket_inodes(pid: int) -> set[str]:
    links = (str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir())
    return {match[1] for match in map(re.compile(r"socket:\[(\d+)\]").fullmatch, links) if match}


def test_passed_sockets_survive_two_upgrades_and_the_manager_follows(
    tmp_path: Path, manager: StrictManager, passed: list[tuple[str, socket.socket]]
) -> None:
    inodes = {str(os.fstat(sock.fileno()).st_ino) for _, sock in passed}
    relay = HostedRelay(
        tmp_path, MINT, passed=passed, manager=manager, WAVRY_RELAY_LISTEN="",
        WAVRY_RELAY_OPS_LISTEN="", WATCHDOG_USEC="400000", WAVRY_RELAY_DRAIN_TIMEOUT_S="30",
    )  # fmt: skip
    with relay:
        first = relay.facts["pid"]
        manager.wait_for(READY="1")
        assert manager.main_pid == first
        udp, ops_url = relay.udp, relay.facts["ops_url"]
        with active_session(relay, MINT, udp=udp[0]) as peers, NumberedStream(peers) as stream:
            for number in (1, 2):
                old = relay.facts["pid"]
                stream.wait_for_more()
                upgrade(relay)
                wait_until(
                    lambda: manager.collect() and manager.main_pid == relay.facts["pid"],
                    what="MAINPID of the successor",
                )
                assert relay.facts["pid"] != old
                assert manager.wait_for(WATCHDOG="1", sender=str(relay.facts["pid"]))
                assert (relay.udp, relay.facts["ops_url"]) == (udp, ops_url)
                assert inodes <= socket_inodes(relay.facts["pid"])
                assert not [
                    name for name in environment_of(relay.facts["pid"]) if name.startswith("LISTEN")
                ]
                assert relay.metric("wavry_relay_upgrades_total", result="done") == number
            stream.wait_for_more()
            stream.finish()
            # The other family is served by the successor as well.
            with active_session(relay, MINT, udp=udp[1]) as (client, server):
                client.forward(b"over IPv6")
                assert server.receive() == (1, b"over IPv6")
            relay.send_signal(signal.SIGTERM)
            manager.wait_for(STOPPING="1", sender=str(relay.facts["pid"]))
            assert int(manager.wait_for(EXTEND_TIMEOUT_USEC="15000000")["EXTEND_TIMEOUT_USEC"])
            relay.send_signal(signal.SIGTERM)
            relay.wait()


def test_successor_whose_settings_forbid_the_passed_address_is_refused(
    tmp_path: Path, manager: StrictManager
) -> None:
    """As a start on these sockets would be: the guards hold for a successor too."""
    settings = tmp_path / "relay.conf"
    settings.write_text("WAVRY_RELAY_ALLOW_PUBLIC_BIND=1\n")
    with ExitStack() as stack:
        sockets = [stack.enter_context(sock) for sock in udp_sockets(2, "0.0.0.0")]
        relay = HostedRelay(
            tmp_path, MINT, passed=[("relay", sock) for sock in sockets], manager=manager,
            WAVRY_RELAY_LISTEN="", WAVRY_RELAY_SETTINGS_FILE=str(settings),
        )  # fmt: skip
        with relay:
            settings.write_text("")
            done = CliRunner().invoke(app, ["upgrade", "--state-dir", str(relay.state_dir)])
            assert done.exit_code == 1
            assert "WAVRY_RELAY_ALLOW_PUBLIC_BIND=1" in done.output + relay.log()
            manager.collect()
            assert relay.health()["pid"] == relay.facts["pid"] == manager.main_pid
