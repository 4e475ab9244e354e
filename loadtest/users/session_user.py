"""SessionUser: everything that two real peers do, from accounts to encrypted media and back."""

import contextlib
import functools
import uuid
from collections.abc import Callable
from typing import Final

from locust import task

from loadtest.media.peers import SecurePeer
from loadtest.run.load_run import LoadFailure, now_ns, together, uninterrupted
from wavry_peer.errors import PeerUnavailableError
from wavry_peer.gateway.calls import read_noise_key
from wavry_peer.paths.own_lease import OwnLease
from wavry_peer.protocol.constants import Role
from wavry_peer.protocol.http import api
from wavry_peer.protocol.http import signaling as s

from .calling_user import CallingUser
from .online_user import OnlineUser
from .service_calls import answer, nothing
from .wavry_user import own_lease, ready

__all__ = ["SessionUser"]

SETUP: Final = "E2E session setup"
HANDSHAKE: Final = "E2E handshake"


class SessionUser(CallingUser):
    """Two accounts; one calls, the other accepts; leases, relay, Noise handshake, media, end.

    The called user sends the media, as the host of a game or a screen does.
    """

    streams_media = True

    @task
    @ready
    def session(self) -> None:
        """Run one session from the call to its end."""
        began_ns = now_ns()
        peers: dict[Role, SecurePeer] = {}
        session_id: str | None = None
        try:
            try:
                session_id = self._call()
                self._connect(session_id, peers)
            except LoadFailure as failure:
                self.load.measured(SETUP, now_ns() - began_ns, failure.reason)
                raise
            self.load.measured(SETUP, now_ns() - began_ns)
            self.stream_between(
                peers[Role.SERVER],
                peers[Role.CLIENT],
                {role: self._renewer(session_id, role) for role in Role},
            )
        finally:
            for peer in peers.values():
                peer.close()
            if session_id is not None:
                uninterrupted(functools.partial(self._hang_up, session_id))

    def _account(self, role: Role) -> OnlineUser:
        return self._caller if role is Role.CLIENT else self._callee

    def _call(self) -> str:
        caller, callee = self._caller, self._callee
        with self.load.measuring("WS OFFER"):
            info = self.calls.call(
                "POST",
                "/v1/sessions",
                answer(api.SessionInfo),
                body=api.CreateSessionRequest(
                    target_username=callee.username,
                    identity_key=caller.identity.identity_key,
                    noise_key=caller.identity.noise_key,
                ),
                token=caller.token,
            )
            self._offered = callee.socket.expect(
                s.Offer, lambda message: message.session_id == info.session_id
            )
        return info.session_id

    def _connect(self, session_id: str, peers: dict[Role, SecurePeer]) -> None:
        """Accept, get leases, take both places, shake hands; fills `peers` as they are made."""
        caller, callee = self._caller, self._callee
        path = f"/v1/sessions/{session_id}"
        with self.load.measuring("WS ANSWER"):
            self.calls.call(
                "POST",
                f"{path}/accept",
                answer(api.SessionInfo),
                body=api.AcceptSessionRequest(
                    identity_key=callee.identity.identity_key, noise_key=callee.identity.noise_key
                ),
                token=callee.token,
                name="/v1/sessions/{id}/accept",
            )
            answered = caller.socket.expect(s.Answer, lambda m: m.session_id == session_id)
        with self.load.measuring("WS RELAY_CREDENTIALS"):
            asked = self.calls.call(
                "POST",
                f"{path}/relay",
                answer(api.Credentials),
                body=api.RelaySessionRequest(region=self.load.options.region),
                token=caller.token,
                name="/v1/sessions/{id}/relay",
            )
            told = callee.socket.expect(s.RelayCredentials, lambda m: m.session_id == session_id)
        peers[Role.CLIENT] = self._peer(Role.CLIENT, asked, answered.noise_key)
        peers[Role.SERVER] = self._peer(Role.SERVER, told, self._offered.noise_key)
        self.present_both(peers[Role.CLIENT], peers[Role.SERVER])
        with self.load.measuring(HANDSHAKE):
            together(peers[Role.SERVER].shake_hands, peers[Role.CLIENT].shake_hands)

    def _peer(
        self, role: Role, given: api.Credentials | s.RelayCredentials, remote_key: str | None
    ) -> SecurePeer:
        try:
            remote_noise_key = read_noise_key(remote_key)
        except PeerUnavailableError as error:
            raise LoadFailure("the other peer named no key") from error
        return SecurePeer(
            given.addr,
            session_id=uuid.UUID(given.session_id).bytes,
            role=role,
            lease=self._lease(role, given.session_id, given.token),
            identity=self._account(role).identity,
            remote_noise_key=remote_noise_key,
        )

    def _lease(self, role: Role, session_id: str, token: str) -> OwnLease:
        return own_lease(
            token,
            session_id=uuid.UUID(session_id).bytes,
            role=role,
            identity=self._account(role).identity,
        )

    def _renewer(self, session_id: str, role: Role) -> Callable[[OwnLease], OwnLease]:
        def next_lease(old: OwnLease) -> OwnLease:
            renewed = self.calls.call(
                "POST",
                f"/v1/sessions/{session_id}/renew",
                answer(api.Credentials),
                body=api.RenewSessionRequest(jti=old.jti),
                token=self._account(role).token,
                name="/v1/sessions/{id}/renew",
            )
            return self._lease(role, session_id, renewed.token)

        return next_lease

    def _hang_up(self, session_id: str) -> None:
        with contextlib.suppress(LoadFailure), self.load.measuring("WS BYE"):  # counted
            self.calls.call(
                "DELETE",
                f"/v1/sessions/{session_id}",
                nothing,
                token=self._caller.token,
                name="/v1/sessions/{id}",
            )
            self._callee.socket.expect(s.Bye, lambda m: m.session_id == session_id)
