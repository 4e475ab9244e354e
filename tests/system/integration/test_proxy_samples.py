"""The samples of TLS proxies let pass what peers, relays and gateways call, and nothing else."""

import asyncio
import fnmatch
import os
import re
import socket
import ssl
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from support.needs import need_program
from support.waiting import wait_until

from wavry_cp.app.routes import CallerKind, Route
from wavry_cp.gateway.routes import ROUTES as GATEWAY_ROUTES
from wavry_cp.master.routes import ROUTES as MASTER_ROUTES

SAMPLES = Path(__file__).parents[3] / "docs" / "tls"
NGINX, CADDY = (SAMPLES / name for name in ("nginx.conf", "Caddyfile"))
OTHERS = {
    CallerKind.USER, CallerKind.LOGIN, CallerKind.RELAY, CallerKind.RELAY_IN_BODY,
    CallerKind.SERVICE, CallerKind.ANYONE,
}  # fmt: skip
FOR_MONITORS = {"/health", "/ready", "/openapi.json"}
"""Open to all who reach them, but meant for the operator's machines."""
OF_GATEWAYS = {"/health"}
"""A gateway asks it of the master."""


def called_by_others(routes: tuple[Route[Any], ...]) -> set[str]:
    """Paths that somebody on another host must reach, without a token of an operator."""
    return {
        route.shown_path
        for route in routes
        if OTHERS & set(route.callers) and route.shown_path not in FOR_MONITORS
    }


def for_operators(routes: tuple[Route[Any], ...]) -> set[str]:
    return {route.shown_path for route in routes} - called_by_others(routes)


class Rules:
    """Patterns of paths that one host of a sample lets pass."""

    def __init__(self, prefixes: list[str], exact: list[str], patterns: list[str]) -> None:
        self.prefixes, self.exact, self.patterns = prefixes, exact, patterns

    def pass_on(self, path: str) -> bool:
        return (
            path in self.exact
            or path.startswith(tuple(self.prefixes))
            or any(fnmatch.fnmatchcase(path, pattern) for pattern in self.patterns)
        )


def nginx_rules(port: int) -> Rules:
    found = re.findall(rf"location (= )?(\S+) +{{ proxy_pass http://127.0.0.1:{port}; }}",
                       NGINX.read_text())  # fmt: skip
    return Rules([p for exact, p in found if not exact], [p for exact, p in found if exact], [])


def caddy_rules(port: int) -> Rules:
    (site,) = (part for part in CADDY.read_text().split("\n}\n") if f"127.0.0.1:{port}" in part)
    (paths,) = re.findall(r"@\w+ path (.+)", site)
    return Rules([], [], paths.split())


@pytest.mark.parametrize("rules", [nginx_rules, caddy_rules])
@pytest.mark.parametrize(("port", "routes"), [(8090, GATEWAY_ROUTES), (8091, MASTER_ROUTES)])
def test_every_call_of_others_passes_and_no_call_of_operators(
    rules: Any, port: int, routes: tuple[Route[Any], ...]
) -> None:
    found = rules(port)
    passed = {path for path in called_by_others(routes) if found.pass_on(path)}
    assert passed == called_by_others(routes)
    more = {path for path in for_operators(routes) if found.pass_on(path)}
    assert more <= (OF_GATEWAYS if port == 8091 else set())


# -- The proxies themselves --------------------------------------------------------------------


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class RunningProxy(ABC):
    """A proxy with its sample, names and ports those of this test."""

    program: str
    check: tuple[str, ...]

    def __init__(self, directory: Path, backend_port: int) -> None:
        self.port = _free_port()
        self.directory = directory
        authority = trustme.CA()
        self.trusted = ssl.create_default_context()
        authority.configure_trust(self.trusted)
        for name in ("gateway", "master"):
            issued = authority.issue_cert(f"{name}.example.net")
            issued.private_key_pem.write_to_path(str(directory / f"{name}.key"))
            chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
            (directory / f"{name}.pem").write_bytes(chain)
        self.command = [self.program, *self.configure(backend_port)]

    @abstractmethod
    def configure(self, backend_port: int) -> list[str]:
        """Write the configuration; arguments of the program."""

    @contextmanager
    def running(self) -> Iterator[None]:
        command = [*self.command[:1], *self.check, *self.command[-2:]]
        tested = subprocess.run(command, capture_output=True, text=True, check=False)
        assert tested.returncode == 0, tested.stderr
        process = subprocess.Popen(
            self.command, stderr=sys.stderr, env={**os.environ, "HOME": str(self.directory)}
        )
        try:
            wait_until(self._answers, what="the proxy answers")
            yield
        finally:
            process.terminate()
            process.wait(10)

    def _answers(self) -> bool:
        with socket.socket() as sock:
            return sock.connect_ex(("127.0.0.1", self.port)) == 0


