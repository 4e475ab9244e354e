import asyncio
import time
import uuid

import msgspec
import pytest
from support.control.gateway import accepted_call, connected, eventually, public_key

from wavry_cp.app.refusal import RefusedError
from wavry_cp.gateway.sessions.rules import Keys, SessionKey, new_session
from wavry_peer.protocol.constants import Role
from wavry_peer.protocol.http import signaling as wire
from wavry_peer.protocol.http.api import Credentials, SessionInfo, SessionList


async def test_full_flow_over_websocket(gateway, master):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        await a.send(wire.Offer(target_username="bob", sdp="v=0", **ann.keys))
        offer = await b.next(wire.Offer)
        assert (offer.from_username, offer.target_username, offer.sdp) == ("ann", None, "v=0")
        assert (offer.identity_key, offer.noise_key) == (ann.identity_key, ann.noise_key)

        await a.send(wire.Candidate(target_username="bob", candidate="c1"))
        got = await b.next(wire.Candidate)
        assert (got.from_username, got.candidate, got.session_id) == ("ann", "c1", offer.session_id)

        await b.send(wire.Answer(target_username="ann", session_id=offer.session_id, **bob.keys))
        answer = await a.next(wire.Answer)
        assert (answer.from_username, answer.noise_key) == ("bob", bob.noise_key)

        await a.send(wire.RequestRelay(target_username="bob"))
        own, other = await a.next(wire.RelayCredentials), await b.next(wire.RelayCredentials)
        for mine, user, role in ((own, ann, "client"), (other, bob, "server")):
            claims = master.open(mine.token)
            assert (claims.sub, claims.role, claims.cnf) == (user.name, role, user.identity_key)
            assert claims.sid == mine.session_id == offer.session_id
            assert mine.relay_id == claims.rid
            assert mine.role == role
            assert mine.addr == "127.0.0.1:4500"
            assert mine.addrs == ("127.0.0.1:4500", "[::1]:4500")
        assert own.token != other.token
        assert (own.with_username, other.with_username) == ("bob", "ann")
        assert (await ann.session(offer.session_id)).state == "active"

        await b.send(wire.Bye(session_id=offer.session_id))
        bye = await a.next(wire.Bye)
        assert (bye.from_username, bye.session_id) == ("bob", offer.session_id)
        assert (await ann.session(offer.session_id)).state == "closed"
        await b.send(wire.RequestRelay(target_username="ann", session_id=offer.session_id))
        await b.error("session_closed")


async def test_full_flow_over_http(gateway, master):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with bob.online() as b:
        status, body = await ann.call(
            "POST", "/v1/sessions", {"target_username": "bob", **ann.keys}
        )
        assert status == 201
        created = msgspec.convert(body, SessionInfo)
        assert (created.state, created.caller, created.callee) == ("pending", "ann", "bob")
        offer = await b.next(wire.Offer)
        assert offer.session_id == created.session_id
        path = f"/v1/sessions/{created.session_id}"

        status, body = await bob.call("GET", "/v1/sessions")
        assert msgspec.convert(body, SessionList).sessions[0].peer_noise_key == ann.noise_key

        status, body = await ann.call("POST", f"{path}/relay", {})
        assert (status, body["error"]) == (409, "not_accepted")
        assert master.requests == []

        status, body = await bob.call("POST", f"{path}/accept", bob.keys)
        assert (status, body["state"]) == (200, "accepted")
        assert (await ann.session(created.session_id)).peer_noise_key == bob.noise_key

        status, body = await ann.call("POST", f"{path}/relay", {})
        assert status == 200
        own = msgspec.convert(body, Credentials)
        other = await b.next(wire.RelayCredentials)
        assert (master.open(own.token).sub, master.open(other.token).sub) == ("ann", "bob")

        renewed = await ann.renew(created.session_id, master.open(own.token).jti)
        assert master.renewals[-1].role == "client"
        assert (renewed.relay_id, renewed.addrs) == (own.relay_id, own.addrs)
        status, body = await ann.call("POST", f"{path}/renew", {"jti": master.open(own.token).jti})
        assert (status, body["error"]) == (409, "stale_jti")
        await bob.renew(created.session_id, master.open(other.token).jti)
        assert master.renewals[-1].role == "server"

        assert (await ann.call("DELETE", path))[0] == 204
        assert (await b.next(wire.Bye)).session_id == created.session_id
        assert (await ann.call("DELETE", path))[0] == 204
        await b.silent()


