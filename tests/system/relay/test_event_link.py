"""The event link: a real relay process, real WebSockets, and a master that is not always kind."""

import json
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.relay.events import EventMaster
from support.relay.mint import Mint
from support.relay.relay_process import RelayProcess
from support.relay.udp_peer import UdpPeer, active_session
from support.waiting import wait_until
from typer.testing import CliRunner

from wavry_peer.protocol import constants as c
from wavry_peer.protocol import lease, packets
from wavry_peer.protocol.http.relay_events import MAX_MASTER_FRAME_BYTES
from wavry_relay.cli import app

MINT = Mint()
Start = Callable[..., RelayProcess]
DEADLINE_S = 30.0


@pytest.fixture
def master() -> Iterator[EventMaster]:
    with EventMaster(MINT) as master:
        yield master


@pytest.fixture
def start(tmp_path: Path, master: EventMaster) -> Iterator[Start]:
    started: list[RelayProcess] = []

    def make(**environ: str) -> RelayProcess:
        settings = {
            "WAVRY_RELAY_MASTER_URL": master.url,
            "WAVRY_RELAY_EVENT_POLL_S": "300",
            **environ,
        }
        made = RelayProcess(tmp_path, MINT, workers=2, **settings)
        started.append(made)
        return made.start()

    yield make
    for one in started:
        one.close()


def soon(condition: Callable[[], object], what: str) -> None:
    wait_until(condition, timeout_s=DEADLINE_S, what=what)


def connected(relay: RelayProcess) -> bool:
    return bool(relay.health()["master"]["events"])


def notice(peer: UdpPeer) -> int:
    """Code of the next NOTICE."""
    peer.sock.settimeout(DEADLINE_S)
    while True:
        packet = packets.parse_packet(peer.sock.recv(2048))
        if isinstance(packet.body, packets.Notice):
            assert packet.header.session_id == peer.sid.bytes
            return int(packet.body.code)


def refusal(peer: UdpPeer) -> int:
    packet = peer.ask(peer.present_datagram())
    assert isinstance(packet.body, packets.LeaseReject), packet
    return int(packet.body.reason)


def test_pushed_revocation_cuts_the_session_within_a_second(
    start: Start, master: EventMaster, capsys: pytest.CaptureFixture[str]
) -> None:
    relay = start()
    soon(lambda: connected(relay), "stream open")
    took_ms = []
    for _ in range(2):  # the best of three: a busy machine may be slow once, the stream never is
        with active_session(relay, MINT) as (client, _):
            took_ms.append(time_to_notice_ms(master, client))
    with active_session(relay, MINT) as (client, server), active_session(relay, MINT) as others:
        took_ms.append(time_to_notice_ms(master, client))
        with capsys.disabled():
            print(f" [row to NOTICE {', '.join(f'{ms:.0f}' for ms in took_ms)} ms]")
        assert min(took_ms) < 1000
        assert notice(server) == c.NoticeCode.REVOKED
        server.sock.settimeout(0.3)
        client.forward()
        with pytest.raises(TimeoutError):
            server.receive()
        others[0].forward()
        assert others[1].receive() == (1, b"hello")
        assert refusal(client) == c.RejectReason.REVOKED
    soon(lambda: master.acks[-1:] == [3], "confirmed")
    assert relay.metric("wavry_relay_revocations_received_total", way="stream") == 3
    assert relay.metric("wavry_relay_sessions_closed_total", reason="revoked") == 3
    assert relay.metric("wavry_relay_lease_rejects_total", reason="revoked") >= 1
    assert relay.metric("wavry_relay_revocations") == 3


def time_to_notice_ms(master: EventMaster, client: UdpPeer) -> float:
    """From the master's row to the NOTICE at a peer."""
    began_s = time.monotonic()
    master.revoke("session", str(client.sid))
    assert notice(client) == c.NoticeCode.REVOKED
    return (time.monotonic() - began_s) * 1000