def _to(backend_port: int, text: str) -> str:
    return re.sub(r"127\.0\.0\.1:809[01]", f"127.0.0.1:{backend_port}", text)


class RunningNginx(RunningProxy):
    program = "nginx"
    check = ("-t",)

    def configure(self, backend_port: int) -> list[str]:
        directory = self.directory
        text = NGINX.read_text().replace("listen [::]:443 ssl;", "")
        text = text.replace("443", f"127.0.0.1:{self.port}").replace(
            "/etc/wavry/tls", str(directory)
        )
        text = _to(backend_port, text)
        temporary = "".join(
            f"{kind}_temp_path {directory}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        (directory / "nginx.conf").write_text(
            f"daemon off; pid {directory}/pid; error_log {directory}/error.log;"
            f"events {{}} http {{ access_log off; {temporary}\n{text} }}"
        )
        return ["-p", str(directory), "-c", str(directory / "nginx.conf")]


class RunningCaddy(RunningProxy):
    program = "caddy"
    check = ("validate", "--adapter", "caddyfile")

    def configure(self, backend_port: int) -> list[str]:
        text = _to(backend_port, CADDY.read_text())
        for name in ("gateway", "master"):
            host = f"{name}.example.net"
            files = f"{self.directory}/{name}.pem {self.directory}/{name}.key"
            text = text.replace(f"{host} {{", f"{host}:{self.port} {{\n\ttls {files}\n")
        path = self.directory / "Caddyfile"
        path.write_text("{\n\tadmin off\n\tauto_https disable_redirects\n}\n" + text)
        return ["run", "--adapter", "caddyfile", "--config", str(path)]


@pytest.mark.parametrize("kind", [RunningNginx, RunningCaddy])
async def test_a_proxy_passes_calls_and_websockets_with_the_clients_address(
    kind: type[RunningProxy], tmp_path: Path
) -> None:
    need_program(kind.program)

    async def tell(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["X-Forwarded-For"])

    async def echo(request: web.Request) -> web.WebSocketResponse:
        socket_ = web.WebSocketResponse()
        await socket_.prepare(request)
        await socket_.send_str((await socket_.receive_str()).upper())
        await socket_.close()
        return socket_

    app = web.Application()
    app.router.add_get("/ws", echo)
    app.router.add_route("*", "/{path:.*}", tell)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    backend_port = runner.addresses[0][1]
    proxy = kind(tmp_path, backend_port)
    connector = aiohttp.TCPConnector(resolver=_Here(), ssl=proxy.trusted)
    try:
        with proxy.running():
            async with aiohttp.ClientSession(connector=connector) as client:
                gateway = f"https://gateway.example.net:{proxy.port}"
                master = f"https://master.example.net:{proxy.port}"
                liar = {"X-Forwarded-For": "198.51.100.1"}
                async with client.post(gateway + "/auth/login", headers=liar) as answer:
                    assert await answer.text() == "127.0.0.1", "what the client says is replaced"
                async with client.ws_connect(gateway + "/ws") as opened:
                    await opened.send_str("ping")
                    assert await opened.receive_str() == "PING"
                for url, status in (
                    (master + "/v1/relays/register", 200),
                    (gateway + "/metrics", 404),
                    (gateway + "/v1/admin/users", 404),
                    (master + "/v1/admin/tokens", 404),
                    (master + "/v1/leases/revoke", 404),
                ):
                    async with client.get(url) as answer:
                        assert answer.status == status, url
    finally:
        await runner.cleanup()


class _Here(aiohttp.abc.AbstractResolver):
    """Every name is this machine."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        await asyncio.sleep(0)
        return [
            aiohttp.abc.ResolveResult(
                hostname=host, host="127.0.0.1", port=port, family=family, proto=0, flags=0
            )
        ]

    async def close(self) -> None:
        """Nothing is open."""
