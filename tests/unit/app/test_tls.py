"""Own TLS of gateway and master: guards, reading, reading again, and who delays a handshake."""

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from structlog.testing import capture_logs

from wavry_cp.app.http import CONNECTION_BOUNDS, TLS, listening, new_application
from wavry_cp.app.transport import tls as tls_module
from wavry_cp.app.transport.tls import TlsFileError, TlsFiles, tls_state
from wavry_cp.gateway.config import GatewayConfig
from wavry_cp.master.config import MasterConfig, check
from wavry_peer.service.http_listener import ConnectionBounds, HttpListener
from wavry_peer.service.settings import SettingsError, load

CERTIFICATE, KEY = "TLS_CERTIFICATE_FILE", "TLS_KEY_FILE"


# -- Guards ------------------------------------------------------------------------------------


def gateway(**settings: str) -> GatewayConfig:
    needed = {"DATA_DIR": "d", "MASTER_URL": "http://127.0.0.1:1", "SERVICE_TOKEN_FILE": "t"}
    environ = {f"WAVRY_GATEWAY_{name}": text for name, text in (needed | settings).items()}
    return load(GatewayConfig, environ)


def master(**settings: str) -> MasterConfig:
    needed = dict.fromkeys(("DATA_DIR", "KEYS_DIR", "SERVICE_TOKEN_FILE", "ADMIN_TOKEN_FILE"), "x")
    environ = {f"WAVRY_MASTER_{name}": text for name, text in (needed | settings).items()}
    config = load(MasterConfig, environ)
    check(config)
    return config


@pytest.mark.parametrize("role", [gateway, master])
@pytest.mark.parametrize(
    "listen", ["0.0.0.0:8090", "[::]:8090", "192.0.2.7:1", "control.example:1"]
)
def test_public_bind_needs_tls_or_the_operators_word(role: Any, listen: str) -> None:
    with pytest.raises(SettingsError, match=r"_LISTEN has an address .*_ALLOW_PUBLIC_BIND=1"):
        role(LISTEN=listen)
    assert role(LISTEN=listen, ALLOW_PUBLIC_BIND="1")
    assert role(LISTEN=listen, **{CERTIFICATE: "c", KEY: "k"})


@pytest.mark.parametrize("role", [gateway, master])
def test_loopback_needs_nothing_and_half_a_pair_is_refused(role: Any) -> None:
    for listen in ("127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1"):
        assert role(LISTEN=listen)
    for name in (CERTIFICATE, KEY):
        with pytest.raises(
            SettingsError, match=r"_TLS_CERTIFICATE_FILE and .*_KEY_FILE, or neither"
        ):
            role(LISTEN="127.0.0.1:1", **{name: "file"})


# -- Files -------------------------------------------------------------------------------------


