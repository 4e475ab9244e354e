"""GatewayUser: two accounts that call each other, without ever needing a relay."""

import contextlib

from locust import task

from loadtest.run.load_run import LoadFailure
from wavry_peer.protocol.http import api
from wavry_peer.protocol.http import signaling as s

from .calling_user import CallingUser
from .service_calls import answer
from .wavry_user import ready

__all__ = ["GatewayUser"]

CANDIDATE = "candidate:1 1 udp 2122260223 192.0.2.1 9 typ host"
"""An address for documentation (RFC 5737): the gateway only passes it on."""


class GatewayUser(CallingUser):
    """Registers and logs in two accounts, binds them, and has one call the other."""

    @task(6)
    @ready
    def call(self) -> None:
        """Send OFFER, ANSWER, a candidate, BYE; measure each from sender to receiver."""
        offer = self._offer()
        caller, callee = self._caller, self._callee
        try:
            self._answer(offer, accept=True)
            with self.load.measuring("WS CANDIDATE"):
                caller.socket.send(
                    s.Candidate(
                        target_username=callee.username,
                        session_id=offer.session_id,
                        candidate=CANDIDATE,
                    )
                )
                callee.socket.expect(s.Candidate, lambda m: m.session_id == offer.session_id)
        finally:
            # Also where locust stops the user in the middle of a call.
            with contextlib.suppress(LoadFailure):
                caller.socket.send(
                    s.Bye(target_username=callee.username, session_id=offer.session_id)
                )
        with self.load.measuring("WS BYE"):
            callee.socket.expect(s.Bye, lambda m: m.session_id == offer.session_id)

    @task(1)
    @ready
    def refused_call(self) -> None:
        """Make a call that the other user declines."""
        self._answer(self._offer(), accept=False)

    @task(1)
    @ready
    def log_in_again(self) -> None:
        """Log out, in, and bind again."""
        self._caller.go_offline()
        self._caller.come_online()

    @task(1)
    @ready
    def list_sessions(self) -> None:
        """Ask for the sessions of the caller."""
        self.calls.call("GET", "/v1/sessions", answer(api.SessionList), token=self._caller.token)

    def _offer(self) -> s.Offer:
        caller, callee = self._caller, self._callee
        with self.load.measuring("WS OFFER"):
            caller.socket.send(
                s.Offer(
                    target_username=callee.username,
                    identity_key=caller.identity.identity_key,
                    noise_key=caller.identity.noise_key,
                )
            )
            return callee.socket.expect(
                s.Offer, lambda message: message.from_username == caller.username
            )

    def _answer(self, offer: s.Offer, *, accept: bool) -> None:
        caller, callee = self._caller, self._callee
        with self.load.measuring("WS ANSWER"):
            callee.socket.send(
                s.Answer(
                    target_username=caller.username,
                    session_id=offer.session_id,
                    identity_key=callee.identity.identity_key,
                    noise_key=callee.identity.noise_key,
                    accept=accept,
                )
            )
            caller.socket.expect(s.Answer, lambda m: m.session_id == offer.session_id)
