"""What the smoke test must not let pass: wrong claims, careless relays, altered data."""

import asyncio
import dataclasses
import os
import time
from typing import Any

import msgspec
import pytest

from wavry_cp.admin.smoke.echo import Echo, EchoFigures
from wavry_cp.admin.smoke.lease_probe import LeaseProbe
from wavry_cp.admin.smoke.lease_rules import check_credentials, published_keys
from wavry_cp.admin.smoke.lease_step import forged
from wavry_cp.admin.smoke.relay_step import require_whole
from wavry_cp.admin.smoke.report import StepFailedError, StepResult, exit_code
from wavry_peer.protocol import base64url, packets
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.ed25519 import SigningKey
from wavry_peer.protocol.http.api import Credentials
from wavry_peer.protocol.keyset import PublishedKey, encode_keyset, key_id, sign_keyset
from wavry_peer.protocol.lease import make_claims, sign_lease

SESSION_ID = "7d9a3f0e-1c52-4f0b-8f34-0a6f5b6f9e21"
KEY = SigningKey.from_seed(bytes(range(32)))
ROOT = SigningKey.from_seed(bytes(32))
IDENTITY = base64url.encode(SigningKey.from_seed(b"i" * 32).public_key)


def document(status: str = "active") -> bytes:
    key = PublishedKey(
        kid=key_id(KEY.public_key), public_key=base64url.encode(KEY.public_key), status=status
    )
    return encode_keyset(sign_keyset([key], serial=1, issued_at=1, root=ROOT))


def credentials(**changes: Any) -> Credentials:
    values: dict[str, Any] = {
        "jti": SESSION_ID, "sub": "ann", "sid": SESSION_ID, "role": c.Role.CLIENT, "rid": "rly-1",
        "kid": key_id(KEY.public_key), "now_s": int(time.time()), "ttl_s": 300,
        "soft_kbps": 1, "hard_kbps": 1, "cnf": IDENTITY,
    }  # fmt: skip
    claims = make_claims(**(values | changes))
    return Credentials(
        session_id=SESSION_ID,
        relay_id="rly-1",
        token=sign_lease(claims, KEY),
        addr="192.0.2.1:1",
        role="client",
        expires_at=int(claims.exp.timestamp()),
    )


def check(own: Credentials, status: str = "active") -> None:
    check_credentials(
        own, username="ann", role=c.Role.CLIENT, session_id=SESSION_ID, identity_key=IDENTITY,
        keys=published_keys(document(status)),
    )  # fmt: skip


def test_a_lease_that_says_what_was_asked_for_passes() -> None:
    check(credentials())


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"sub": "bob"}, "sub"),
        ({"role": c.Role.SERVER}, "role"),
        ({"sid": "00000000-1c52-4f0b-8f34-0a6f5b6f9e21"}, "sid"),
        ({"rid": "rly-2"}, "rid"),
        ({"cnf": None}, "cnf"),
        ({"ttl_s": 3000}, "lifetime"),
        ({"now_s": int(time.time()) - 100}, "clock"),
    ],
)
def test_a_lease_with_a_wrong_claim_fails(changes: dict[str, Any], names: str) -> None:
    with pytest.raises(StepFailedError, match=names):
        check(credentials(**changes))


def test_a_lease_of_a_key_that_does_not_sign_or_with_a_changed_bit_fails() -> None:
    with pytest.raises(StepFailedError, match="active key"):
        check(credentials(), status="retiring")
    own = credentials()
    with pytest.raises(StepFailedError, match="verify"):
        check(msgspec.structs.replace(own, token=forged(own.token)))


def test_a_key_set_that_its_own_root_did_not_sign_fails() -> None:
    with pytest.raises(StepFailedError, match="key-set"):
        published_keys(document().replace(b'"issued_at":1', b'"issued_at":2'))


class CarelessRelay(asyncio.DatagramProtocol):
    """Acknowledges whatever comes."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        session_id = packets.parse_header(data).session_id
        answer = packets.build_ack(session_id, packets.LeaseAck(2**40, 1, 1))
        self.transport.sendto(answer, addr)


class BusyRelay(CarelessRelay):
    """Wants a cookie first, as a relay under load does."""

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        header = packets.parse_header(data)
        present = packets.parse_present(data, header)
        if present.proof.cookie == c.NO_COOKIE:
            self.transport.sendto(packets.build_challenge(header.session_id, b"c" * 8), addr)
        else:
            super().datagram_received(data, addr)


async def ask(relay: type[CarelessRelay], want: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr("wavry_cp.admin.smoke.lease_probe.TIMEOUT_S", 0.6)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        relay, local_addr=("127.0.0.1", 0)
    )
    address = "127.0.0.1:{}".format(transport.get_extra_info("sockname")[1])
    try:
        async with LeaseProbe.open((address,), os.urandom(16)) as probe:
            return await probe.ask(credentials().token, c.Role.CLIENT, KEY, want)
    finally:
        transport.close()


async def test_a_relay_that_takes_a_forged_lease_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StepFailedError, match="ACK where INVALID_SIGNATURE is due"):
        await ask(CarelessRelay, c.RejectReason.INVALID_SIGNATURE, monkeypatch)


async def test_a_relay_that_wants_a_cookie_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await ask(BusyRelay, packets.LeaseAck, monkeypatch) == "ACK"


@dataclasses.dataclass
class LoopedSession:
    """A session whose other end is given; every tenth datagram may be lost or altered."""

    other: "LoopedSession | None" = None
    fault: str = ""
    max_datagram_bytes: int = 1300

    def __post_init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue()
        self.count = 0

    async def send(self, data: bytes) -> None:
        self.count += 1
        if self.count % 10 == 0 and self.fault == "loss":
            return
        if self.count % 10 == 0 and self.fault == "bits":
            data = data[:-1] + bytes([data[-1] ^ 1])
        assert self.other is not None
        self.other.queue.put_nowait(data)

    async def receive(self) -> bytes:
        return await self.queue.get()


async def echoed(monkeypatch: pytest.MonkeyPatch, fault: str) -> EchoFigures:
    monkeypatch.setattr("wavry_cp.admin.smoke.echo.STRAGGLERS_S", 0.05)
    first, second = LoopedSession(fault=fault), LoopedSession()
    first.other, second.other = second, first
    async with Echo((first, second), interval_s=0, count=50) as echo:  # type: ignore[arg-type]  # two stand-ins
        return await echo.finished()


async def test_a_whole_exchange_passes_and_loss_and_altered_bytes_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = await echoed(monkeypatch, "")
    assert (whole.sent, whole.lost, whole.corrupt) == (100, 0, 0)
    require_whole(whole, "rly-1")
    lossy = await echoed(monkeypatch, "loss")
    assert lossy.lost == 10
    with pytest.raises(StepFailedError, match="10 of 100 datagrams were lost"):
        require_whole(lossy, "rly-1")
    altered = await echoed(monkeypatch, "bits")
    assert altered.corrupt
    with pytest.raises(StepFailedError, match="altered"):
        require_whole(altered, "rly-1")


@pytest.mark.parametrize(
    ("codes", "wanted"), [((), 0), ((1,), 1), ((1, 4), 4), ((4, 3), 3), ((1, 2), 1)]
)
def test_the_exit_code_is_that_of_the_worst_failure(codes: tuple[int, ...], wanted: int) -> None:
    results = [
        StepResult(step="x", verdict="fail", ms=1, evidence="", exit_code=code) for code in codes
    ]
    passed = StepResult(step="y", verdict="ok", ms=1, evidence="")
    assert exit_code([*results, passed]) == wanted
