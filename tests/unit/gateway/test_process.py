"""The real program: ``python -m wavry_cp.gateway``."""

import json
import os
import socket
import subprocess
import sys

import aiohttp
import msgspec
import pytest
from support.control.gateway import (
    SERVICE_TOKEN,
    TestUser,
    accepted_call,
    gateway_process,
    http_call,
    write_token,
)
from typer.testing import CliRunner

from wavry_cp.gateway.cli import app
from wavry_peer.protocol.http import signaling as wire
from wavry_peer.protocol.http.api import Credentials


async def test_after_kill_9_a_peer_renews_with_the_same_token(tmp_path, master):
    with gateway_process(tmp_path, master.url) as process:
        async with aiohttp.ClientSession() as http:
            ann = await TestUser.create(http, process.url, "ann")
            bob = await TestUser.create(http, process.url, "bob")
            async with ann.online() as a, bob.online() as b:
                session_id = await accepted_call(ann, a, bob, b)
                await a.send(wire.RequestRelay(target_username="bob"))
                own = await a.next(wire.RelayCredentials)
                await b.next(wire.RelayCredentials)
                process.kill()
                assert await a.close_code() in {None, 1006}

            process.listen = process.url.removeprefix("http://")
            process.start()
            assert process.url == ann.url
            info = await ann.session(session_id)
            assert (info.state, info.relay_id) == ("active", own.relay_id)
            renewed = await ann.renew(session_id, master.open(own.token).jti)
            assert master.open(renewed.token).sid == session_id
            assert (renewed.relay_id, renewed.addrs) == (own.relay_id, own.addrs)
            assert renewed.token != own.token

            # Signaling goes on after BIND with the same token, in the same session.
            async with ann.online() as a, bob.online() as b:
                await b.send(wire.Candidate(target_username="ann", candidate="after"))
                got = await a.next(wire.Candidate)
                assert (got.candidate, got.session_id) == ("after", session_id)
                status, answer = await bob.call("POST", f"/v1/sessions/{session_id}/relay", {})
                assert status == 200
                assert msgspec.convert(answer, Credentials).role == "server"
                assert (await a.next(wire.RelayCredentials)).role == "client"
            assert (await ann.call("POST", "/auth/logout"))[0] == 204
            process.kill()
            process.start()
            # What was answered has happened: the token stays dead.
            assert (await ann.call("GET", "/v1/sessions"))[0] == 401
        log = process.log
    assert ann.token not in log
    assert SERVICE_TOKEN not in log
    assert own.token not in log
    assert "Traceback" not in log


async def test_sigterm_ends_cleanly_with_clients_connected(tmp_path, master):
    with gateway_process(tmp_path, master.url) as process:
        async with aiohttp.ClientSession() as http:
            ann = await TestUser.create(http, process.url, "ann")
            async with ann.online() as a:
                assert process.process is not None
                process.process.terminate()
                await a.error("shutting_down")
                assert await a.close_code() == 1001
                assert process.stop() == 0
        assert "unhandled" not in process.log
        assert not (tmp_path / "gateway.ready").exists()


async def test_the_process_is_well_and_ready_file_names_it(tmp_path, master):
    with gateway_process(tmp_path, master.url) as process:
        ready = json.loads((tmp_path / "gateway.ready").read_text())
        assert process.process is not None
        assert ready == {"url": process.url, "pid": process.process.pid}
        async with aiohttp.ClientSession() as http:
            for path in ("/health", "/ready"):
                assert (await http_call(http, process.url, "GET", path))[0] == 200


def run(*arguments, **environment):
    keep = {key: value for key, value in os.environ.items() if not key.startswith("WAVRY_")}
    return subprocess.run(
        [sys.executable, "-m", "wavry_cp.gateway", *arguments],
        env=keep | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def settings(tmp_path, **changes):
    token = write_token(tmp_path / "service.token", SERVICE_TOKEN)
    return {
        "WAVRY_GATEWAY_LISTEN": "127.0.0.1:0",
        "WAVRY_GATEWAY_DATA_DIR": str(tmp_path / "data"),
        "WAVRY_GATEWAY_MASTER_URL": "http://127.0.0.1:1",
        "WAVRY_GATEWAY_SERVICE_TOKEN_FILE": str(token),
    } | changes


def test_settings_that_do_not_fit_are_named_on_stderr(tmp_path):
    result = run(
        "run",
        **settings(
            tmp_path,
            WAVRY_GATEWAY_TRUSTED_PROXIES="10.0.0.1/8",
            WAVRY_GATEWAY_MASTER_URL="ftp://secret-user@x",
            WAVRY_GATEWAY_CORS_ORIGINS="https://a/b",
        ),
    )
    assert result.returncode == 2
    for variable in ("TRUSTED_PROXIES", "MASTER_URL", "CORS_ORIGINS"):
        assert f"WAVRY_GATEWAY_{variable} " in result.stderr
    assert "Traceback" not in result.stderr
    assert "secret-user" not in result.stderr


def test_missing_settings_are_named_on_stderr():
    result = CliRunner().invoke(app, ["run"], env={})
    assert result.exit_code == 2
    assert "WAVRY_GATEWAY_DATA_DIR must be set" in result.stderr


def test_a_token_file_that_others_can_read_is_refused(tmp_path):
    environment = settings(tmp_path)
    (tmp_path / "service.token").chmod(0o644)
    result = run("run", **environment)
    assert result.returncode == 1
    assert "chmod 600" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_taken_port_is_refused_and_no_other_is_taken(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run("run", **settings(tmp_path, WAVRY_GATEWAY_LISTEN=f"127.0.0.1:{port}"))
    assert result.returncode == 1
    assert "cannot listen" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help(arguments):
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 0
    if arguments[0] == "run":
        assert "--ready-file" in result.stdout
        assert "Example" in result.stdout


def test_version():
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("wavry-gateway ")


def test_one_token_for_services_and_operators_is_refused(tmp_path):
    environment = settings(tmp_path)
    token_file = environment["WAVRY_GATEWAY_SERVICE_TOKEN_FILE"]
    result = run("run", **environment, WAVRY_GATEWAY_ADMIN_TOKEN_FILE=token_file)
    assert result.returncode == 2
    assert "WAVRY_GATEWAY_SERVICE_TOKEN_FILE and WAVRY_GATEWAY_ADMIN_TOKEN_FILE" in result.stderr
    assert SERVICE_TOKEN not in result.stderr


@pytest.mark.parametrize(
    "variable",
    [
        "WAVRY_GATEWAY_DATA_DIR",
        "WAVRY_GATEWAY_SERVICE_TOKEN_FILE",
        "WAVRY_GATEWAY_ADMIN_TOKEN_FILE",
    ],
)
def test_a_path_that_cannot_be_used_is_named_with_its_setting(tmp_path, variable):
    result = run("run", **settings(tmp_path, **{variable: "/proc/x"}))
    assert result.returncode == 1
    assert f"{variable} /proc/x" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_ready_file_that_cannot_be_written_is_named(tmp_path):
    result = run("run", "--ready-file", "/proc/x/ready", **settings(tmp_path))
    assert result.returncode == 1
    assert "--ready-file /proc/x/ready: " in result.stderr
    assert "Traceback" not in result.stderr
