"""The sockets of a relay, its own or passed ones, and what the operator should know about them."""

import contextlib
from collections.abc import Sequence
from typing import Final

import structlog

from wavry_peer.service.settings import SettingsError
from wavry_relay.config import MAX_LISTEN_ADDRESSES, ListenAddress, RelayConfig

from .activation import Activation
from .sockets import ReuseportGroup, adopt_group, open_group, set_busy_poll, size_buffers

__all__ = ["check_guards", "open_listening", "resize_buffers"]

_PASSED: Final = "the passed sockets (ListenDatagram=)"

_log = structlog.get_logger(__name__)


def open_listening(
    config: RelayConfig, activation: Activation, workers: int, cleanup: contextlib.AsyncExitStack
) -> list[ReuseportGroup]:
    """Open the UDP sockets of the settings, or adopt the passed ones.

    Args:
        config: settings.
        activation: passed sockets.
        workers: number of workers.
        cleanup: closes each group at the relay's end.

    Raises:
        ListenError: an address cannot be used.
        SettingsError: the guards of the settings forbid a passed socket.
    """
    groups = []
    if activation.udp:
        _check_passed(config, activation)
        for passed in activation.udp:
            group = adopt_group(passed, workers, config.socket_buffer_bytes)
            cleanup.callback(group.close)
            groups.append(group)
    else:
        for address in config.listen_addresses:
            group = open_group(address.host, address.port, workers, config.socket_buffer_bytes)
            cleanup.callback(group.close)
            groups.append(group)
    for group in groups:
        _warn_of(group, workers)
        _warn_of_buffers(group, config.socket_buffer_bytes)
    if config.busy_poll_us and (refused := set_busy_poll(groups, config.busy_poll_us)):
        _log.warning(
            "socket_busy_poll_refused",
            cause=refused,
            effect="workers poll, the network device is not polled with them",
            next_step="give the relay CAP_NET_ADMIN, or set net.core.busy_read",
        )
    return groups


def check_guards(config: RelayConfig, addresses: Sequence[tuple[str, int]]) -> None:
    """Check that the settings allow sockets that this process did not open.

    Args:
        config: settings.
        addresses: host and port of each, from a service manager or a relay that is taken over.

    Raises:
        SettingsError: they forbid one, or leave open what peers are told.
    """
    faults = config.guard([ListenAddress(*address) for address in addresses], _PASSED)
    if len(addresses) > MAX_LISTEN_ADDRESSES:
        faults.append(f"{_PASSED} must have at most {MAX_LISTEN_ADDRESSES} addresses")
    if faults:
        raise SettingsError("\n".join(faults))


def _check_passed(config: RelayConfig, activation: Activation) -> None:
    check_guards(config, activation.addresses)
    passed = [ListenAddress(*address) for address in activation.addresses]
    wanted = config.listen_addresses
    if config.listen != RelayConfig.__dataclass_fields__["listen"].default and set(wanted) != set(
        passed
    ):
        _log.warning(
            "listen_setting_ignored",
            cause="sockets were passed to the relay",
            next_step="unset WAVRY_RELAY_LISTEN; the addresses are in the socket unit",
        )


def resize_buffers(groups: list[ReuseportGroup], wanted_bytes: int) -> None:
    """Give the sockets of a running relay other buffers."""
    for group in groups:
        size_buffers(group, wanted_bytes)
        _warn_of_buffers(group, wanted_bytes)


def _warn_of(group: ReuseportGroup, workers: int) -> None:
    if group.sharing_error is not None:
        _log.warning(
            "sockets_shared",
            listen=group.endpoint,
            cause=group.sharing_error,
            sockets=len(group.sockets),
            workers=workers,
            effect="several workers read one socket: slower, and a stream's order may suffer",
            next_step="list ListenDatagram= once per worker with ReusePort=true",
        )
    if group.steering_error is not None:
        _log.warning(
            "steering_unavailable",
            listen=group.endpoint,
            cause=group.steering_error,
            next_step="none needed: any worker handles any packet, a little slower",
        )


def _warn_of_buffers(group: ReuseportGroup, wanted_bytes: int) -> None:
    if min(group.receive_buffer_bytes, group.send_buffer_bytes) >= wanted_bytes:
        return
    _log.warning(
        "socket_buffers_small",
        listen=group.endpoint,
        wanted_bytes=wanted_bytes,
        receive_bytes=group.receive_buffer_bytes,
        send_bytes=group.send_buffer_bytes,
        cause="the kernel's limit is lower, and the relay may not go beyond it",
        effect="bursts are lost",
        next_step=f"sysctl net.core.rmem_max={wanted_bytes} net.core.wmem_max={wanted_bytes},"
        " give the relay CAP_NET_ADMIN, or ask for less (WAVRY_RELAY_SOCKET_BUFFER_BYTES)",
    )
