"""File transfer sans I/O: a fake link with a fake clock."""

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.peer.transfer_link import MS, SECOND, TransferLink

from wavry_peer.errors import TransferError
from wavry_peer.files import frames
from wavry_peer.files.frames import (
    FrameError,
    FrameKind,
    ResultCode,
    Simple,
    TransferAck,
    TransferData,
    TransferOffer,
)
from wavry_peer.files.incoming import safe_name
from wavry_peer.files.receiver import FileReceiver
from wavry_peer.files.sender import FileSender


def content(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def assert_whole(link: TransferLink) -> None:
    assert link.sender.result is ResultCode.OK
    assert bytes(link.stored) == link.content
    assert len(link.writes) == len(set(link.writes)) == link.offer.chunk_count


@pytest.mark.parametrize("loss", [0.05, 0.2])
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(0, 60_000),
    duplicate=st.sampled_from([0.0, 0.1, 0.5]),
    jitter_ms=st.sampled_from([0, 5, 60]),
)
def test_arrives_whole_under_loss_reordering_and_duplication(
    loss: float, seed: int, size: int, duplicate: float, jitter_ms: int
) -> None:
    link = TransferLink(
        content(size, seed), seed, loss=loss, duplicate=duplicate, jitter_ns=jitter_ms * MS
    )
    assert_whole(link.run())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), corrupt=st.sampled_from([0.02, 0.2]))
@example(seed=161, corrupt=0.02)  # an acknowledgement that claims too much
def test_damaged_frames_never_make_a_wrong_file_pass(seed: int, corrupt: float) -> None:
    link = TransferLink(content(20_000, seed), seed, corrupt=corrupt, loss=0.05)
    link.run()
    # The session authenticates frames; this is the belt to its braces.
    if link.receiver is not None and link.receiver.result is ResultCode.OK:
        assert bytes(link.stored) == link.content


@pytest.mark.parametrize("loss", [0.0, 0.05, 0.2])
def test_a_megabyte_takes_reasonable_time_and_effort(loss: float) -> None:
    link = TransferLink(content(1_000_000), 7, loss=loss, delay_ns=10 * MS)
    began_ns = link.now_ns
    assert_whole(link.run())
    seconds = (link.now_ns - began_ns) / SECOND
    # 1000 chunks, 20 ms round trip: a window of 20 chunks would need one second.
    assert seconds < {0.0: 1.0, 0.05: 3.0, 0.2: 6.0}[loss]
    repeated = link.sender.statistics.chunks_repeated
    assert repeated <= 1000 * (loss / (1 - loss) * 1.5 + 0.01)


def test_reordering_alone_causes_few_repetitions() -> None:
    link = TransferLink(content(2_000_000), 3, delay_ns=20 * MS, jitter_ns=15 * MS)
    assert_whole(link.run())
    assert link.sender.statistics.chunks_repeated < 2000 * 0.05


def test_a_bottleneck_with_a_small_buffer_does_not_collapse() -> None:
    link = TransferLink(
        content(4_000_000), 5, packets_per_s=5000, queue_packets=90, delay_ns=1 * MS
    )
    began_ns = link.now_ns
    assert_whole(link.run())
    seconds = (link.now_ns - began_ns) / SECOND
    assert seconds < 4000 / 5000 * 1.5, "at least two thirds of what the path carries"
    assert link.queue_drops < 4000 * 0.08


def test_a_deep_buffer_is_not_filled() -> None:
    link = TransferLink(
        content(4_000_000), 5, packets_per_s=5000, queue_packets=5000, delay_ns=1 * MS
    )
    assert_whole(link.run())
    assert link.sender.round_trip_ns < 100 * MS, "the queue is kept short"


def test_a_sender_whose_receiver_never_answers_gives_up() -> None:
    link = TransferLink(content(10), cut=True)
    began_ns = link.now_ns
    link.run()
    assert link.sender.has_stalled
    assert link.now_ns - began_ns == 30 * SECOND
    assert link.sent_frames < 30


def test_a_path_that_dies_in_the_middle_ends_both_sides() -> None:
    link = TransferLink(content(500_000))
    write = link.write

    def write_and_cut(offset: int, data: bytes) -> None:
        write(offset, data)
        link.cut = len(link.writes) > 100

    link.write = write_and_cut
    link.run()
    assert link.sender.has_stalled
    assert link.receiver is not None
    assert link.receiver.result is ResultCode.CANCELLED


def test_an_outage_shorter_than_the_patience_is_survived() -> None:
    link = TransferLink(content(300_000))
    original = link._launch

    def launch(to_receiver: bool, frame: bytes) -> None:
        elapsed_ns = link.now_ns - 1000 * SECOND
        link.cut = 100 * MS < elapsed_ns < 12 * SECOND
        original(to_receiver, frame)

    link._launch = launch
    assert_whole(link.run())
    assert link.now_ns - 1000 * SECOND < 16 * SECOND, "resumes soon after the path is back"