def test_poll_is_the_net_where_the_stream_is_blocked(start: Start, master: EventMaster) -> None:
    master.stream_status = 403
    relay = start(WAVRY_RELAY_EVENT_POLL_S="0.3")
    with active_session(relay, MINT) as (client, server):
        for number in range(7):  # more than one page
            master.revoke("sub", f"nobody-{number}")
        master.revoke("jti", jti_of(client))
        assert notice(client) == c.NoticeCode.REVOKED
        assert notice(server) == c.NoticeCode.REVOKED
    assert not connected(relay)
    assert relay.metric("wavry_relay_revocations_received_total", way="poll") == 8
    assert relay.metric("wavry_relay_event_connections_total", result="failed") >= 1
    assert relay.events("event_stream_failed")
    master.stream_status = 101
    soon(lambda: connected(relay), "stream is back")


def test_poll_is_the_net_where_the_stream_is_cut_off_and_refused(
    start: Start, master: EventMaster
) -> None:
    relay = start(WAVRY_RELAY_EVENT_POLL_S="0.5")
    soon(lambda: connected(relay), "stream open")
    master.stream_status = 503
    master.cut()
    soon(lambda: not connected(relay), "stream gone")
    with active_session(relay, MINT) as (client, _):
        master.revoke("session", str(client.sid))
        assert notice(client) == c.NoticeCode.REVOKED
    assert relay.metric("wavry_relay_revocations_received_total", way="poll") == 1


@pytest.mark.parametrize("stream_status", [101, 503], ids=["stream", "no stream"])
def test_banned_relay_drains_and_serves_again_when_the_ban_is_over(
    start: Start, master: EventMaster, stream_status: int
) -> None:
    """Also where no stream tells it so: the answers of the master are enough."""
    relay = start(WAVRY_RELAY_EVENT_POLL_S="0.5")
    soon(lambda: connected(relay), "stream open")
    with active_session(relay, MINT) as (client, server):
        master.refusal_code = "banned"
        master.heartbeat_status = master.register_status = 403
        master.stream_status = master.poll_status = 403
        master.cut()
        soon(lambda: relay.health()["draining"] == ["master"], "drains")
        assert notice(client) == c.NoticeCode.DRAINING
        sent = client.forward()
        assert server.receive()[0] == sent, "live sessions go on until they have moved"
        client.token = client.new_token()
        client.present(renew=True)
        new = UdpPeer(MINT, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT)
        with new:
            assert refusal(new) == c.RejectReason.DRAINING
            master.refusal_code = ""
            master.heartbeat_status = master.register_status = 200
            master.stream_status, master.poll_status = stream_status, 200
            soon(lambda: relay.health()["draining"] == [], "serves again")
            new.present()
    assert len(relay.events("relay_banned")) == 1


def upgrade(relay: RelayProcess) -> None:
    done = CliRunner().invoke(app, ["upgrade", "--state-dir", str(relay.state_dir)])
    assert done.exit_code == 0, done.output + relay.log()
    relay.follow()


