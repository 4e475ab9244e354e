"""The link to the master, through a real relay process and a fake master."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.relay.fake_master import FakeMaster
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.waiting import wait_until

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets

MINT = Mint()
Start = Callable[..., RelayProcess]


@pytest.fixture
def master() -> Iterator[FakeMaster]:
    with FakeMaster(MINT) as master:
        yield master


@pytest.fixture
def start(tmp_path: Path, master: FakeMaster) -> Iterator[Start]:
    """A relay with one worker and nothing but the master's keys."""
    started: list[RelayProcess] = []

    def make(mint: Mint = MINT, **environ: str) -> RelayProcess:
        settings = {"WAVRY_RELAY_MASTER_URL": master.url, **environ}
        made = RelayProcess(tmp_path, mint, workers=1, keyset_cached=False, **settings)
        started.append(made)
        return made.start()

    yield make
    for one in started:
        one.close()


def is_ready(relay: RelayProcess) -> bool:
    return relay.get("/ready")[0] == 200


def reasons(relay: RelayProcess) -> list[str]:
    return json.loads(relay.get("/ready")[1]).get("reasons", [])


def test_registration_heartbeats_and_farewell(start: Start, master: FakeMaster) -> None:
    relay = start(WAVRY_RELAY_REGION="eu-test")
    wait_until(lambda: is_ready(relay), what="ready")
    facts = master.registered[0]
    assert facts["relay_id"] == relay.relay_id
    assert list(facts["endpoints"]) == relay.udp
    assert facts["region"] == "eu-test"
    assert facts["max_sessions"] == 100
    session = uuid.uuid4()
    with UdpPeer(MINT, "rly-elsewhere", relay.udp[0], session, c.Role.CLIENT) as stranger:
        assert stranger.ask(stranger.present_datagram()).body == packets.LeaseReject(
            c.RejectReason.WRONG_RELAY
        )
    with active_session(relay, MINT) as (client, server):
        client.forward()
        assert server.receive() == (1, b"hello")
        seen = len(master.heartbeats)
        wait_until(lambda: len(master.heartbeats) > seen + 1, what="heartbeats")
    last = master.heartbeats[-1]
    assert last["active_sessions"] == 1
    assert list(last["held_kids"]) == [MINT.kid]
    assert (last["keyset_serial"], last["state"]) == (1, "ready")
    assert last["rejects"] == {"wrong_relay": 1}
    assert abs(last["clock_ms"] / 1000 - time.time()) < 60
    assert "disk_failing" not in last
    assert relay.metric("wavry_relay_master_state", state="registered") == 1
    assert relay.metric("wavry_relay_master_heartbeats_total", result="ok") >= 2
    assert relay.stop() == 0
    assert master.deregistered == [relay.relay_id]


def test_advertised_addresses_are_told(start: Start, master: FakeMaster) -> None:
    start(WAVRY_RELAY_ADVERTISE="192.0.2.7:4500,[2001:db8::7]:4500")
    wait_until(lambda: master.registered, what="registration")
    assert list(master.registered[0]["endpoints"]) == ["192.0.2.7:4500", "[2001:db8::7]:4500"]


def test_404_leads_to_registration_and_sessions_go_on(start: Start, master: FakeMaster) -> None:
    relay = start()
    wait_until(lambda: is_ready(relay), what="ready")
    with active_session(relay, MINT) as (client, server):
        master.heartbeat_status = 404
        wait_until(lambda: len(master.registered) >= 2, what="second registration")
        assert {facts["relay_id"] for facts in master.registered} == {relay.relay_id}
        client.forward()
        assert server.receive() == (1, b"hello")
    master.heartbeat_status = 200
    wait_until(lambda: is_ready(relay), what="ready again")


