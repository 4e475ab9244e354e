"""The parts of the load tests that need no locust: what they compute and what they refuse."""

import argparse
import importlib
import json
import pkgutil
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import REPOSITORY

import loadtest
from loadtest.media.histogram import Histogram
from loadtest.media.meter import MediaTotals, StreamMeter
from loadtest.media.shape import MediaShape, echo_of, read_packet
from loadtest.run.options import OptionsError, add_options, read_options
from loadtest.run.results import describe_requests
from loadtest.run.shapes import make_plan
from loadtest.run.slo import ObjectivesError, judge, read_objectives
from loadtest.run.target import TargetError, TargetOptions, find_target
from loadtest.run.totals import MAX_REASONS, Totals

MS_NS = 1_000_000
DEADLINE_NS = 1000 * MS_NS
DEFAULT_SLO = REPOSITORY / "loadtest" / "slo.toml"


# -- No gevent where none is needed --------------------------------------------------------


def test_only_the_named_modules_patch_the_process() -> None:
    found = {m.name for m in pkgutil.walk_packages(loadtest.__path__, "loadtest.")}
    assert found >= loadtest.PATCHING_MODULES
    plain = sorted(
        name
        for name in found - loadtest.PATCHING_MODULES
        if not name.startswith(("loadtest.users.", "loadtest.comparisons."))
    )
    assert len(plain) > 25
    script = "import importlib, sys\n" + "".join(
        f"importlib.import_module({name!r})\n" for name in plain
    )
    script += "sys.exit(bool({'gevent', 'locust'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, timeout=60)
    assert done.returncode == 0


def test_this_process_is_not_patched() -> None:
    for name in ("media.histogram", "run.options", "run.target"):
        importlib.import_module(f"loadtest.{name}")
    assert "gevent" not in sys.modules
    assert "locust" not in sys.modules


# -- Histogram -----------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 1.0])
def test_a_percentile_is_at_most_two_percent_above_the_truth(share: float) -> None:
    rng = random.Random(7)
    values_ns = sorted(int(10 ** rng.uniform(3, 10)) for _ in range(5000))
    histogram = Histogram()
    for value in values_ns:
        histogram.add(value)
    truth_ms = values_ns[int(share * len(values_ns)) - 1] / 1e6
    got = histogram.percentile_ms(share)
    assert got is not None
    assert truth_ms - 0.002 <= got <= truth_ms * 1.02 + 0.002


def test_histograms_merge_and_differ_by_what_came_between() -> None:
    one, two = Histogram(), Histogram()
    for value in (1, 5, 9):
        one.add(value * MS_NS)
    earlier = one.copy()
    two.add(100 * MS_NS)
    two.add(-5)
    one.merge(two)
    assert one.count == 5
    assert one.max_ns == 100 * MS_NS
    between = one.since(earlier)
    assert between.count == 2
    assert between.percentile_ms(1.0) == pytest.approx(100, rel=0.02)
    assert earlier.since(earlier).percentile_ms(0.99) is None


# -- Media ---------------------------------------------------------------------------------


def test_frames_are_bursts_and_key_frames_larger_ones() -> None:
    shape = MediaShape(
        fps=60, frame_packets=4, keyframe_packets=16, keyframe_every=60, packet_bytes=200
    )
    assert [shape.packets_of(frame) for frame in (0, 1, 59, 60, 61)] == [16, 4, 4, 16, 4]
    assert [shape.due_ns(frame) for frame in (0, 60, 120)] == [0, 1_000_000_000, 2_000_000_000]
    assert shape.packets_per_s == 16 + 59 * 4
    assert shape.kbps == pytest.approx(252 * 200 * 8 / 1000)
    payloads = list(shape.payloads(60, 500, 77))
    assert [len(payload) for payload in payloads] == [200] * 16
    packets = [read_packet(payload) for payload in payloads]
    assert [packet.number for packet in packets if packet] == list(range(500, 516))
    assert {(packet.frame, packet.of, packet.due_ns) for packet in packets if packet} == {
        (60, 16, 77)
    }


