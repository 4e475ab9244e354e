"""The real process: killed and restarted, stopped, and refusing to start."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import msgspec
import pytest
from support.control.lease_parts import parties
from support.control.master import FakeRelay, MasterFiles, MasterProcess, client_for
from support.paths import REPOSITORY

from wavry_peer.protocol import base64url, keyset, lease


def run_master(*arguments, **environ):
    return subprocess.run(
        [sys.executable, "-m", "wavry_cp.master", *arguments],
        cwd=REPOSITORY,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


async def test_renewal_works_after_kill_9_and_restart(tmp_path):
    process = MasterProcess(tmp_path)
    with process:
        async with client_for(process.url, process.files) as master:
            relay = await FakeRelay(master).join()
            drained = await FakeRelay(master).join()
            await master.post(f"/v1/admin/relays/{drained.relay_id}/drain", token="admin")
            body = parties()
            issued = (await master.post("/v1/leases", body, token="service")).body
            document = (await master.get("/.well-known/wavry-keys.json")).body
        process.kill()
        process.start()
        async with client_for(process.url, process.files) as master:
            assert (await master.get("/.well-known/wavry-keys.json")).body == document
            keys = keyset.trusted_keys(load(master, document))
            for role in ("client", "server"):
                old = lease.open_lease(issued["leases"][role].encode(), keys)
                answer = await master.post(
                    "/v1/leases/renew",
                    {"session_id": issued["session_id"], "role": role, "jti": old.jti},
                    token="service",
                )
                assert answer.status == 200
                new = lease.open_lease(answer.body["lease"].encode(), keys)
                assert (new.sid, new.sub, new.rid) == (old.sid, old.sub, relay.relay_id)
            # The relays' own tokens and the drain are durable too.
            relay.client = drained.client = master
            assert (await relay.heartbeat()).status == 200
            assert (await drained.heartbeat()).body == {"commands": [{"type": "drain"}]}
        assert process.stop() == 0


def load(master, document):
    root = base64url.decode(master.files.root_public_key)
    return keyset.decode_keyset(msgspec.json.encode(document), root_public_key=root)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_it_cleanly_even_with_open_connections(tmp_path, number):
    with MasterProcess(tmp_path) as process:
        port = int(process.url.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port)) as idle:
            idle.sendall(b"GET /health HTTP/1.1\r\nHost: m\r\n\r\n")
            assert idle.recv(100).startswith(b"HTTP/1.1 200")
            assert process.stop(number) == 0
        assert not (tmp_path / "master.ready").exists()
        assert "Traceback" not in process.log.read_text()


def test_taken_port_is_refused_and_no_other_is_taken(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        files = MasterFiles.make(tmp_path)
        address = f"127.0.0.1:{other.getsockname()[1]}"
        result = run_master("run", "--listen", address, **files.environ())
    assert result.returncode == 1
    assert f"cannot listen: {address} is taken by another process" in result.stderr
    assert "Traceback" not in result.stderr


def test_without_keys_it_names_the_command_and_makes_none(tmp_path):
    files = MasterFiles.make(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir(mode=0o700)
    result = run_master("run", "--keys-dir", str(empty), **files.environ())
    assert result.returncode == 2
    assert f"wavryctl keys init --keys-dir {empty}" in result.stderr
    assert list(empty.iterdir()) == []


def test_settings_that_do_not_fit_are_all_named(tmp_path):
    environ = MasterFiles.make(tmp_path).environ()
    environ["WAVRY_MASTER_LEASE_TTL_S"] = "5"
    environ["WAVRY_MASTER_HEARTBEAT_INTERVAL_MS"] = "often"
    del environ["WAVRY_MASTER_DATA_DIR"]
    result = run_master("run", **environ)
    assert result.returncode == 2
    for name in ("LEASE_TTL_S", "HEARTBEAT_INTERVAL_MS", "DATA_DIR"):
        assert f"WAVRY_MASTER_{name}" in result.stderr
    environ = MasterFiles.make(tmp_path / "b").environ()
    environ["WAVRY_MASTER_TRUSTED_PROXIES"] = "everyone"
    environ["WAVRY_MASTER_SOFT_LIMIT_KBPS"] = "999999"
    result = run_master("run", **environ)
    assert result.returncode == 2
    assert "WAVRY_MASTER_TRUSTED_PROXIES" in result.stderr
    assert "WAVRY_MASTER_SOFT_LIMIT_KBPS" in result.stderr


def test_token_file_open_to_others_is_refused(tmp_path):
    files = MasterFiles.make(tmp_path)
    files.admin_token_file.chmod(0o644)
    result = run_master("run", **files.environ())
    assert result.returncode == 2
    assert "chmod 600" in result.stderr
    assert files.admin_token not in result.stderr


def test_help_and_version():
    assert "wavry-master" in run_master("--version").stdout
    text = run_master("run", "--help").stdout
    for option in ("--listen", "--data-dir", "--keys-dir", "--ready-file"):
        assert option in text


def test_log_holds_no_secret(tmp_path):
    with MasterProcess(tmp_path, WAVRY_LOG_LEVEL="debug") as process:

        async def use():
            async with client_for(process.url, process.files) as master:
                relay = await FakeRelay(master).join()
                body = parties()
                answer = await master.post("/v1/leases", body, token="service")
                return [relay.token, answer.body["leases"]["client"]]

        secrets = asyncio.run(use())
        process.stop()
        log = process.log.read_text()
    assert "relay_registered" in log
    for secret in (*secrets, process.service_token, process.admin_token):
        assert secret not in log


def test_one_token_for_services_and_operators_is_refused(tmp_path):
    files = MasterFiles.make(tmp_path)
    files.admin_token_file.write_text(files.service_token_file.read_text())
    result = run_master("run", **files.environ())
    assert result.returncode == 2
    assert "WAVRY_MASTER_SERVICE_TOKEN_FILE and WAVRY_MASTER_ADMIN_TOKEN_FILE" in result.stderr
    assert files.service_token not in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("variable", "status"),
    [
        ("WAVRY_MASTER_DATA_DIR", 1),
        ("WAVRY_MASTER_KEYS_DIR", 2),
        ("WAVRY_MASTER_SERVICE_TOKEN_FILE", 2),
        ("WAVRY_MASTER_ADMIN_TOKEN_FILE", 2),
    ],
)
def test_a_path_that_cannot_be_used_is_named_with_its_setting(tmp_path, variable, status):
    files = MasterFiles.make(tmp_path)
    result = run_master("run", **{**files.environ(), variable: "/proc/x"})
    assert result.returncode == status
    assert variable in result.stderr
    assert "/proc/x" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_ready_file_that_cannot_be_written_is_named(tmp_path):
    files = MasterFiles.make(tmp_path)
    result = run_master("run", "--ready-file", "/proc/x/ready", **files.environ())
    assert result.returncode == 1
    assert "--ready-file /proc/x/ready: " in result.stderr
    assert "Traceback" not in result.stderr
