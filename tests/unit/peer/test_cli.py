"""``wavry-peer`` as people and scripts use it: processes, exit statuses, JSON lines."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from support.paths import REPOSITORY
from support.peer.fake_gateway import PASSWORD
from support.peer.peer_world import PeerWorld, eventually
from typer.testing import CliRunner

from wavry_peer.cli.app import app
from wavry_peer.cli.chat import _printable
from wavry_peer.cli.output import Output
from wavry_peer.errors import (
    GatewayError,
    PeerKeyChangedError,
    PeerUnavailableError,
    SessionFailedError,
)
from wavry_peer.home.identity import Identity, load_identity
from wavry_peer.home.known_peers import KnownPeers
from wavry_peer.home.logins import LoginStore, SavedLogin
from wavry_peer.protocol import packets
from wavry_peer.protocol.constants import NoticeCode
from wavry_peer.protocol.errors import LocalError, WavryError
from wavry_peer.protocol.http.signaling import Bye

TIMEOUT_S = 20


def environment(home: Path, **extra: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WAVRY_")}
    return kept | {"WAVRY_PEER_HOME": str(home), "WAVRY_PASSWORD": PASSWORD} | extra


class Command:
    """One running ``wavry-peer``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def line(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        async with asyncio.timeout(TIMEOUT_S):
            raw = await self.process.stdout.readline()
        assert raw, "it ended without another line"
        found: dict[str, Any] = json.loads(raw)
        return found

    async def done(self) -> tuple[int, list[dict[str, Any]], str]:
        async with asyncio.timeout(TIMEOUT_S):
            out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, [json.loads(x) for x in out.splitlines()], err.decode()


@pytest.fixture
async def start(world: PeerWorld, tmp_path: Path):
    running: list[asyncio.subprocess.Process] = []
    for name in ("alice", "bob"):
        world.gateway.users[name] = PASSWORD

    async def run(user: str, *arguments: str, stdin: int = asyncio.subprocess.DEVNULL) -> Command:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "wavry_peer", *arguments,
            env=environment(tmp_path / user, WAVRY_GATEWAY_URL=world.gateway.url),
            cwd=REPOSITORY,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        running.append(process)
        return Command(process)

    yield run
    for process in running:
        if process.returncode is None:
            process.kill()
        await process.communicate()
        process._transport.close()  # type: ignore[attr-defined]


async def test_a_file_from_one_process_to_another(start, tmp_path: Path) -> None:
    source = tmp_path / "holiday.bin"
    source.write_bytes(os.urandom(500_000))
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    receiver = await start(
        "bob", "receive", "--as", "bob", "--from", "alice", "--directory", str(inbox), "--json"
    )
    assert await receiver.line() == {"event": "listening", "username": "bob"}
    sender = await start("alice", "send", str(source), "--as", "alice", "--to", "bob", "--json")
    status, (sent,), errors = await sender.done()
    assert (status, errors) == (0, "")
    status, (received,), errors = await receiver.done()
    assert (status, errors) == (0, "")
    assert (inbox / "holiday.bin").read_bytes() == source.read_bytes()
    assert sent["event"] == "sent"
    assert received["event"] == "received"
    assert sent["sha256"] == received["sha256"]
    assert received["path"] == str(inbox / "holiday.bin")
    assert sent["statistics"]["datagrams_sent"] >= 500_000 // 1381
    assert received["from_username"] == "alice"
    assert received["statistics"]["path"] == "relay rly-test-1"


async def test_host_answers_ping_and_carries_text_and_ends_on_sigterm(start) -> None:
    host = await start(
        "bob", "host", "--as", "bob", "--from-all", "--keep", "--json",
        stdin=asyncio.subprocess.PIPE,
    )  # fmt: skip
    await host.line()
    ping = await start(
        "alice", "ping", "bob", "--as", "alice", "--count", "3", "--interval", "0.05", "--json"
    )
    status, lines, errors = await ping.done()
    assert (status, errors) == (0, "")
    assert [line["event"] for line in lines] == ["reply"] * 3 + ["summary"]
    assert lines[-1]["received"] == 3
    assert lines[-1]["lost_pct"] == 0
    assert 0 < lines[-1]["min_ms"] <= lines[-1]["max_ms"] < 1000
    assert [(await host.line())["event"] for _ in range(2)] == ["connected", "closed"]

    caller = await start(
        "alice", "connect", "bob", "--as", "alice", "--json", stdin=asyncio.subprocess.PIPE
    )
    assert (await caller.line())["event"] == "connected"
    caller.process.stdin.write(b"hello\n")
    assert (await host.line())["event"] == "connected"
    text = {"event": "datagram", "from_username": "alice", "text": "hello\n"}
    assert await host.line() == text
    host.process.stdin.write(b"good day\n")
    assert (await caller.line())["text"] == "good day\n"
    caller.process.stdin.write_eof()
    status, lines, _ = await caller.done()
    assert status == 0
    assert lines[-1]["event"] == "closed"
    assert lines[-1]["statistics"]["datagrams_sent"] == 1
    assert (await host.line())["event"] == "closed"
    host.process.send_signal(signal.SIGTERM)
    status, _, errors = await host.done()
    assert (status, errors) == (0, "")


async def test_ctrl_c_ends_a_call_and_the_other_side_is_told(start) -> None:
    host = await start("bob", "host", "--as", "bob", "--from-all", "--json")
    await host.line()
    caller = await start(
        "alice", "connect", "bob", "--as", "alice", "--json", stdin=asyncio.subprocess.PIPE
    )
    await caller.line()
    await host.line()
    caller.process.send_signal(signal.SIGINT)
    status, _, errors = await caller.done()
    assert (status, errors) == (130, "")
    status, lines, _ = await host.done()
    assert status == 0
    assert lines[-1]["event"] == "closed"


async def test_a_sender_who_calls_a_host_learns_of_it(start, tmp_path: Path) -> None:
    source = tmp_path / "x"
    source.write_bytes(b"x")
    host = await start("bob", "host", "--as", "bob", "--from-all", "--json")
    await host.line()
    sender = await start("alice", "send", str(source), "--as", "alice", "--to", "bob")
    process = sender.process
    async with asyncio.timeout(TIMEOUT_S):
        _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"wavry-peer receive" in errors


def revoke(world: PeerWorld) -> None:
    """As an operator does: the relay gives a hint, and the gateway says so to who asks."""
    for what in ("renew", "relay"):
        world.gateway.fail(what, 409, "revoked", 10)
    world.relay.tell_all(lambda sid: packets.build_notice(sid, NoticeCode.REVOKED))


async def close_by_gateway(world: PeerWorld) -> None:
    """As at a ban of the other user: a BYE of nobody."""
    for session_id in world.gateway.calls:
        for user in ("alice", "bob"):
            await world.gateway.tell(user, Bye(session_id=session_id))


@pytest.mark.parametrize("way", ["revoked", "closed"])
@pytest.mark.parametrize("command", ["connect", "ping", "send"])
async def test_command_whose_session_others_ended_fails_and_says_why(
    world: PeerWorld, start, tmp_path: Path, command: str, way: str
) -> None:
    source, inbox = tmp_path / "large", tmp_path / "inbox"
    inbox.mkdir()
    with source.open("wb") as file:
        file.truncate(60_000_000)
    options = {
        "connect": ("connect", "bob"),
        "ping": ("ping", "bob", "--count", "100000", "--interval", "0.05"),
        "send": ("send", str(source), "--to", "bob"),
    }
    host = ("receive", "--directory", str(inbox)) if command == "send" else ("host",)
    called = await start("bob", *host, "--as", "bob", "--from-all", "--json")
    await called.line()
    caller = await start(
        "alice", *options[command], "--as", "alice", "--json", stdin=asyncio.subprocess.PIPE
    )
    if command == "connect":
        await caller.line()
    else:
        await eventually(lambda: world.relay.forwarded > 20, TIMEOUT_S)
    if command != "send":
        await called.line()
    if way == "revoked":
        revoke(world)
    else:
        await close_by_gateway(world)
    for side in (caller, called):
        status, lines, errors = await side.done()
        assert (status, errors) == (1, ""), lines
        told = next(line for line in lines if line["event"] == "error")
        assert "revoked" in told["message"] or "the gateway ended" in told["message"]


# -- Without other processes: statuses and texts ---------------------------------------------


def call(*arguments: str, **variables: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(arguments), env=variables)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


async def call_in_thread(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """A process, because the command needs the main thread of its own for signals."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wavry_peer", *arguments,
        env=environment(Path(variables.pop("home")), **variables),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        stdin=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    async with asyncio.timeout(TIMEOUT_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def test_an_unreachable_gateway_is_status_3(tmp_path: Path) -> None:
    variables = {"WAVRY_PEER_HOME": str(tmp_path), "WAVRY_PASSWORD": PASSWORD}
    for arguments in (("login", "alice"), ("ping", "bob", "--as", "alice")):
        status, out, err = call(*arguments, "--gateway", "http://127.0.0.1:9", **variables)
        assert status == 3
        assert out == ""
        assert "cannot be reached" in err
        assert "Traceback" not in err
    status, out, _ = call(
        "login", "alice", "--json", "--gateway", "http://127.0.0.1:9", **variables
    )
    assert status == 3
    assert json.loads(out)["error"] == "gateway_unreachable"


def test_wrong_use_is_status_2(tmp_path: Path) -> None:
    variables = {"WAVRY_PEER_HOME": str(tmp_path), "WAVRY_GATEWAY_URL": ""}
    for arguments, text in (
        (("ping", "bob"), "--gateway"),
        (("host",), "--from"),
        (("receive", "--from-all", "--directory", str(tmp_path / "absent")), "no directory"),
        (("send", str(tmp_path / "absent"), "--to", "bob"), "no file"),
        (("login", "alice", "--gateway", "http://gateway.example"), "https"),
        (("login", "alice", "--gateway", "nonsense"), "wrong form"),
        (("login", "alice", "--gateway", "https://g.example"), "WAVRY_PASSWORD"),
        (("forget", "bob", "--gateway", "https://g.example"), "no key"),
        (("logout", "--gateway", "https://g.example"), "not logged in"),
        (("nonsense",), "nonsense"),
    ):
        status, out, err = call(*arguments, **variables)
        assert status == 2, arguments
        assert text in err
        assert out == ""


def test_not_logged_in_is_status_4(tmp_path: Path) -> None:
    status, _, err = call(
        "ping", "bob", "--gateway", "https://g.example", WAVRY_PEER_HOME=str(tmp_path)
    )
    assert status == 4
    assert "wavry-peer login" in err


def test_a_login_that_others_can_read_is_refused(tmp_path: Path) -> None:
    LoginStore.in_home(tmp_path).put("https://g.example", SavedLogin("alice", "t"))
    (tmp_path / "logins.json").chmod(0o644)
    status, _, err = call(
        "ping", "bob", "--gateway", "https://g.example", WAVRY_PEER_HOME=str(tmp_path)
    )
    assert status == 2
    assert "chmod 600" in err


async def test_account_commands_and_statuses(world: PeerWorld, tmp_path: Path) -> None:
    url, home = world.gateway.url, tmp_path / "carol"
    common = {"WAVRY_GATEWAY_URL": url, "home": str(home)}
    status, out, _ = await call_in_thread("register", "carol", **common)
    assert (status, out) == (0, "registered carol; next: wavry-peer login carol\n")
    status, _, err = await call_in_thread("register", "carol", **common)
    assert status == 1
    assert "username_taken" in err
    status, _, err = await call_in_thread("login", "carol", **common, WAVRY_PASSWORD="wrong word")
    assert status == 4
    assert "wrong word" not in err
    password_file = tmp_path / "password"
    password_file.write_text(PASSWORD + "\n")
    password_file.chmod(0o600)
    status, out, _ = await call_in_thread(
        "login", "carol", "--password-file", str(password_file), **common, WAVRY_PASSWORD=""
    )
    assert (status, out) == (0, "logged in as carol\n")
    kept = LoginStore.in_home(home).get(url)
    assert kept is not None
    assert kept.token in world.gateway.tokens

    status, _, err = await call_in_thread("ping", "nobody", **common)
    assert status == 5
    assert "not online" in err

    status, out, _ = await call_in_thread("health", **common)
    assert (status, out) == (0, "healthy: the gateway answers, carol is logged in\n")

    KnownPeers.in_home(home).pin(url, "bob", Identity.generate().noise.public)
    async with world.listen("bob"):
        status, _, err = await call_in_thread("ping", "bob", **common)
        assert status == 6
        assert "wavry-peer forget bob" in err
        status, _, _ = await call_in_thread("forget", "bob", **common)
        assert status == 0
        world.gateway.fail("relay", 503, "no_relay_available")
        status, _, err = await call_in_thread("ping", "bob", **common)
        assert status == 7
        assert "no relay" in err

    status, _, _ = await call_in_thread("logout", **common)
    assert status == 0
    assert kept.token not in world.gateway.tokens
    assert LoginStore.in_home(home).get(url) is None


async def test_health_tells_what_keeps_a_peer_from_its_work(
    world: PeerWorld, tmp_path: Path
) -> None:
    url, home = world.gateway.url, tmp_path / "dora"
    common = {"WAVRY_GATEWAY_URL": url, "home": str(home)}
    status, out, _ = await call_in_thread("health", "--json", **common)
    assert status == 0, "without a login the gateway's answer is enough"
    assert json.loads(out) == {"event": "healthy", "gateway_url": url, "username": None}
    assert not home.exists(), "a question makes no key"
    LoginStore.in_home(home).put(url, SavedLogin("dora", "a token that was logged out"))
    status, _, err = await call_in_thread("health", **common)
    assert status == 4
    assert "a token" not in err
    (home / "identity.json").write_text("{}")
    (home / "identity.json").chmod(0o600)
    status, _, err = await call_in_thread("health", **common)
    assert status == 2
    assert "damaged" in err
    status, _, err = await call_in_thread(
        "health", home=str(tmp_path / "e"), WAVRY_GATEWAY_URL="http://127.0.0.1:9"
    )
    assert status == 3
    assert "cannot be reached" in err


def test_identity_shows_a_fingerprint_and_no_secret(tmp_path: Path) -> None:
    status, out, _ = call("identity", "--json", WAVRY_PEER_HOME=str(tmp_path))
    assert status == 0
    own = load_identity(tmp_path)
    shown = json.loads(out)
    assert shown["noise_key"] == own.noise_key
    assert re.fullmatch(r"([0-9a-f]{4}:){15}[0-9a-f]{4}", shown["fingerprint"])
    assert set(shown) == {"event", "fingerprint", "noise_key"}


def commands() -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", {})
        found |= {f"{name} {sub}": one for sub, one in inner.items()} or {name: command}
    return found


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_help_with_an_example_and_json(name: str) -> None:
    status, out, _ = call(*name.split(), "--help")
    assert status == 0
    assert "Example: " in out
    assert "wavry-peer" in out
    command = commands()[name]
    options = {text for parameter in command.params for text in parameter.opts}
    assert "--json" in options
    assert not {text for text in options if "password" in text} - {
        "--password-file",
        "--new-password-file",
    }
    for parameter in command.params:
        assert getattr(parameter, "help", ""), f"{name} {parameter.name} has no help"


def test_help_names_every_exit_status() -> None:
    status, out, _ = call("--help")
    assert status == 0
    text = " ".join(out.split())
    for number in range(8):
        assert f"{number} " in text.split("Exit status:")[1]
    assert {"login", "host", "connect", "send", "receive", "ping"} <= set(commands())


def test_version() -> None:
    status, out, _ = call("--version")
    assert status == 0
    assert out.startswith("wavry-peer ")


def test_the_peer_needs_no_server_parts() -> None:
    check = (
        "import sys, wavry_peer, wavry_peer.cli\n"
        "[getattr(wavry_peer, name) for name in wavry_peer.__all__]\n"
        "bad = {'aiohttp.web', 'wavry_cp', 'wavry_relay', 'sqlite_utils',"
        " 'prometheus_client'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=TIMEOUT_S)


def test_the_protocol_alone_loads_no_http_client() -> None:
    check = (
        "import sys, wavry_peer.protocol.packets, wavry_peer.protocol.lease\n"
        "bad = {'aiohttp', 'asyncio', 'rich', 'typer'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-c", check], check=True, timeout=TIMEOUT_S)


def test_terminal_orders_of_others_are_not_obeyed() -> None:
    assert _printable(b"a\x1b[2Jb\x07\xff\n\tc") == "a\ufffd[2Jb\ufffd\ufffd\n\tc".encode()


@pytest.mark.parametrize("name", ["Al ice", "", "-al", "al.", "a" * 33, "ali\nce", "\u00e4"])
@pytest.mark.parametrize("command", ["register", "login"])
def test_a_user_name_that_does_not_fit_is_explained(
    tmp_path: Path, command: str, name: str
) -> None:
    arguments = [command, "--gateway", "http://127.0.0.1:9", "--", name]
    variables = {"WAVRY_PEER_HOME": str(tmp_path), "WAVRY_PASSWORD": PASSWORD}
    done = CliRunner().invoke(app, arguments, env=variables)
    assert done.exit_code == 2
    assert (
        "a user name has 1 to 32 of a-z 0-9 . _ - and begins and ends with a letter or digit"
        in done.output
    )


@pytest.mark.parametrize(
    ("password", "text"),
    [("123456789", "a password needs 10 characters or more"), ("x" * 257, "at most 256")],
)
def test_a_password_that_does_not_fit_is_explained(
    tmp_path: Path, password: str, text: str
) -> None:
    arguments = ["register", "alice", "--gateway", "http://127.0.0.1:9"]
    variables = {"WAVRY_PEER_HOME": str(tmp_path), "WAVRY_PASSWORD": password}
    done = CliRunner().invoke(app, arguments, env=variables)
    assert done.exit_code == 2
    assert text in done.output
    assert password not in done.output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (PeerUnavailableError("x"), "peer_unavailable"),
        (PeerKeyChangedError("bob", "a", "b"), "peer_key_changed"),
        (SessionFailedError("x"), "session_failed"),
        (LocalError("x"), "local"),
        (GatewayError("user_offline", "x"), "user_offline"),
    ],
)
def test_error_codes_are_snake_case(
    capsys: pytest.CaptureFixture[str], error: WavryError, code: str
) -> None:
    Output(as_json=True).error(error)
    assert json.loads(capsys.readouterr().out)["error"] == code