def test_an_echo_names_the_frame_and_foreign_bytes_are_told_apart() -> None:
    packet = read_packet(next(MediaShape().payloads(3, 9, 123)))
    assert packet is not None
    echo = read_packet(echo_of(packet))
    assert echo is not None
    assert (echo.is_echo, echo.frame, echo.due_ns) == (True, 3, 123)
    assert read_packet(b"") is None
    assert read_packet(bytes(100)) is None


# -- What became of a stream ---------------------------------------------------------------


class Stream:
    """A meter, and a sender that numbers datagrams."""

    def __init__(self) -> None:
        self.totals = MediaTotals()
        self.meter = StreamMeter(self.totals, DEADLINE_NS)
        self.shape = MediaShape(frame_packets=2, keyframe_packets=4, keyframe_every=10)
        self.sent: list[bytes] = []

    def send(self, frame: int, due_ns: int, late_ns: int = 0) -> None:
        first = self.meter.next_number
        self.meter.frame_sent(frame, self.shape.packets_of(frame), due_ns, due_ns + late_ns)
        self.sent += self.shape.payloads(frame, first, due_ns)

    def receive(self, number: int, now_ns: int) -> bool:
        packet = read_packet(self.sent[number])
        assert packet is not None
        return self.meter.receive(packet, now_ns)


def test_a_frame_is_whole_with_its_last_datagram_and_counts_from_when_it_was_due() -> None:
    stream = Stream()
    stream.send(0, due_ns=1000 * MS_NS, late_ns=30 * MS_NS)
    whole = [stream.receive(number, 1050 * MS_NS) for number in (0, 1, 2, 3)]
    assert whole == [False, False, False, True]
    assert stream.totals.one_way.percentile_ms(0.99) == pytest.approx(50, rel=0.02)
    assert stream.totals.send_late.percentile_ms(0.99) == pytest.approx(30, rel=0.02)
    assert stream.meter.is_complete
    assert stream.meter.close() == 0
    assert (stream.totals.sent, stream.totals.received, stream.totals.lost) == (4, 4, 0)


def test_reordered_as_rfc_4737_counts_it() -> None:
    stream = Stream()
    for frame in range(1, 6):
        stream.send(frame, 0)
    # Figure of RFC 4737 section 3.4, from 0: packets 7 and 8 of it are overtaken by 9.
    for number in (0, 1, 2, 3, 4, 5, 8, 6, 7, 9):
        stream.receive(number, 1)
    assert stream.totals.reordered == 2
    stream.meter.close()
    assert stream.totals.lost == 0
    assert stream.totals.reordered_pct == 20


def test_what_never_comes_is_lost_and_what_comes_twice_is_a_duplicate() -> None:
    stream = Stream()
    for frame in range(1, 6):
        stream.send(frame, 0)
    for number in (0, 1, 1, 4, 5, 4):  # 2, 3 in a gap; 6 to 9 at the end
        stream.receive(number, 1)
    assert not stream.meter.is_complete
    assert stream.meter.close() == 3
    assert (stream.totals.received, stream.totals.lost, stream.totals.duplicates) == (4, 6, 2)
    assert stream.totals.loss_pct == 60
    assert stream.meter.close() == 0, "accounts are closed once"
    assert stream.totals.lost == 6


def test_a_frame_past_its_deadline_fails_once_though_its_datagrams_still_count() -> None:
    stream = Stream()
    stream.send(1, due_ns=0)
    stream.send(2, due_ns=500 * MS_NS)
    stream.receive(0, 1)
    assert stream.meter.overdue(DEADLINE_NS - 1) == 0
    assert stream.meter.overdue(DEADLINE_NS) == 1
    assert stream.meter.overdue(DEADLINE_NS) == 0
    assert stream.receive(1, DEADLINE_NS + 1) is False
    assert stream.totals.received == 2
    assert stream.meter.close() == 1


def test_a_number_that_was_never_sent_is_foreign() -> None:
    stream = Stream()
    packet = read_packet(next(stream.shape.payloads(1, 0, 0)))
    assert packet is not None
    assert stream.meter.receive(packet, 1) is False
    assert (stream.totals.foreign, stream.totals.received) == (1, 0)


# -- Shapes --------------------------------------------------------------------------------


