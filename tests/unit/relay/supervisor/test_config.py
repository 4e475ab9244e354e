"""Settings: what is refused, and that the refusal says what to do."""

import os
from pathlib import Path

import pytest
from support.relay.mint import Mint

from wavry_peer.service.settings import SettingsError, describe, load
from wavry_relay.config import RelayConfig

MINT = Mint()
BASE = {"WAVRY_RELAY_ROOT_KEY": MINT.root_text}


def config(**changes: str) -> RelayConfig:
    return load(RelayConfig, {**BASE, **changes})


def test_defaults() -> None:
    made = config()
    assert [tuple(address) for address in made.listen_addresses] == [("127.0.0.1", 4500)]
    assert made.worker_count == len(os.sched_getaffinity(0))
    assert made.ops_address.is_loopback
    assert made.trusted_root() == MINT.root.public_key


def test_pitfall_metrics_are_not_open_to_the_world_unless_told() -> None:
    assert config().ops_address.is_loopback
    assert not config(WAVRY_RELAY_OPS_LISTEN="0.0.0.0:4501").ops_address.is_loopback


def test_both_families() -> None:
    made = config(WAVRY_RELAY_LISTEN="127.0.0.1:4500,[::1]:4501")
    assert [tuple(address) for address in made.listen_addresses] == [
        ("127.0.0.1", 4500),
        ("::1", 4501),
    ]


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:4500", "[::]:4500", "192.0.2.1:1", "127.0.0.1:1,10.0.0.1:2"]
)
def test_pitfall_public_bind_needs_a_word(listen: str) -> None:
    with pytest.raises(SettingsError, match="WAVRY_RELAY_ALLOW_PUBLIC_BIND=1"):
        config(WAVRY_RELAY_LISTEN=listen)
    config(WAVRY_RELAY_LISTEN=listen, WAVRY_RELAY_ALLOW_PUBLIC_BIND="1")


def test_start_without_a_trusted_key_needs_a_word() -> None:
    with pytest.raises(SettingsError, match="WAVRY_RELAY_ALLOW_INSECURE_DEV=1"):
        load(RelayConfig, {})
    made = load(RelayConfig, {"WAVRY_RELAY_ALLOW_INSECURE_DEV": "1"})
    assert made.trusted_root() is None


@pytest.mark.parametrize("variable", ["LISTEN", "OPS_LISTEN", "ADVERTISE"])
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("[::ffff:192.0.2.1]:4500", "must not have .* write 192.0.2.1:4500"),
        ("[fe80::1]:4500", r"must name the interface .*\[fe80::1%eth0\]:4500"),
    ],
)
def test_pitfall_addresses_that_no_socket_can_have_are_refused_by_name(
    variable: str, address: str, said: str
) -> None:
    name = f"WAVRY_RELAY_{variable}"
    with pytest.raises(SettingsError, match=f"{name} {said}"):
        config(**{name: address, "WAVRY_RELAY_ALLOW_PUBLIC_BIND": "1"})


def test_pitfall_a_link_local_address_is_never_told_to_peers() -> None:
    listen = {"WAVRY_RELAY_LISTEN": "[fe80::1%eth0]:4500", "WAVRY_RELAY_ALLOW_PUBLIC_BIND": "1"}
    assert config(**listen).listen_addresses[0] == ("fe80::1%eth0", 4500)
    with pytest.raises(SettingsError, match=r"ADVERTISE must be set: .* has a link-local address"):
        config(**listen, WAVRY_RELAY_MASTER_URL="http://127.0.0.1:1")
    with pytest.raises(SettingsError, match="ADVERTISE must not have a link-local address"):
        config(WAVRY_RELAY_ADVERTISE="[fe80::1%eth0]:4500")


@pytest.mark.parametrize("endpoint", ["0.0.0.0:4500", "[::]:4500", "192.0.2.1:0"])
def test_pitfall_wildcard_is_never_advertised(endpoint: str) -> None:
    with pytest.raises(SettingsError, match="WAVRY_RELAY_ADVERTISE must not"):
        config(WAVRY_RELAY_ADVERTISE=endpoint)


def test_pitfall_wildcard_listen_address_needs_an_advertised_one() -> None:
    wild = {
        "WAVRY_RELAY_LISTEN": "0.0.0.0:4500",
        "WAVRY_RELAY_ALLOW_PUBLIC_BIND": "1",
        "WAVRY_RELAY_MASTER_URL": "http://127.0.0.1:1",
    }
    with pytest.raises(SettingsError, match="WAVRY_RELAY_ADVERTISE must be set"):
        config(**wild)
    config(**wild, WAVRY_RELAY_ADVERTISE="192.0.2.1:4500")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"WAVRY_RELAY_LISTEN": "relay.example:4500"}, "WAVRY_RELAY_LISTEN"),
        ({"WAVRY_RELAY_LISTEN": "127.0.0.1"}, "WAVRY_RELAY_LISTEN"),
        ({"WAVRY_RELAY_LISTEN": ""}, "WAVRY_RELAY_LISTEN"),
        ({"WAVRY_RELAY_OPS_LISTEN": "x"}, "WAVRY_RELAY_OPS_LISTEN"),
        ({"WAVRY_RELAY_ENGINE": "turbo"}, "WAVRY_RELAY_ENGINE"),
        ({"WAVRY_LOG_LEVEL": "loud"}, "WAVRY_LOG_LEVEL"),
        ({"WAVRY_RELAY_MASTER_URL": "ftp://x"}, "WAVRY_RELAY_MASTER_URL"),
        ({"WAVRY_RELAY_MAX_SESSIONS": "0"}, "WAVRY_RELAY_MAX_SESSIONS"),
        ({"WAVRY_RELAY_WORKERS": "many"}, "WAVRY_RELAY_WORKERS"),
        ({"WAVRY_RELAY_ROOT_KEY_FILE": "/x"}, "not both"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        config(**changes)


@pytest.mark.parametrize("text", ["", "short", "=" * 43])
def test_root_key_that_is_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "root.pub"
    path.write_text(text)
    made = load(RelayConfig, {"WAVRY_RELAY_ROOT_KEY_FILE": str(path)})
    with pytest.raises(SettingsError, match="root public key"):
        made.trusted_root()


def test_root_key_file(tmp_path: Path) -> None:
    path = tmp_path / "root.pub"
    path.write_text(MINT.root_text + "\n")
    made = load(RelayConfig, {"WAVRY_RELAY_ROOT_KEY_FILE": str(path)})
    assert made.trusted_root() == MINT.root.public_key
    path.unlink()
    with pytest.raises(SettingsError, match="cannot be read"):
        made.trusted_root()


def test_every_setting_is_documented_with_its_unit() -> None:
    rows = describe(RelayConfig)
    assert all(row.doc.endswith(".") for row in rows)
    for row in rows:
        if row.variable.endswith(("_S", "_KBPS", "_BYTES", "_PPS")):
            assert row.unit, row.variable
