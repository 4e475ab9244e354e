"""What all users have in common: their run, their calls, and how they get up again."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

import gevent
from locust import FastHttpUser

from loadtest.media.peers import MediaPeer
from loadtest.media.stream import MediaStream
from loadtest.run.load_run import LoadFailure, LoadRun, current_run, now_ns, together, uninterrupted
from wavry_peer.errors import LeaseMismatchError
from wavry_peer.home.identity import Identity
from wavry_peer.paths.own_lease import OwnLease, read_own_lease
from wavry_peer.protocol.constants import Role

from .lease_keeper import keep_renewed
from .service_calls import ServiceCalls, tls_context

__all__ = ["WavryUser", "own_lease", "ready"]

User = TypeVar("User", bound="WavryUser")

PRESENT: Final = "UDP lease present"
SESSION_END: Final = "UDP session end"
RETRY_S: Final = 1.0
MAX_RETRY_S: Final = 30.0


def own_lease(token: str, *, session_id: bytes, role: Role, identity: Identity) -> OwnLease:
    """Return a lease that was just received.

    Raises:
        LoadFailure: it is not for this session, role and key.
    """
    try:
        return read_own_lease(
            token,
            session_id=session_id,
            role=role,
            public_key=identity.signing.public_key,
            now_ns=now_ns(),
        )
    except LeaseMismatchError as error:
        raise LoadFailure("the lease is not ours") from error


def ready(work: Callable[[User], Any]) -> Callable[[User], None]:
    """Make a task that first sets its user up, and again after a failure.

    A failure has been counted where it happened; the user then waits as long as it was asked to
    (at least a second), so that a system that is down is not hammered.
    """

    @functools.wraps(work)
    def task(user: User) -> None:
        try:
            if not user.is_set_up:
                user.set_up()
                user.is_set_up = True
            work(user)
        except LoadFailure as failure:
            user.take_down()
            gevent.sleep(min(failure.retry_after_s or RETRY_S, MAX_RETRY_S))

    return task


class WavryUser(FastHttpUser):
    """A user with one service to call.

    Attributes:
        load: the run that it is part of.
        number: different from that of every other user of the run.
        calls: of the service.
        is_set_up: whether `set_up` has worked.
    """

    abstract = True
    insecure = False  # locust's default would take any certificate
    connection_timeout = 5.0
    network_timeout = 15.0
    ssl_context_factory = staticmethod(tls_context)
    service: ClassVar[str]
    """``gateway`` or ``master``: which of them it calls."""
    streams_media: ClassVar[bool] = False

    def __init__(self, environment: Any) -> None:
        self.load: LoadRun = current_run()
        target = self.load.target
        self.host = target.need_gateway() if self.service == "gateway" else target.need_master()[0]
        super().__init__(environment)
        self.number = self.load.next_user_number()
        self.calls = ServiceCalls(self.client)
        self.is_set_up = False

    def set_up(self) -> None:
        """Get ready for the tasks.

        Raises:
            LoadFailure: the system does not let us.
        """

    def take_down(self) -> None:
        """Give back what `set_up` took; never raises, and again it does nothing."""
        self.is_set_up = False

    def on_stop(self) -> None:
        """Release what the user holds; Locust calls it at his end."""
        self.take_down()

    def wait_time(self) -> float:
        """Return seconds between two tasks."""
        return self.load.options.pause_s

    # -- What RelayUser and SessionUser do with two peers ------------------------------

    def present(self, peer: MediaPeer) -> None:
        """Take the peer's place at the relay."""
        with self.load.measuring(PRESENT):
            peer.channel.present()
        # Real peers shake hands meanwhile; who sends media at once would exceed what a relay
        # sends to an address that is not proved.
        peer.channel.prove()

    def stream_between(
        self,
        server: MediaPeer,
        client: MediaPeer,
        next_leases: dict[Role, Callable[[OwnLease], OwnLease]],
    ) -> None:
        """Stream for the length of a session, and renew both leases meanwhile.

        Raises:
            LoadFailure: a path was lost.
        """
        load = self.load
        stream = MediaStream(load, server, client)
        keepers = [
            gevent.spawn(keep_renewed, load, peer.channel, next_leases[role])
            for role, peer in ((Role.CLIENT, client), (Role.SERVER, server))
        ]
        outcome: str | None = None

        def close() -> None:
            ended_ns = now_ns()
            gevent.killall(keepers)
            stream.finish()
            client.close()
            server.close()
            load.measured(SESSION_END, now_ns() - ended_ns, outcome)

        try:
            stream.stream(load.options.session_s)
        except LoadFailure as failure:
            outcome = failure.reason
            raise
        finally:
            # However the session ends, locust stopping the user included.
            uninterrupted(close)

    def present_both(self, one: MediaPeer, other: MediaPeer) -> None:
        """Take both places at the same time, as two peers do."""
        together(lambda: self.present(one), lambda: self.present(other))
