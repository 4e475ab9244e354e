"""MasterUser: what gateways and relays ask of a master."""

import contextlib
import hashlib
import hmac
import uuid
from typing import Final

from locust import task

from loadtest.run.load_run import LoadFailure
from wavry_peer.home.identity import Identity
from wavry_peer.paths.own_lease import OwnLease
from wavry_peer.protocol import base64url, keyset
from wavry_peer.protocol.constants import Role
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.http import api
from wavry_peer.protocol.registration import sign_registration
from wavry_peer.protocol.relay_terms import ReportedState

from .service_calls import answer, nothing
from .wavry_user import WavryUser, own_lease, ready

__all__ = ["MasterUser"]

KEY_LABEL: Final = b"wavry-loadtest-relay"
NOWHERE: Final = "192.0.2.1"
"""An address for documentation (RFC 5737): nothing is ever sent there.  A master takes it with
WAVRY_MASTER_PRIVATE_ENDPOINTS=1."""
FIRST_PORT: Final = 1024
PORTS: Final = 64_000


class MasterUser(WavryUser):
    """A gateway that asks for leases and renews them, and a simulated relay that reports.

    The simulated relay always reports ``starting``, so that the master never gives it to anybody.
    Its key comes from the service token: the next run is the same relay again, so that runs
    that were killed do not fill the registry.
    """

    service = "master"

    def __init__(self, environment: object) -> None:
        super().__init__(environment)
        _, token = self.load.target.need_master()
        seed = hmac.digest(
            token.encode(), KEY_LABEL + self.number.to_bytes(8, "big"), hashlib.sha256
        )
        self._key = SigningKey.from_seed(seed)
        self._relay_id = str(keyset.relay_id(self._key.public_key))
        self._relay: api.VerifyResponse | None = None
        self._session: tuple[str, OwnLease, Identity] | None = None

    def set_up(self) -> None:
        """Register the simulated relay.

        Raises:
            LoadFailure: the master does not take it.
        """
        endpoints = (f"{NOWHERE}:{FIRST_PORT + self.number % PORTS}",)
        first = self.calls.call(
            "POST",
            "/v1/relays/register",
            answer(api.RegisterResponse),
            body=api.RegisterRequest(
                relay_id=self._relay_id,
                public_key=base64url.encode(self._key.public_key),
                endpoints=endpoints,
                max_sessions=1,
                max_bitrate_kbps=1,
                version="loadtest",
            ),
            token=self._service_token,
        )
        signature = sign_registration(
            self._key,
            base64url.decode(first.challenge, size=32),
            base64url.decode(first.master_id, size=32),
            endpoints,
        )
        self._relay = self.calls.call(
            "POST",
            "/v1/relays/register/verify",
            answer(api.VerifyResponse),
            body=api.VerifyRequest(
                challenge_id=first.challenge_id, signature=base64url.encode(signature)
            ),
        )

    def take_down(self) -> None:
        """Deregister the simulated relay."""
        super().take_down()
        relay, self._relay = self._relay, None
        if relay is None:
            return
        # A failure is counted; without heartbeats the relay is OFFLINE in a moment.
        with contextlib.suppress(LoadFailure):
            self.calls.call(
                "DELETE",
                f"/v1/relays/{self._relay_id}",
                nothing,
                token=relay.relay_token,
                name="/v1/relays/{id}",
            )

    @property
    def _service_token(self) -> str:
        return self.load.target.need_master()[1]

    @task(5)
    @ready
    def heartbeat(self) -> None:
        """Report as the simulated relay."""
        relay = self._relay
        if relay is None:
            return
        keys = relay.keyset
        self.calls.call(
            "POST",
            "/v1/relays/heartbeat",
            answer(api.HeartbeatResponse),
            body=api.HeartbeatRequest(
                relay_id=self._relay_id,
                load_pct=0,
                active_sessions=0,
                bandwidth_in_kbps=0,
                bandwidth_out_kbps=0,
                packet_loss_pct=0,
                held_kids=tuple(key.kid for key in keys.keys),
                keyset_serial=keys.serial,
                state=ReportedState.STARTING,
            ),
            token=relay.relay_token,
        )

    @task(3)
    @ready
    def lease(self) -> None:
        """Get leases for a new session, which nobody presents."""
        identity, other = Identity.generate(), Identity.generate()
        issued = self.calls.call(
            "POST",
            "/v1/leases",
            answer(api.LeaseResponse),
            body=api.LeaseRequest(
                client=api.LeaseParty(sub=f"load-{self.number}-a", cnf=identity.identity_key),
                server=api.LeaseParty(sub=f"load-{self.number}-b", cnf=other.identity_key),
                region=self.load.options.region,
                ttl_s=self.load.options.lease_ttl_s,
            ),
            token=self._service_token,
        )
        self._keep(issued.session_id, issued.leases.client, identity)

    @task(3)
    @ready
    def renew(self) -> None:
        """Renew the client's lease of the newest session; the first time there is none yet."""
        if self._session is None:
            return
        session_id, lease, identity = self._session
        self._session = None  # if this fails, the next session is a new one
        renewed = self.calls.call(
            "POST",
            "/v1/leases/renew",
            answer(api.RenewResponse),
            body=api.RenewRequest(session_id=session_id, role="client", jti=lease.jti),
            token=self._service_token,
        )
        self._keep(session_id, renewed.lease, identity)

    @task(1)
    @ready
    def list_relays(self) -> None:
        """Ask for the list of all relays."""
        self.calls.call("GET", "/v1/relays", answer(api.RelayList), token=self._service_token)

    def _keep(self, session_id: str, token: str, identity: Identity) -> None:
        lease = own_lease(
            token, session_id=uuid.UUID(session_id).bytes, role=Role.CLIENT, identity=identity
        )
        self._session = (session_id, lease, identity)