@pytest.mark.parametrize("disk", ["writable", "full"])
def test_revocations_survive_a_hot_upgrade(start: Start, master: EventMaster, disk: str) -> None:
    """No revoked lease comes back, not even while nobody can tell the new relay of it."""
    relay = start()
    soon(lambda: connected(relay), "stream open")
    if disk == "full":
        (relay.state_dir / ".revocations.json.new" / "not-empty").mkdir(parents=True)
    with (
        active_session(relay, MINT, sub=None) as (client, _),
        active_session(relay, MINT, sub="somebody-else") as others,
    ):
        master.revoke("jti", jti_of(client))
        master.revoke("sub", "eve", until=2**40)
        assert notice(client) == c.NoticeCode.REVOKED
        master.stream_status = master.poll_status = 503
        master.cut()
        upgrade(relay)
        for _ in range(4):  # at any worker, from any socket
            client.sock.close()
            client.sock = client._socket()
            assert refusal(client) == c.RejectReason.REVOKED
        eve = UdpPeer(MINT, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT, sub="eve")
        with eve:
            assert refusal(eve) == c.RejectReason.REVOKED
        sent = others[0].forward()
        assert others[1].receive()[0] == sent
        if disk == "full":
            (relay.state_dir / ".revocations.json.new" / "not-empty").rmdir()
            (relay.state_dir / ".revocations.json.new").rmdir()
        master.stream_status, master.poll_status = 101, 200
        soon(lambda: connected(relay), "stream of the new relay")
        soon(lambda: relay.health()["revocations"]["number"] == 2, "every row has its name again")
        assert relay.health()["revocations"]["in_force"] == 2
        # What was lifted is lifted, also where the row was only adopted.
        master.revoke("unban", "eve", until=0)
        again = UdpPeer(MINT, relay.relay_id, relay.udp[0], uuid.uuid4(), c.Role.CLIENT, sub="eve")
        with again:
            soon(lambda: relay.health()["revocations"]["number"] == 3, "the ban is lifted")
            again.present()
        assert refusal(client) == c.RejectReason.REVOKED


def jti_of(peer: UdpPeer) -> str:
    return lease.open_lease(peer.token, MINT.trusted()).jti


def test_revocations_survive_kill_9_of_the_relay_right_after_the_confirmation(
    start: Start, master: EventMaster
) -> None:
    relay = start()
    soon(lambda: connected(relay), "stream open")
    with active_session(relay, MINT) as (client, server):
        number = master.revoke("jti", jti_of(client))
        soon(lambda: number in master.acks, "confirmed")
        relay.send_signal(signal.SIGKILL)
        relay.wait()
        relay.environ["WAVRY_RELAY_MASTER_URL"] = "http://127.0.0.1:9"  # the master is away
        relay.environ["WAVRY_RELAY_LISTEN"] = relay.udp[0]
        relay.start()
        # The same lease, at any worker, from any socket.
        for _ in range(4):
            client.sock.close()
            client.sock = client._socket()
            assert refusal(client) == c.RejectReason.REVOKED
        server.present()
    assert relay.health()["revocations"] == {"in_force": 1, "number": number, "saved": True}


def test_stream_goes_on_at_its_number_after_a_restart_of_either_side(
    start: Start, master: EventMaster
) -> None:
    relay = start()
    soon(lambda: connected(relay), "stream open")
    master.revoke("sub", "one")
    soon(lambda: master.acks == [1], "confirmed")
    master.cut()  # as a killed master does
    soon(lambda: relay.health()["revocations"]["number"] == 1 and connected(relay), "back")
    master.revoke("sub", "two")
    soon(lambda: 2 in master.acks, "confirmed")
    relay.stop()
    relay.start()
    soon(lambda: connected(relay), "back again")
    streams = [after for way, after in master.asked if way == "stream"]
    # A log that is new to the relay is read from its beginning, once.
    assert streams[-1] == 2
    assert 1 in streams


def test_worker_that_is_killed_knows_the_revocations_again(
    start: Start, master: EventMaster
) -> None:
    relay = start()
    soon(lambda: connected(relay), "stream open")
    with active_session(relay, MINT) as (client, _):
        master.revoke("sub", "user-client")
        assert notice(client) == c.NoticeCode.REVOKED
        before = relay.worker_pids()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        soon(
            lambda: (
                relay.health()["workers"]["running"] == 2
                and not set(before) & set(relay.worker_pids())
            ),
            "replaced",
        )
        assert refusal(client) == c.RejectReason.REVOKED


def test_drain_and_new_keys_come_over_the_stream(start: Start, master: EventMaster) -> None:
    relay = start()
    soon(lambda: connected(relay), "stream open")
    master.push('{"type":"drain","drain":true}')
    soon(lambda: relay.health()["draining"] == ["master"], "drains")
    master.push('{"type":"drain","drain":false}')
    soon(lambda: relay.health()["draining"] == [], "drains no more")
    master.serial = 2
    master.push('{"type":"keys","serial":2}')
    soon(lambda: relay.health()["keys"]["serial"] == 2, "new keys")


