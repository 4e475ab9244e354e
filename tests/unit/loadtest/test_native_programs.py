import socket
import subprocess

import pytest

from loadtest.generator import GeneratorError, GeneratorLoad, run_generator
from loadtest.native_build import CompileError, compile_program
from loadtest.sessions import Endpoints, SessionFile, plan_sessions
from loadtest.subjects import floor
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets, stun
from wavry_peer.protocol.errors import PacketError

pytestmark = pytest.mark.xdist_group("loadtest")


@pytest.fixture(scope="module")
def generator():
    return compile_program("generator")


@pytest.fixture
def endpoints():
    with Endpoints.open(3, 2) as opened:
        yield opened


@pytest.fixture
def sessions(tmp_path):
    return SessionFile.write(tmp_path / "sessions", plan_sessions(6, clients=3, servers=2))


@pytest.fixture
def listener():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        opened.bind(("127.0.0.1", 0))
        opened.settimeout(5)
        yield opened


def captured(listener, count):
    return [listener.recvfrom(2048) for _ in range(count)]


def target_of(listener):
    return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("name", ["generator", "floor"])
def test_programs_compile_without_a_warning(name, tmp_path):
    assert compile_program(name, tmp_path).stat().st_mode & 0o100


def test_a_compiled_program_is_not_compiled_again(tmp_path):
    first = compile_program("floor", tmp_path).stat().st_mtime_ns
    assert compile_program("floor", tmp_path).stat().st_mtime_ns == first


def test_a_missing_source_is_a_clear_error(tmp_path):
    with pytest.raises(CompileError, match="nonsense"):
        compile_program("nonsense", tmp_path)


@pytest.mark.parametrize("mode", ["plain", "mmsg", "gso"])
@pytest.mark.parametrize(("burst", "gso"), [(1, False), (4, False), (16, True), (48, True)])
def test_floors_forward_every_burst(generator, endpoints, tmp_path, mode, burst, gso):
    with floor(mode, endpoints, tmp_path, None, 6) as subject:
        load = GeneratorLoad(6, burst=burst, gso=gso, window=48, duration_ms=100, drain_ms=1000)
        result = run_generator(
            generator, load, endpoints, subject.sessions, target=subject.target, core=None
        )
    assert result.received == result.sent > 0
    assert result.sent % burst == 0
    assert result.sessions_heard == 6
    assert result.elapsed_ns > 0
    assert result.packets_per_s > 0


def test_touch_sends_exactly_one_packet_for_each_session(generator, endpoints, tmp_path):
    with floor("mmsg", endpoints, tmp_path, None, 6) as subject:
        load = GeneratorLoad(6, touch=True, burst=16, drain_ms=1000)
        result = run_generator(
            generator, load, endpoints, subject.sessions, target=subject.target, core=None
        )
        assert subject.sessions.received() == [1] * 6
    assert (result.sent, result.received, result.sessions_heard) == (6, 6, 6)


@pytest.mark.parametrize("gso", [False, True])
def test_datagrams_are_forward_packets_with_growing_sequences(
    generator, endpoints, tmp_path, listener, gso
):
    plans = plan_sessions(3, clients=3, servers=2)
    file = SessionFile.write(tmp_path / "s", plans)
    sequences = {plan.session_id: [] for plan in plans}
    senders = {plan.session_id: endpoints.clients[plan.client].getsockname() for plan in plans}
    for _ in range(2):  # the second run goes on where the first ended
        load = GeneratorLoad(3, burst=4, gso=gso, window=12, duration_ms=1, drain_ms=1)
        result = run_generator(
            generator, load, endpoints, file, target=target_of(listener), core=None
        )
        assert result.received == 0
        for datagram, sender in captured(listener, result.sent):
            header = packets.parse_header(datagram)
            assert len(datagram) == 1200
            assert header.type is c.PacketType.FORWARD
            assert sender == senders[header.session_id]
            sequences[header.session_id].append(
                packets.forward_sequence(datagram[c.HEADER_BYTES :])
            )
    for numbers in sequences.values():
        assert len(numbers) >= 8
        assert numbers == list(range(1, len(numbers) + 1))


def test_channel_data_wraps_the_datagram(generator, endpoints, tmp_path, listener):
    file = SessionFile.write(tmp_path / "s", plan_sessions(5, clients=3, servers=2))
    load = GeneratorLoad(5, touch=True, channel_data=True, drain_ms=1)
    run_generator(generator, load, endpoints, file, target=target_of(listener), core=None)
    heads = [datagram[:6] for datagram, _ in captured(listener, 5)]
    assert [head[:2].hex() for head in heads] == ["4000"] * 3 + ["4001"] * 2
    assert {head[2:].hex() for head in heads} == {"04b05701"}


def test_direct_path_gives_a_latency_distribution(generator, endpoints, sessions):
    load = GeneratorLoad(6, rate=2000, duration_ms=100, direct=True, drain_ms=1000)
    result = run_generator(generator, load, endpoints, sessions, target=None, core=None)
    assert result.received == result.sent > 20
    assert 0 < result.latency_p50_ns <= result.latency_p99_ns <= result.latency_p999_ns
    assert result.latency_p999_ns <= result.latency_max_ns


