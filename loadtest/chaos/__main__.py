"""`make chaos`: ``python -m loadtest.chaos``; status 1 where a run was not good."""

import argparse
import asyncio
import dataclasses
import logging
import secrets
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from .chaos_run import ChaosOptions, run_chaos
from .report import Summary, summary_lines

SHORT_PACE = 0.1
"""Faults of a second or two: for a run that only shows that everything works."""


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.chaos", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="at least; each kind comes once"
    )
    parser.add_argument("--seed", type=int, help="of a run that is to be repeated")
    parser.add_argument("--sessions", type=int, default=10, help="pairs of peers")
    parser.add_argument("--short", action="store_true", help="every kind once, for a second or two")
    parser.add_argument("--verbose", action="store_true", help="a line for each fault too")
    parser.add_argument("--output", type=Path, default=Path("build/chaos.json"))
    parser.add_argument("--keep", type=Path, help="directory for the system and its logs")
    return parser.parse_args(arguments)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _log_peers(path: Path) -> None:
    """Keep what the peers say: why one renewed, moved or gave up."""
    handler = logging.FileHandler(path, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    peers = logging.getLogger("wavry_peer")
    peers.addHandler(handler)
    peers.setLevel(logging.INFO)


async def _run(options: ChaosOptions, directory: Path) -> Summary:
    """Run it; Ctrl-C and SIGTERM end it as it ends by itself, with nothing left over."""
    task = asyncio.ensure_future(run_chaos(options, directory, show=_say))
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    return await task


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, write the JSON; the exit status."""
    chosen = _options(arguments)
    seed = secrets.randbelow(1 << 32) if chosen.seed is None else chosen.seed
    _say(f"seed {seed}")
    options = ChaosOptions(seed, 60 * chosen.minutes, chosen.sessions, tells_all=chosen.verbose)
    if chosen.short:
        options = dataclasses.replace(options, seconds=0, pace=SHORT_PACE, every_s=5.0)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    _log_peers(chosen.output.with_suffix(".log"))
    with tempfile.TemporaryDirectory(prefix="wavry-chaos-") as temporary:
        directory = chosen.keep or Path(temporary) / "system"
        try:
            summary = asyncio.run(_run(options, directory))
        except asyncio.CancelledError:
            _say("ended by a signal: no verdict")
            return 1
    chosen.output.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
    for line in summary_lines(summary):
        _say(line)
    return 0 if summary.ok else 1


if __name__ == "__main__":
    sys.exit(main())
