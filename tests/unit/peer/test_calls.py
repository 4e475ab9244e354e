"""Calls between users: policies, pins, refusals, lost messages, keys that do not fit."""

import asyncio
import time
from pathlib import Path

import pytest
from support.peer.fake_gateway import PASSWORD
from support.peer.peer_world import PeerWorld, eventually, noise_key_text

import wavry_peer
from wavry_peer.gateway.calls import IncomingCall, is_accepted
from wavry_peer.gateway.signaling import LinkTimes
from wavry_peer.home.identity import Identity, fingerprint, load_identity
from wavry_peer.protocol.http import signaling as s

QUICK = LinkTimes(backoff_initial_s=0.02, backoff_max_s=0.1)


async def test_offline_users(world: PeerWorld) -> None:
    with pytest.raises(wavry_peer.PeerUnavailableError, match="not online"):
        await world.connect("alice", "bob")


async def test_without_a_listener_calls_are_refused_at_once(world: PeerWorld) -> None:
    async with wavry_peer.Peer(world.gateway.url, **world.login("bob")) as bob:
        assert bob.username == "bob"
        with pytest.raises(wavry_peer.PeerUnavailableError, match="refused"):
            async with asyncio.timeout(2):
                await world.connect("alice", "bob")


@pytest.mark.parametrize(
    ("policy", "accepted"),
    [
        ("all", True),
        ({"alice"}, True),
        (["carol", "alice"], True),
        ({"carol"}, False),
        (set(), False),
        ("alice", True),
        ("alices-friend", False),
        (lambda call: call.username == "alice", True),
        (lambda _call: False, False),
    ],
)
async def test_policies(world: PeerWorld, policy, accepted: bool) -> None:
    async with world.listen("bob", accept=policy):
        if accepted:
            async with world.connect("alice", "bob") as session:
                assert session.remote_username == "bob"
        else:
            with pytest.raises(wavry_peer.PeerUnavailableError, match="refused"):
                await world.connect("alice", "bob")


async def test_a_policy_may_be_async_and_sees_the_key(world: PeerWorld) -> None:
    seen: list[IncomingCall] = []

    async def policy(call: IncomingCall) -> bool:
        await asyncio.sleep(0)
        seen.append(call)
        return True

    async with world.listen("bob", accept=policy), world.connect("alice", "bob"):
        own = load_identity(world.directory / "alice").noise.public
        assert [(call.username, call.fingerprint) for call in seen] == [("alice", fingerprint(own))]


async def test_what_a_policy_raises_reaches_the_application(world: PeerWorld) -> None:
    def policy(_call: IncomingCall) -> bool:
        raise ZeroDivisionError

    async with world.listen("bob", accept=policy) as listener:
        calling = asyncio.create_task(world.connect("alice", "bob", timeout_s=0.5).__aenter__())
        with pytest.raises(ZeroDivisionError):
            async with asyncio.timeout(2):
                await listener.accept()
        with pytest.raises(wavry_peer.PeerUnavailableError):
            await calling


async def test_a_name_alone_is_not_taken_for_a_set_of_letters() -> None:
    assert not await is_accepted("alice", IncomingCall("", "a", b""))
    assert await is_accepted("alice", IncomingCall("", "alice", b""))


async def test_a_caller_who_gets_no_answer_gives_up_and_closes(world: PeerWorld) -> None:
    async def never(_call: IncomingCall) -> bool:
        await asyncio.Event().wait()
        return True

    async with world.listen("bob", accept=never):
        with pytest.raises(wavry_peer.PeerUnavailableError, match="did not answer"):
            await world.connect("alice", "bob", timeout_s=0.2)
        assert [call.state for call in world.gateway.calls.values()] == ["closed"]


async def test_keys_are_pinned_on_first_use_on_both_sides(world: PeerWorld) -> None:
    async with world.pair():
        pass
    for user, other in (("alice", "bob"), ("bob", "alice")):
        known = wavry_peer.KnownPeers.in_home(world.directory / user)
        theirs = load_identity(world.directory / other).noise.public
        assert known.pinned(world.gateway.url, other) == theirs


async def test_a_changed_key_of_the_called_user_is_refused(world: PeerWorld) -> None:
    async with world.pair():
        pass
    async with world.listen("bob", identity=Identity.generate()):
        with pytest.raises(wavry_peer.PeerKeyChangedError, match="wavry-peer forget bob"):
            await world.connect("alice", "bob")
        alice = wavry_peer.KnownPeers.in_home(world.directory / "alice")
        alice.forget(world.gateway.url, "bob")
        async with world.connect("alice", "bob"):
            pass