def ticks(shape: str, peak: int, duration_s: float, steps: int = 5) -> list[tuple[float, int]]:
    """(time, users) of each second of a fake clock, until the plan ends."""
    plan = make_plan(shape, peak=peak, duration_s=duration_s, steps=steps)
    found, time_s = [], 0.0
    while (stage := plan.at(time_s)) is not None:
        found.append((time_s, stage.users))
        assert stage.users_per_s > 0
        time_s += 1
    return found


def test_step_is_a_staircase_to_the_peak() -> None:
    table = ticks("step", peak=10, duration_s=50)
    assert [users for _, users in table] == [2] * 10 + [4] * 10 + [6] * 10 + [8] * 10 + [10] * 10
    assert {users for _, users in ticks("step", peak=3, duration_s=9)} == {1, 2, 3}
    assert [users for _, users in ticks("step", peak=7, duration_s=3, steps=3)] == [3, 5, 7]


def test_spike_is_a_tenth_then_the_peak_then_a_tenth() -> None:
    table = ticks("spike", peak=50, duration_s=20)
    assert [users for _, users in table] == [5] * 8 + [50] * 4 + [5] * 8
    plan = make_plan("spike", peak=50, duration_s=20, steps=1)
    assert plan.stages[1].users_per_s >= 45, "a spike comes within a second"
    assert [users for _, users in ticks("spike", peak=1, duration_s=5)] == [1] * 5


def test_soak_ramps_for_a_tenth_and_holds() -> None:
    plan = make_plan("soak", peak=30, duration_s=600, steps=1)
    assert len(plan.stages) == 1
    assert plan.stages[0].users == 30
    assert plan.stages[0].users_per_s == pytest.approx(0.5)
    assert [users for _, users in ticks("soak", peak=3, duration_s=4)] == [3] * 4


@pytest.mark.parametrize(
    ("shape", "peak", "duration_s", "steps"),
    [("square", 1, 1, 1), ("step", 0, 1, 1), ("soak", 1, 0, 1), ("step", 1, 1, 0)],
)
def test_a_shape_of_nothing_is_refused(
    shape: str, peak: int, duration_s: float, steps: int
) -> None:
    with pytest.raises(ValueError, match="shape"):
        make_plan(shape, peak=peak, duration_s=duration_s, steps=steps)


# -- Objectives ----------------------------------------------------------------------------


def totals_of(count: int = 100, *, failures: int = 0, latency_ms: int = 10) -> Totals:
    totals = Totals()
    for number in range(count):
        failure = "rate_limited" if number < failures else None
        totals.request("POST /auth/login").add(latency_ms * MS_NS, failure)
    return totals


def broken(totals: Totals, *, wants_media: bool = False, faults: int = 0) -> set[str]:
    checks = judge(read_objectives(DEFAULT_SLO), totals, wants_media=wants_media, faults=faults)
    return {check.name for check in checks if not check.ok}


def test_objectives_are_kept_up_to_the_limit_and_broken_beyond_it() -> None:
    assert broken(totals_of()) == set()
    assert broken(totals_of(failures=1)) == set(), "1 % is the limit"
    assert broken(totals_of(failures=2)) == {"POST /auth/login errors"}
    assert broken(totals_of(latency_ms=6000)) == {"POST /auth/login p99"}
    assert broken(totals_of(), faults=1) == {"faults of the load test itself"}


def test_a_broken_objective_says_why() -> None:
    checks = judge(read_objectives(DEFAULT_SLO), totals_of(failures=50), wants_media=False)
    lines = [check.line() for check in checks if not check.ok]
    assert lines == ["BROKEN: POST /auth/login errors: 50 %, limit 1 % (50 x rate_limited)"]


def test_few_failed_logins_do_not_drown_in_many_frames() -> None:
    totals = totals_of(10, failures=5)
    for _ in range(10_000):
        totals.request("UDP frame one-way").add(MS_NS)
    assert broken(totals) == {"POST /auth/login errors"}


def test_nothing_measured_is_nothing_kept() -> None:
    assert broken(Totals()) == {"requests made"}
    assert broken(totals_of(), wants_media=True) == {
        "media loss",
        "media reordering",
        "load generator late, p99",
    }


