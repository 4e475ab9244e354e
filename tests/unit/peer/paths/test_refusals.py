"""What users read when an operator or a relay says no: what happened, and what to do next."""

import asyncio
import json
import os
import sys

import pytest
from support.peer.fake_gateway import PASSWORD
from support.peer.peer_world import PeerWorld, eventually

import wavry_peer
from wavry_peer.cli.output import EXIT_STATUSES
from wavry_peer.paths.refusals import refusal_text
from wavry_peer.protocol import constants as c
from wavry_peer.protocol import packets
from wavry_peer.protocol.constants import RejectReason

NEXT_STEPS = ("try again", "call again", "call, or ask", "ask the", "tell the operator", "update")


def say(world: PeerWorld, what: str, status: int, code: str, text: str, times: int = 1) -> None:
    """The gateway refuses with the text that the real one has."""
    world.gateway.fail(what, status, code, times)
    world.gateway.texts[code] = text


async def ended(session: wavry_peer.Session, timeout_s: float = 15) -> str:
    async with asyncio.timeout(timeout_s):
        with pytest.raises(wavry_peer.SessionClosedError) as caught:
            while True:
                await session.receive()
    return str(caught.value)


@pytest.mark.parametrize("reason", [*RejectReason, 99, None], ids=str)
def test_every_refusal_of_a_relay_has_a_text_with_a_next_step(reason: RejectReason | None) -> None:
    text = refusal_text(reason)
    assert any(step in text for step in NEXT_STEPS), text
    if isinstance(reason, RejectReason):
        assert reason.name in text, "what an operator looks for in metrics and docs"


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        (RejectReason.REVOKED, "the operator revoked the lease; make a new call"),
        (RejectReason.DRAINING, "takes no new sessions; try again"),
        (RejectReason.BANNED, "this address is blocked"),
        (RejectReason.EXPIRED, "the lease is over; call again"),
        (RejectReason.SESSION_FULL, "has no room; try again shortly"),
    ],
)
async def test_a_call_that_no_relay_takes_says_why(
    world: PeerWorld, reason: RejectReason, says: str
) -> None:
    for relay in world.gateway.relays:
        relay.reject_with = reason
    async with world.listen("bob"):
        with pytest.raises(wavry_peer.SessionFailedError) as caught:
            await world.connect("alice", "bob", timeout_s=3)
    assert f"refused with {reason.name}" in str(caught.value)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("code", "status", "text", "error"),
    [
        ("relay_mode_off", 503, "the operator has switched relays off for now; try again later",
         wavry_peer.SessionFailedError),
        ("lockdown", 503, "the operator has closed the service for now; try again later",
         wavry_peer.SessionFailedError),
        ("banned", 403, "one of the two users is banned; ask the operator",
         wavry_peer.GatewayError),
        ("revoked", 409, "the operator revoked this session; make a new call, or ask the operator",
         wavry_peer.GatewayError),
    ],
)  # fmt: skip
async def test_a_call_that_the_operator_does_not_want_says_so(
    world: PeerWorld, code: str, status: int, text: str, error: type[Exception]
) -> None:
    say(world, "relay", status, code, text)
    async with world.listen("bob"):
        with pytest.raises(error) as caught:
            await world.connect("alice", "bob")
    assert text in str(caught.value)
    assert code in str(caught.value)


@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("banned", 403, "one of the two users is banned; ask the operator"),
        ("revoked", 409, "the operator revoked this session; make a new call, or ask the operator"),
    ],
)
async def test_a_live_session_that_is_banned_or_revoked_ends_at_once_and_says_so(
    world: PeerWorld, code: str, status: int, text: str
) -> None:
    """The relay's NOTICE makes it ask; the gateway's word ends it, long before the lease does."""
    async with world.pair() as (alice, _):
        say(world, "renew", status, code, text, times=10)
        say(world, "relay", status, code, text, times=10)
        world.relay.tell_all(lambda sid: packets.build_notice(sid, c.NoticeCode.REVOKED))
        assert text in await ended(alice)