async def test_no_lease_before_the_called_user_accepts(gateway, master):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        await a.send(wire.Offer(target_username="bob"))
        offer = await b.next(wire.Offer)
        for socket, other in ((a, "bob"), (b, "ann")):
            await socket.send(wire.RequestRelay(target_username=other))
            await socket.error("not_accepted")
        # Nor can the caller accept his own call.
        await a.send(wire.Answer(target_username="bob", session_id=offer.session_id))
        await a.error("not_called_user")
        path = f"/v1/sessions/{offer.session_id}"
        assert (await ann.call("POST", f"{path}/accept", {}))[1]["error"] == "not_called_user"
        assert (await ann.call("POST", f"{path}/relay", {}))[1]["error"] == "not_accepted"
    assert master.requests == []


async def test_refusal_closes_the_session_and_tells_the_caller(gateway, master):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        await a.send(wire.Offer(target_username="bob"))
        offer = await b.next(wire.Offer)
        await b.send(wire.Answer(target_username="ann", accept=False))
        answer = await a.next(wire.Answer)
        assert (answer.accept, answer.session_id) == (False, offer.session_id)
        await b.send(wire.Answer(target_username="ann", session_id=offer.session_id))
        await b.error("session_closed")
    assert master.requests == []


async def test_a_session_of_others_looks_like_none(gateway, master):
    ann, bob, eve = [await gateway.user(name) for name in ("ann", "bob", "eve")]
    async with ann.online() as a, bob.online() as b, eve.online() as e:
        sid = await accepted_call(ann, a, bob, b)
        await e.send(wire.Candidate(target_username="bob", candidate="x"))
        await e.error("unknown_session")
        for message in (
            wire.Candidate(target_username="bob", session_id=sid, candidate="x"),
            wire.Offer(target_username="bob", session_id=sid),
            wire.Answer(target_username="bob", session_id=sid),
            wire.RequestRelay(target_username="bob", session_id=sid),
            wire.Bye(session_id=sid),
        ):
            await e.send(message)
            await e.error("unknown_session")
        path = f"/v1/sessions/{sid}"
        for method, tail, body in (
            ("GET", "", None),
            ("DELETE", "", None),
            ("POST", "/accept", {}),
            ("POST", "/relay", {}),
            ("POST", "/renew", {"jti": sid}),
        ):
            status, answer = await eve.call(method, path + tail, body)
            assert (status, answer["error"]) == (404, "unknown_session")
        # A session of one's own does not open the way to a third user.
        await a.send(wire.Candidate(target_username="eve", session_id=sid, candidate="x"))
        await a.error("unknown_session")
        for socket in (b, e):
            await socket.silent()
        assert (await ann.session(sid)).state == "accepted"


async def test_offline_and_unknown_users_look_alike(gateway):
    ann = await gateway.user("ann")
    await gateway.user("bob")
    async with ann.online() as a:
        answers = []
        for target in ("bob", "nobody"):
            await a.send(wire.Offer(target_username=target))
            error = await a.error("user_offline")
            answers.append((error.code, error.message.rpartition(" (request ")[0]))
            status, body = await ann.call("POST", "/v1/sessions", {"target_username": target})
            assert status == 404
            answers.append(body)
        assert answers[:2] == answers[2:]
        await a.send(wire.Offer(target_username="ann"))
        await a.error("invalid_target")