def test_frames_of_a_later_version_are_ignored(start: Start, master: EventMaster) -> None:
    relay = start()
    soon(lambda: connected(relay), "stream open")
    master.push('{"type":"weather","rain":true}')
    master.push('{"type":"drain","drain":true,"why":"maintenance"}')
    soon(lambda: relay.health()["draining"] == ["master"], "drains")
    assert relay.metric("wavry_relay_event_frames_refused_total") == 0


@pytest.mark.parametrize(
    "frame",
    [
        "",
        "[]",
        "\x00",
        "[" * 2000,
        b'{"type":"drain","drain":true}',
        '{"type":7}',
        '{"type":"revocation"}',
        '{"type":"revocation","number":0,"kind":"sub","value":"a","issued_until":1,"expires_at":1}',
        '{"type":"revocation","number":-5,"kind":"sub","value":"a","issued_until":1,"expires_at":1}',
        '{"type":"revocation","number":1,"kind":"sub","value":"a","issued_until":1,"expires_at":1}',
        '{"type":"revocation","number":9,"kind":"all","value":"a","issued_until":1,"expires_at":1}',
        '{"type":"revocation","number":9,"kind":"jti","value":"a","issued_until":1,"expires_at":1}',
        '{"type":"revocation","number":9,"kind":"sub","value":"","issued_until":1,"expires_at":1}',
        '{"type":"revocation","number":1e308,"kind":"sub","value":"a","issued_until":1}',
        '{"type":"hello","log":"' + "a" * 32 + '","number":1,"keyset_serial":1,"drain":false}',
        '{"type":"keys","serial":-1}',
        "x" * (MAX_MASTER_FRAME_BYTES + 1),
    ],
    ids=range(17),
)
def test_hostile_frames_of_the_master_cost_one_stream_and_no_more(
    hostile_relay: tuple[RelayProcess, EventMaster], frame: str | bytes
) -> None:
    relay, master = hostile_relay
    soon(lambda: connected(relay), "stream open")
    # A stream that ends in peace resets the pause, which hostile ones double up to 30 s.
    streams = relay.metric("wavry_relay_event_connections_total", result="ok")
    master.cut()
    soon(
        lambda: (
            relay.metric("wavry_relay_event_connections_total", result="ok") > streams
            and connected(relay)
        ),
        "stream open again",
    )
    refused = relay.metric("wavry_relay_event_frames_refused_total")
    seen = relay.health()["revocations"]["number"]
    master.push(frame)
    soon(lambda: relay.metric("wavry_relay_event_frames_refused_total") == refused + 1, "refused")
    soon(lambda: connected(relay), "a new stream")
    assert relay.health()["revocations"]["number"] == seen
    assert relay.health()["draining"] == []
    with active_session(relay, MINT) as (client, server):
        client.forward()
        assert server.receive() == (1, b"hello")


@pytest.fixture(scope="module")
def hostile_relay(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[RelayProcess, EventMaster]]:
    with (
        EventMaster(MINT) as master,
        RelayProcess(
            tmp_path_factory.mktemp("hostile"),
            MINT,
            workers=1,
            WAVRY_RELAY_MASTER_URL=master.url,
            WAVRY_RELAY_EVENT_POLL_S="300",
        ) as relay,
    ):
        master.revoke("sub", "nobody")
        soon(lambda: relay.health()["revocations"]["number"] == 1, "first row")
        yield relay, master
        assert "Traceback" not in relay.log()
        assert not relay.events("event_link_failed")


