"""RelayUser: sessions of two peers at a relay, with leases from the master and no gateway."""

import uuid
from collections.abc import Callable

from locust import task

from loadtest.media.peers import PlainPeer
from wavry_peer.home.identity import Identity
from wavry_peer.paths.own_lease import OwnLease
from wavry_peer.protocol.constants import ROLE_NAMES, Role
from wavry_peer.protocol.http import api

from .service_calls import answer
from .wavry_user import WavryUser, own_lease, ready

__all__ = ["RelayUser"]


class RelayUser(WavryUser):
    """One session after another: leases of the master, both presented, media for a while.

    It speaks the relay protocol as peers do (proofs, cookies, retransmissions, renewals, giving the
    place back) and leaves out the end-to-end encryption, which a relay cannot see and which
    would cost this process more than all the rest.
    """

    service = "master"
    streams_media = True

    @task
    @ready
    def session(self) -> None:
        """Run one session from lease to the end."""
        load = self.load
        _, token = load.target.need_master()
        identities = {role: Identity.generate() for role in Role}
        parties = {
            role: api.LeaseParty(
                sub=f"load-{self.number}-{ROLE_NAMES[role]}", cnf=identities[role].identity_key
            )
            for role in Role
        }
        issued = self.calls.call(
            "POST",
            "/v1/leases",
            answer(api.LeaseResponse),
            body=api.LeaseRequest(
                client=parties[Role.CLIENT],
                server=parties[Role.SERVER],
                region=load.options.region,
                exclude_relays=load.exclude_relays,
                ttl_s=load.options.lease_ttl_s,
            ),
            token=token,
        )
        session_id = uuid.UUID(issued.session_id).bytes
        tokens = {Role.CLIENT: issued.leases.client, Role.SERVER: issued.leases.server}

        def lease_of(role: Role, text: str) -> OwnLease:
            return own_lease(text, session_id=session_id, role=role, identity=identities[role])

        def renewer(role: Role) -> Callable[[OwnLease], OwnLease]:
            def next_lease(old: OwnLease) -> OwnLease:
                renewed = self.calls.call(
                    "POST",
                    "/v1/leases/renew",
                    answer(api.RenewResponse),
                    body=api.RenewRequest(
                        session_id=issued.session_id,
                        role="client" if role is Role.CLIENT else "server",
                        jti=old.jti,
                    ),
                    token=token,
                )
                return lease_of(role, renewed.lease)

            return next_lease

        peers: dict[Role, PlainPeer] = {}
        try:
            for role in Role:
                peers[role] = PlainPeer(
                    issued.relay.endpoints[0],
                    session_id=session_id,
                    role=role,
                    lease=lease_of(role, tokens[role]),
                    identity=identities[role],
                )
            self.present_both(peers[Role.CLIENT], peers[Role.SERVER])
            self.stream_between(
                peers[Role.SERVER], peers[Role.CLIENT], {role: renewer(role) for role in Role}
            )
        finally:
            for peer in peers.values():
                peer.close()