def test_six_failures_lead_to_registration(start: Start, master: FakeMaster) -> None:
    relay = start()
    wait_until(lambda: is_ready(relay), what="ready")
    master.heartbeat_status = 500
    wait_until(lambda: "master_failing" in reasons(relay), what="failing shown in /ready")
    wait_until(lambda: len(master.registered) >= 2, what="second registration")
    events = relay.events("heartbeat_failed")
    assert [event["failures"] for event in events[:6]] == [1, 2, 3, 4, 5, 6]
    assert [event["next_step"] for event in events[4:6]] == ["trying again", "registering again"]


def test_master_that_refuses_is_asked_again(start: Start, master: FakeMaster) -> None:
    master.register_status = 403
    relay = start()
    wait_until(lambda: relay.events("registration_failed"), what="refusal logged")
    assert set(reasons(relay)) == {"no_keys", "master_registering"}
    assert "403 refused" in relay.health()["master"]["error"]
    assert relay.metric("wavry_relay_master_registrations_total", result="failed") >= 1
    master.register_status = 200
    wait_until(lambda: is_ready(relay), what="ready")


def test_answers_that_do_not_fit_are_failures_and_no_more(start: Start, master: FakeMaster) -> None:
    master.challenge_text = "A" * 42 + "B"  # 43 characters, but not canonical base64url
    relay = start()
    wait_until(lambda: relay.events("registration_failed"), what="refusal logged")
    master.challenge_text = "short"
    wait_until(lambda: len(relay.events("registration_failed")) >= 2, what="second refusal")
    master.challenge_text = None
    wait_until(lambda: is_ready(relay), what="ready")
    assert "Traceback" not in relay.log()


def test_drain_and_undrain_by_the_master(start: Start, master: FakeMaster) -> None:
    relay = start()
    wait_until(lambda: is_ready(relay), what="ready")
    master.commands = ["drain", "a-command-of-the-future"]
    wait_until(lambda: reasons(relay) == ["draining"], what="draining")
    wait_until(
        lambda: [beat for beat in master.heartbeats if beat["state"] == "draining"],
        what="told to the master",
    )
    sid = uuid.uuid4()
    with UdpPeer(MINT, relay.relay_id, relay.udp[0], sid, c.Role.CLIENT) as late:
        packet = late.ask(late.present_datagram())
        assert packet.body == packets.LeaseReject(c.RejectReason.DRAINING)
    master.commands = ["undrain"]
    wait_until(lambda: is_ready(relay), what="ready again")


def test_refresh_keys(start: Start, master: FakeMaster) -> None:
    relay = start()
    wait_until(lambda: is_ready(relay), what="ready")
    master.serial = 2
    master.commands = ["refresh_keys"]
    wait_until(
        lambda: [beat for beat in master.heartbeats if beat["keyset_serial"] == 2],
        what="new serial reported",
    )
    assert relay.metric("wavry_relay_keyset_serial") == 2
    master.serial = 1
    wait_until(lambda: relay.events("keyset_refused"), what="lower serial refused")
    assert relay.health()["keys"]["serial"] == 2


def test_health_tells_the_clock_and_why_no_key_set_came(start: Start, master: FakeMaster) -> None:
    relay = start(WAVRY_RELAY_NBF_SKEW_S="12")
    wait_until(lambda: is_ready(relay), what="ready")
    health = relay.health()
    assert abs(health["now"] - time.time()) < 60
    assert health["not_before_skew_s"] == 12
    assert health["keys"]["fetch_error"] is None
    master.keys_status = 503
    master.commands = ["refresh_keys"]
    wait_until(lambda: relay.health()["keys"]["fetch_error"], what="it says why")
    assert "503" in relay.health()["keys"]["fetch_error"]
    master.keys_status = 200
    wait_until(lambda: relay.health()["keys"]["fetch_error"] is None, what="it has them again")


class RotatingMaster(FakeMaster):
    """Publishes new keys while it takes the first heartbeat."""

    @property
    def serial(self) -> int:
        return 2 if self.heartbeats else 1

    @serial.setter
    def serial(self, _: int) -> None:
        """The base class sets a first value."""


