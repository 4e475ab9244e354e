"""Checks of a lease that need no session: key set, signature, claims.

The expensive part, the token's signature, is remembered for tokens that passed: a peer whose
ACK was lost, or that moved, presents the same token again with a new proof.
"""

from collections import OrderedDict
from collections.abc import Generator, Mapping
from typing import Final

from wavry_peer.protocol.ed25519 import SignatureCheck
from wavry_peer.protocol.lease import (
    KeyId,
    LeaseClaims,
    TrustedKey,
    begin_lease,
    check_claims,
    check_key,
    finish_lease,
)
from wavry_peer.protocol.packets import Header, LeasePresent
from wavry_relay.shm.control import ControlBlock
from wavry_relay.shm.counters import CounterRow
from wavry_relay.shm.layout import CONTROL

__all__ = ["LeaseVerifier"]

TOKEN_CACHE_ENTRIES: Final = 4096
"""About 8 MB when full.  Only good tokens get in, so a flood of bad ones empties nothing."""


class LeaseVerifier:
    """Verifies leases with the keys in the control block.

    Args:
        control: of the segment.
        counters: row of this worker.
    """

    def __init__(self, control: ControlBlock, counters: CounterRow) -> None:
        self._control = control
        self._counters = counters
        self._epoch = -1
        self._keys: Mapping[KeyId, TrustedKey] = {}
        # Not a dict: to find the first key of one whose front was deleted is a long walk.
        self._good: OrderedDict[bytes, LeaseClaims] = OrderedDict()
        self._relay_id = control.relay_id
        # Looked at for every lease: read without the way over an attribute.
        self._words, self._halves = control.segment.u64, control.segment.u32
        self._epoch_at = (control.base + CONTROL["key_epoch"].offset) // 8
        self._skew_at = (control.base + CONTROL["skew_s"].offset) // 4

    def verify(
        self, header: Header, present: LeasePresent, now_ms: int
    ) -> Generator[SignatureCheck, bool | None, LeaseClaims]:
        """Check a lease, but not its proof of possession.

        Yields the check of its signature, where that is not known, and wants its outcome.

        Args:
            header: of the packet.
            present: its body.
            now_ms: unix milliseconds.

        Raises:
            LeaseError: the first of the checks that fails names the reason.
        """
        if self._words[self._epoch_at] != self._epoch:
            self._read_keys()
        claims = self._good.get(present.token)
        if claims is not None:
            self._counters.add("token_cache_hits")
        else:
            unopened, epoch = begin_lease(present.token, self._keys), self._epoch
            claims = finish_lease(unopened, signature_holds=bool((yield unopened.signature)))
            if epoch == self._epoch:  # else the keys changed meanwhile: good for now only
                self._remember(present.token, claims)
        check_claims(
            claims,
            relay_id=self._relay_id,
            session_id=header.session_id,
            role=present.role,
            now_ms=now_ms,
            skew_s=self._halves[self._skew_at],
        )
        check_key(claims, self._keys)
        return claims

    def _remember(self, token: bytes, claims: LeaseClaims) -> None:
        if len(self._good) >= TOKEN_CACHE_ENTRIES:
            self._good.popitem(last=False)
        self._good[token] = claims

    def _read_keys(self) -> None:
        read = self._control.read_keys()
        if read is None:
            return
        self._epoch, self._keys = read
        self._good.clear()
