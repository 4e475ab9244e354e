import asyncio
import json
import socket as sockets
import time
from contextlib import AsyncExitStack

import aiohttp
import pytest
from support.control.gateway import (
    Socket,
    accepted_call,
    connected,
    eventually,
    log_in,
    make_config,
    running_gateway,
)

from wavry_peer.protocol.http import signaling as wire

# -- BIND --------------------------------------------------------------------------------------


async def test_bind_timeout_fires_although_nothing_is_sent(tmp_path, master):
    config = make_config(tmp_path, master.url, bind_timeout_s=0.2)
    async with running_gateway(config) as running, connected(running.http, running.url) as socket:
        started = time.monotonic()
        await socket.error("bind_timeout")
        assert await socket.close_code() == 4408
        assert 0.15 < time.monotonic() - started < 2
        await eventually(lambda: running.gateway.slots.in_use == 0)


async def test_pings_do_not_put_off_the_bind_timeout(tmp_path, master):
    config = make_config(tmp_path, master.url, bind_timeout_s=0.3)
    async with running_gateway(config) as running, connected(running.http, running.url) as socket:

        async def ping() -> None:
            while True:
                await socket.ws.ping()
                await asyncio.sleep(0.02)

        pinging = asyncio.create_task(ping())
        await socket.error("bind_timeout")
        pinging.cancel()
        await asyncio.wait([pinging])
        assert await socket.close_code() == 4408


async def test_bind_timeout_is_ten_seconds_by_default(gateway):
    assert gateway.gateway.config.bind_timeout_s == 10


async def test_binding_in_time_stops_the_timer(tmp_path, master):
    config = make_config(tmp_path, master.url, bind_timeout_s=0.2)
    async with running_gateway(config) as running:
        ann = await running.user("ann")
        async with ann.online() as socket:
            await asyncio.sleep(0.4)
            await socket.silent()


@pytest.mark.parametrize("token", ["x", "A" * 43, "ann", "A" * 256, "é" * 43])
async def test_bind_with_a_token_that_is_none(gateway, token):
    await gateway.user("ann")
    async with connected(gateway.http, gateway.url) as socket:
        await socket.send(wire.Bind(token=token))
        await socket.error("invalid_token")
        assert await socket.close_code() == 4401
    assert gateway.gateway.hub.online == 0


async def test_bind_takes_the_identity_from_the_token_alone(gateway):
    ann = await gateway.user("ann")
    await gateway.user("bob")
    async with connected(gateway.http, gateway.url) as socket:
        await socket.ws.send_str(json.dumps({"type": "BIND", "token": ann.token}))
        assert await socket.next() == wire.Bound(username="ann")
    async with connected(gateway.http, gateway.url) as socket:
        bad = {"type": "BIND", "token": ann.token, "username": "bob"}
        await socket.ws.send_str(json.dumps(bad))
        await socket.error("invalid_message")
        assert await socket.close_code() == 4400


@pytest.mark.parametrize("message", [wire.Ping(), wire.Offer(target_username="bob")])
async def test_anything_before_bind_ends_the_connection(gateway, message):
    async with connected(gateway.http, gateway.url) as socket:
        await socket.send(message)
        await socket.error("bind_required")
        assert await socket.close_code() == 4401


async def test_a_second_bind_is_refused_and_changes_nothing(gateway):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as socket:
        await socket.send(wire.Bind(token=bob.token))
        await socket.error("invalid_message")
        assert not gateway.gateway.hub.is_online("bob")


# -- tokens that end ---------------------------------------------------------------------------


async def test_logout_closes_the_sockets_of_this_token_only(gateway):
    ann = await gateway.user("ann")
    other_token = await log_in(gateway.http, gateway.url, "ann")
    async with ann.online() as socket:
        assert (await gateway.call("POST", "/auth/logout", token=other_token))[0] == 204
        await socket.silent()
        assert (await ann.call("POST", "/auth/logout"))[0] == 204
        await socket.error("invalid_token")
        assert await socket.close_code() == 4401
    async with connected(gateway.http, gateway.url) as socket:
        await socket.send(wire.Bind(token=ann.token))
        await socket.error("invalid_token")