def test_loss_reordering_and_a_late_generator_are_judged() -> None:
    totals = totals_of()
    media = totals.media
    media.received, media.lost, media.reordered = 990, 10, 20
    media.send_late.add(11 * MS_NS)
    assert broken(totals, wants_media=True) == {
        "media loss",
        "media reordering",
        "load generator late, p99",
    }
    media.lost, media.reordered = 0, 0
    assert broken(totals, wants_media=True) == {"load generator late, p99"}


@pytest.mark.parametrize(
    "text",
    ["max_error_pct = 1", "not toml", "max_error_pct = 101\n", "surprise = 1"],
)
def test_a_file_of_objectives_that_does_not_fit_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "slo.toml"
    path.write_text(text)
    with pytest.raises(ObjectivesError, match=r"slo\.toml"):
        read_objectives(path)


def test_reasons_are_bounded_and_results_name_them() -> None:
    totals = Totals()
    for number in range(MAX_REASONS + 10):
        totals.request("WS OFFER").add(MS_NS, f"reason {number}")
    described = describe_requests(totals)["WS OFFER"]
    assert described["failures"] == described["count"] == MAX_REASONS + 10
    assert len(described["reasons"]) == MAX_REASONS + 1
    assert described["error_pct"] == 100


# -- Options and target --------------------------------------------------------------------


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", dest="num_users", type=int)
    parser.add_argument("--host")
    parser.add_argument("--headless", action="store_true")
    parser.add_argument("--run-time", type=float)
    add_options(parser)
    return parser.parse_args(arguments)


def test_a_run_is_bounded_unless_told_otherwise() -> None:
    options = read_options(parse())
    assert options.run_s == 60
    assert options.peak_users == 1
    assert (options.media.fps, options.shape) == (60, "constant")
    assert read_objectives(options.objectives).max_loss_pct == 0.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--users", "501"],
        ["--users", "20", "--max-users", "10"],
        ["--host", "http://127.0.0.1"],
        ["--fps", "0"],
        ["--packet-bytes", "1400"],
        ["--packet-bytes", "10"],
        ["--keyframe-every", "0"],
        ["--session-time", "0"],
        ["--pause", "-1"],
        ["--frame-deadline", "0"],
        ["--lease-ttl", "59"],
        ["--renew-every", "0"],
        ["--steps", "0"],
    ],
    ids=" ".join,
)
def test_options_out_of_range_are_refused(arguments: list[str]) -> None:
    with pytest.raises(OptionsError, match=re.escape(arguments[0])):
        read_options(parse(*arguments))


def token_file(directory: Path, mode: int = 0o600) -> Path:
    path = directory / "service.token"
    path.write_text("t" * 40 + "\n")
    path.chmod(mode)
    return path


