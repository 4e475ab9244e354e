"""Steps of leases and refusals of a real relay, as a scrape and as its log tell them."""

import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from support.relay.events import EventMaster
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.waiting import wait_until
from typer.testing import CliRunner

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import lease, packets
from wavry_peer.protocol.constants import RejectReason as R
from wavry_relay.cli import app
from wavry_relay.shm.lease_states import TRANSITIONS
from wavry_relay.shm.lease_states import LeaseState as S

MINT = Mint()
Running = tuple[RelayProcess, EventMaster]
MAX_SESSIONS = 8
REVOKED_WITHIN_S = 60.0
"""At once over the stream; by the poll, every 36 s at most, where a busy machine broke it off."""


@pytest.fixture(scope="module")
def running(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with (
        EventMaster(MINT) as master,
        RelayProcess(
            tmp_path_factory.mktemp("metrics"),
            MINT,
            workers=2,
            WAVRY_RELAY_ENGINE=engine,
            WAVRY_RELAY_MASTER_URL=master.url,
            WAVRY_RELAY_MAX_SESSIONS=str(MAX_SESSIONS),
            WAVRY_RELAY_IDENTITY_PER_S="1",
            WAVRY_RELAY_IDENTITY_BURST="30",
            WAVRY_RELAY_BLOCK_AFTER="3",
            WAVRY_RELAY_BLOCK_S="1",
            WAVRY_LOG_LEVEL="debug",
        ) as relay,
    ):
        wait_until(lambda: relay.health()["master"]["events"], what="event stream")
        yield relay, master


def steps(relay: RelayProcess) -> Counter[tuple[S, S]]:
    """``wavry_relay_lease_transitions_total{from,to}`` as scraped."""
    name = "wavry_relay_lease_transitions_total"
    return Counter(
        {(a, b): int(relay.metric(name, **{"from": str(a), "to": str(b)})) for a, b in TRANSITIONS}
    )


def rejects(relay: RelayProcess) -> Counter[R]:
    """``wavry_relay_lease_rejects_total{reason}`` as scraped."""
    name = "wavry_relay_lease_rejects_total"
    return Counter({reason: int(relay.metric(name, reason=reason.name.lower())) for reason in R})


def peer(relay: RelayProcess, role: c.Role = c.Role.CLIENT, **options: object) -> UdpPeer:
    sid = options.pop("sid", None) or uuid.uuid4()
    options.setdefault("sub", f"user-{uuid.uuid4().hex[:8]}")
    return UdpPeer(MINT, relay.relay_id, relay.udp[0], sid, role, **options)  # type: ignore[arg-type]


def release(one: UdpPeer, is_done: Callable[[], object], *, what: str) -> None:
    """Release until it is seen: nobody answers a release, and a busy relay may drop one.

    A repeated one takes no step: its lease is used.
    """
    end = time.monotonic() + 20
    while True:
        one.sock.send(one.present_datagram(renew=True, cookie=c.RELEASE_COOKIE))
        try:
            wait_until(is_done, timeout_s=2, what=what)
        except AssertionError:
            if time.monotonic() > end:
                raise
        else:
            return


def renew(one: UdpPeer) -> None:
    one.token = one.new_token()
    one.present(renew=True)


def empty(relay: RelayProcess) -> bool:
    sessions = relay.health()["sessions"]
    return bool(sessions["waiting"] + sessions["active"] == 0)


def test_lease_transitions_by_from_and_to_as_scraped_and_one_log_event_for_each(
    running: Running,
) -> None:
    """Every step of the table is taken by a real packet; the counters say just what happened."""
    relay, master = running
    before, told = steps(relay), log_events(relay)
    with active_session(relay, MINT) as (client, server):  # ends by releases
        renew(client)
        release(server, lambda: relay.health()["sessions"]["waiting"], what="one slot is free")
        release(client, lambda: empty(relay), what="both slots are free")
    with peer(relay) as alone:  # renewed while it waits, then revoked
        alone.present()
        renew(alone)
        master.revoke("session", str(alone.sid))
        wait_until(lambda: empty(relay), timeout_s=REVOKED_WITHIN_S, what="revoked")
    with active_session(relay, MINT) as (client, _):  # revoked while active
        master.revoke("session", str(client.sid))
        wait_until(lambda: empty(relay), timeout_s=REVOKED_WITHIN_S, what="revoked")
    with peer(relay, ttl_s=3) as alone, active_session(relay, MINT, ttl_s=3):  # both end by expiry
        alone.present()
        wait_until(lambda: empty(relay), timeout_s=20, what="expired")
    taken = steps(relay) - before
    assert taken == Counter(
        {
            (S.ISSUED, S.PRESENTED): 10,
            (S.PRESENTED, S.ACCEPTED): 8,
            (S.ACCEPTED, S.ACTIVE): 6,
            (S.ACTIVE, S.RENEWED): 1,
            (S.RENEWED, S.ACTIVE): 1,
            (S.ACTIVE, S.CLOSED): 1,
            (S.ACTIVE, S.ACCEPTED): 1,
            (S.ACCEPTED, S.CLOSED): 1,
            (S.ACCEPTED, S.RENEWED): 1,
            (S.RENEWED, S.ACCEPTED): 1,
            (S.ACCEPTED, S.REVOKED): 1,
            (S.ACTIVE, S.REVOKED): 2,
            (S.ACCEPTED, S.EXPIRED): 1,
            (S.ACTIVE, S.EXPIRED): 2,
        }
    )
    assert set(taken) == set(TRANSITIONS)
    wait_until(lambda: log_events(relay) - told == taken, what="one line for each step")


def log_events(relay: RelayProcess) -> Counter[tuple[S, S]]:
    return Counter((S(e["before"]), S(e["after"])) for e in relay.events("lease_transition"))


# -- Rejects -------------------------------------------------------------------------------------


def answer(one: UdpPeer, datagram: bytes | None = None) -> object:
    return one.ask(one.present_datagram() if datagram is None else datagram).body


def with_token(one: UdpPeer, **claims: object) -> UdpPeer:
    one.token = one.new_token(**claims)
    return one


def cookie_of(one: UdpPeer, relay: RelayProcess) -> bytes:
    """The cookie of a path on which no slot lives: no host with a live slot is ever blocked."""
    assert isinstance(answer(one), packets.LeaseAck)
    assert one.challenge is not None
    release(one, lambda: empty(relay), what="the slot is free")
    return one.challenge


def provoke(reason: R, relay: RelayProcess, master: EventMaster) -> None:
    """Get a refusal from the relay, over its UDP port."""
    now_s = int(time.time())
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(peer(relay))
        refused = None
        if reason is R.EXPIRED:
            refused = answer(with_token(one, now_s=now_s - 400))
        elif reason is R.INVALID_SIGNATURE:
            one.token = one.token[:-2] + b"AA"
            refused = answer(one)
        elif reason is R.WRONG_RELAY:
            one.relay_id = "rly-other"
            refused = answer(with_token(one))
        elif reason is R.NOT_YET_VALID:
            refused = answer(with_token(one, now_s=now_s + 120))
        elif reason is R.UNKNOWN_KEY:
            one.mint = Mint()
            refused = answer(with_token(one))
        elif reason is R.PROOF_REQUIRED:
            unsigned = packets.build_present(one.sid.bytes, one.role, one.token)
            refused = answer(one, unsigned)
        elif reason is R.REPLAYED:
            first = one.present_datagram()
            assert isinstance(answer(one, first), packets.LeaseAck)
            refused = answer(one, first)
        elif reason is R.REVOKED:
            number = master.revoke("jti", lease.open_lease(one.token, MINT.trusted()).jti)
            wait_until(lambda: relay.health()["revocations"]["number"] >= number, what="row")
            refused = answer(one)
        elif reason is R.SESSION_FULL:
            for _ in range(MAX_SESSIONS):
                stack.enter_context(peer(relay)).present()
            refused = answer(one)
        elif reason is R.RATE_LIMITED:
            for _ in range(60):
                refused = answer(one)
                if isinstance(refused, packets.LeaseReject):
                    break
        elif reason is R.DRAINING:
            where = ["--state-dir", str(relay.state_dir)]
            assert CliRunner().invoke(app, ["drain", *where]).exit_code == 0
            refused = answer(one)
            assert CliRunner().invoke(app, ["undrain", *where]).exit_code == 0
        elif reason is R.BANNED:
            cookie = cookie_of(one, relay)
            one.token = b"v4.public." + b"A" * 300
            for _ in range(8):
                refused = answer(one, one.present_datagram(cookie=cookie))
                if refused == packets.LeaseReject(R.BANNED):
                    break
            wait_until(lambda: relay.health()["blocks"] == 0, timeout_s=20, what="block is over")
        assert refused == packets.LeaseReject(reason)
    # Whatever is left of the sessions must not stand in the next one's way.
    master.revoke("kid", str(MINT.kid), until=int(time.time()))
    wait_until(lambda: empty(relay), what="empty")
    time.sleep(1.1 - time.time() % 1)  # leases of the next second are good


@pytest.mark.parametrize("reason", list(R), ids=lambda reason: reason.name.lower())
def test_lease_rejects_by_reason_as_scraped(running: Running, reason: R) -> None:
    relay, master = running
    before = rejects(relay)
    provoke(reason, relay, master)
    grown = rejects(relay) - before
    assert grown[reason] >= 1
    allowed = {R.INVALID_SIGNATURE} if reason is R.BANNED else set()
    assert set(grown) <= {reason} | allowed


def test_lease_rejects_have_no_other_reasons_than_the_protocols(running: Running) -> None:
    relay, _ = running
    text = relay.get("/metrics")[1].decode()
    lines = [x for x in text.splitlines() if x.startswith("wavry_relay_lease_rejects_total{")]
    assert len(lines) == len(R)
