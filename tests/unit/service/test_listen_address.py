"""Addresses of HTTP listeners: bound with their interface, or refused with what to write."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.needs import need_program, need_root
from support.paths import REPOSITORY

from wavry_cp.app.http import listening, new_application
from wavry_cp.gateway.config import GatewayConfig
from wavry_cp.master.config import MasterConfig, check
from wavry_peer.protocol.errors import ListenError
from wavry_peer.service.settings import SettingsError

FILES = Path("unused")


def gateway(listen: str) -> Any:
    return GatewayConfig(
        listen=listen,
        data_dir=FILES,
        master_url="http://127.0.0.1:1",
        service_token_file=FILES,
        allow_public_bind=True,
    )


def master(listen: str) -> Any:
    check(
        MasterConfig(
            listen=listen,
            data_dir=FILES,
            keys_dir=FILES,
            service_token_file=FILES,
            admin_token_file=FILES,
            allow_public_bind=True,
        )
    )


@pytest.mark.parametrize("role", [gateway, master])
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("[::ffff:192.0.2.1]:4500", r"must not have .* write 192\.0\.2\.1:4500"),
        ("[fe80::1]:4500", r"must name the interface .*\[fe80::1%eth0\]:4500"),
        ("[::1%lo]:4500", r"must name .* link-local address only; write \[::1\]:4500"),
    ],
)
def test_pitfall_addresses_that_no_socket_can_have_are_refused_by_name(
    role: Any, address: str, said: str
) -> None:
    role("[fe80::1%eth0]:4500")
    role("localhost:4500")
    with pytest.raises(SettingsError, match=f"WAVRY_{role.__name__.upper()}_LISTEN {said}"):
        role(address)


LINK_LOCAL = """
import asyncio
from aiohttp import web
from wavry_cp.app.http import listening, new_application
from wavry_peer.service.commands.health import probe

async def main():
    app = new_application()
    app.router.add_get("/health", lambda _request: web.json_response({"status": "ok"}))
    async with listening(app, "fe80::7%lo", 0) as url:
        assert url.startswith("http://[fe80::7%lo]:"), url
        found = await asyncio.to_thread(probe, url + "/health", timeout_s=20)
        assert found.healthy, found

asyncio.run(main())
"""


def test_pitfall_a_link_local_address_is_bound_with_its_interface_and_answers() -> None:
    need_root("makes a network namespace")
    need_program("unshare", "ip")
    set_up = "ip link set lo up && ip -6 addr add fe80::7/64 dev lo nodad && exec "
    command = set_up + shlex.join([sys.executable, "-c", LINK_LOCAL])
    subprocess.run(["unshare", "--net", "sh", "-c", command], check=True, cwd=REPOSITORY)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("fe80::7%none0", r"\[fe80::7%none0\]:0 names an interface that this host has not"),
        ("fe80::dead%lo", r"\[fe80::dead%lo\]:0 is not an address of this host"),
        ("no-host.invalid", "no-host.invalid:0 names no IPv4 address"),
    ],
)
async def test_why_an_address_cannot_be_had_is_said_with_the_setting(host: str, said: str) -> None:
    with pytest.raises(ListenError, match=f"cannot listen: {said}; set WAVRY_MASTER_LISTEN"):
        async with listening(new_application(), host, 0, "WAVRY_MASTER_LISTEN"):
            pass