def dev_directory(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    facts = {
        "gateway_url": "http://127.0.0.1:1",
        "master_url": "http://127.0.0.1:2",
        "service_token_file": str(token_file(directory)),
        "admin_token_file": "none",
        "relays": [],
    }
    (directory / "dev.json").write_text(json.dumps(facts))
    return directory


def test_a_dev_directory_names_everything(tmp_path: Path) -> None:
    target = find_target({}, TargetOptions(dev_dir=dev_directory(tmp_path)))
    assert target.kind == "dev"
    assert target.need_gateway() == "http://127.0.0.1:1"
    assert target.need_master() == ("http://127.0.0.1:2", "t" * 40)
    assert "ttt" not in repr(target)


def test_a_named_service_is_never_mixed_with_the_dev_system_of_this_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dev_directory(tmp_path / ".wavry-dev")
    monkeypatch.chdir(tmp_path)
    assert find_target({}, TargetOptions()).kind == "dev"
    for environ, options in (
        ({}, TargetOptions(gateway_url="https://gateway.example")),
        ({"WAVRY_GATEWAY_URL": "https://gateway.example"}, TargetOptions()),
    ):
        target = find_target(environ, options)
        assert target.kind == "remote"
        assert target.need_gateway() == "https://gateway.example"
        with pytest.raises(TargetError, match="--wavry-master-url"):
            target.need_master()


def test_options_win_over_variables_and_a_dev_directory_over_both_kinds_of_variables(
    tmp_path: Path,
) -> None:
    environ = {"WAVRY_GATEWAY_URL": "https://one.example", "WAVRY_MASTER_URL": "https://m.example"}
    target = find_target(environ, TargetOptions(gateway_url="https://two.example"))
    assert (target.gateway_url, target.master_url) == ("https://two.example", "https://m.example")
    target = find_target(environ, TargetOptions(dev_dir=dev_directory(tmp_path)))
    assert target.gateway_url == "http://127.0.0.1:1"


def test_secrets_do_not_go_over_plain_http_to_other_machines() -> None:
    options = TargetOptions(master_url="http://master.example")
    with pytest.raises(TargetError, match="--wavry-allow-http"):
        find_target({}, options)
    allowed = TargetOptions(master_url="http://master.example", allow_http=True)
    assert find_target({}, allowed).master_url == "http://master.example"


def test_a_token_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    options = TargetOptions(
        master_url="https://m.example", service_token_file=token_file(tmp_path, 0o644)
    )
    with pytest.raises(TargetError, match="chmod 600"):
        find_target({}, options)
    with pytest.raises(TargetError, match="no service token"):
        find_target({}, TargetOptions(master_url="https://m.example")).need_master()


def test_a_dev_directory_without_a_system_says_so(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="wavryctl dev up"):
        find_target({}, TargetOptions(dev_dir=tmp_path))
    (tmp_path / "dev.json").write_text("{")
    with pytest.raises(TargetError, match="cannot be read"):
        find_target({}, TargetOptions(dev_dir=tmp_path))


# -- The sender keeps to the clock ---------------------------------------------------------

LATE_SENDER = """
import json, time
import gevent
from loadtest.run.load_run import LoadRun, now_ns
from loadtest.media.shape import MediaShape
from loadtest.media.stream import MediaStream
from loadtest.run.totals import Totals

class Channel:
    wants_leave = False

class Peer:
    def __init__(self, spoil=lambda datagrams: datagrams):
        self.channel, self.other, self.spoil = Channel(), None, spoil
    def send(self, payloads):
        for payload in self.spoil(list(payloads)):
            self.other.on_payload(payload, now_ns())
    def tick(self): pass
    def failure(self): return None

class Options:
    media = MediaShape(fps=60, frame_packets=2, keyframe_packets=4, keyframe_every=30)
    frame_deadline_s = 5.0

class Load:
    options, totals = Options(), Totals()
    def measured(self, kind, latency_ns, failure=None):
        self.totals.request(kind).add(latency_ns, failure)

def spoil(datagrams):
    spoil.frames += 1
    if spoil.frames == 10: return datagrams[:-1]       # one lost
    if spoil.frames == 12: return datagrams[::-1]      # one overtaken
    return datagrams
spoil.frames = 0

load, source, sink = Load(), Peer(spoil), Peer()
source.other, sink.other = sink, source
stream = MediaStream(load, source, sink)
started = now_ns()
from gevent import monkey
hold = monkey.get_original("time", "sleep")
gevent.spawn_later(0.3, hold, 0.3)                     # the whole process stands still
stream.stream(1.0)
stream.finish()
media, frames = load.totals.media, load.totals.request("UDP frame one-way")
print(json.dumps({"sent": media.sent, "received": media.received, "lost": media.lost,
    "reordered": media.reordered, "frames": frames.count, "failures": frames.failures,
    "p90_ms": frames.latency.percentile_ms(0.90), "p50_ms": frames.latency.percentile_ms(0.5),
    "late_p90_ms": media.send_late.percentile_ms(0.90)}))
"""


def test_a_sender_that_is_held_up_leaves_nothing_of_the_wait_out() -> None:
    """Coordinated omission: 0.3 s of 1 s stand still, and the frames of that time count."""
    done = subprocess.run(
        [sys.executable, "-c", LATE_SENDER],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.splitlines()[-1])
    assert got["frames"] == 60, "every frame of the second, late or not"
    assert got["sent"] == 60 * 2 + 2 * 2
    assert (got["lost"], got["received"], got["failures"]) == (1, got["sent"] - 1, 1)
    assert got["reordered"] == 1
    # A third of the frames were due while nothing ran, 300 ms late down to 0.
    assert got["p90_ms"] > 100
    assert got["late_p90_ms"] > 100