class Files:
    """Certificate and key of a service, its authority, and the clock of who reads them."""

    def __init__(self, directory: Path) -> None:
        self.certificate, self.key = directory / "cert.pem", directory / "key.pem"
        self.authority = trustme.CA()
        self.now_s = 100.0
        self.issue()

    def issue(self) -> None:
        """Write a new certificate and its key."""
        issued = self.authority.issue_cert("127.0.0.1")
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        self.write(chain, issued.private_key_pem.bytes())

    def write(self, certificate: bytes, key: bytes, mode: int = 0o600) -> None:
        for path, content in ((self.key, key), (self.certificate, certificate)):
            unfinished = path.with_suffix(".new")
            unfinished.write_bytes(content)
            unfinished.chmod(mode)
            unfinished.replace(path)
        self.now_s += 1

    def read(self) -> TlsFiles:
        return TlsFiles(self.certificate, self.key, "MASTER", monotonic_s=lambda: self.now_s)

    @property
    def trusted(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_new_files_are_taken_and_the_same_are_not_read_again(files: Files) -> None:
    tls = files.read()
    first = tls.context()
    files.now_s += 5
    assert tls.context() is first
    files.issue()
    second = tls.context()
    assert second is not first
    assert not tls.is_stale
    files.issue()
    files.now_s -= 0.5
    assert tls.context() is second, "looked at too soon"


def test_files_that_do_not_fit_keep_the_old_ones_and_are_told_once(files: Files) -> None:
    tls = files.read()
    old = tls.context()
    stranger = trustme.CA().issue_cert("127.0.0.1")
    for certificate, key, mode in (
        (b"junk", b"junk", 0o600),
        (files.certificate.read_bytes(), stranger.private_key_pem.bytes(), 0o600),
        (stranger.cert_chain_pems[0].bytes(), stranger.private_key_pem.bytes(), 0o640),
    ):
        files.write(certificate, key, mode)
        with capture_logs() as lines:
            for _ in range(3):
                assert tls.context() is old
                files.now_s += 1
        assert [line["event"] for line in lines] == ["tls_files_refused"]
        assert "PRIVATE" not in str(lines)
        assert (tls.is_stale, tls_state(tls)) == (True, "stale")
    files.certificate.unlink()
    files.now_s += 1
    assert tls.context() is old
    files.issue()
    assert tls.context() is not old
    assert (tls.is_stale, tls_state(tls), tls_state(None)) == (False, "ok", "off")


def test_who_asks_is_told_although_no_client_came(files: Files) -> None:
    tls = files.read()
    files.write(b"junk", b"junk")
    assert tls.is_stale
    files.issue()
    assert tls_state(tls) == "ok"


def test_start_is_refused_with_the_variable_and_the_next_step(files: Files) -> None:
    files.key.chmod(0o644)
    with pytest.raises(TlsFileError, match=r"WAVRY_MASTER_TLS_KEY_FILE .*chmod 600"):
        files.read()
    files.key.unlink()
    with pytest.raises(TlsFileError, match=r"WAVRY_MASTER_TLS_KEY_FILE .*No such file"):
        files.read()
    files.write(files.certificate.read_bytes(), b"junk")
    with pytest.raises(TlsFileError, match="no certificate and its key"):
        files.read()


# -- Connections -------------------------------------------------------------------------------


@pytest.fixture
def looked_at_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_module, "LOOK_EVERY_S", 0.0)


def application(files: Files, per_address: int = 100) -> web.Application:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = new_application()
    app.router.add_get("/hello", hello)
    app[TLS] = TlsFiles(files.certificate, files.key, "MASTER")
    app[CONNECTION_BOUNDS] = ConnectionBounds(per_address)
    return app


async def hello(url: str, context: ssl.SSLContext) -> tuple[str, bytes]:
    """The answer, and the certificate that was shown."""
    port = int(url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(b"GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return answer.rpartition(b"\r\n")[2].decode(), shown


@pytest.mark.usefixtures("looked_at_always")
async def test_a_new_certificate_is_shown_without_a_restart(files: Files) -> None:
    async with listening(application(files), "127.0.0.1", 0) as url:
        assert url.startswith("https://127.0.0.1:")
        text, before = await hello(url, files.trusted)
        assert text == "hello"
        files.issue()
        assert (await hello(url, files.trusted))[1] != before
        files.write(b"junk", b"junk")
        assert (await hello(url, files.trusted))[0] == "hello"
        with pytest.raises(ssl.SSLCertVerificationError):
            await hello(url, ssl.create_default_context())


async def test_who_speaks_no_tls_gets_nothing(files: Files) -> None:
    defects: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, about: defects.append(about))
    async with listening(application(files), "127.0.0.1", 0) as url:
        host, port = "127.0.0.1", int(url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"hello" not in await reader.read()
        writer.close()
        assert (await hello(url, files.trusted))[0] == "hello"
    assert not defects


async def test_pitfall_delayed_handshakes_keep_nobody_out(files: Files) -> None:
    before = HttpListener.given_up
    async with listening(application(files, per_address=8), "127.0.0.1", 0) as url:
        port = int(url.rpartition(":")[2])
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
        try:
            assert (await hello(url, files.trusted))[0] == "hello"
            assert HttpListener.given_up > before
        finally:
            for one in held:
                one.close()
