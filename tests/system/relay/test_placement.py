"""Pinning, busy polling and socket buffers of real workers."""

import contextlib
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import structlog
from support.relay.host import CAP_NET_ADMIN, IS_ROOT, HostedRelay, cpu_ticks, udp_sockets
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import active_session
from support.waiting import wait_until

from wavry_peer.service.settings import load
from wavry_relay.config import RelayConfig
from wavry_relay.udp import sockets
from wavry_relay.udp.activation import Activation
from wavry_relay.udp.listening import open_listening
from wavry_relay.udp.sockets import (
    SO_BUSY_POLL,
    SO_RCVBUFFORCE,
    SO_SNDBUFFORCE,
    open_group,
    set_busy_poll,
)
from wavry_relay.worker.placement import Placement, pin_to

MINT = Mint()
ALLOWED = sorted(os.sched_getaffinity(0))


# -- Pinning ---------------------------------------------------------------------------------------


def test_worker_n_runs_on_the_nth_allowed_cpu_and_so_does_its_replacement(tmp_path: Path) -> None:
    workers = len(ALLOWED) + 1  # the last one begins a second turn
    with RelayProcess(tmp_path, MINT, workers=workers, WAVRY_RELAY_PIN_WORKERS="1") as relay:
        wanted = [{ALLOWED[number % len(ALLOWED)]} for number in range(workers)]
        pids = relay.worker_pids()
        assert [os.sched_getaffinity(pid) for pid in pids] == wanted
        assert os.sched_getaffinity(relay.facts["pid"]) == set(ALLOWED)
        os.kill(pids[1], signal.SIGKILL)
        wait_until(
            lambda: (
                pids[1] not in relay.worker_pids()
                and relay.health()["workers"]["running"] == workers
            ),
            what="replacement",
        )
        assert [os.sched_getaffinity(pid) for pid in relay.worker_pids()] == wanted


def test_workers_are_not_pinned_unless_asked(tmp_path: Path) -> None:
    with RelayProcess(tmp_path, MINT) as relay:
        assert [os.sched_getaffinity(pid) for pid in relay.worker_pids()] == [set(ALLOWED)] * 2


def test_cpu_that_the_kernel_refuses_is_logged_and_not_fatal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pin_to(1_000_000, 3)  # no host has it; the call is the real one
    line = json.loads(capsys.readouterr().err)
    assert (line["event"], line["worker"], line["level"]) == ("pinning_refused", 3, "warning")
    assert os.sched_getaffinity(0) == set(ALLOWED)


def test_allowed_set_is_the_supervisors() -> None:
    os.sched_setaffinity(0, {ALLOWED[-1]})
    try:
        assert Placement.choose(0, pin=True).arguments(5) == ["--cpu", str(ALLOWED[-1])]
    finally:
        os.sched_setaffinity(0, ALLOWED)


# -- Busy polling ----------------------------------------------------------------------------------


def idle_ticks(relay: RelayProcess, seconds: float = 1.0) -> int:
    """CPU time that the workers of an idle relay take."""
    pids = relay.worker_pids()
    before = cpu_ticks(pids)
    time.sleep(seconds)
    return cpu_ticks(pids) - before


@pytest.mark.parametrize("engine", ["native", "reference"])
@pytest.mark.parametrize("busy_us", ["0", "50000"])
def test_relay_forwards_with_and_without_busy_polling(
    tmp_path: Path, engine: str, busy_us: str
) -> None:
    settings = {"WAVRY_RELAY_BUSY_POLL_US": busy_us, "WAVRY_RELAY_ENGINE": engine}
    with (
        RelayProcess(tmp_path, MINT, workers=1, **settings) as relay,
        active_session(relay, MINT) as (client, server),
    ):
        for _ in range(20):
            number = client.forward(b"there")
            assert server.receive() == (number, b"there")


def test_idle_worker_blocks_unless_it_is_told_to_poll(tmp_path: Path) -> None:
    native = {"workers": 1, "WAVRY_RELAY_ENGINE": "native"}
    with RelayProcess(tmp_path / "off", MINT, **native) as relay:
        blocking = min(idle_ticks(relay) for _ in range(3))
    polling_us = {"WAVRY_RELAY_BUSY_POLL_US": "50000"}
    with RelayProcess(tmp_path / "on", MINT, **native, **polling_us) as relay:
        polling = max(idle_ticks(relay) for _ in range(3))
    assert polling > 10 * max(1, blocking), (polling, blocking)


