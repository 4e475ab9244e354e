"""A native engine under ASan and UBSan, in a directory of its own, and relays that run it.

Python itself is not sanitized, so the sanitizer's library is preloaded; its allocator then serves
all of the process (``PYTHONMALLOC=malloc``), and a read behind a `bytes` object is seen too.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.needs import need_native
from support.paths import REPOSITORY
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess

SANITIZERS = "address,undefined"
_QUARANTINE_MB = 16
"""Freed memory that ASan keeps aside, by default 256 MiB: it would look like a leak."""


def build_sanitized(directory: Path) -> Path:
    """Build the packages with a sanitized engine; the directory to run them from."""
    need_native()
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build", "--build-base", str(directory)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "WAVRY_BUILD_NATIVE": "require",
            "WAVRY_BUILD_SANITIZE": SANITIZERS,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (root,) = directory.glob("lib.*")
    return root


def sanitizer_environ(reports: Path) -> dict[str, str]:
    """Environment of a process that loads the sanitized engine.

    Args:
        reports: directory for one file for each process with a fault.
    """
    reports.mkdir(exist_ok=True)
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    common = f"abort_on_error=1:halt_on_error=1:log_path={reports}/report"
    address = f"{common}:detect_leaks=0:quarantine_size_mb={_QUARANTINE_MB}"
    # 2: also where faulthandler wants the signal.
    address += ":handle_segv=2:handle_sigbus=2:handle_sigfpe=2:allow_user_segv_handler=0"
    return {
        "LD_PRELOAD": library,
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": address,
        "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
    }


def check_reports(reports: Path) -> None:
    """Fail with the text of what a sanitizer found."""
    found = [path.read_text(errors="replace") for path in sorted(reports.glob("report*"))]
    if found:
        pytest.fail("\n".join(["a sanitizer found:", *found]))


class SanitizedRelay(RelayProcess):
    """A relay of which all processes run the sanitized engine.

    Args:
        built: from `build_sanitized`.
    """

    def __init__(
        self, directory: Path, mint: Mint, built: Path, *, workers: int = 2, **environ: str
    ) -> None:
        self.root = built
        self.reports = directory / "reports"
        directory.mkdir(parents=True, exist_ok=True)
        environ = {**environ, **sanitizer_environ(self.reports)}
        super().__init__(directory, mint, workers=workers, **environ)

    def check(self) -> None:
        """Fail with what was found; and where the engine is not the sanitized one after all."""
        check_reports(self.reports)
        for pid in self.worker_pids():
            maps = Path(f"/proc/{pid}/maps").read_text()
            assert f"{self.root}/wavry_relay/engine/_native." in maps
            assert "/libasan.so" in maps
