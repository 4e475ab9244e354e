"""The options that the load tests add to locust's own, and what they come to."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtest.media.shape import MAX_PACKET_BYTES, MIN_PACKET_BYTES, MediaShape
from wavry_peer.protocol.constants import LEASE_TTL_MAX_S, LEASE_TTL_MIN_S

from .shapes import CONSTANT, SHAPES
from .target import TargetOptions

__all__ = [
    "DEFAULT_OBJECTIVES",
    "LoadOptions",
    "OptionsError",
    "add_options",
    "main",
    "read_options",
]

DEFAULT_OBJECTIVES: Final = Path(__file__).parent.parent / "slo.toml"
DEFAULT_RUN_TIME_S: Final = 60
"""A load test that nobody bounded still ends."""
DEFAULT_MAX_USERS: Final = 500
"""More than one process drives well; an option allows more."""


class OptionsError(Exception):
    """Options that do not go together; the message says which."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load.

    Attributes:
        target: where the system is.
        relay_id: the only relay to use, or None for those that the master chooses.
        region: to ask the master for, or None.
        media: what streams look like.
        frame_deadline_s: a frame that is not whole so long after it was due has failed.
        session_s: length of a session; then a user starts another one.
        pause_s: between two tasks of a user.
        lease_ttl_s: to ask the master for, or None for its own.
        renew_every_s: how often leases are renewed, or None for 80 % of their life.
        shape: of the load.
        steps: of the shape ``step``.
        peak_users: most users at a time.
        run_s: length of the run, or None (only with the web interface).
        objectives: file to judge by.
        results: where the JSON goes, or None.
        is_headless: without the web interface: the process ends with the run.
    """

    target: TargetOptions
    relay_id: str | None
    region: str | None
    media: MediaShape
    frame_deadline_s: float
    session_s: float
    pause_s: float
    lease_ttl_s: int | None
    renew_every_s: float | None
    shape: str
    steps: int
    peak_users: int
    run_s: float | None
    objectives: Path
    results: Path | None
    is_headless: bool


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ours to the command line of locust."""
    parser.set_defaults(run_time=DEFAULT_RUN_TIME_S)
    where = parser.add_argument_group("Wavry: the system under test")
    where.add_argument(
        "--wavry-dev",
        metavar="DIR",
        help="Directory of a `wavryctl dev up` system. Without it: ./.wavry-dev.",
    )
    where.add_argument(
        "--wavry-gateway-url", metavar="URL", help="Gateway; else WAVRY_GATEWAY_URL."
    )
    where.add_argument("--wavry-master-url", metavar="URL", help="Master; else WAVRY_MASTER_URL.")
    where.add_argument(
        "--wavry-service-token-file",
        metavar="FILE",
        help="File (mode 0600) with the service token, for leases; else WAVRY_SERVICE_TOKEN_FILE.",
    )
    where.add_argument(
        "--wavry-allow-http",
        action="store_true",
        help="Let passwords and tokens go over http:// to other machines.",
    )
    where.add_argument("--wavry-relay", metavar="ID", help="RelayUser: use only this relay.")
    where.add_argument("--wavry-region", metavar="NAME", help="Ask for relays of this region.")

    how = parser.add_argument_group("Wavry: the load")
    how.add_argument(
        "--shape",
        choices=(CONSTANT, *SHAPES),
        default=CONSTANT,
        help="constant: --users and --spawn-rate. step, spike, soak: made of --users (the peak) "
        "and --run-time.",
    )
    how.add_argument("--steps", type=int, default=5, help="Steps of --shape step (5).")
    how.add_argument(
        "--max-users",
        type=int,
        default=DEFAULT_MAX_USERS,
        help=f"Refuse more --users than this ({DEFAULT_MAX_USERS}).",
    )
    how.add_argument(
        "--session-time",
        type=float,
        default=60.0,
        metavar="S",
        help="Seconds of a session; then its user starts another one (60).",
    )
    how.add_argument(
        "--pause",
        type=float,
        default=2.0,
        metavar="S",
        help="Seconds between two tasks of a user (2).",
    )
    how.add_argument(
        "--lease-ttl",
        type=int,
        metavar="S",
        help="RelayUser and MasterUser: life of the leases to ask for, "
        f"{LEASE_TTL_MIN_S} to {LEASE_TTL_MAX_S}.",
    )
    how.add_argument(
        "--renew-every",
        type=float,
        metavar="S",
        help="Renew leases so often, instead of at 80 %% of their life.",
    )
    media = MediaShape()
    how.add_argument("--fps", type=int, default=media.fps, help=f"Frames a second ({media.fps}).")
    how.add_argument(
        "--frame-packets",
        type=int,
        default=media.frame_packets,
        help=f"Datagrams of a frame ({media.frame_packets}).",
    )
    how.add_argument(
        "--keyframe-packets",
        type=int,
        default=media.keyframe_packets,
        help=f"Datagrams of a key frame ({media.keyframe_packets}).",
    )
    how.add_argument(
        "--keyframe-every",
        type=int,
        default=media.keyframe_every,
        help=f"Every so-manieth frame is a key frame ({media.keyframe_every}).",
    )
    how.add_argument(
        "--packet-bytes",
        type=int,
        default=media.packet_bytes,
        help=f"Bytes of a datagram of media ({media.packet_bytes}).",
    )

    how.add_argument(
        "--frame-deadline",
        type=float,
        default=1.0,
        metavar="S",
        help="A frame that is not whole so long after it was due is a failure (1).",
    )

    verdict = parser.add_argument_group("Wavry: the verdict")
    verdict.add_argument(
        "--slo",
        default=str(DEFAULT_OBJECTIVES),
        metavar="FILE",
        help="Objectives (TOML); exit status 1 when one is broken (loadtest/slo.toml).",
    )
    verdict.add_argument(
        "--results",
        metavar="FILE",
        help="Write what was measured and the verdict as JSON. --html FILE is locust's page.",
    )