async def test_logout_between_look_up_and_bind_is_not_missed(gateway, monkeypatch):
    ann = await gateway.user("ann")
    store = gateway.gateway.store
    look_up = store.token_owner

    async def slow_look_up(token, *, now_s):
        owner = await look_up(token, now_s=now_s)
        await gateway.gateway.accounts.logout(ann.token)
        return owner

    monkeypatch.setattr(store, "token_owner", slow_look_up)
    async with connected(gateway.http, gateway.url) as socket:
        await socket.send(wire.Bind(token=ann.token))
        await socket.error("invalid_token")
        assert await socket.close_code() == 4401
    assert gateway.gateway.hub.online == 0


async def test_expiry_of_the_token_closes_the_socket(tmp_path, master):
    async with running_gateway(make_config(tmp_path, master.url, token_ttl_s=2)) as running:
        ann = await running.user("ann")
        async with ann.online() as socket:
            await socket.error("invalid_token")
            assert await socket.close_code() == 4401
        assert (await ann.call("GET", "/v1/sessions"))[0] == 401


async def test_one_login_too_many_ends_the_oldest(tmp_path, master):
    async with running_gateway(make_config(tmp_path, master.url, tokens_per_user=2)) as running:
        ann = await running.user("ann")
        async with ann.online() as socket:
            second = await log_in(running.http, running.url, "ann")
            await socket.silent()
            await log_in(running.http, running.url, "ann")
            await socket.error("invalid_token")
        assert (await running.call("GET", "/v1/sessions", token=second))[0] == 200


# -- one connection per user ---------------------------------------------------------------------


async def test_a_newer_connection_displaces_and_survives_the_end_of_the_older(gateway):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with bob.online() as b, ann.online() as old:
        async with ann.online() as new:
            await old.error("displaced")
            assert await old.close_code() == 4409
            await old.ws.close()
            await eventually(lambda: gateway.gateway.slots.in_use == 2)
            assert gateway.gateway.hub.is_online("ann")
            await b.send(wire.Offer(target_username="ann"))
            assert (await new.next(wire.Offer)).from_username == "bob"
        await eventually(lambda: not gateway.gateway.hub.is_online("ann"))


# -- slow, loud and large ------------------------------------------------------------------------


async def test_a_reader_that_stands_still_is_cut_by_the_clock_and_its_queue_never_grows(
    tmp_path, master
):
    config = make_config(
        tmp_path,
        master.url,
        messages_burst=100_000,
        messages_per_s=100_000.0,
        queue_messages=8,
        send_timeout_s=1.0,
    )
    async with running_gateway(config) as running:
        ann, bob = await running.user("ann"), await running.user("bob")
        raw = sockets.socket()
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
        raw.setblocking(False)
        host, port = running.url.removeprefix("http://").split(":")
        loop = asyncio.get_running_loop()
        await loop.sock_connect(raw, (host, int(port)))
        try:
            await loop.sock_sendall(
                raw,
                b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
            )
            await loop.sock_recv(raw, 4096)
            bind = wire.encode_message(wire.Bind(token=bob.token)).encode()
            frame = bytes([0x81, 0x80 | len(bind)]) + bytes(4) + bind
            await loop.sock_sendall(raw, frame)
            await eventually(lambda: running.gateway.hub.is_online("bob"))
            connection = running.gateway.hub._bound["bob"]
            async with ann.online() as a:
                await a.send(wire.Offer(target_username="bob"))
                await eventually(lambda: len(connection._queue) == 0)
                (session,) = (await ann.call("GET", "/v1/sessions"))[1]["sessions"]
                await bob.call("POST", f"/v1/sessions/{session['session_id']}/accept", {})
                message = wire.Offer(
                    target_username="bob", session_id=session["session_id"], sdp="s" * 16_000
                )
                for _ in range(2000):
                    await a.send(message)
                    # A quarter for one sender; the rest is refused to her.
                    assert len(connection._queue) <= 2
                    if connection.cause is not None:
                        break
                await eventually(lambda: connection.cause == "slow_reader")
                await eventually(lambda: not running.gateway.hub.is_online("bob"))
                await eventually(lambda: running.gateway.slots.in_use == 1)
        finally:
            raw.close()