async def test_a_changed_key_of_the_caller_is_refused(world: PeerWorld) -> None:
    async with world.pair():
        pass
    async with world.listen("bob"):
        with pytest.raises(wavry_peer.PeerUnavailableError, match="refused"):
            await world.connect("alice", "bob", identity=Identity.generate())


async def test_a_gateway_that_names_another_key_gets_no_session(world: PeerWorld) -> None:
    # The pins do not help on the first call; the handshake does.
    stranger = Identity.generate()
    world.gateway.swap_keys["bob"] = noise_key_text(stranger.noise.public)
    async with world.listen("bob"):
        with pytest.raises(wavry_peer.PeerError):
            await world.connect("alice", "bob", timeout_s=1.0)
    known = wavry_peer.KnownPeers.in_home(world.directory / "alice")
    assert known.pinned(world.gateway.url, "bob") is None, "only a proved key is pinned"


async def test_a_peer_without_a_key_is_refused(world: PeerWorld) -> None:
    async with world.listen("bob"):
        await world.gateway.tell(
            "bob",
            s.Offer(from_username="old", session_id="11111111-2222-4333-8444-555555555555"),
        )
        await asyncio.sleep(0.05)
        async with world.connect("alice", "bob"):
            pass


async def test_a_lost_answer_is_asked_for(world: PeerWorld, monkeypatch) -> None:
    monkeypatch.setattr("wavry_peer.peer.POLL_S", 0.1)
    world.gateway.lose_messages = {s.Answer}
    async with world.pair() as (alice, bob):
        await alice.send(b"x")
        assert await bob.receive() == b"x"


async def test_lost_credentials_are_asked_for(world: PeerWorld, monkeypatch) -> None:
    monkeypatch.setattr("wavry_peer.peer.CREDENTIALS_PATIENCE_S", 0.1)
    world.gateway.lose_messages = {s.RelayCredentials}
    async with world.pair() as (alice, bob):
        await alice.send(b"x")
        assert await bob.receive() == b"x"


async def test_no_relay_is_a_clear_error(world: PeerWorld) -> None:
    world.gateway.fail("relay", 503, "no_relay_available")
    async with world.listen("bob"):
        with pytest.raises(wavry_peer.SessionFailedError, match="no relay"):
            await world.connect("alice", "bob")


async def test_a_silent_relay_ends_in_time(world: PeerWorld) -> None:
    world.relay.silent = world.spare.silent = True
    async with world.listen("bob"):
        began = time.monotonic()
        with pytest.raises(wavry_peer.SessionFailedError, match="relay did not answer"):
            await world.connect("alice", "bob", timeout_s=0.5)
        assert time.monotonic() - began < 2


async def test_many_sessions_at_once(world: PeerWorld) -> None:
    async with world.listen("bob") as listener:
        names = [f"user{number}" for number in range(5)]
        sessions = await asyncio.gather(*(world.connect(name, "bob") for name in names))
        for session in sessions:
            await session.send(session.session_id.encode())
        seen = set()
        for _ in names:
            session = await listener.accept()
            async with asyncio.timeout(2):
                assert (await session.receive()).decode() == session.session_id
            seen.add(session.remote_username)
            await session.aclose()
        assert seen == set(names)
        for session in sessions:
            await session.aclose()


async def test_the_listener_is_told_when_another_process_takes_its_place(world: PeerWorld) -> None:
    async with world.listen("bob") as first:
        waiting = asyncio.create_task(first.accept())
        async with world.listen("bob"):
            with pytest.raises(wavry_peer.GatewayError) as caught:
                async with asyncio.timeout(2):
                    await waiting
            assert caught.value.code == "displaced"
            with pytest.raises(wavry_peer.GatewayError):
                await first.accept()
            await asyncio.sleep(0.05)
            # The newer one stays: no fight about the place.
            assert "bob" in world.gateway.sockets


async def test_a_session_goes_on_after_its_peer_was_displaced(world: PeerWorld) -> None:
    newer = wavry_peer.Peer(world.gateway.url, **world.login("alice"))
    async with world.pair() as (alice, bob), newer:
        await asyncio.sleep(0.05)
        await alice.send(b"still")
        assert await bob.receive() == b"still"