async def test_move_to_another_relay_gives_both_new_credentials(gateway, master):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        sid = await accepted_call(ann, a, bob, b)
        await a.send(wire.RequestRelay(target_username="bob"))
        first = await a.next(wire.RelayCredentials)
        await b.next(wire.RelayCredentials)
        await b.send(wire.RequestRelay(target_username="ann", exclude_relays=(first.relay_id,)))
        moved = [await socket.next(wire.RelayCredentials) for socket in (a, b)]
        assert {message.relay_id for message in moved} == {"rly-two"}
        assert {message.session_id for message in moved} == {sid}
        assert [master.open(message.token).role for message in moved] == ["client", "server"]
        assert (await ann.session(sid)).relay_id == "rly-two"
        assert master.requests[-1].session_id == sid
        assert master.requests[-1].client.sub == "ann"


async def test_both_ask_at_once_and_meet_at_one_relay(gateway, master):
    master.delay_s = 0.1
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        await accepted_call(ann, a, bob, b)
        await a.send(wire.RequestRelay(target_username="bob"))
        await b.send(wire.RequestRelay(target_username="ann"))
        own = [await a.next(wire.RelayCredentials), await b.next(wire.RelayCredentials)]
        again = await asyncio.wait_for(
            asyncio.wait(
                [asyncio.ensure_future(s.next(wire.RelayCredentials)) for s in (a, b)],
                return_when=asyncio.FIRST_COMPLETED,
            ),
            5,
        )
        (second,) = again[0]
        assert second.result().token in {message.token for message in own}
        for task in again[1]:
            task.cancel()
        assert len(master.requests) == 1


async def test_a_shared_lease_is_handed_out_once(gateway, master):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        sid = await accepted_call(ann, a, bob, b)
        path = f"/v1/sessions/{sid}/relay"
        await ann.call("POST", path, {})
        brought = await b.next(wire.RelayCredentials)
        tokens = [(await bob.call("POST", path, {}))[1]["token"] for _ in range(2)]
        assert tokens[0] == brought.token
        assert tokens[1] != brought.token
        assert len(master.requests) == 2
        # Who excludes the relay of the shared lease gets another one.
        _, other = await ann.call("POST", path, {"exclude_relays": ["rly-one"]})
        assert other["relay_id"] == "rly-two"


async def test_hanging_up_while_the_master_thinks_gives_nobody_a_lease(gateway, master):
    master.delay_s = 0.3
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        sid = await accepted_call(ann, a, bob, b)
        await a.send(wire.RequestRelay(target_username="bob"))
        await a.send(wire.Bye(session_id=sid))
        await b.next(wire.Bye)
        await a.error("session_closed")
        await b.silent()


async def test_rift_peers_of_version_one_exchange_hellos_and_get_no_relay(gateway, master):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        await a.send(wire.OfferRift(target_username="bob", hello_base64="aGk="))
        assert await b.next() == wire.OfferRift(from_username="ann", hello_base64="aGk=")
        await a.send(wire.RequestRelay(target_username="bob"))
        await a.error("not_accepted")
        await b.send(wire.AnswerRift(target_username="ann", ack_base64="eW8="))
        assert await a.next() == wire.AnswerRift(from_username="bob", ack_base64="eW8=")
        await a.send(wire.RequestRelay(target_username="bob"))
        await a.error("identity_key_required")
        assert not master.requests, "a lease without a key is not even asked for"


async def test_renegotiation_inside_a_session(gateway):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        sid = await accepted_call(ann, a, bob, b)
        await b.send(wire.Offer(target_username="ann", session_id=sid, sdp="again", **bob.keys))
        assert (await a.next(wire.Offer)).sdp == "again"
        await a.send(wire.Answer(target_username="bob", session_id=sid, sdp="fine"))
        assert (await b.next(wire.Answer)).sdp == "fine"
        await b.send(wire.Offer(target_username="ann", session_id=sid, noise_key=public_key()))
        await b.error("key_mismatch")
        await a.silent()


async def test_sender_cannot_be_forged(gateway):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        await a.send(wire.Offer(target_username="bob", from_username="root"))
        assert (await b.next(wire.Offer)).from_username == "ann"


