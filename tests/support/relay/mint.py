"""Keys and leases of tests."""

import os
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import msgspec

from wavry_peer.protocol import base64url, ed25519, keyset, lease
from wavry_peer.protocol import constants as c

GENEROUS_KBPS = 4_000_000


@dataclass
class Mint:
    """The trust of a test: a root key, a signing key, and leases signed by it."""

    root: ed25519.SigningKey = field(
        default_factory=lambda: ed25519.SigningKey.from_seed(os.urandom(32))
    )
    signing: ed25519.SigningKey = field(
        default_factory=lambda: ed25519.SigningKey.from_seed(os.urandom(32))
    )

    @property
    def kid(self) -> lease.KeyId:
        return keyset.key_id(self.signing.public_key)

    @property
    def root_text(self) -> str:
        return base64url.encode(self.root.public_key)

    def keyset(self, *, serial: int = 1, status: str = "active") -> keyset.KeySet:
        key = keyset.PublishedKey(
            kid=self.kid, public_key=base64url.encode(self.signing.public_key), status=status
        )
        return keyset.sign_keyset([key], serial=serial, issued_at=int(time.time()), root=self.root)

    def trusted(self) -> dict[lease.KeyId, lease.TrustedKey]:
        return keyset.trusted_keys(self.keyset())

    def token(
        self,
        sid: uuid.UUID,
        role: c.Role,
        rid: str,
        *,
        sub: str | None = None,
        key: ed25519.SigningKey,
        now_s: int | None = None,
        ttl_s: int = 300,
        soft_kbps: int = GENEROUS_KBPS,
        hard_kbps: int = GENEROUS_KBPS,
        jti: str | None = None,
        **changes: Any,
    ) -> bytes:
        """A lease token; `key` binds it, `changes` replace claims before signing."""
        claims = lease.make_claims(
            jti=jti or str(uuid.uuid4()),
            sub=sub or f"user-{c.ROLE_NAMES[role]}",
            sid=str(sid),
            role=role,
            rid=rid,
            kid=self.kid,
            now_s=int(time.time()) if now_s is None else now_s,
            ttl_s=ttl_s,
            soft_kbps=soft_kbps,
            hard_kbps=hard_kbps,
            cnf=base64url.encode(key.public_key),
        )
        return lease.sign_lease(msgspec.structs.replace(claims, **changes), self.signing).encode()