def test_new_keys_are_reported_at_once_and_not_a_heartbeat_later(tmp_path: Path) -> None:
    """A rotation waits for this report."""
    with RotatingMaster(MINT, heartbeat_ms=60_000) as master:
        master.commands = ["refresh_keys"]
        relay = RelayProcess(
            tmp_path, MINT, workers=1, keyset_cached=False, WAVRY_RELAY_MASTER_URL=master.url
        )
        with relay:
            wait_until(
                lambda: [beat["keyset_serial"] for beat in master.heartbeats] == [1, 2],
                timeout_s=30,
                what="the new serial is reported long before the next 60 s are over",
            )


def test_relay_starts_with_its_cached_keys_while_the_master_is_away(
    start: Start, master: FakeMaster
) -> None:
    relay = start()
    wait_until(lambda: is_ready(relay), what="ready")
    relay.stop()
    relay.environ["WAVRY_RELAY_MASTER_URL"] = "http://127.0.0.1:9"
    relay.start()
    with active_session(relay, MINT) as (client, server):
        client.forward()
        assert server.receive() == (1, b"hello")
    assert reasons(relay) == ["master_registering"]


def test_relay_waits_for_its_token_tells_what_to_do_and_shows_it_until_it_is_in(
    start: Start, master: FakeMaster, tmp_path: Path
) -> None:
    """It asks rarely while it is refused, and reads the file anew each time it asks."""
    token = tmp_path / "relay.token"
    master.register_status, master.refusal_code = 403, "relay_not_enrolled"
    relay = start(WAVRY_RELAY_ENROLMENT_TOKEN_FILE=str(token), WAVRY_RELAY_NAME="fra-1")
    wait_until(lambda: relay.events("registration_failed"), what="refusal")
    said = relay.events("registration_failed")[0]
    assert "relay_not_enrolled: as told" in said["cause"]
    assert "wavryctl relays enrol" in said["next_step"]
    assert said["retry_in_s"] >= 5
    token.touch(mode=0o600)
    token.write_text("wve_of_the_operator\n")
    master.register_status = 200
    wait_until(lambda: master.registered, timeout_s=90, what="registration")
    facts = master.registered[0]
    assert (facts["enrolment_token"], facts["name"]) == ("wve_of_the_operator", "fra-1")
    master.heartbeat_status = 404
    wait_until(lambda: len(master.registered) > 1, what="another registration")
    assert "enrolment_token" not in master.registered[-1], "it is used up"
    assert not relay.events("enrolment_token_unfit"), "a file that is not there yet is no fault"
    assert "wve_of_the_operator" not in relay.log()


def test_key_set_of_another_root_is_refused(start: Start, master: FakeMaster) -> None:
    relay = start()
    wait_until(lambda: is_ready(relay), what="ready")
    master.mint, master.serial, master.commands = Mint(), 9, ["refresh_keys"]
    wait_until(lambda: relay.events("keyset_refused"), what="refusal")
    assert relay.metric("wavry_relay_keyset_refused") == 1


def test_relay_that_pins_another_root_signs_nothing_that_this_master_takes(
    start: Start, master: FakeMaster
) -> None:
    relay = start(Mint())
    wait_until(lambda: relay.events("registration_failed"), what="refusal")
    assert "invalid_signature" in relay.events("registration_failed")[0]["cause"]
    assert "no_keys" in reasons(relay)
    assert not master.registered


def test_insecure_development_mode_trusts_the_master_loudly(
    start: Start, master: FakeMaster
) -> None:
    relay = start(WAVRY_RELAY_ROOT_KEY="", WAVRY_RELAY_ALLOW_INSECURE_DEV="1")
    wait_until(lambda: is_ready(relay), what="ready")
    assert relay.events("insecure_dev_mode")[0]["level"] == "warning"
    assert relay.events("insecure_root_trusted")
    with active_session(relay, MINT) as (client, server):
        client.forward()
        assert server.receive() == (1, b"hello")