async def test_flood_is_dropped_then_closed(tmp_path, master):
    config = make_config(tmp_path, master.url, messages_burst=50, messages_per_s=0.5)
    async with running_gateway(config) as running:
        ann = await running.user("ann")
        async with ann.online() as socket:
            for _ in range(200):
                await socket.send(wire.Ping())
            answers = []
            while (frame := await socket.ws.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
                answers.append(wire.decode_server_message(frame.data))
            assert socket.ws.close_code == 4429
            assert 50 <= answers.count(wire.Pong()) <= 60
            errors = {answer.code for answer in answers if isinstance(answer, wire.Error)}
            assert errors == {"rate_limited"}
        # A new connection does not give a new allowance: the limit belongs to the user.
        async with ann.online() as socket:
            for _ in range(15):
                await socket.send(wire.Ping())
            answers = [await socket.next() for _ in range(15)]
            assert answers.count(wire.Pong()) < 10


async def test_frame_of_64_kib_passes_and_a_larger_one_ends_the_connection(gateway):
    ann = await gateway.user("ann")
    async with ann.online() as socket:
        frame = '{"type":"PING"}'
        await socket.ws.send_str(frame + " " * (64 * 1024 - len(frame)))
        assert await socket.next() == wire.Pong()
        await socket.ws.send_str(frame + " " * (64 * 1024 + 1 - len(frame)))
        await socket.error("frame_too_large")
        assert await socket.close_code() == 1009


async def test_a_huge_frame_is_not_even_read(gateway):
    ann = await gateway.user("ann")
    async with ann.online() as socket:
        await socket.ws.send_str("x" * (1024 * 1024))
        assert await socket.close_code() in {1009, 1006}
    await eventually(lambda: gateway.gateway.slots.in_use == 0)


async def test_bad_frames_are_forgiven_a_few_times(gateway):
    ann = await gateway.user("ann")
    async with ann.online() as socket:
        for frame in ("{", '{"type":"NOPE"}', "[]", '{"type":"OFFER","target_username":7}'):
            await socket.ws.send_str(frame)
            assert (await socket.next(wire.Error)).code in {"invalid_json", "invalid_message"}
        await socket.ws.send_bytes(b"\x00")
        await socket.error("invalid_message")
        await socket.silent()
        await socket.ws.send_str("{")
        await socket.error("invalid_json")
        assert await socket.close_code() == 4400


async def test_messages_without_a_target_are_refused(gateway):
    ann = await gateway.user("ann")
    async with ann.online() as socket:
        for message in (
            wire.Offer(),
            wire.OfferRift(hello_base64=""),
            wire.Answer(),
            wire.AnswerRift(ack_base64=""),
            wire.Candidate(candidate=""),
            wire.Bye(),
        ):
            await socket.send(message)
            await socket.error("invalid_message")


async def test_keys_that_are_not_canonical_are_refused(gateway):
    ann = await gateway.user("ann")
    async with ann.online() as socket:
        await socket.send(wire.Offer(target_username="bob", identity_key="A" * 42 + "B"))
        await socket.error("invalid_message")


# -- counts ------------------------------------------------------------------------------------


async def test_count_per_address_returns_to_zero(tmp_path, master):
    async with running_gateway(
        make_config(tmp_path, master.url, connections_per_address=3)
    ) as running:
        slots = running.gateway.slots
        # Upgrades that fail: no upgrade at all, a bad key, another protocol version.
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade"}
        for headers in (
            {},
            {**upgrade, "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "short"},
            {**upgrade, "Sec-WebSocket-Version": "12"},
        ):
            for _ in range(5):
                status, answer, _ = await running.call("GET", "/ws", headers=headers)
                assert (status, set(answer)) == (400, {"error", "message"})
        assert slots.in_use == 0
        assert not slots._used

        async with (
            connected(running.http, running.url),
            connected(running.http, running.url),
            connected(running.http, running.url),
        ):
            await eventually(lambda: slots.used("127.0.0.1") == 3)
            status, answer, headers = await running.call("GET", "/ws", headers=upgrade)
            assert (status, answer["error"]) == (429, "too_many_connections")
            assert int(headers["Retry-After"]) > 0
        await eventually(lambda: slots.in_use == 0)
        assert not slots._used

        # Clients that vanish without a word.
        async with aiohttp.ClientSession() as other:
            await other.ws_connect(f"{running.url}/ws")
            await eventually(lambda: slots.in_use == 1)
        await eventually(lambda: slots.in_use == 0)


async def test_connect_rate_and_total_are_limited(tmp_path, master):
    async with running_gateway(
        make_config(tmp_path, master.url, connects_burst=3, connects_per_minute=1.0)
    ) as running:
        for _ in range(3):
            assert (await running.call("GET", "/ws"))[0] == 400
        status, answer, headers = await running.call("GET", "/ws")
        assert (status, answer["error"]) == (429, "rate_limited")
        assert 50 <= int(headers["Retry-After"]) <= 60
    async with (
        running_gateway(make_config(tmp_path, master.url, max_connections=1)) as running,
        connected(running.http, running.url),
    ):
        status, answer, _ = await running.call("GET", "/ws")
        assert (status, answer["error"]) == (503, "busy")


async def test_websockets_leave_a_quarter_of_the_descriptors_to_http(tmp_path, master, monkeypatch):
    monkeypatch.setattr("wavry_cp.gateway.gateway.connections_at_most", lambda: 4)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            running_gateway(make_config(tmp_path, master.url))
        )
        for _ in range(3):
            await stack.enter_async_context(connected(running.http, running.url))
        status, answer, _ = await running.call("GET", "/ws")
        assert (status, answer["error"]) == (503, "busy")
        assert (await running.call("GET", "/health"))[0] == 200


async def test_pages_of_foreign_origins_cannot_connect(tmp_path, master):
    config = make_config(tmp_path, master.url, cors_origins=("https://app.example",))
    async with running_gateway(config) as running:
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            ("https://app.example", 101),
            (running.url, 101),
        ):
            headers = {"Origin": origin}
            if status == 101:
                async with connected(running.http, running.url, headers=headers):
                    pass
            else:
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await running.http.ws_connect(f"{running.url}/ws", headers=headers)
                assert refused.value.status == status


