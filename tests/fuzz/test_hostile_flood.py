"""The whole port of a relay under a flood of random and mutated datagrams, with good sessions
beside it: the engine as it is built, and one under ASan and UBSan.

``WAVRY_FUZZ_DATAGRAMS`` and ``WAVRY_FUZZ_SANITIZED_DATAGRAMS`` say how many (`make fuzz`: 10^7
and 10^6); the flood goes as fast as the relay takes it.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.needs import need_native
from support.relay.hostile import (
    Flow,
    Footprint,
    GoodSessions,
    Ledger,
    accounted,
    flood,
    good_pairs,
    identities,
    kernel_drops,
    make_templates,
    settled_totals,
    tables_of,
    write_templates,
)
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.sanitized import (
    SanitizedRelay,
    build_sanitized,
    check_reports,
    sanitizer_environ,
)
from support.relay.udp_peer import UdpPeer
from support.waiting import wait_until

DATAGRAMS = int(os.environ.get("WAVRY_FUZZ_DATAGRAMS", "500000"))
SANITIZED_DATAGRAMS = int(os.environ.get("WAVRY_FUZZ_SANITIZED_DATAGRAMS", "60000"))
SEED = int(os.environ.get("WAVRY_FUZZ_SEED", "1"))
ROUNDS = 4
"""The first warms everything up; memory must not grow in the others."""
GROWTH_BYTES = 4 << 20
SANITIZED_GROWTH_BYTES = 24 << 20
"""The quarantine of freed memory fills slowly."""
SETTINGS = {
    "WAVRY_RELAY_ENGINE": "native",
    "WAVRY_RELAY_LISTEN": "127.0.0.1:0,[::1]:0",
    # Enough for thousands of signature checks a second, and less than the flood brings.
    "WAVRY_RELAY_IP_PER_S": "1000",
    "WAVRY_RELAY_IP_BURST": "1000",
}


def _report(label: str, seen: Footprint) -> None:
    kib = [size // 1024 for size in seen.private]
    shared = [size // 1024 for size in seen.shared]
    print(
        f"{label}: private KiB {kib}, shared KiB {shared}, segment {seen.segment // 1024} KiB,"
        f" descriptors {list(seen.descriptors)}"
    )


def _check_flows(flows: list[Flow], overflowed: int, busy: int) -> None:
    """`busy`: a worker that the host puts aside for 50 ms with a lock in its hands costs others
    a datagram, which they count."""
    lost = sum(len(flow.sent) - len(flow.heard) for flow in flows)
    assert lost <= overflowed + busy, (
        f"{lost} good datagrams lost, {overflowed} overflowed a socket, {busy} met a busy lock"
    )


def _flood_and_check(
    relay: RelayProcess, mint: Mint, directory: Path, *, datagrams: int, growth_bytes: int
) -> None:
    """All that the issue asks for, in the order in which it shows."""
    ports = {int(udp.rpartition(":")[2]) for udp in relay.udp}
    ledger = Ledger(directory / "ledger")
    with good_pairs(relay, mint) as pairs, tables_of(relay) as segment:
        peers: list[UdpPeer] = [peer for pair in pairs for peer in pair]
        own_ports = {peer.sock.getsockname()[1] for peer in peers}
        templates = write_templates(
            directory / "templates", make_templates(mint, relay.relay_id, peers)
        )
        before = settled_totals(segment)
        kept, dropped = identities(segment, pairs), kernel_drops(ports | own_ports)
        sent, footprints = 0, []
        with GoodSessions(pairs, ledger) as good:
            for number in range(ROUNDS):
                result = flood(
                    relay, segment, templates, ledger,
                    count=datagrams // ROUNDS, seed=SEED * 1000 + number,
                    timeout_s=120 + datagrams / ROUNDS / 2000,
                )  # fmt: skip
                sent += result.sent
                footprints.append(Footprint.of(relay))
                print(f"{result.sent} datagrams ({result.trains} trains), {result.per_s:.0f}/s")
                _report(f"round {number}", footprints[-1])
                assert result.stalls == 0 or kernel_drops(ports) > 0
                assert result.errors == 0
        after = settled_totals(segment)
        overflowed = kernel_drops(ports | own_ports) - dropped
        received, fates, twice = accounted(before, after)
        print(
            f"good {good.sent}, lost {good.missing}; overflowed {overflowed}; received {received},"
            f" fates {fates}"
        )
        for name in after:
            if after[name] != before[name]:
                print(f"  {name} {after[name] - before[name]}")

        assert not good.faults
        assert good.sent > 8 * ROUNDS
        _check_flows(good.flows, overflowed, after["drop_lock_busy"] - before["drop_lock_busy"])
        assert identities(segment, pairs) == kept, "a good session was changed"
        assert sent + ledger.others - overflowed <= received <= sent + ledger.others
        assert received <= fates <= received + twice
        assert after["internal_errors"] == 0

        warm, last = footprints[0], footprints[-1]
        assert last.pids == warm.pids, "a worker was replaced"
        for now, then in zip(last.private, warm.private, strict=True):
            assert now <= then + growth_bytes, "memory grows"
        assert last.segment == warm.segment
        assert max(last.shared) <= segment.geometry.total_bytes
        wait_until(lambda: Footprint.of(relay).descriptors == warm.descriptors)
    ledger.close()
    assert relay.get("/ready")[0] == 200
    assert "Traceback" not in relay.log()
    assert not relay.events("worker_replaced")


def test_flood_leaves_the_relay_up_its_memory_flat_and_good_sessions_untouched(
    tmp_path: Path,
) -> None:
    need_native()
    mint = Mint()
    with RelayProcess(tmp_path / "relay", mint, **SETTINGS) as relay:
        _flood_and_check(relay, mint, tmp_path, datagrams=DATAGRAMS, growth_bytes=GROWTH_BYTES)


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_sanitized(tmp_path_factory.mktemp("sanitized"))


@pytest.mark.long
def test_flood_finds_nothing_under_address_and_undefined_behaviour_sanitizers(
    sanitized: Path, tmp_path: Path
) -> None:
    mint = Mint()
    relay = SanitizedRelay(tmp_path / "relay", mint, sanitized, **SETTINGS)
    with relay:
        relay.check()
        try:
            _flood_and_check(
                relay, mint, tmp_path,
                datagrams=SANITIZED_DATAGRAMS, growth_bytes=SANITIZED_GROWTH_BYTES,
            )  # fmt: skip
        finally:
            relay.check()
    check_reports(relay.reports)


def test_a_sanitizer_report_fails_with_its_text(tmp_path: Path) -> None:
    code = (
        "import ctypes, faulthandler; faulthandler.enable(); libc = ctypes.CDLL(None)\n"
        "libc.malloc.restype = ctypes.c_void_p\n"
        "libc.memset(ctypes.c_void_p(libc.malloc(10)), 0, 11)\n"
    )
    environ = {**os.environ, **sanitizer_environ(tmp_path / "reports")}
    check_reports(tmp_path / "reports")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, check=False, timeout=60
    )
    assert done.returncode != 0
    with pytest.raises(pytest.fail.Exception, match="heap-buffer-overflow"):
        check_reports(tmp_path / "reports")
