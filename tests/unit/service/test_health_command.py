"""`health` of the services: what it asks, what it makes of the answer, how it ends."""

import http.server
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from wavry_cp.gateway.cli import app as gateway_app
from wavry_cp.master.cli import app as master_app
from wavry_relay.cli import app as relay_app

SERVICES = {
    "wavry-gateway": (gateway_app, "WAVRY_GATEWAY_LISTEN"),
    "wavry-master": (master_app, "WAVRY_MASTER_LISTEN"),
    "wavry-relay": (relay_app, "WAVRY_RELAY_OPS_LISTEN"),
}


class StandIn(http.server.ThreadingHTTPServer):
    """Answers a path with a status and a body."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.answers: dict[str, tuple[int, bytes]] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class _Answering(http.server.BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, body = self.server.answers.get(self.path, (404, b'{"error": "not_found"}'))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[StandIn]:
    with StandIn() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()


@pytest.fixture(params=SERVICES)
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    app, variable = SERVICES[request.param]
    for name in ("WAVRY_RELAY_SETTINGS_FILE", *(variable for _, variable in SERVICES.values())):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, listen: str | None = None) -> Result:
        if listen is not None:
            monkeypatch.setenv(variable, listen)
        return CliRunner().invoke(app, ["health", *arguments])

    return run


def test_a_healthy_service_is_asked_at_its_own_address(command, service: StandIn) -> None:
    service.answers["/health"] = 200, b'{"status": "ok", "workers": {"running": 2}}'
    told = command(listen=service.address)
    assert told.exit_code == 0, told.stderr
    assert told.stdout == f"healthy: http://{service.address}/health answers\n"
    assert service.asked == ["/health"]


def test_a_wildcard_address_is_asked_on_loopback(command, service: StandIn) -> None:
    service.answers["/ready"] = 200, b'{"ready": true}'
    told = command("--ready", listen=f"0.0.0.0:{service.server_address[1]}")
    assert told.exit_code == 0, told.stderr
    assert told.stdout == f"ready: http://{service.address}/ready answers\n"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"ready": False, "reason": "the store cannot be used"}, "the store cannot be used"),
        ({"ready": False, "reasons": ["draining", "no_keys"]}, "draining, no_keys"),
        ({"error": "internal_error", "message": "this is our fault"}, "this is our fault"),
    ],
)
def test_not_ready_ends_with_1_and_says_why(
    command, service: StandIn, body: dict[str, object], reason: str
) -> None:
    service.answers["/ready"] = 503, json.dumps(body).encode()
    told = command("--ready", listen=service.address)
    assert told.exit_code == 1
    assert told.stderr.endswith(f"not ready: http://{service.address}/ready: {reason}\n")


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"hello": 1}', b"[" * 60_000])
def test_something_else_at_the_port_is_not_taken_for_health(
    command, service: StandIn, body: bytes
) -> None:
    service.answers["/health"] = 200, body
    told = command(listen=service.address)
    assert told.exit_code == 1
    assert "something else than a Wavry service" in told.stderr


def test_nobody_there_ends_with_3_also_as_json(command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    told = command(listen=f"127.0.0.1:{port}")
    assert told.exit_code == 3
    assert "is it running here" in told.stderr
    told = command("--json", listen=f"127.0.0.1:{port}")
    assert told.exit_code == 3
    found = json.loads(told.stdout)
    assert found["healthy"] is False
    assert found["status"] is None
    assert found["url"] == f"http://127.0.0.1:{port}/health"


def test_silence_ends_with_3(command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        told = command("--timeout", "0.2", listen=f"127.0.0.1:{silent.getsockname()[1]}")
    assert told.exit_code == 3
    assert "no answer in 0.2 s" in told.stderr


def test_bytes_that_are_no_http_end_with_3(command) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"SSH-2.0-something\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        told = command(listen=f"127.0.0.1:{server.getsockname()[1]}")
        thread.join()
    assert told.exit_code == 3
    assert "Traceback" not in told.stderr


def test_url_wins_over_the_setting(command, service: StandIn) -> None:
    service.answers["/health"] = 200, b'{"status": "ok", "workers": {"running": 1}}'
    told = command("--url", f"http://{service.address}/", listen="127.0.0.1:9")
    assert told.exit_code == 0, told.stderr


@pytest.mark.parametrize(
    ("arguments", "listen", "text"),
    [
        (("--url", "ftp://127.0.0.1"), None, "--url must be"),
        ((), "127.0.0.1:0", "say which with --url"),
        ((), "nonsense", "must be HOST:PORT"),
    ],
)
def test_wrong_use_ends_with_2(command, arguments: tuple[str, ...], listen, text: str) -> None:
    told = command(*arguments, listen=listen)
    assert told.exit_code == 2
    assert text in told.stderr


def test_ipv6_is_written_with_brackets(command) -> None:
    told = command("--timeout", "1", listen="[::]:9")
    assert told.exit_code == 3
    assert "http://[::1]:9/health" in told.stderr


def test_a_relay_without_a_worker_is_not_healthy(
    service: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.answers["/health"] = 200, b'{"status": "ok", "workers": {"running": 0}}'
    monkeypatch.setenv("WAVRY_RELAY_OPS_LISTEN", service.address)
    told = CliRunner().invoke(relay_app, ["health"])
    assert told.exit_code == 1
    assert "no worker runs" in told.stderr


def test_the_address_of_a_relay_may_stand_in_its_settings_file(
    service: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    service.answers["/health"] = 200, b'{"status": "ok", "workers": {"running": 1}}'
    file = tmp_path / "relay.conf"
    file.write_text(f"WAVRY_RELAY_OPS_LISTEN={service.address}\n")
    monkeypatch.delenv("WAVRY_RELAY_OPS_LISTEN", raising=False)
    monkeypatch.setenv("WAVRY_RELAY_SETTINGS_FILE", str(file))
    assert CliRunner().invoke(relay_app, ["health"]).exit_code == 0
    monkeypatch.setenv("WAVRY_RELAY_OPS_LISTEN", "127.0.0.1:9")  # The environment wins.
    assert CliRunner().invoke(relay_app, ["health"]).exit_code == 3


def test_help_has_an_example() -> None:
    for name, (app, _) in SERVICES.items():
        command = typer.main.get_command(app).commands["health"]  # type: ignore[attr-defined]
        assert f"Example: {name} health --ready" in (command.help or "")
