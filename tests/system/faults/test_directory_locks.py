"""Two processes on one directory: the second one refuses to start, and says who has it."""

import os
import subprocess
import sys
import urllib.request

import pytest
from support.control.gateway import gateway_process
from support.control.master import MasterProcess

from wavry_cp.app.directory_lock import LOCK_FILE, DirectoryInUseError, held_directory


def second(module: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    keep = {key: value for key, value in os.environ.items() if not key.startswith("WAVRY_")}
    return subprocess.run(
        [sys.executable, "-m", module, "run"],
        env=keep | environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def answers(url: str) -> bool:
    with urllib.request.urlopen(url + "/health", timeout=10) as answer:
        return bool(answer.status == 200)


def test_a_second_gateway_refuses_the_directory_of_the_first(tmp_path):
    with gateway_process(tmp_path, "http://127.0.0.1:1") as first:
        assert first.process is not None
        token = str(tmp_path / "service.token")
        environment = {
            "WAVRY_GATEWAY_LISTEN": "127.0.0.1:0",
            "WAVRY_GATEWAY_DATA_DIR": str(first.data_dir),
            "WAVRY_GATEWAY_MASTER_URL": "http://127.0.0.1:1",
            "WAVRY_GATEWAY_SERVICE_TOKEN_FILE": token,
        }
        refused = second("wavry_cp.gateway", environment)
        assert refused.returncode == 1, refused.stderr  # It may be started again: the other ends.
        assert f"WAVRY_GATEWAY_DATA_DIR {first.data_dir} is in use" in refused.stderr
        assert f"process {first.process.pid} " in refused.stderr
        assert "end that process first" in refused.stderr
        assert "Traceback" not in refused.stderr
        assert answers(first.url)
        first.kill()
        first.start()  # kill -9 leaves no lock behind.
        assert answers(first.url)


def test_a_second_master_refuses_the_data_and_the_keys_of_the_first(tmp_path):
    with MasterProcess(tmp_path) as first:
        assert first.process is not None
        shared = first.files.environ()
        for variable, mine in (
            ("WAVRY_MASTER_DATA_DIR", {"WAVRY_MASTER_KEYS_DIR": str(other_keys(tmp_path))}),
            ("WAVRY_MASTER_KEYS_DIR", {"WAVRY_MASTER_DATA_DIR": str(tmp_path / "other-data")}),
        ):
            refused = second("wavry_cp.master", shared | mine)
            assert refused.returncode == 1, refused.stderr
            assert f"{variable} {shared[variable]} is in use" in refused.stderr
            assert f"process {first.process.pid} " in refused.stderr
            assert "Traceback" not in refused.stderr
        assert answers(first.url)


def other_keys(tmp_path):
    from support.control.master import MasterFiles

    return MasterFiles.make(tmp_path / "other").keys_dir


def test_a_lock_file_that_was_removed_and_made_again_excludes_all_the_same(tmp_path):
    with held_directory(tmp_path, "one"):
        (tmp_path / LOCK_FILE).unlink()
        with (
            held_directory(tmp_path, "two"),
            pytest.raises(DirectoryInUseError, match="two"),
            held_directory(tmp_path, "three"),
        ):
            pass


def test_data_and_keys_in_one_directory_are_locked_once(tmp_path):
    master = MasterProcess(tmp_path)
    master.environ = {"WAVRY_MASTER_DATA_DIR": str(master.files.keys_dir)}
    with master:
        assert answers(master.url)
