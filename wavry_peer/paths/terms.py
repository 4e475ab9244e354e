"""What one session is about: its id, who takes part, and how the other side is recognised."""

from dataclasses import dataclass, field

from wavry_peer.home.identity import Identity
from wavry_peer.protocol.constants import Role

__all__ = ["SessionTerms"]


@dataclass(frozen=True, slots=True)
class SessionTerms:
    """What signaling settled before a session is set up.

    Attributes:
        session_id: UUID, the same on both sides.
        role: our slot at the relay; the caller is the client.
        identity: ours; leases are bound to its signing key, the channel uses its Noise key.
        remote_username: the other peer, as the gateway names it.
        remote_noise_key: 32 bytes that the other peer must prove to hold.
    """

    session_id: str
    role: Role
    identity: Identity = field(repr=False)
    remote_username: str
    remote_noise_key: bytes

    @property
    def id_bytes(self) -> bytes:
        """The session id as packets carry it, 16 bytes."""
        return bytes.fromhex(self.session_id.replace("-", ""))