async def test_calls_that_nobody_answers_are_bounded(gateway):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        limit = gateway.gateway.config.pending_per_pair
        for _ in range(limit):
            await a.send(wire.Offer(target_username="bob"))
            await b.next(wire.Offer)
        await a.send(wire.Offer(target_username="bob"))
        await a.error("rate_limited")
        status, answer, headers = await gateway.call(
            "POST", "/v1/sessions", {"target_username": "bob"}, token=ann.token
        )
        assert (status, answer["error"]) == (429, "rate_limited")
        assert int(headers["Retry-After"]) >= 1
        await b.silent()
        # An answer, even a refusal, makes room.
        await b.send(wire.Answer(target_username="ann", accept=False))
        await a.next(wire.Answer)
        await a.send(wire.Offer(target_username="bob"))
        await b.next(wire.Offer)


async def test_call_rate_is_limited_over_both_ways_in(gateway):
    ann = await gateway.user("ann")
    burst = gateway.gateway.config.calls_burst
    results = []
    for _ in range(burst + 1):
        _, body = await ann.call("POST", "/v1/sessions", {"target_username": "nobody"})
        results.append(body["error"])
    assert results == ["user_offline"] * burst + ["rate_limited"]
    async with ann.online() as a:
        await a.send(wire.Offer(target_username="nobody"))
        await a.error("rate_limited")


@pytest.mark.parametrize("mode", ["hang", "error", "garbage", "huge", "reject_token"])
async def test_a_sick_master_means_a_clear_error_within_two_seconds(gateway, master, mode):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        sid = await accepted_call(ann, a, bob, b)
        master.mode = mode
        started = time.monotonic()
        await a.send(wire.RequestRelay(target_username="bob"))
        if mode == "hang":
            # Nobody else waits for the master: not this client's own messages either ...
            await a.silent()
        error = await a.error("relay_unavailable")
        assert time.monotonic() - started < 2.0
        assert "Traceback" not in error.message
        status, body = await ann.call("POST", f"/v1/sessions/{sid}/relay", {})
        assert (status, body["error"]) == (503, "relay_unavailable")
        # ... and it works as soon as the master does.
        master.mode = "ok"
        for _ in range(100):
            status, body = await ann.call("POST", f"/v1/sessions/{sid}/relay", {})
            if status == 200:
                break
            await asyncio.sleep(0.3)
        assert status == 200


async def test_the_broker_alone_keeps_its_time(gateway, master):
    master.mode = "hang"
    started = time.monotonic()
    with pytest.raises(RefusedError) as refused:
        await gateway.gateway.broker.renew(_any_session(), Role.SERVER, str(uuid.uuid4()))
    assert refused.value.code == "relay_unavailable"
    assert time.monotonic() - started < 2.0


def _any_session():
    return new_session(SessionKey(str(uuid.uuid4())), "ann", "bob", Keys(), now_s=0, pending_s=1)


async def test_two_requests_at_a_hanging_master_both_end_in_time(gateway, master):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        await accepted_call(ann, a, bob, b)
        master.mode = "hang"
        started = time.monotonic()
        await a.send(wire.RequestRelay(target_username="bob"))
        await b.send(wire.RequestRelay(target_username="ann"))
        await a.error("relay_unavailable")
        await b.error("relay_unavailable")
        assert time.monotonic() - started < 2.0


async def test_master_down_and_no_relay(tmp_path, unused_tcp_port, gateway, master):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        sid = await accepted_call(ann, a, bob, b)
        master.mode = "no_relay"
        await a.send(wire.RequestRelay(target_username="bob"))
        await a.error("no_relay_available")
        broker = gateway.gateway.broker
        broker._base_url = f"http://127.0.0.1:{unused_tcp_port}"
        started = time.monotonic()
        for _ in range(5):
            status, body = await ann.call("POST", f"/v1/sessions/{sid}/relay", {})
            assert (status, body["error"]) == (503, "relay_unavailable")
        assert time.monotonic() - started < 2.0
        assert (await ann.session(sid)).state == "accepted"


