"""The demo in its short form."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.system.system import clean_environment

from wavry_cp.admin.dev.demo import FILE_KILLS, MEDIA_KILLS, _faults
from wavry_cp.admin.dev.demo_media import END_NUMBER, MediaCheck, media_payload, percentile_ms
from wavry_cp.admin.dev.system import DevSystem


def test_demo_sends_a_file_and_media_while_workers_die(tmp_path: Path) -> None:
    output = tmp_path / "demo.json"
    done = subprocess.run(
        [sys.executable, "-m", "wavry_cp.admin", "demo", "--output", str(output),
         "--megabytes", "3", "--seconds", "4"],
        capture_output=True, text=True, timeout=180, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads(output.read_text())
    assert summary["path"] == "relay"
    assert summary["sha256_match"] is True
    assert summary["sessions_lost"] == 0
    assert MEDIA_KILLS <= summary["worker_kills"] <= MEDIA_KILLS + FILE_KILLS
    assert summary["bytes"] > 3_000_000
    assert summary["packets_sent"] >= summary["media"]["packets_sent"] > 2000
    assert 0 < summary["latency_ms"]["p50"] <= summary["latency_ms"]["p99"]
    assert summary["lost_packets"] == summary["packets_sent"] - summary["packets_received"]
    parts = (summary["media"], summary["file"])
    for field in ("packets_sent", "packets_received", "lost_packets", "bytes"):
        assert summary[field] == sum(part[field] for part in parts)
    assert summary["engine"]
    assert summary["drain_lost_packets"] == 0
    assert summary["drain_packets_sent"] > 5000
    assert summary["drain_moved_ends"] == 2
    assert 0 < summary["drain_moved_ms"] <= summary["drain_emptied_ms"] < 17_000
    assert summary["drain_latency_ms"]["max"] >= summary["drain_latency_ms"]["p50"] > 0


async def test_a_system_on_the_pure_engine_says_so_and_what_would_bring_the_native_one(
    tmp_path: Path,
) -> None:
    pure = {"WAVRY_RELAY_ENGINE": "reference"}
    async with DevSystem.running(tmp_path, relays=1, workers=1, settings=pure) as system:
        remark = await system.slow_engine()
        assert remark is not None
        assert "The native engine is NOT in use" in remark
        assert "take WAVRY_RELAY_ENGINE=reference away" in remark
        system.settings = {}  # As where the relays found no native engine.
        assert "python3-dev" in str(await system.slow_engine())


GOOD = {
    "path": "relay",
    "sha256_match": True,
    "sessions_lost": 0,
    "worker_kills": 2,
    "lost_packets": 0,
    "drain_lost_packets": 0,
    "drain_moved_ends": 2,
    "drain_moved_ms": 3000,
    "drain_emptied_ms": 5000,
    "media": {"corrupt_packets": 0, "packets_sent": 1000, "lost_packets": 10},
}


@pytest.mark.parametrize(
    "fault",
    [
        {"path": "none"},
        {"sha256_match": False},
        {"sessions_lost": 1},
        {"worker_kills": 0},
        {"drain_lost_packets": 1},
        {"drain_moved_ends": 1},
        {"drain_moved_ms": None},
        {"drain_emptied_ms": None},
        {"media": {"corrupt_packets": 0, "packets_sent": 1000, "lost_packets": 11}},
        {"media": {"corrupt_packets": 1, "packets_sent": 1000, "lost_packets": 0}},
        {"media": {"corrupt_packets": 0, "packets_sent": 0, "lost_packets": 0}},
    ],
)
def test_the_demo_fails_when_anything_is_wrong(fault: dict[str, object]) -> None:
    assert not _faults(GOOD)
    assert _faults(GOOD | fault)


def test_media_check_sees_what_is_wrong() -> None:
    check = MediaCheck()
    good = (7).to_bytes(4, "big") + (1000).to_bytes(8, "big") + media_payload(7)
    check.take(good, 3000)
    check.take(good, 3000)
    check.take(good[:-1] + b"\x00", 3000)
    check.take(b"short", 3000)
    check.take(END_NUMBER.to_bytes(4, "big") + (9).to_bytes(8, "big"), 3000)
    result = check.result()
    assert (result["received"], result["duplicates"], result["corrupt"]) == (1, 1, 2)
    assert result["sent"] == 9
    assert check.latencies_ns == [2000]
    assert percentile_ms([1_000_000, 3_000_000], 0.99) == 3.0
    assert percentile_ms([], 0.5) == 0.0