# -- ends --------------------------------------------------------------------------------------


async def test_stopping_says_goodbye(tmp_path, master):
    async with aiohttp.ClientSession() as http:
        async with running_gateway(make_config(tmp_path, master.url)) as running:
            ann = await running.user("ann")
            ws = await http.ws_connect(f"{running.url}/ws")
            socket = Socket(ws)
            await socket.send(wire.Bind(token=ann.token))
            await socket.next(wire.Bound)
            stopping = asyncio.create_task(_read_to_the_end(socket))
        assert await stopping == (["shutting_down"], 1001)


async def _read_to_the_end(socket):
    error = await socket.next(wire.Error)
    return [error.code], await socket.close_code()


async def test_a_fault_of_ours_shows_an_id_and_no_traceback(gateway, monkeypatch, capfd):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")

    async def broken(*_args, **_kwargs):
        raise ZeroDivisionError("secret detail")

    async with ann.online() as a, bob.online() as b:
        await accepted_call(ann, a, bob, b)
        monkeypatch.setattr(gateway.gateway.session_leases, "request", broken)
        await a.send(wire.RequestRelay(target_username="bob"))
        error = await a.error("internal_error")
        assert "secret" not in error.message
        monkeypatch.setattr(gateway.gateway.sessions, "candidate", broken)
        await a.send(wire.Candidate(target_username="bob", candidate="x"))
        error = await a.error("internal_error")
        assert "secret" not in error.message
        assert await a.close_code() == 1011
        await b.silent()


async def test_a_request_that_is_no_upgrade_is_told_what_the_path_speaks(gateway) -> None:
    status, answer, _ = await gateway.call("GET", "/ws")
    assert (status, answer["error"]) == (400, "websocket_required")
    assert "Upgrade: websocket" in answer["message"]
