"""A log stream never blocks and never raises; what it loses it counts, and says once."""

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.paths import REPOSITORY

from wavry_peer.service.log_stream import MAX_LINE_CHARS, RING_LINES, LogStream

QUICK_S = 1.0
"""Far above what a call takes, far below what a blocked one would."""


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer
    for fd in (reader, writer):
        with contextlib.suppress(OSError):
            os.close(fd)


def read_lines(fd: int, wanted: Callable[[list[str]], bool]) -> list[str]:
    text = b""
    deadline = time.monotonic() + 20
    while not wanted(text.decode().splitlines()):
        assert time.monotonic() < deadline, text[-300:]
        text += os.read(fd, 65536)
    return text.decode().splitlines()


def test_lines_leave_in_order(pipe: tuple[int, int]) -> None:
    stream = LogStream(pipe[1])
    for number in range(20):
        stream.write(f"line {number}\n")
    assert stream.drain(10)
    assert os.read(pipe[0], 4096).decode().splitlines() == [f"line {n}" for n in range(20)]
    assert stream.lines_lost == 0


def test_pieces_of_a_line_leave_together(pipe: tuple[int, int]) -> None:
    stream = LogStream(pipe[1])
    stream.write("a")
    stream.write("b\nc")
    assert stream.drain(10)
    assert os.read(pipe[0], 100) == b"ab\nc"


def test_a_stalled_reader_blocks_nobody_and_the_loss_is_said_once(pipe: tuple[int, int]) -> None:
    stream = LogStream(pipe[1], "relay")
    line = "x" * 1000 + "\n"
    begun = time.monotonic()
    for _ in range(3 * RING_LINES):
        stream.write(line)
    stream.write("last\n")
    assert not stream.drain(0.05), "nobody reads"
    assert time.monotonic() - begun < QUICK_S * 10
    assert stream.lines_lost >= RING_LINES
    lines = read_lines(pipe[0], lambda got: len(got) > RING_LINES // 2 and got[-1] == "last")
    notices = [json.loads(text) for text in lines if text.startswith("{")]
    assert [notice["event"] for notice in notices] == ["log_lines_lost"]
    assert notices[0]["lines"] == stream.lines_lost
    assert notices[0]["role"] == "relay"


def test_a_full_disk_raises_nothing_and_later_lines_are_whole() -> None:
    stream = LogStream(os.open("/dev/full", os.O_WRONLY), "master")
    for number in range(RING_LINES + 50):
        stream.write(f"{number}\n")
    assert stream.lines_lost >= 49
    reader, writer = os.pipe()
    os.dup2(writer, stream.fileno())  # There is room again.
    lines = read_lines(reader, lambda got: bool(got) and got[-1] == str(RING_LINES + 49))
    assert sum(text.startswith("{") for text in lines) == 1
    assert all(text.isdigit() or json.loads(text) for text in lines)
    for fd in (reader, writer):
        os.close(fd)


def test_a_reader_that_is_gone_raises_nothing(pipe: tuple[int, int]) -> None:
    os.close(pipe[0])
    stream = LogStream(pipe[1])
    for _ in range(RING_LINES + 10):
        stream.write("nobody hears\n")
    assert stream.lines_lost >= 9


def test_without_a_stream_every_line_is_counted() -> None:
    stream = LogStream(-1)
    stream.write("one\ntwo\n")
    assert stream.lines_lost == 2
    assert stream.drain(0)
    with pytest.raises(OSError, match="no such stream"):
        stream.fileno()


def test_a_long_line_is_cut(pipe: tuple[int, int]) -> None:
    stream = LogStream(pipe[1])
    got: list[str] = []

    def read() -> None:
        got.extend(read_lines(pipe[0], lambda lines: bool(lines) and lines[-1] == "next"))

    reader = threading.Thread(target=read)
    stream.write("y" * (3 * MAX_LINE_CHARS) + "\nnext\n")
    reader.start()
    assert stream.drain(10)
    reader.join()
    assert got == ["y" * MAX_LINE_CHARS, "next"]


PROGRAM = """
import logging, sys, warnings
from wavry_peer.service import log_stream, logs
import structlog
logs.configure("gateway")
structlog.get_logger().info("ours")
logging.getLogger("aiohttp.server").error("theirs")
print("printed", file=sys.stderr)
assert log_stream.lines_lost() == 0 or sys.argv[1:] == ["closed"]
print("done")
"""


def test_what_libraries_write_takes_the_same_way_and_the_last_line_leaves() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr.splitlines()[0])["event"] == "ours"
    assert done.stderr.splitlines()[1:] == ["theirs", "printed"]


def test_a_process_without_stderr_goes_on(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -c "$0" closed 2>&-', PROGRAM],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.parametrize("stream", ["full", "stalled"])
def test_a_process_ends_although_its_last_line_cannot_leave(stream: str) -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(writer, False)
    if stream == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        os.write(writer, bytes(4096))
        os.set_blocking(writer, True)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (0, "done\n")
    os.close(reader)
    os.close(writer)
