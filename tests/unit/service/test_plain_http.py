"""Who sends a token refuses plain http to another machine, unless told."""

from collections.abc import Callable
from pathlib import Path

import pytest

from wavry_cp.admin.endpoints import find_endpoints
from wavry_cp.admin.output import EXIT_USAGE, CommandError
from wavry_cp.gateway.config import GatewayConfig
from wavry_peer.gateway.client import normalize_gateway_url
from wavry_peer.protocol.errors import LocalError
from wavry_peer.service.http_client import is_readable_on_the_way
from wavry_peer.service.settings import load
from wavry_relay.config import RelayConfig

AWAY = ("http://master.example:8091", "http://192.0.2.7", "http://[2001:db8::7]:8091", "HTTP://m/")
HERE = (
    "http://127.0.0.1:8091", "http://127.9.9.9", "http://[::1]:8091", "http://localhost:1",
    "http://master.localhost",
)  # fmt: skip
SAFE = ("https://master.example", "https://192.0.2.7:8091")


def relay(url: str, *, told: bool) -> object:
    environ = {"WAVRY_RELAY_ALLOW_INSECURE_DEV": "1", "WAVRY_RELAY_MASTER_URL": url}
    return load(RelayConfig, environ | ({"WAVRY_RELAY_ALLOW_HTTP": "1"} if told else {}))


def gateway(url: str, *, told: bool) -> object:
    environ = {
        "WAVRY_GATEWAY_MASTER_URL": url,
        "WAVRY_GATEWAY_DATA_DIR": "data",
        "WAVRY_GATEWAY_SERVICE_TOKEN_FILE": "token",
    }
    return load(GatewayConfig, environ | ({"WAVRY_GATEWAY_ALLOW_HTTP": "1"} if told else {}))


def wavryctl_by_variable(url: str, *, told: bool) -> object:
    environ = {"WAVRY_MASTER_URL": url}
    return find_endpoints(environ | ({"WAVRY_ALLOW_HTTP": "1"} if told else {}))


def wavryctl_by_option(url: str, *, told: bool) -> object:
    return find_endpoints({}, gateway_url=url, allow_http=told)


def peer(url: str, *, told: bool) -> object:
    return normalize_gateway_url(url, allow_http=told)


CALLERS = (relay, gateway, wavryctl_by_variable, wavryctl_by_option, peer)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("url", AWAY)
def test_another_machine_by_http_is_refused_with_the_next_step(
    caller: Callable[..., object], url: str
) -> None:
    with pytest.raises((LocalError, CommandError), match=r"http:// .*use https://.*ALLOW_HTTP=1"):
        caller(url, told=False)
    assert caller(url, told=True)


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("url", HERE + SAFE)
def test_this_machine_and_https_pass(caller: Callable[..., object], url: str) -> None:
    assert caller(url, told=False)


def test_wavryctl_ends_as_at_wrong_usage() -> None:
    with pytest.raises(CommandError) as caught:
        find_endpoints({"WAVRY_GATEWAY_URL": AWAY[0]}, admin_token_file=Path("token"))
    assert (caught.value.code, caught.value.exit_code) == ("plain_http", EXIT_USAGE)


def test_what_is_no_url_is_left_to_who_takes_it() -> None:
    assert not is_readable_on_the_way("http://[::1")
    assert not is_readable_on_the_way("")
