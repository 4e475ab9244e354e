"""``wavryctl demo``: a whole system, two peers, a file and media through the relay.

Every part is a process of its own.  While media and file are under way, workers of the relay are
killed with SIGKILL, one after the other; the sessions must go on.  Then the relay under a
second stream is drained: it must move to the other relay without losing a packet.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.console import Console
from rich.table import Table

from wavry_cp.admin.client import ask_json
from wavry_cp.admin.endpoints import ServiceEndpoints, find_endpoints
from wavry_cp.admin.output import CommandError, print_json
from wavry_cp.admin.relay_drain import order_relay
from wavry_peer.errors import GatewayError
from wavry_peer.gateway.client import GatewayClient
from wavry_peer.protocol.http.ops import RelayHealth
from wavry_peer.protocol.relay_terms import DrainOrder

from .system import DevSystem, say_slow_engine

__all__ = ["run_demo"]

MAX_MEDIA_LOSS: Final = 0.01
"""Media is datagrams without repetition: a killed worker may take the few with it that it had just
read.  The file is repeated until it is whole, so it has no such share."""
STEP_TIMEOUT_S: Final = 120.0
PEER_END_TIMEOUT_S: Final = 5.0
DRAIN_MEDIA_S: Final = 16.0
"""The order reaches the relay with its next heartbeat (5 s), the peers ask within a second, and the
old path is kept for two more."""
DRAIN_POLL_S: Final = 0.02
MEDIA_KILLS: Final = 3
FILE_KILLS: Final = 2
"""Fixed, so that a slow machine does not kill (and thereby slow down) until the file is through."""
FILE_KILL_EVERY_S: Final = 0.4
"""20 MB take one or two seconds: workers must die while they are under way."""
KILL_POLL_S: Final = 0.05
_PEERS: Final = ("alice", "bob")


@dataclass(slots=True)
class _Stage:
    system: DevSystem
    directory: Path
    gateway_url: str
    endpoints: ServiceEndpoints
    passwords: Mapping[str, str]
    worker_kills: int = 0

    def environment(self, user: str) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith("WAVRY_")}
        return clean | {
            "WAVRY_PASSWORD": self.passwords[user],
            "WAVRY_PEER_HOME": str(self.directory / user),
            "WAVRY_GATEWAY_URL": self.gateway_url,
        }


async def run_demo(
    output: Path, *, megabytes: int, seconds: float, workers: int, as_json: bool
) -> None:
    """Run the demo, print a summary and write it to `output`.

    Raises:
        CommandError: something that arrived is not what was sent, or a session was lost.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)  # A failed demo must not leave the summary of a good one.
    with tempfile.TemporaryDirectory(prefix="wavry-demo-") as temporary:
        directory = Path(temporary)
        out = Console(stderr=as_json, highlight=False)
        out.print("starting gateway, master and two relays …")
        async with DevSystem.running(directory / "system", relays=2, workers=workers) as system:
            slow = await system.slow_engine()
            say_slow_engine(slow)
            stage = await _prepare(system, directory)
            out.print(f"streaming {seconds:g} s of 60 fps media, killing workers …")
            media = await _media(stage, seconds)
            out.print(f"sending a file of {megabytes} MB, killing workers …")
            file = await _file(stage, megabytes)
            seconds_drain = max(seconds, DRAIN_MEDIA_S)
            out.print(f"streaming {seconds_drain:g} s of media, draining its relay …")
            drain = await _drain(stage, seconds_drain)
            (health, *_) = await _healths(stage)
    summary = _summary(media, file, drain, health.engine.name, stage.worker_kills)
    output.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    if as_json:
        print_json(summary)
    else:
        _print_summary(out, summary, output)
    say_slow_engine(slow)  # Again: the first time has scrolled away.
    faults = _faults(summary)
    if faults:
        raise CommandError("the demo failed: " + "; ".join(faults), code="demo_failed")


