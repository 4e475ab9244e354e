"""What a relay owns that must outlive it, as descriptors; their order is fixed here."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from wavry_relay.shm.segment import Segment
from wavry_relay.udp.sockets import ReuseportGroup

from .messages import GroupFacts

__all__ = ["OWN_DESCRIPTORS", "RelayDescriptors"]

OWN_DESCRIPTORS = 3
"""Before the sockets of the groups."""


@dataclass(frozen=True, slots=True)
class RelayDescriptors:
    """Everything that a successor receives.

    Attributes:
        segment: shared memory.
        lock_fd: holds the state directory.
        ops_socket: listening socket of the ops port.
        groups: UDP sockets.
    """

    segment: Segment
    lock_fd: int
    ops_socket: socket.socket
    groups: list[ReuseportGroup]

    @classmethod
    def from_fds(cls, fds: Sequence[int], facts: Sequence[GroupFacts]) -> Self:
        """Take what a predecessor sent.

        Args:
            fds: in the order of `fds`; owned from here on.
            facts: of the groups.
        """
        segment_fd, lock_fd, ops_fd = fds[:OWN_DESCRIPTORS]
        ops_socket = socket.socket(fileno=ops_fd)
        rest = iter(fds[OWN_DESCRIPTORS:])
        groups = []
        for group in facts:
            sockets = [socket.socket(fileno=next(rest)) for _ in range(group.sockets)]
            groups.append(
                ReuseportGroup(
                    group.host,
                    group.port,
                    sockets,
                    steering_error=group.steering_error,
                    receive_buffer_bytes=group.receive_buffer_bytes,
                    send_buffer_bytes=group.send_buffer_bytes,
                    sharing_error=group.sharing_error,
                )
            )
        return cls(Segment.attach(segment_fd), lock_fd, ops_socket, groups)

    def fds(self) -> list[int]:
        """Return the descriptors in the order of the wire."""
        fds = [self.segment.fd, self.lock_fd, self.ops_socket.fileno()]
        return fds + [sock.fileno() for group in self.groups for sock in group.sockets]

    def group_facts(self) -> tuple[GroupFacts, ...]:
        """Return what the successor cannot see in the sockets themselves."""
        return tuple(
            GroupFacts(
                host=group.host,
                port=group.port,
                sockets=len(group.sockets),
                steering_error=group.steering_error,
                receive_buffer_bytes=group.receive_buffer_bytes,
                send_buffer_bytes=group.send_buffer_bytes,
                sharing_error=group.sharing_error,
            )
            for group in self.groups
        )