async def test_a_session_without_renewal_ends_with_its_lease_and_says_why(world: PeerWorld) -> None:
    world.gateway.ttl_s = 1.5
    async with world.pair() as (alice, _):
        text = "the operator has closed the service for now; try again later"
        say(world, "renew", 503, "lockdown", text, times=1000)
        told = await ended(alice)
    assert "the lease ended" in told
    assert text in told
    assert "call again" in told


async def test_a_banned_user_with_a_kept_login_is_told_so_by_signaling(world: PeerWorld) -> None:
    """Not that his login has ended: a new login would not help."""
    world.gateway.banned["alice"] = "this user is banned; ask the operator"
    with pytest.raises(wavry_peer.GatewayError, match="banned; ask the operator") as caught:
        await world.connect("alice", "bob")
    assert caught.value.code == "banned"


async def test_a_listener_whose_user_is_banned_ends_and_says_so(world: PeerWorld) -> None:
    async with world.listen("bob") as listener:
        world.gateway.banned["bob"] = "this user is banned; ask the operator"
        await world.gateway.ban("bob")
        async with asyncio.timeout(5):
            with pytest.raises(wavry_peer.GatewayError, match="ask the operator") as caught:
                await listener.accept()
        assert caught.value.code == "banned"


# -- The command -----------------------------------------------------------------------------------


async def wavry_peer_connect(world: PeerWorld, *options: str) -> tuple[int, str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("WAVRY_")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "wavry_peer", "connect", "bob", "--as", "alice", *options,
        env=kept
        | {
            "WAVRY_PEER_HOME": str(world.directory / "cli"),
            "WAVRY_PASSWORD": PASSWORD,
            "WAVRY_GATEWAY_URL": world.gateway.url,
        },
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
    finally:
        process._transport.close()  # type: ignore[attr-defined]
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.parametrize(
    ("what", "code", "status", "text", "exit_status"),
    [
        ("login", "banned", 403, "this user is banned; ask the operator", 4),
        ("relay", "banned", 403, "one of the two users is banned; ask the operator", 4),
        ("relay", "relay_mode_off", 503, "the operator has switched relays off for now; try", 7),
        ("relay", "lockdown", 503, "the operator has closed the service for now; try again", 7),
        ("relay", "revoked", 409, "the operator revoked this session; make a new call", 1),
    ],
)
async def test_the_command_says_what_the_operator_wanted(
    world: PeerWorld, what: str, code: str, status: int, text: str, exit_status: int
) -> None:
    world.gateway.users["alice"] = PASSWORD
    async with world.listen("bob"):
        say(world, what, status, code, text)
        found, _, err = await wavry_peer_connect(world)
        assert (found, "Traceback" in err) == (exit_status, False), err
        assert text in " ".join(err.split())
    assert exit_status in EXIT_STATUSES


async def test_the_command_says_it_in_json(world: PeerWorld) -> None:
    world.gateway.users["alice"] = PASSWORD
    text = "one of the two users is banned; ask the operator"
    async with world.listen("bob"):
        say(world, "relay", 403, "banned", text)
        found, out, _ = await wavry_peer_connect(world, "--json")
    told = json.loads(out.splitlines()[-1])
    assert (found, told["event"], told["error"]) == (4, "error", "banned")
    assert text in told["message"]


async def test_the_command_says_that_relays_drain(world: PeerWorld) -> None:
    world.gateway.users["alice"] = PASSWORD
    for relay in world.gateway.relays:
        relay.reject_with = RejectReason.DRAINING
    async with world.listen("bob"):
        calling = asyncio.create_task(wavry_peer_connect(world))
        await eventually(lambda: world.relay.rejects_sent, 30)
        world.gateway.fail("relay", 404, "unknown_session")  # else it goes on for 30 s
        found, _, err = await calling
    assert found == 1, err
    assert "refused with DRAINING: the relay takes no new sessions; try again" in " ".join(
        err.split()
    )