async def _prepare(system: DevSystem, directory: Path) -> _Stage:
    description = system.description
    if description is None:
        raise CommandError("the system has no description: it did not start")
    passwords = {user: secrets.token_urlsafe(16) for user in _PEERS}
    async with GatewayClient(description.gateway_url) as gateway:
        for user, password in passwords.items():
            try:
                await gateway.register(user, password)
            except GatewayError as error:
                raise CommandError(f"user {user} cannot be registered: {error}") from error
    endpoints = find_endpoints({}, dev_dir=system.directory)
    return _Stage(system, directory, description.gateway_url, endpoints, passwords)


# -- Peers as processes ----------------------------------------------------------------


@contextlib.asynccontextmanager
async def _peer(
    stage: _Stage, user: str, *command: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    log = (stage.directory / f"{user}.log").open("ab")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *command,
        env=stage.environment(user),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=log,
    )  # fmt: skip
    log.close()
    try:
        yield process
        # It has said all; it gives its place at the relay back before it ends, or the relay that
        # is drained next keeps that session until it is idle.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PEER_END_TIMEOUT_S):
                await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        # The pipe's transport closes with the last reader, not with the process.
        process._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001  # no public way


async def _line(process: asyncio.subprocess.Process, stage: _Stage, user: str) -> dict[str, Any]:
    if process.stdout is None:
        raise CommandError("the peer has no output")
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            line = await process.stdout.readline()
    except TimeoutError:
        raise CommandError(f"{user} said nothing for {STEP_TIMEOUT_S:.0f} s") from None
    if not line:
        await process.wait()
        end = (stage.directory / f"{user}.log").read_text(errors="replace")[-1500:]
        raise CommandError(f"{user} ended with status {process.returncode}:\n{end}")
    answer: dict[str, Any] = msgspec.json.decode(line)
    return answer


async def _event(
    process: asyncio.subprocess.Process, stage: _Stage, user: str, event: str
) -> dict[str, Any]:
    """Return the next event of this name of a ``wavry-peer … --json``; others are passed over."""
    while True:
        line = await _line(process, stage, user)
        if line.get("event") == "error":
            raise CommandError(f"{user}: {line.get('message')}", code="demo_failed")
        if line.get("event") == event:
            return line


async def _healths(stage: _Stage) -> list[RelayHealth]:
    """Return the health of the relays, the one with most sessions first."""
    healths = [
        await ask_json("relay", relay.ops_url, "/health", RelayHealth)
        for relay in stage.endpoints.relays
    ]
    return sorted(healths, key=lambda health: -health.sessions.active)


async def _kill_workers(stage: _Stage, kills: int, every_s: float) -> None:
    """Wait for a session, then SIGKILL `kills` workers of its relay in turn, `every_s` apart."""
    while True:
        (health, *_) = await _healths(stage)
        if health.sessions.active:
            break
        await asyncio.sleep(KILL_POLL_S)
    for index in range(kills):
        await asyncio.sleep(every_s)
        (health, *_) = await _healths(stage)
        pids = list(health.workers.pids)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[index % len(pids)], signal.SIGKILL)
            stage.worker_kills += 1


@contextlib.asynccontextmanager
async def _killing_workers(stage: _Stage, kills: int, every_s: float) -> AsyncIterator[None]:
    task = asyncio.create_task(_kill_workers(stage, kills, every_s))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _media(stage: _Stage, seconds: float) -> dict[str, Any]:
    """Send media while workers are killed."""
    async with _streaming(stage, seconds) as stream:
        async with _killing_workers(stage, MEDIA_KILLS, max(0.5, seconds / 4)):
            result = await stream.received()
        return await stream.summary(result)


async def _drain(stage: _Stage, seconds: float) -> dict[str, Any]:
    """Send media whose relay is drained half-way."""
    async with _streaming(stage, seconds) as stream:
        await asyncio.sleep(seconds / 4)
        relay_id = stream.path.split()[-1]
        old, new = sorted(stage.endpoints.relays, key=lambda relay: relay.relay_id != relay_id)
        began_s = time.monotonic()
        await order_relay(stage.endpoints, relay_id, DrainOrder.DRAIN, reason="demo")
        moved_ms = await _until_sessions(new.ops_url, lambda count: count > 0, began_s, seconds)
        emptied_ms = await _until_sessions(old.ops_url, lambda count: count == 0, began_s, seconds)
        result = await stream.summary(await stream.received())
        return result | {"moved_ms": moved_ms, "emptied_ms": emptied_ms}