def test_the_result_survives_the_loss_of_its_first_copies() -> None:
    link = TransferLink(content(1000))
    original, lost = link._launch, []

    def launch(to_receiver: bool, frame: bytes) -> None:
        if frame[0] == FrameKind.RESULT and len(lost) < 3:
            lost.append(frame)
            return
        original(to_receiver, frame)

    link._launch = launch
    assert_whole(link.run())
    assert len(lost) == 3


def test_cancel_ends_the_receiver() -> None:
    link = TransferLink(content(500_000))
    write = link.write

    def write_and_cancel(offset: int, data: bytes) -> None:
        write(offset, data)
        if len(link.writes) == 50:
            link.sender.cancel()

    link.write = write_and_cancel
    link.run()
    assert link.receiver is not None
    assert link.receiver.result is ResultCode.CANCELLED
    assert link.sender.result is None


def test_the_receivers_memory_is_bounded_by_its_window() -> None:
    offer = TransferOffer(b"transfer", 10**9, 1000, bytes(32), "name")
    wrote: list[int] = []
    receiver = FileReceiver(offer, lambda at, _data: wrote.append(at), 0)
    far = TransferData(b"transfer", frames.WINDOW_CHUNKS, 0, 0, bytes(1000))
    receiver.receive(far.pack(), 0)
    assert wrote == []
    receiver.receive(
        TransferData(b"transfer", frames.WINDOW_CHUNKS - 1, 0, 0, bytes(1000)).pack(), 0
    )
    assert len(wrote) == 1
    acks = [frames.parse_frame(f) for f in receiver.frames_to_send(SECOND)]
    assert max(len(a.pack()) for a in acks if isinstance(a, TransferAck)) <= 1100


def test_frames_of_another_transfer_and_wrong_sizes_are_ignored() -> None:
    offer = TransferOffer(b"transfer", 1500, 1000, bytes(32), "name")
    wrote: list[int] = []
    receiver = FileReceiver(offer, lambda at, _data: wrote.append(at), 0)
    for frame in (
        TransferData(b"another!", 0, 0, 0, bytes(1000)),
        TransferData(b"transfer", 0, 0, 0, bytes(999)),
        TransferData(b"transfer", 1, 0, 0, bytes(1000)),
        TransferData(b"transfer", 2, 0, 0, b""),
        Simple(FrameKind.CANCEL, b"another!"),
    ):
        receiver.receive(frame.pack(), 0)
    assert wrote == []
    assert not receiver.is_over


def test_forged_acks_beyond_what_was_sent_change_nothing() -> None:
    link = TransferLink(content(100_000))
    link.sender.receive(Simple(FrameKind.ACCEPT, b"transfer").pack(), link.now_ns)
    link.sender.frames_to_send(link.now_ns)
    for next_index, have in ((99, 0), (0, 1 << 90), (2**32 - 1, 0)):
        ack = TransferAck(b"transfer", 0, 1, 0, next_index, have)
        link.sender.receive(ack.pack(), link.now_ns)
    assert link.sender.statistics.acked_bytes == 0


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=1400), st.integers(0, 9))
def test_any_bytes_are_taken_without_an_exception(noise: bytes, kind: int) -> None:
    offer = TransferOffer(b"transfer", 5000, 1000, bytes(32), "name")
    sender = FileSender(offer, lambda _at, size: bytes(size), 0)
    receiver = FileReceiver(offer, lambda _at, _data: None, 0)
    for frame in (noise, bytes((kind,)) + b"transfer" + noise):
        sender.receive(frame, 1)
        receiver.receive(frame, 1)
        try:
            parsed = frames.parse_frame(frame)
        except FrameError:
            continue
        assert frames.parse_frame(parsed.pack()) == parsed


@pytest.mark.parametrize(
    ("offered", "stored"),
    [
        ("photo.jpg", "photo.jpg"),
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\windows\\system.ini", "system.ini"),
        ("C:\\x\\..\\y.txt", "y.txt"),
        ("dir/", "dir"),
        (".bashrc", "_bashrc"),
        ("-rf", "_rf"),
        ("a\nb\x1b[31mc\x00.txt", "a_b_[31mc_.txt"),
        ("evil\u202egpj.exe", "evil_gpj.exe"),
        ("schön 文件.txt", "schön 文件.txt"),
    ],
)
def test_names_are_made_safe(offered: str, stored: str) -> None:
    assert safe_name(offered) == stored


@pytest.mark.parametrize("offered", ["", "..", ".", "/", "a/..", "\\", "   "])
def test_names_with_nothing_usable_are_refused(offered: str) -> None:
    with pytest.raises(TransferError) as caught:
        safe_name(offered)
    assert caught.value.code == "bad_name"


@given(st.text(max_size=400))
def test_a_safe_name_is_one_component_and_short(offered: str) -> None:
    try:
        name = safe_name(offered)
    except TransferError:
        return
    assert "/" not in name
    assert "\\" not in name
    assert name not in ("", ".", "..")
    assert name[0] not in ".-~"
    assert len(name.encode()) <= 240
    assert safe_name(name) == name