@pytest.mark.parametrize("many", [False, True])
def test_junk_is_of_every_kind_and_from_one_address_or_from_many(
    generator, endpoints, tmp_path, listener, many
):
    plans = plan_sessions(6, clients=3, servers=2)
    file = SessionFile.write(tmp_path / "s", plans)
    junk = 0
    for _ in range(20):  # On a busy machine one run gets few turns.
        load = GeneratorLoad(
            6,
            rate=1000,
            duration_ms=50,
            direct=True,
            drain_ms=1000,
            junk_per_s=10_000,
            junk_from_many=many,
        )
        target = target_of(listener)
        result = run_generator(generator, load, endpoints, file, target=target, core=None)
        assert result.received == result.sent > 0
        junk += result.junk
        if junk >= 256:
            break
    assert junk >= 256
    seen = captured(listener, 256)
    sources = {sender[0] for _, sender in seen}
    assert len(sources) > 200 if many else sources == {"127.66.0.1"}
    live = {plan.session_id for plan in plans}
    kinds = set()
    for datagram, _ in seen:
        try:
            header = packets.parse_header(datagram)
        except PacketError as error:
            kinds.add("stun" if stun.is_stun(datagram) else error.reason)
        else:
            known = "known" if header.session_id in live else "unknown"
            kinds.add(f"{header.type.name} {known} {bool(header.flags)} {len(datagram)}")
    assert kinds == {
        "too_short",
        "too_long",
        "bad_magic",
        "bad_version",
        "unknown_type",
        "stun",
        "LEASE_ACK known False 36",
        "FORWARD unknown False 1200",
        "FORWARD known False 200",
        "LEASE_PRESENT unknown True 400",
        "LEASE_RENEW known True 400",
        "LEASE_RENEW known False 20",
    }


def test_paced_load_keeps_its_rate(generator, endpoints, sessions):
    load = GeneratorLoad(6, rate=1000, duration_ms=300, direct=True, drain_ms=1000)
    planned = []
    for _ in range(10):  # A machine that gives it no core for a while keeps no rate.
        result = run_generator(generator, load, endpoints, sessions, target=None, core=None)
        planned.append(result.sent + result.late_bursts)
        if planned[-1] == pytest.approx(300, rel=0.1):
            return
    pytest.fail(f"1000 packets/s for 0.3 s gave {planned}")


def test_what_others_send_is_not_counted_as_received(generator, endpoints, sessions):
    # A packet of the right form from an earlier run, waiting in the receiver's queue.
    stale = packets.build_forward(bytes([7] * 16), bytes(1180))
    endpoints.clients[0].sendto(stale, endpoints.servers[0].getsockname())
    load = GeneratorLoad(6, touch=True, direct=True, drain_ms=1000)
    result = run_generator(generator, load, endpoints, sessions, target=None, core=None)
    assert (result.received, result.foreign) == (6, 1)


def test_lost_packets_are_counted(generator, endpoints, sessions, listener):
    load = GeneratorLoad(6, touch=True, drain_ms=10)
    result = run_generator(
        generator, load, endpoints, sessions, target=target_of(listener), core=None
    )
    assert (result.sent, result.lost, result.sessions_heard) == (6, 6, 0)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (GeneratorLoad(7), "session file"),
        (GeneratorLoad(0), "session file"),
        (GeneratorLoad(6, burst=65), "--burst"),
        (GeneratorLoad(6, burst=0), "--burst"),
        (GeneratorLoad(6, size_bytes=40), "--size"),
        (GeneratorLoad(6, size_bytes=1500), "--size"),
        (GeneratorLoad(6, burst=60, gso=True, size_bytes=1400), "--gso"),
    ],
)
def test_generator_refuses_what_it_cannot_send(generator, endpoints, sessions, load, message):
    with pytest.raises(GeneratorError, match=message):
        run_generator(generator, load, endpoints, sessions, target="127.0.0.1:9", core=None)


def test_generator_refuses_a_session_on_a_socket_that_was_not_given(generator, endpoints, tmp_path):
    file = SessionFile.write(tmp_path / "s", plan_sessions(6, clients=6, servers=2))
    with pytest.raises(GeneratorError, match="socket"):
        run_generator(generator, GeneratorLoad(6), endpoints, file, target="127.0.0.1:9", core=None)


@pytest.mark.parametrize(
    "arguments", [["gso"], ["mmsg", "--to", "nowhere"], ["x", "--to", "[::1]:9"]]
)
def test_floor_refuses_wrong_arguments(arguments):
    done = subprocess.run(
        [compile_program("floor"), *arguments], capture_output=True, timeout=10, check=False
    )
    assert done.returncode == 2


def test_each_pair_of_sockets_is_used_once_before_any_is_used_again():
    plans = plan_sessions(12, clients=4, servers=3)
    assert len({(plan.client, plan.server) for plan in plans}) == 12
    assert len({plan.session_id for plan in plans}) == 12
    assert len({(plan.client, plan.channel) for plan in plans}) == 12
