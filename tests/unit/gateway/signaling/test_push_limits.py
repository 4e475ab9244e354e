"""What users may push to others: little before a call is accepted, a share of the queue after."""

import pytest
from support.control.gateway import accepted_call, make_config, running_gateway

from wavry_cp.app.refusal import RefusedError
from wavry_cp.gateway.sessions.pending import MAX_BYTES, MAX_MESSAGES, PendingAllowances
from wavry_cp.gateway.sessions.rules import SessionKey
from wavry_cp.gateway.signaling.queue import ClientQueue, Sender
from wavry_peer.protocol.http import signaling as wire

ANN, EVE = Sender("ann", is_stranger=False), Sender("eve", is_stranger=False)
STRANGERS = [Sender(f"mallory-{n}", is_stranger=True) for n in range(10)]


def filled(queue, sender, text="x"):
    """Put as much as fits; return how many."""
    count = 0
    while queue.has_room(text, sender):
        queue.put(text, sender)
        count += 1
    return count


def test_one_sender_fills_a_quarter_and_leaves_room_for_others_and_for_the_gateway():
    queue = ClientQueue(128, 10**6)
    assert filled(queue, ANN) == 32
    assert filled(queue, EVE) == 32
    assert filled(queue, Sender("bob", is_stranger=False)) == 32
    assert not queue.has_room("x", Sender("zoe", is_stranger=False))
    assert filled(queue, None) == 32


def test_strangers_fill_a_quarter_together_however_many_they_are():
    queue = ClientQueue(128, 10**6)
    assert sum(filled(queue, stranger) for stranger in STRANGERS) == 32
    assert filled(queue, ANN) == 32


def test_bytes_are_shared_like_messages_and_come_back_when_they_are_read():
    queue = ClientQueue(10**6, 4000)
    assert filled(queue, ANN, "x" * 100) == 10
    queue.take()
    assert queue.has_room("x" * 100, ANN)
    while len(queue):
        queue.take()
    assert filled(queue, ANN, "x" * 100) == 10
    queue.clear()
    assert len(queue) == 0
    assert filled(queue, ANN, "x" * 100) == 10


def test_one_message_may_be_larger_than_its_share_if_it_is_alone():
    queue = ClientQueue(128, 64 * 1024)
    frame = "x" * 60_000
    assert queue.has_room(frame, STRANGERS[0])
    queue.put(frame, STRANGERS[0])
    assert not queue.has_room(frame, ANN)


def test_a_call_that_waits_for_its_answer_brings_a_few_small_messages():
    allowances = PendingAllowances()
    call, other = SessionKey("a"), SessionKey("b")
    for _ in range(MAX_MESSAGES):
        allowances.take(call, wire.Candidate(candidate="c"))
    with pytest.raises(RefusedError, match="16 messages"):
        allowances.take(call, wire.Candidate(candidate="c"))
    allowances.take(other, wire.Offer(sdp="s" * (MAX_BYTES - 200)))
    with pytest.raises(RefusedError, match="16 KiB"):
        allowances.take(other, wire.Offer(sdp="s" * 200))
    allowances.forget(call)
    allowances.take(call, wire.Candidate(candidate="c"))


async def test_three_accounts_do_not_cut_somebody_who_has_not_accepted(tmp_path, master):
    config = make_config(tmp_path, master.url, messages_burst=100_000, messages_per_s=100_000.0)
    async with running_gateway(config) as running:
        victim = await running.user("victim")
        attackers = [await running.user(f"attacker-{n}") for n in range(3)]
        async with victim.online() as v:
            got = 0
            for attacker in attackers:
                async with attacker.online() as a:
                    await a.send(wire.Offer(target_username="victim"))
                    while (offer := await v.next(wire.Offer)).from_username != attacker.name:
                        got += len(offer.sdp or "")
                    again = wire.Offer(
                        target_username="victim", session_id=offer.session_id, sdp="s" * 8000
                    )
                    for _ in range(100):
                        await a.send(again)
                    await a.error("rate_limited")
                    await a.send(wire.Ping())
            await v.send(wire.Ping())
            while not isinstance(message := await v.next(wire.Offer | wire.Pong), wire.Pong):
                got += len(message.sdp or "")
            assert got <= 3 * MAX_BYTES
            assert running.gateway.hub.is_online("victim")


async def test_after_the_answer_messages_pass_freely(tmp_path, master):
    config = make_config(tmp_path, master.url, messages_burst=1000)
    async with running_gateway(config) as running:
        ann, bob = await running.user("ann"), await running.user("bob")
        async with ann.online() as a, bob.online() as b:
            session_id = await accepted_call(ann, a, bob, b)
            for number in range(3 * MAX_MESSAGES):
                await a.send(
                    wire.Candidate(
                        target_username="bob", session_id=session_id, candidate=str(number)
                    )
                )
                assert (await b.next(wire.Candidate)).candidate == str(number)


async def test_a_user_that_connects_again_and_again_is_told_to_wait(tmp_path, master):
    """Two programs of one user that throw each other out, from any number of addresses."""
    config = make_config(tmp_path, master.url, binds_burst=3, binds_per_minute=1.0)
    async with running_gateway(config) as running:
        ann, bob = await running.user("ann"), await running.user("bob")
        refused = None
        for _ in range(5):
            async with running.http.ws_connect(running.url + "/ws") as socket:
                await socket.send_str(wire.encode_message(wire.Bind(token=ann.token)))
                answer = wire.decode_server_message((await socket.receive(timeout=5)).data)
                if isinstance(answer, wire.Error):
                    refused = answer
                    break
        assert refused is not None
        assert refused.code == "rate_limited"
        assert "wait" in refused.message
        async with bob.online():
            pass
