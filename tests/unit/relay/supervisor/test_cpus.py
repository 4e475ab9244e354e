"""CPUs of a relay: the smallest of affinity and cgroup quotas, of both kinds of cgroup."""

import os
from pathlib import Path

import pytest

from wavry_relay.cpus import quota_cpus, usable_cpus


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/cpu"


@pytest.mark.parametrize(
    ("cgroup", "files", "want"),
    [
        ("0::/", {f"{V2}/cpu.max": "200000 100000"}, 2.0),
        ("0::/", {f"{V2}/cpu.max": "max 100000"}, None),
        ("0::/", {}, None),
        ("0::/a/b", {f"{V2}/a/cpu.max": "150000 100000", f"{V2}/a/b/cpu.max": "max 100000"}, 1.5),
        ("0::/a/b", {f"{V2}/a/cpu.max": "300000 100000", f"{V2}/a/b/cpu.max": "50000 100000"}, 0.5),
        ("0::/host/only", {f"{V2}/cpu.max": "400000 100000"}, 4.0),
        (
            "5:cpu,cpuacct:/x",
            {f"{V1}/x/cpu.cfs_quota_us": "250000", f"{V1}/x/cpu.cfs_period_us": "100000"},
            2.5,
        ),
        (
            "5:cpu,cpuacct:/x",
            {f"{V1}/x/cpu.cfs_quota_us": "-1", f"{V1}/x/cpu.cfs_period_us": "100000"},
            None,
        ),
        ("5:cpu:/x", {f"{V1}/x/cpu.cfs_quota_us": "100000"}, None),
        ("1:memory:/x", {f"{V2}/cpu.max": "100000 100000"}, None),
        ("0::/", {f"{V2}/cpu.max": "nonsense"}, None),
        ("0::/", {f"{V2}/cpu.max": "100000 0"}, None),
    ],
)
def test_quota(tmp_path: Path, cgroup: str, files: dict[str, str], want: float | None) -> None:
    assert quota_cpus(machine(tmp_path, cgroup, files)) == want


def test_without_proc_nothing_is_known(tmp_path: Path) -> None:
    assert quota_cpus(tmp_path) is None


@pytest.mark.parametrize(("quota", "want"), [(0.5, 1), (1.9, 1), (None, 0), (10_000.0, 0)])
def test_a_fraction_is_rounded_down_and_affinity_bounds(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, want: int
) -> None:
    monkeypatch.setattr("wavry_relay.cpus.quota_cpus", lambda: quota)
    assert usable_cpus() == (want or len(os.sched_getaffinity(0)))