async def test_calls_come_again_after_the_connection_was_lost(world: PeerWorld) -> None:
    peer = wavry_peer.Peer(world.gateway.url, link_times=QUICK, **world.login("bob"))
    async with peer, peer.listen(accept="all"):
        await world.gateway.drop_sockets()
        await eventually(lambda: "bob" in world.gateway.sockets)
        async with world.connect("alice", "bob"):
            pass


async def test_who_holds_the_password_logs_in_again_when_the_login_has_ended(
    world: PeerWorld, tmp_path: Path
) -> None:
    world.gateway.users["bob"] = PASSWORD
    options = {"credentials": ("bob", PASSWORD), "home": tmp_path / "bob", "link_times": QUICK}
    async with wavry_peer.Peer(world.gateway.url, **options) as peer:
        listener = peer.listen(accept="all")
        world.gateway.tokens.clear()
        world.gateway.fail("login", 503, "busy", times=1)  # It tries again.
        await world.gateway.drop_sockets()
        await eventually(lambda: "bob" in world.gateway.sockets)
        async with world.connect("alice", "bob"), await listener.accept():
            pass
        # A call over HTTP finds out first, as a renewal does; it is made again.
        world.gateway.tokens.clear()
        async with world.listen("carol"):
            session = await peer.connect("carol")
            await session.aclose()
        # The password was changed: that is the end.
        world.gateway.users["bob"] = "another password"
        world.gateway.tokens.clear()
        await world.gateway.drop_sockets()
        with pytest.raises(wavry_peer.GatewayAuthError):
            async with asyncio.timeout(5):
                await listener.accept()


async def test_closing_a_listener_ends_its_iteration(world: PeerWorld) -> None:
    async with world.listen("bob") as listener:
        task = asyncio.create_task(_collect(listener))
        await asyncio.sleep(0)
        await listener.aclose()
        async with asyncio.timeout(2):
            assert await task == []
        with pytest.raises(wavry_peer.LocalError, match="closed"):
            await listener.accept()


async def _collect(listener: wavry_peer.Listener) -> list[wavry_peer.Session]:
    return [session async for session in listener]


async def test_login_with_a_password_and_from_the_store(world: PeerWorld, tmp_path: Path) -> None:
    world.gateway.users["carol"] = PASSWORD
    home = tmp_path / "carol"
    async with wavry_peer.Peer(
        world.gateway.url, credentials=("carol", PASSWORD), home=home
    ) as peer:
        assert peer.username == "carol"
    with pytest.raises(wavry_peer.GatewayAuthError):
        await wavry_peer.Peer(
            world.gateway.url, credentials=("carol", "wrong password"), home=home
        ).start()
    with pytest.raises(wavry_peer.GatewayAuthError, match="wavry-peer login"):
        await wavry_peer.Peer(world.gateway.url, home=home).start()
    with pytest.raises(wavry_peer.GatewayAuthError, match="wavry-peer login"):
        await wavry_peer.Peer(world.gateway.url, token="forged", home=home).start()


async def test_wrong_use_of_a_peer(world: PeerWorld) -> None:
    peer = wavry_peer.Peer(world.gateway.url, **world.login("bob"))
    with pytest.raises(wavry_peer.LocalError, match="not started"):
        await peer.connect("alice")
    async with peer:
        peer.listen(accept="all")
        with pytest.raises(wavry_peer.LocalError, match="already"):
            peer.listen(accept="all")
        with pytest.raises(wavry_peer.LocalError):
            await peer.connect("Not A User Name")
    await peer.aclose()


async def test_more_calls_than_anybody_takes_are_refused(world: PeerWorld, monkeypatch) -> None:
    monkeypatch.setattr("wavry_peer.peer.MAX_CALLS", 2)
    async with world.listen("bob"), world.connect("u1", "bob"), world.connect("u2", "bob"):
        with pytest.raises(wavry_peer.PeerUnavailableError, match="refused"):
            await world.connect("u3", "bob")


async def test_a_listener_goes_on_after_one_of_its_sessions_is_closed(world: PeerWorld) -> None:
    async with world.listen("bob") as calls:
        for _ in range(2):
            async with (
                asyncio.timeout(5),
                world.connect("alice", "bob") as session,
                await calls.accept() as answered,
            ):
                await session.send(b"x")
                assert await answered.receive() == b"x"
        assert "bob" in world.gateway.sockets


async def test_a_session_of_connect_ends_its_login_link(world: PeerWorld) -> None:
    async with world.listen("bob"):
        session = await world.connect("alice", "bob")
        assert "alice" in world.gateway.sockets
        await session.aclose()
        await eventually(lambda: "alice" not in world.gateway.sockets)
