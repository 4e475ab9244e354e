"""The HTTP side and the signaling link, against good, bad and silent gateways."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Self

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from support.peer.fake_gateway import PASSWORD, FakeGateway
from support.peer.peer_world import PeerWorld, eventually

from wavry_peer.errors import GatewayAuthError, GatewayError, GatewayUnreachableError, PeerError
from wavry_peer.gateway.client import GatewayClient, normalize_gateway_url
from wavry_peer.gateway.signaling import LinkTimes, SignalingLink
from wavry_peer.protocol.errors import LocalError
from wavry_peer.protocol.http import signaling as s

QUICK = LinkTimes(
    bind_timeout_s=0.2,
    ping_interval_s=0.05,
    silence_s=0.3,
    backoff_initial_s=0.02,
    backoff_max_s=0.05,
)
Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Answer], Awaitable[str]]]:
    """A server whose every answer is made by one function; gives its URL."""
    runners: list[web.AppRunner] = []

    async def start(answer: Answer) -> str:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def test_register_login_logout(world: PeerWorld) -> None:
    async with GatewayClient(world.gateway.url) as client:
        await client.register("carol", PASSWORD)
        with pytest.raises(GatewayError) as caught:
            await client.register("carol", PASSWORD)
        assert (caught.value.code, caught.value.status) == ("username_taken", 409)
        with pytest.raises(GatewayAuthError):
            await client.login("carol", "not the password")
        login = await client.login("carol", PASSWORD)
        assert login.username == "carol"
        assert client.token == login.token
        await client.logout()
        with pytest.raises(GatewayAuthError):
            await client.logout()


@pytest.mark.parametrize(
    ("username", "password"), [("Alice", PASSWORD), ("", PASSWORD), ("alice", "short")]
)
async def test_what_cannot_be_an_account_never_leaves(
    world: PeerWorld, username: str, password: str
) -> None:
    async with GatewayClient(world.gateway.url) as client:
        with pytest.raises(LocalError):
            await client.register(username, password)
    assert world.gateway.users == {}


async def test_nothing_listens() -> None:
    async with GatewayClient("http://127.0.0.1:9") as client:
        with pytest.raises(GatewayUnreachableError, match=r"cannot be reached"):
            await client.login("alice", PASSWORD)
        with pytest.raises(GatewayUnreachableError):
            await client.open_websocket()


async def test_a_gateway_that_never_answers(serve) -> None:
    async def answer(_request: web.Request) -> web.Response:
        await asyncio.sleep(10)
        return web.Response()

    async with GatewayClient(await serve(answer), timeout_s=0.2) as client:
        began = time.monotonic()
        with pytest.raises(GatewayUnreachableError, match="no answer in time"):
            await client.login("alice", PASSWORD)
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"{}", b'{"username":1}', b"\xff", b"[" * 100_000, b"x" * 99_999],
)
async def test_what_is_not_our_protocol_is_named(serve, body: bytes) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with GatewayClient(await serve(answer)) as client:
        with pytest.raises(GatewayUnreachableError, match="does not speak"):
            await client.login("alice", PASSWORD)


@pytest.mark.parametrize("body", [b"", b"<html>oops</html>", b'{"error":1}', b'{"error":"x"}'])
async def test_errors_without_a_body_of_ours_keep_their_status(serve, body: bytes) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=502, body=body)

    async with GatewayClient(await serve(answer)) as client:
        with pytest.raises(GatewayError) as caught:
            await client.login("alice", PASSWORD)
        assert caught.value.code == "http_502"


async def test_retry_after_is_read(serve) -> None:
    async def answer(_request: web.Request) -> web.Response:
        body = '{"error":"rate_limited","message":"slowly"}'
        return web.Response(status=429, text=body, headers={"Retry-After": "7"})

    async with GatewayClient(await serve(answer)) as client:
        with pytest.raises(GatewayError, match="slowly") as caught:
            await client.login("alice", PASSWORD)
        assert caught.value.retry_after_s == 7.0


async def test_a_token_is_not_carried_to_where_a_redirect_points(serve) -> None:
    elsewhere: list[str] = []

    async def thief(request: web.Request) -> web.Response:
        elsewhere.append(request.headers.get("Authorization", ""))
        return web.Response()

    target = await serve(thief)

    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": target})

    async with GatewayClient(await serve(answer), token="secret") as client:
        with pytest.raises(GatewayError, match="http_307"):
            await client.logout()
    assert elsewhere == []


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://g.example/", "https://g.example"),
        ("https://g.example:8443", "https://g.example:8443"),
        ("HTTPS://G.example/wavry/", "https://g.example/wavry"),
        ("http://127.0.0.1:8090/", "http://127.0.0.1:8090"),
        ("http://localhost:8090", "http://localhost:8090"),
        ("http://[::1]:8090", "http://[::1]:8090"),
    ],
)
def test_urls_are_written_one_way(text: str, url: str) -> None:
    assert normalize_gateway_url(text) == url


@pytest.mark.parametrize(
    "text",
    ["", "g.example", "ftp://g", "https://", "https://u:p@g", "https://g/?x=1", "https://g:99999"],
)
def test_what_is_no_gateway_url(text: str) -> None:
    with pytest.raises(LocalError, match="wrong form"):
        normalize_gateway_url(text)


def test_a_password_is_not_sent_in_the_clear_to_another_machine() -> None:
    with pytest.raises(LocalError, match="https"):
        normalize_gateway_url("http://gateway.example")
    assert normalize_gateway_url("http://gateway.example", allow_http=True)


# -- Signaling link ------------------------------------------------------------------------


class Linked:
    def __init__(self, gateway: FakeGateway, token: str) -> None:
        self.client = GatewayClient(gateway.url, token=token)
        self.messages: list[s.ServerMessage] = []
        self.ends: list[GatewayError] = []
        self.link = SignalingLink(self.client, self.messages.append, self.ends.append, times=QUICK)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.link.aclose()
        await self.client.aclose()


async def test_bind_tells_who_we_are(world: PeerWorld) -> None:
    async with Linked(world.gateway, world.gateway.token("alice")) as linked:
        assert await linked.link.start() == "alice"
        assert linked.link.is_bound
        await world.gateway.tell("alice", s.Bye(from_username="bob"))
        await eventually(lambda: linked.messages == [s.Bye(from_username="bob")])
    assert not linked.link.is_bound


async def test_a_forged_token_is_final(world: PeerWorld) -> None:
    async with Linked(world.gateway, "forged") as linked:
        with pytest.raises(GatewayAuthError):
            await linked.link.start()


async def test_a_gateway_that_does_not_answer_bind(world: PeerWorld) -> None:
    world.gateway.answers_bind = False
    async with Linked(world.gateway, world.gateway.token("alice")) as linked:
        began = time.monotonic()
        with pytest.raises(GatewayUnreachableError, match="BIND"):
            await linked.link.start()
        assert time.monotonic() - began < 3


async def test_reconnects_until_closed(world: PeerWorld) -> None:
    async with Linked(world.gateway, world.gateway.token("alice")) as linked:
        await linked.link.start()
        for round_number in range(2, 5):
            await world.gateway.drop_sockets()
            await eventually(lambda n=round_number: linked.link.bound_count == n)
        assert linked.ends == []


async def test_a_login_that_ended_meanwhile_is_final(world: PeerWorld) -> None:
    async with Linked(world.gateway, world.gateway.token("alice")) as linked:
        await linked.link.start()
        world.gateway.tokens.clear()
        await world.gateway.drop_sockets()
        await eventually(lambda: linked.ends)
        assert isinstance(linked.ends[0], GatewayAuthError)


async def test_pings_keep_the_connection_and_silence_ends_it(serve, world: PeerWorld) -> None:
    async with Linked(world.gateway, world.gateway.token("alice")) as linked:
        await linked.link.start()
        await asyncio.sleep(0.5)  # longer than `silence_s`, but PONGs come.
        assert linked.link.bound_count == 1

    binds: list[str] = []

    async def mute(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(autoping=False)
        await ws.prepare(request)
        binds.append((await ws.receive()).data)
        await ws.send_str(s.encode_message(s.Bound(username="alice")))
        async for _ in ws:
            pass  # hears everything, says nothing.
        return ws

    client = GatewayClient(await serve(mute), token="t")
    link = SignalingLink(client, lambda _m: None, lambda _e: None, times=QUICK)
    await link.start()
    await eventually(lambda: len(binds) >= 2)
    await link.aclose()
    await client.aclose()


async def test_garbage_frames_are_counted_and_do_no_harm(world: PeerWorld) -> None:
    world.gateway.raw_on_bind = [
        "",
        "{",
        "null",
        "[]",
        '{"type":"OFFER"}',
        '{"type":"NEWS"}',
        '{"type":"ANSWER","session_id":"x"}',
        '{"type":"RELAY_CREDENTIALS"}',
        "x" * 70_000,
        "[" * 50_000,
    ]
    async with world.listen("bob") as listener, world.connect("alice", "bob") as alice:
        session = await listener.accept()
        await alice.send(b"x")
        assert await session.receive() == b"x"
        await session.aclose()


async def test_credentials_and_byes_of_strangers_do_no_harm(world: PeerWorld) -> None:
    async with world.pair() as (alice, bob):
        other = "99999999-2222-4333-8444-555555555555"
        for session_id in (alice.session_id, other):
            await world.gateway.tell(
                "alice",
                s.RelayCredentials(
                    relay_id="rly-x", token="v4.public.AAAA", addr="127.0.0.1:9",
                    session_id=session_id, expires_at=0,
                ),
            )  # fmt: skip
        await world.gateway.tell("alice", s.Bye(from_username="carol"))
        await world.gateway.tell("alice", s.Bye(from_username="bob", session_id=other))
        await asyncio.sleep(0.1)
        await alice.send(b"x")
        assert await bob.receive() == b"x"


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_any_frame_is_either_a_message_or_refused(frame: str) -> None:
    try:
        s.decode_server_message(frame)
    except s.MessageError:
        return


async def test_everything_raised_is_a_peer_or_local_error() -> None:
    for kind in (GatewayError, GatewayUnreachableError):
        assert issubclass(kind, PeerError)