def _path(text: str | None) -> Path | None:
    # Not by argparse: locust sends the options to its workers, and takes only plain types.
    return None if text is None else Path(text)


def _require(*, fits: bool, text: str) -> None:
    if not fits:
        raise OptionsError(text)


def read_options(parsed: argparse.Namespace) -> LoadOptions:
    """Return what a parsed command line asks for.

    Raises:
        OptionsError: a number is out of its range.
    """
    users = parsed.num_users or 1
    _require(fits=users >= 1, text="--users must be at least 1")
    _require(
        fits=users <= parsed.max_users,
        text=f"--users {users} is more than --max-users {parsed.max_users}",
    )
    _require(fits=parsed.steps >= 1, text="--steps must be at least 1")
    _require(fits=parsed.session_time > 0, text="--session-time must be above 0")
    _require(fits=parsed.frame_deadline > 0, text="--frame-deadline must be above 0")
    _require(fits=parsed.pause >= 0, text="--pause must not be negative")
    ttl_s = parsed.lease_ttl
    _require(
        fits=ttl_s is None or LEASE_TTL_MIN_S <= ttl_s <= LEASE_TTL_MAX_S,
        text=f"--lease-ttl must be {LEASE_TTL_MIN_S} to {LEASE_TTL_MAX_S}",
    )
    renew_every_s = parsed.renew_every
    _require(fits=renew_every_s is None or renew_every_s > 0, text="--renew-every must be above 0")
    _require(fits=1 <= parsed.fps <= 1000, text="--fps must be 1 to 1000")
    for name in ("frame_packets", "keyframe_packets", "keyframe_every"):
        option = "--" + name.replace("_", "-")
        _require(fits=1 <= getattr(parsed, name) <= 10_000, text=f"{option} must be 1 to 10000")
    _require(
        fits=MIN_PACKET_BYTES <= parsed.packet_bytes <= MAX_PACKET_BYTES,
        text=f"--packet-bytes must be {MIN_PACKET_BYTES} to {MAX_PACKET_BYTES}",
    )
    _require(
        fits=not parsed.host,
        text="--host is not used here: name the system with --wavry-dev, or with "
        "--wavry-gateway-url and --wavry-master-url",
    )
    return LoadOptions(
        target=TargetOptions(
            dev_dir=_path(parsed.wavry_dev),
            gateway_url=parsed.wavry_gateway_url,
            master_url=parsed.wavry_master_url,
            service_token_file=_path(parsed.wavry_service_token_file),
            allow_http=parsed.wavry_allow_http,
        ),
        relay_id=parsed.wavry_relay,
        region=parsed.wavry_region,
        media=MediaShape(
            fps=parsed.fps,
            frame_packets=parsed.frame_packets,
            keyframe_packets=parsed.keyframe_packets,
            keyframe_every=parsed.keyframe_every,
            packet_bytes=parsed.packet_bytes,
        ),
        frame_deadline_s=parsed.frame_deadline,
        session_s=parsed.session_time,
        pause_s=parsed.pause,
        lease_ttl_s=ttl_s,
        renew_every_s=renew_every_s,
        shape=parsed.shape,
        steps=parsed.steps,
        peak_users=users,
        run_s=parsed.run_time,
        objectives=Path(parsed.slo),
        results=_path(parsed.results),
        is_headless=bool(parsed.headless),
    )


def main() -> None:
    """Print our options: locust prints its help before it reads a locustfile."""
    parser = argparse.ArgumentParser(
        prog="locust -f loadtest/locustfile.py",
        usage="%(prog)s USER ... --headless [options]",
        description="The options that the load tests add to those of `locust --help`.",
        add_help=False,
    )
    add_options(parser)
    parser.print_help()


if __name__ == "__main__":
    main()