def test_busy_polling_reaches_the_sockets_where_the_kernel_allows() -> None:
    group = open_group("127.0.0.1", 0, 2, 65_536)
    try:
        refused = set_busy_poll([group], 7)
        values = [sock.getsockopt(socket.SOL_SOCKET, SO_BUSY_POLL) for sock in group.sockets]
        assert values == [7, 7] if refused is None else "permitted" in refused
    finally:
        group.close()


def test_busy_polling_that_the_kernel_refuses_is_logged_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Newer kernels refuse nobody, so the option is one that no kernel knows."""
    monkeypatch.setattr(sockets, "SO_BUSY_POLL", 0x7FFF)
    config = load(
        RelayConfig,
        {
            "WAVRY_RELAY_BUSY_POLL_US": "1000",
            "WAVRY_RELAY_LISTEN": "127.0.0.1:0,[::1]:0",
            "WAVRY_RELAY_ROOT_KEY": MINT.root_text,
        },
    )
    cleanup = contextlib.AsyncExitStack()
    with structlog.testing.capture_logs() as logs:
        groups = open_listening(config, Activation(), 2, cleanup)
    for group in groups:
        group.close()
    events = [line["event"] for line in logs]
    assert events.count("socket_busy_poll_refused") == 1
    assert len(groups) == 2


# -- Socket buffers --------------------------------------------------------------------------------


def kernel_limit(name: str) -> int:
    return int(Path(f"/proc/sys/net/core/{name}").read_text())


def test_pitfall_buffers_below_the_wanted_size_are_told(tmp_path: Path) -> None:
    limits = kernel_limit("rmem_max"), kernel_limit("wmem_max")
    wanted = str(max(limits) * 2)
    settings = {"WAVRY_RELAY_SOCKET_BUFFER_BYTES": wanted}
    with HostedRelay(tmp_path, MINT, drop=[CAP_NET_ADMIN], **settings) as relay:
        (warning,) = relay.events("socket_buffers_small")
        assert (warning["receive_bytes"], warning["send_bytes"]) == limits
        assert f"net.core.rmem_max={wanted}" in warning["next_step"]
        for direction, limit in zip(("receive", "send"), limits, strict=True):
            shown = relay.metric(
                "wavry_relay_socket_buffer_bytes", direction=direction, listen=relay.udp[0]
            )
            assert shown == limit


@pytest.mark.skipif(not IS_ROOT, reason="only root makes a socket with more than the limit")
def test_pitfall_larger_buffers_of_passed_sockets_are_kept(tmp_path: Path) -> None:
    """systemd may go beyond the limits (ReceiveBuffer=), the relay may not: asking would shrink."""
    wanted = max(kernel_limit("rmem_max"), kernel_limit("wmem_max")) * 2
    passed = udp_sockets(2)
    for sock in passed:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, wanted)
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, wanted)
    settings = {"WAVRY_RELAY_SOCKET_BUFFER_BYTES": str(wanted)}
    relay = HostedRelay(
        tmp_path, MINT, passed=[("relay", sock) for sock in passed], drop=[CAP_NET_ADMIN],
        **settings,
    )  # fmt: skip
    with relay:
        assert not relay.events("socket_buffers_small")
        for direction in ("receive", "send"):
            shown = relay.metric(
                "wavry_relay_socket_buffer_bytes", direction=direction, listen=relay.udp[0]
            )
            assert shown == wanted
    for sock in passed:
        sock.close()


def test_net_admin_goes_beyond_the_kernels_limits() -> None:
    wanted = max(kernel_limit("rmem_max"), kernel_limit("wmem_max")) + 65_536
    effective = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if "CapEff" in line
    )
    if not int(effective.split()[1], 16) >> CAP_NET_ADMIN & 1:
        pytest.skip("needs CAP_NET_ADMIN")
    group = open_group("127.0.0.1", 0, 2, wanted)
    try:
        assert (group.receive_buffer_bytes, group.send_buffer_bytes) == (wanted, wanted)
    finally:
        group.close()


def test_largest_setting_is_what_the_kernel_can_keep() -> None:
    fields = RelayConfig.__dataclass_fields__
    declared = fields["socket_buffer_bytes"].metadata["wavry_setting"]
    assert int(declared.maximum) * 2 < 2**31
