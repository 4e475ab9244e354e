import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from loadtest.processes import (
    ProcessGoneError,
    core_wait_ns,
    cpu_ns,
    descendants,
    launch,
    resident_bytes,
    shared_memory_bytes,
    stop,
)

CHILD = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
child.wait()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""
BURN = """
import time
while time.process_time() < 0.2: pass
print("burnt", flush=True)
time.sleep(60)
"""
MAPS = """
import mmap, os, sys, time
memory = os.open(sys.argv[1], os.O_RDWR)
one = mmap.mmap(memory, 0)
two = mmap.mmap(memory, 0)
print("mapped", flush=True)
time.sleep(60)
"""


def is_running(pid):
    """A zombie has ended; whoever adopted it may not have looked yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def start():
    started = []

    def run(code, *arguments):
        process = launch([sys.executable, "-c", code, *arguments])
        started.append(process)
        return process, process.stdout.readline().decode().strip()

    yield run
    for process in started:
        stop(process, timeout_s=0.2)


def test_stop_leaves_no_grandchild(start):
    process, line = start(CHILD)
    assert int(line) in descendants(process.pid)
    stop(process, timeout_s=0.3)
    wait_until(lambda: not is_running(int(line)))


def test_stop_kills_what_ignores_sigterm(start):
    process, _ = start(STUBBORN)
    assert stop(process, timeout_s=0.2) == -signal.SIGKILL


def test_cpu_time_is_what_the_process_has_burnt(start):
    process, _ = start(BURN)
    assert 0.2e9 <= cpu_ns([process.pid]) < 2e9


def test_cpu_time_of_a_process_that_ended_is_an_error():
    done = subprocess.Popen(["true"])
    done.wait()
    with pytest.raises(ProcessGoneError):
        cpu_ns([done.pid])


def test_shared_memory_is_counted_once_even_where_it_is_mapped_twice(start):
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as memory:
        memory.truncate(3 << 20)
        process, _ = start(MAPS, memory.name)
        assert shared_memory_bytes(process.pid) == 3 << 20
        assert resident_bytes(process.pid) > 1 << 20


def test_a_process_without_shared_memory_has_none(start):
    process, _ = start(STUBBORN)
    assert shared_memory_bytes(process.pid) == 0


def test_waiting_for_a_core_that_another_has_is_counted():
    core = min(os.sched_getaffinity(0))
    rivals = [launch([sys.executable, "-c", BURN], core=core) for _ in range(2)]
    try:
        for rival in rivals:
            assert rival.stdout.readline() == b"burnt\n"
        waited_ns = core_wait_ns([rival.pid for rival in rivals])
    finally:
        for rival in rivals:
            stop(rival)
    assert waited_ns > 20_000_000
    with pytest.raises(ProcessGoneError):
        core_wait_ns([rivals[0].pid])
