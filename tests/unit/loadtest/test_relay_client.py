"""The bench's master and its lease client, against a relay of a few lines."""

import socket
import threading
import time
import urllib.request

import msgspec
import pytest

from loadtest.bench_master import BenchMaster
from loadtest.relay_client import AdmissionError, admit, prepare
from loadtest.sessions import Endpoints, plan_sessions
from wavry_peer.protocol import base64url, ed25519, keyset, lease, packets, registration
from wavry_peer.protocol import constants as c
from wavry_peer.protocol.http import api

RELAY_ID = "rly-test"


class SmallRelay:
    """Answers each LEASE_PRESENT as `decide(header, present, times_seen)` says."""

    def __init__(self, decide):
        self.decide = decide
        self.seen = []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(0.1)
        self.address = self.socket.getsockname()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.serve)

    def serve(self):
        times = {}
        while not self.stopping.is_set():
            try:
                datagram, sender = self.socket.recvfrom(2048)
            except TimeoutError:
                continue
            packet = packets.parse_packet(datagram)
            key = (packet.header.session_id, packet.body.role)
            times[key] = times.get(key, 0) + 1
            self.seen.append((sender, packet))
            answer = self.decide(packet.header, packet.body, times[key])
            if answer is not None:
                self.socket.sendto(answer, sender)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()
        self.socket.close()


def accept(header, _present, _times):
    return packets.build_ack(header.session_id, packets.LeaseAck(2**40, 1, 1))


@pytest.fixture
def master():
    with BenchMaster() as running:
        yield running


@pytest.fixture
def endpoints():
    with Endpoints.open(2, 2) as opened:
        yield opened


def present_all(master, endpoints, decide, *, sessions=3, **limits):
    plans = plan_sessions(sessions, clients=2, servers=2)
    with SmallRelay(decide) as relay:
        requests = prepare(master, RELAY_ID, plans, endpoints)
        return relay, admit(relay.address, requests, endpoints, **limits)


def test_both_sides_present_leases_that_a_relay_accepts(master, endpoints):
    relay, admitted = present_all(master, endpoints, accept)
    assert admitted == 6
    keys = keyset.trusted_keys(
        keyset.decode_keyset(
            keyset.encode_keyset(master.keyset),
            root_public_key=base64url.decode(master.root_public_key),
        )
    )
    slots = set()
    for _, packet in relay.seen:
        claims = lease.open_lease(packet.body.token, keys)
        lease.check_claims(
            claims,
            relay_id=RELAY_ID,
            session_id=packet.header.session_id,
            role=packet.body.role,
            now_ms=int(time.time() * 1000),
        )
        lease.check_proof(claims, packet.body)
        slots.add((packet.header.session_id, packet.body.role))
    assert len(slots) == 6
    assert len({sender for sender, _ in relay.seen}) == 4


def test_a_lost_answer_is_asked_for_again_with_a_higher_counter(master, endpoints):
    def lose_the_first(header, present, times):
        return None if times == 1 else accept(header, present, times)

    relay, admitted = present_all(master, endpoints, lose_the_first, sessions=1)
    assert admitted == 2
    counters = [p.body.proof.counter for _, p in relay.seen if p.body.role is c.Role.CLIENT]
    assert counters == [1, 2]


def test_a_challenge_is_answered_with_its_cookie(master, endpoints):
    cookie = b"8 bytes!"

    def challenge(header, present, times):
        if present.proof.cookie != cookie:
            return packets.build_challenge(header.session_id, cookie)
        return accept(header, present, times)

    relay, admitted = present_all(master, endpoints, challenge, sessions=1)
    assert admitted == 2
    assert len(relay.seen) == 4


def test_a_rejection_ends_it_with_its_reason(master, endpoints):
    def reject(header, _present, _times):
        return packets.build_reject(header.session_id, c.RejectReason.RATE_LIMITED)

    with pytest.raises(AdmissionError, match="RATE_LIMITED"):
        present_all(master, endpoints, reject)


def test_silence_ends_at_the_deadline(master, endpoints):
    with pytest.raises(AdmissionError, match="0 leases were admitted"):
        present_all(master, endpoints, lambda *_: None, deadline_s=0.2)


def post(url, body, expected):
    request = urllib.request.Request(url, data=msgspec.json.encode(body), method="POST")
    with urllib.request.urlopen(request, timeout=5) as answer:
        return msgspec.json.decode(answer.read(), type=expected)


def test_master_registers_a_relay_by_its_key(master):
    key = ed25519.SigningKey.from_seed(bytes(range(32)))
    asked = post(
        f"{master.url}/v1/relays/register",
        api.RegisterRequest(
            relay_id=keyset.relay_id(key.public_key),
            public_key=base64url.encode(key.public_key),
            endpoints=("127.0.0.1:4500",),
            max_sessions=1,
            max_bitrate_kbps=1,
            version="1",
        ),
        api.RegisterResponse,
    )
    signature = registration.sign_registration(
        key,
        base64url.decode(asked.challenge),
        base64url.decode(master.root_public_key),
        ("127.0.0.1:4500",),
    )
    verified = post(
        f"{master.url}/v1/relays/register/verify",
        api.VerifyRequest(challenge_id=asked.challenge_id, signature=base64url.encode(signature)),
        api.VerifyResponse,
    )
    assert verified.keyset == master.keyset
    assert verified.master_public_key == base64url.encode(master.signing_public_key)
    with urllib.request.urlopen(f"{master.url}/.well-known/wavry-keys.json", timeout=5) as answer:
        raw = answer.read()
    root = base64url.decode(master.root_public_key)
    assert keyset.decode_keyset(raw, root_public_key=root) == master.keyset