async def test_pending_session_expires_and_both_hear_it(tmp_path, master):
    from support.control.gateway import make_config, running_gateway

    async with running_gateway(make_config(tmp_path, master.url, pending_s=1)) as running:
        ann, bob = await running.user("ann"), await running.user("bob")
        async with ann.online() as a, bob.online() as b:
            await a.send(wire.Offer(target_username="bob"))
            offer = await b.next(wire.Offer)
            for socket in (a, b):
                bye = await socket.next(wire.Bye)
                assert (bye.from_username, bye.session_id) == (None, offer.session_id)
            await b.send(wire.Answer(target_username="ann", session_id=offer.session_id))
            await b.error("session_closed")
    assert master.requests == []


async def test_users_report_the_path_of_their_session(gateway, master):
    ann, bob, eve = [await gateway.user(name) for name in ("ann", "bob", "eve")]

    async def value(metric):
        text = (await gateway.call("GET", "/metrics"))[1].decode()
        return next(
            float(line.split()[-1]) for line in text.splitlines() if line.startswith(metric)
        )

    async with ann.online() as a, bob.online() as b:
        session_id = await accepted_call(ann, a, bob, b)
        path = f"/v1/sessions/{session_id}/path"
        assert await value('wavry_gateway_sessions_by_path{path="unreported"}') == 1
        for user, way in ((ann, "relay"), (bob, "relay"), (ann, "direct")):
            assert (await user.call("POST", path, {"path": way}))[0] == 204
        assert await value('wavry_gateway_session_paths_total{path="relay"}') == 1
        assert await value('wavry_gateway_session_paths_total{path="direct"}') == 1
        assert await value('wavry_gateway_sessions_by_path{path="direct"}') == 1
        assert await value('wavry_gateway_sessions_by_path{path="unreported"}') == 0
        assert (await ann.call("POST", path, {"path": "pigeon"}))[0] == 400
        status, body = await eve.call("POST", path, {"path": "relay"})
        assert (status, body["error"]) == (404, "unknown_session")
        assert (await ann.call("DELETE", f"/v1/sessions/{session_id}"))[0] == 204
        status, body = await ann.call("POST", path, {"path": "relay"})
        assert (status, body["error"]) == (409, "session_closed")
        assert await value('wavry_gateway_sessions_by_path{path="direct"}') == 0


async def test_no_path_is_reported_of_a_call_that_nobody_answered(gateway, master):
    ann, bob = await gateway.user("ann"), await gateway.user("bob")
    async with ann.online() as a, bob.online() as b:
        await a.send(wire.Offer(target_username="bob"))
        offer = await b.next(wire.Offer)
        path = f"/v1/sessions/{offer.session_id}/path"
        status, body = await ann.call("POST", path, {"path": "direct"})
        assert (status, body["error"]) == (409, "not_accepted")


async def test_tokens_and_binds_are_counted_by_what_came_of_them(gateway, master):
    ann = await gateway.user("ann")
    for token in (None, "short", "A" * 43):
        assert (await gateway.call("GET", "/v1/sessions", token=token))[0] == 401
    assert (await gateway.call("GET", "/v1/sessions", token=ann.token))[0] == 200
    async with ann.online():
        pass
    async with connected(gateway.http, gateway.url) as socket:
        await socket.send(wire.Ping())
        await socket.error("bind_required")
        await socket.close_code()
    async with connected(gateway.http, gateway.url) as socket:
        await socket.send(wire.Bind(token="A" * 43))
        await socket.error("invalid_token")
        await socket.close_code()

    def lines():
        return gateway.gateway.metrics.text().decode().splitlines()

    await eventually(lambda: 'wavry_gateway_binds_total{result="invalid_token"} 1.0' in lines())
    for via, result in (
        ("http", "ok"), ("http", "missing"), ("http", "malformed"), ("http", "unknown"),
        ("websocket", "ok"), ("websocket", "unknown"),
    ):  # fmt: skip
        series = f'wavry_gateway_token_checks_total{{result="{result}",via="{via}"}}'
        assert f"{series} 1.0" in lines(), series
    for result in ("ok", "bind_required", "invalid_token"):
        assert f'wavry_gateway_binds_total{{result="{result}"}} 1.0' in lines(), result