@pytest.mark.parametrize(
    "first",
    [[], ['{"type":"drain","drain":true}'], ["nonsense"], [b"\x00"]],
    ids=["silence", "no hello", "nonsense", "binary"],
)
def test_stream_without_a_hello_is_given_up(
    start: Start, master: EventMaster, first: list[str | bytes]
) -> None:
    master.first_frames = first
    relay = start()
    soon(lambda: relay.metric("wavry_relay_event_frames_refused_total") >= 1, "refused")
    assert relay.health()["draining"] == []
    master.first_frames = None
    soon(lambda: connected(relay), "stream open")


@pytest.mark.parametrize(
    "page",
    [b"", b"[]", b"{}", b"x" * 70_000, b'{"log":"' + b"a" * 32 + b'","number":-1}'],
    ids=["empty", "list", "fields", "size", "number"],
)
def test_hostile_pages_are_refused(start: Start, master: EventMaster, page: bytes) -> None:
    master.stream_status, master.page_raw = 404, page
    relay = start(WAVRY_RELAY_EVENT_POLL_S="0.2")
    soon(lambda: relay.metric("wavry_relay_event_polls_total", result="failed") >= 2, "refused")
    master.page_raw = None
    master.revoke("sub", "eve")
    soon(lambda: relay.health()["revocations"]["in_force"] == 1, "polled")
    assert "Traceback" not in relay.log()


def test_flood_of_revocations_is_taken_while_packets_flow(
    start: Start, master: EventMaster
) -> None:
    relay = start()
    soon(lambda: connected(relay), "stream open")
    total = 2000
    with active_session(relay, MINT) as (client, server):
        for number in range(total):
            master.revoke("jti", str(uuid.UUID(int=number + 1)))
        client.forward()
        assert server.receive() == (1, b"hello")
        soon(lambda: relay.health()["revocations"]["number"] == total, "all in force")
        soon(lambda: master.acks[-1:] == [total], "all confirmed")
        assert len(master.acks) < total  # written many at a time
        client.forward()
        assert server.receive() == (2, b"hello")
    kept = json.loads((relay.state_dir / "revocations.json").read_bytes())
    assert (kept["number"], len(kept["entries"])) == (total, total)


def test_master_with_another_database_is_read_from_its_beginning(
    start: Start, master: EventMaster
) -> None:
    relay = start()
    soon(lambda: connected(relay), "stream open")
    for name in ("one", "two"):
        master.revoke("sub", name)
    soon(lambda: master.acks[-1:] == [2], "confirmed")
    master.log_id, master.rows = "b" * 32, []
    master.revoke("sub", "three", number=1)
    master.cut()
    soon(lambda: relay.health()["revocations"]["in_force"] == 3, "all three in force")
    soon(lambda: relay.health()["revocations"]["number"] == 1, "numbers of the new log")
    assert relay.events("revocation_log_changed")


def test_full_disk_keeps_revocations_in_force_and_unconfirmed(
    start: Start, master: EventMaster
) -> None:
    relay = start()
    soon(lambda: connected(relay), "stream open")
    blocker = relay.state_dir / ".revocations.json.new"
    (blocker / "not-empty").mkdir(parents=True)  # the temporary file cannot be made
    with active_session(relay, MINT) as (client, _):
        master.revoke("jti", jti_of(client))
        assert notice(client) == c.NoticeCode.REVOKED
    soon(lambda: relay.metric("wavry_relay_revocations_unsaved") == 1, "said so")
    assert relay.events("revocations_not_saved")[0]["next_step"]
    assert master.acks == []
    (blocker / "not-empty").rmdir()
    blocker.rmdir()
    soon(lambda: master.acks == [1], "confirmed once there is room")


def test_master_that_accepts_and_says_nothing_blocks_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as dead:
        url = f"http://127.0.0.1:{dead.getsockname()[1]}"
        with (
            RelayProcess(tmp_path, MINT, workers=1, WAVRY_RELAY_MASTER_URL=url) as relay,
            active_session(relay, MINT) as (client, server),
        ):
            client.forward()
            assert server.receive() == (1, b"hello")
            assert relay.metric("wavry_relay_event_stream_connected") == 0
