"""The relay unit without systemd: its environment, sockets and stop, played by the test.

Needs neither root nor namespaces; test_machine.py shows the same under the real thing.
"""

import json
import signal
import socket
import subprocess
import sys
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

from support.machines.unit_files import EXAMPLES, Unit
from support.needs import need_program
from support.relay.host import HostedRelay, StrictManager, udp_sockets
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.waiting import wait_until

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets

MINT = Mint()
SERVICE = Unit.read(EXAMPLES / "wavry-relay.service")
SOCKET = Unit.read(EXAMPLES / "wavry-relay.socket")
SPEED = 25
"""Times faster than the unit says: ten seconds of a watchdog are nothing to wait for."""


def credentials(directory: Path) -> Path:
    """As systemd places them where it must use an access list (mode 0440 then)."""
    made = directory / "credentials"
    made.mkdir(mode=0o700)
    for name in SERVICE.credentials:
        (made / name).write_text(MINT.root_text + "\n")
        (made / name).chmod(0o440)
    return made


def environment(directory: Path) -> dict[str, str]:
    """What the unit gives, with its directories here, and nothing else of the relay."""
    unset = {name: "" for name in RelayProcess(directory, MINT).environ if "WAVRY" in name}
    (directory / "wavry").mkdir()
    text = (EXAMPLES / "relay.conf").read_text()
    kept = [line for line in text.splitlines() if "MASTER_URL" not in line]
    conf = [*kept, "WAVRY_RELAY_OPS_LISTEN=127.0.0.1:0"]
    (directory / "wavry" / "relay.conf").write_text("\n".join(conf))
    (directory / "wavry-relay").symlink_to(directory / "state")
    given = credentials(directory)
    named = SERVICE.environment(S=str(directory), E=str(directory), d=str(given))
    return unset | named | {"CREDENTIALS_DIRECTORY": str(given)}


def test_ready_watchdog_drain_and_stop(tmp_path: Path, manager: StrictManager) -> None:
    lines = SOCKET.all("ListenDatagram")
    counts = {address: lines.count(address) for address in dict.fromkeys(lines)}
    interval_us = int(SERVICE.seconds("WatchdogSec") * 1e6 / SPEED)
    with ExitStack() as stack:
        passed = [
            stack.enter_context(sock)
            for address, count in counts.items()
            for sock in udp_sockets(count, "::1" if "[" in address else "127.0.0.1")
        ]
        relay = HostedRelay(
            tmp_path,
            MINT,
            passed=[(SOCKET.one("FileDescriptorName"), sock) for sock in passed],
            manager=manager,
            WATCHDOG_USEC=str(interval_us),
            **environment(tmp_path),
        )
        stack.enter_context(relay)
        ready = manager.wait_for(READY="1")
        assert ready["MAINPID"] == str(relay.facts["pid"])
        assert ready["STATUS"].endswith(" with 2 workers")
        assert len(relay.udp) == len(counts)

        times = []
        for _ in range(4):
            manager.wait_for(WATCHDOG="1")
            times.append(time.monotonic())
        mean_s = (times[-1] - times[0]) / (len(times) - 1)
        assert interval_us / 4e6 < mean_s < interval_us / 1e6, "twice in an interval"

        client, _ = stack.enter_context(active_session(relay, MINT, udp=relay.udp[0]))
        relay.send_signal(signal.SIGTERM)
        manager.wait_for(STOPPING="1")
        manager.wait_for(STATUS="Draining: 1 sessions left")
        packet = packets.parse_packet(client.sock.recv(2048))
        assert packet.body == packets.Notice(c.NoticeCode.DRAINING)
        relay.send_signal(signal.SIGTERM)
        assert relay.wait() == 0
    assert not relay.events("listen_setting_ignored")
    assert not relay.events("sockets_shared")


def test_program_of_systemd_passes_the_socket(tmp_path: Path, manager: StrictManager) -> None:
    """systemd-socket-activate waits for the first datagram, and becomes the relay with it."""
    need_program(program := "systemd-socket-activate")
    (sock,) = udp_sockets(1, reuse=False)
    with sock:
        udp = "{}:{}".format(*sock.getsockname())
    relay = RelayProcess(tmp_path, MINT, workers=1, WAVRY_RELAY_LISTEN="")
    environ = relay.environ | {"NOTIFY_SOCKET": manager.address}
    names = [name for name in environ if name.startswith(("WAVRY_", "NOTIFY_"))]
    with relay.log_path.open("wb") as log:
        relay.process = subprocess.Popen(
            [program, "--datagram", f"--listen={udp}", "--fdname=relay",
             *(f"--setenv={name}" for name in [*names, "PATH"]),
             *relay.command("--ready-file", str(relay.ready_file))],
            env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        identity = subprocess.run(
            [sys.executable, "-m", "wavry_relay", "identity"],
            env=relay.environ, capture_output=True, timeout=30, check=True,
        )  # fmt: skip
        wait_until(lambda: "Listening on" in relay.log(), what="socket")
        assert not relay.ready_file.exists()
        relay_id = json.loads(identity.stdout)["relay_id"]
        with UdpPeer(MINT, relay_id, udp, uuid.uuid4(), c.Role.CLIENT) as peer:
            peer.sock.settimeout(20)
            # This datagram starts the relay, and is answered by it.
            assert isinstance(peer.ask(peer.present_datagram()).body, packets.LeaseAck)
        assert manager.wait_for(READY="1")["MAINPID"] == str(relay.process.pid)
        relay.facts = json.loads(relay.ready_file.read_bytes())
        assert relay.udp == [udp]
    finally:
        relay.close()
    assert relay.process.returncode == 0
    assert isinstance(sock, socket.socket)