async def _until_sessions(
    ops_url: str, wanted: Callable[[int], bool], began_s: float, seconds: float
) -> int | None:
    """Return the ms from `began_s` until a relay has `sessions` of them; None if not in time."""
    while True:
        health = await ask_json("relay", ops_url, "/health", RelayHealth)
        passed_s = time.monotonic() - began_s
        if wanted(health.sessions.active + health.sessions.waiting):
            return round(1000 * passed_s)
        if passed_s > seconds:
            return None
        await asyncio.sleep(DRAIN_POLL_S)


@dataclass(slots=True)
class _Stream:
    """A media stream under way; `path` is the one it began on."""

    stage: _Stage
    alice: asyncio.subprocess.Process
    bob: asyncio.subprocess.Process
    path: str

    async def received(self) -> dict[str, Any]:
        """Return what the receiver says at the end."""
        return await _line(self.bob, self.stage, "bob")

    async def summary(self, result: dict[str, Any]) -> dict[str, Any]:
        """Check it, with what the sender says."""
        sent = await _line(self.alice, self.stage, "alice")
        return result | {
            "sent": sent["sent"],
            "ended": result["sent"] is not None,
            "sender_statistics": sent["statistics"],
        }


@contextlib.asynccontextmanager
async def _streaming(stage: _Stage, seconds: float) -> AsyncIterator[_Stream]:
    module = "wavry_cp.admin.dev.demo_media"
    common = ("--gateway", stage.gateway_url, "--seconds", str(seconds))

    def options(user: str, peer: str) -> tuple[str, ...]:
        home = str(stage.directory / user)
        return (*common, "--user", user, "--peer", peer, "--home", home)

    async with _peer(stage, "bob", module, "receive", *options("bob", "alice")) as bob:
        await _line(bob, stage, "bob")
        async with _peer(stage, "alice", module, "send", *options("alice", "bob")) as alice:
            connected = await _line(alice, stage, "alice")
            yield _Stream(stage, alice, bob, str(connected["path"]))


async def _file(stage: _Stage, megabytes: int) -> dict[str, Any]:
    source = stage.directory / "demo-file.bin"
    digest = hashlib.sha256()
    with source.open("wb") as file:
        for _ in range(megabytes):
            block = os.urandom(1_000_000)
            digest.update(block)
            file.write(block)
    target = stage.directory / "received"
    target.mkdir()
    began = time.monotonic()
    async with _peer(
        stage, "bob", "wavry_peer", "receive", "--as", "bob", "--from", "alice",
        "--directory", str(target), "--json",
    ) as bob:  # fmt: skip
        await _line(bob, stage, "bob")
        async with (
            _peer(
                stage, "alice", "wavry_peer", "send", str(source), "--as", "alice", "--to", "bob",
                "--json",
            ) as alice,
            _killing_workers(stage, FILE_KILLS, FILE_KILL_EVERY_S),
        ):  # fmt: skip
            received = await _event(bob, stage, "bob", "received")
            sent = await _event(alice, stage, "alice", "sent")
    arrived = target / source.name
    with arrived.open("rb") as file:
        match = hashlib.file_digest(file, "sha256").hexdigest() == digest.hexdigest()
    return {
        "sha256_match": match,
        "seconds": round(time.monotonic() - began, 3),
        "bytes": arrived.stat().st_size,
        "received": received,
        "sent": sent,
    }


# -- Summary ---------------------------------------------------------------------------


def _lost_sessions(media: dict[str, Any], file: dict[str, Any]) -> int:
    """Return how many sessions did not live as they began: one handshake, on one relay."""
    ends = (
        (media["statistics"], media["sender_statistics"]),
        (file["sent"]["statistics"], file["received"]["statistics"]),
    )
    lost = sum(
        any(end["handshakes"] != 1 or end["path_changes"] for end in session) for session in ends
    )
    return lost + int(not media["ended"])


def _moved_sessions(drain: dict[str, Any]) -> int:
    """Count the ends of the drained stream that moved once and kept their keys: 2 is right."""
    ends = (drain["statistics"], drain["sender_statistics"])
    return sum(end["handshakes"] == 1 and end["path_changes"] == 1 for end in ends)


def _summary(
    media: dict[str, Any],
    file: dict[str, Any],
    drain: dict[str, Any],
    engine: str,
    worker_kills: int,
) -> dict[str, Any]:
    file_sent = file["sent"]["statistics"]["datagrams_sent"]
    file_received = file["received"]["statistics"]["datagrams_received"]
    packets_sent = media["sent"] + file_sent
    packets_received = media["received"] + file_received
    return {
        "path": str(media["path"]).split()[0],
        "packets_sent": packets_sent,
        "packets_received": packets_received,
        "bytes": media["bytes"] + file["bytes"],
        "sha256_match": file["sha256_match"],
        "lost_packets": packets_sent - packets_received,
        "latency_ms": media["latency_ms"],
        "worker_kills": worker_kills,
        "sessions_lost": _lost_sessions(media, file),
        "engine": engine,
        "drain_lost_packets": drain["sent"] - drain["received"],
        "drain_packets_sent": drain["sent"],
        "drain_moved_ends": _moved_sessions(drain),
        "drain_moved_ms": drain["moved_ms"],
        "drain_emptied_ms": drain["emptied_ms"],
        "drain_latency_ms": drain["latency_ms"],
        "media": {
            "packets_sent": media["sent"],
            "packets_received": media["received"],
            "lost_packets": media["sent"] - media["received"],
            "corrupt_packets": media["corrupt"],
            "bytes": media["bytes"],
        },
        "file": {
            "packets_sent": file_sent,
            "packets_received": file_received,
            "lost_packets": file_sent - file_received,
            "bytes": file["bytes"],
            "seconds": file["seconds"],
        },
    }


def _faults(summary: dict[str, Any]) -> list[str]:
    media = summary["media"]
    checks = (
        (summary["path"] != "relay", "the traffic did not cross the relay"),
        (not summary["sha256_match"], "the file that arrived is not the file that was sent"),
        (media["corrupt_packets"] > 0, "media arrived that was not sent"),
        (media["packets_sent"] == 0, "no media was sent"),
        (summary["sessions_lost"] > 0, "a session was lost"),
        (summary["drain_lost_packets"] > 0, "packets were lost in the drain"),
        (
            summary["drain_moved_ends"] != 2 or summary["drain_moved_ms"] is None,
            "the stream did not move off the drained relay",
        ),
        (summary["drain_emptied_ms"] is None, "the drained relay did not become empty"),
        (summary["worker_kills"] == 0, "no worker was killed, the demo was too short"),
        (
            media["lost_packets"] > MAX_MEDIA_LOSS * media["packets_sent"],
            f"over {MAX_MEDIA_LOSS:.0%} of the media was lost",
        ),
    )
    return [text for failed, text in checks if failed]


def _print_summary(out: Console, summary: dict[str, Any], output: Path) -> None:
    table = Table(title="Wavry demo", title_justify="left", show_header=False)
    latency = summary["latency_ms"]
    file = summary["file"]
    rows = {
        "path": f"{summary['path']} (end-to-end encrypted, the relay is blind)",
        "relay engine": summary["engine"],
        "media": f"{summary['media']['packets_received']} of {summary['media']['packets_sent']} "
        f"packets, {summary['media']['lost_packets']} lost",
        "one-way latency": f"p50 {latency['p50']} ms, p99 {latency['p99']} ms",
        "file": f"{file['bytes']} bytes in {file['seconds']} s, {file['lost_packets']} packets "
        f"repeated, {'SHA-256 matches' if summary['sha256_match'] else 'SHA-256 DIFFERS'}",
        "relay drained": f"{summary['drain_packets_sent']} packets, "
        f"{summary['drain_lost_packets']} lost; moved after {summary['drain_moved_ms']} ms, "
        f"longest way {summary['drain_latency_ms']['max']} ms",
        "workers killed": f"{summary['worker_kills']}, sessions lost: {summary['sessions_lost']}",
    }
    for name, value in rows.items():
        table.add_row(name, str(value))
    out.print(table)
    out.print(f"written to {output}", markup=False)
