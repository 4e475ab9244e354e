"""Turns of logins: whoever floods waits for himself, and what waits is bounded for each."""

import asyncio
import random

import pytest

from wavry_cp.app.refusal import RefusedError
from wavry_cp.gateway.accounts.fair_queue import (
    MAX_PER_ACCOUNT,
    MAX_PER_NETWORK,
    FairQueue,
    Party,
    login_network,
)


class Work:
    """Jobs of one queue with one worker; each job ends when `step` says so."""

    def __init__(self, *, max_waiting=100, concurrency=1):
        self.queue = FairQueue(concurrency=concurrency, max_waiting=max_waiting)
        self.began, self.refused = [], []
        self._gates = asyncio.Queue()

    def start(self, account, network):
        return asyncio.create_task(self._job(Party(account, network)))

    async def _job(self, party):
        try:
            async with self.queue.turn(party):
                self.began.append(party)
                await self._gates.get()
        except RefusedError:
            self.refused.append(party)

    async def settle(self):
        for _ in range(5):
            await asyncio.sleep(0)

    async def step(self, count=1):
        for _ in range(count):
            self._gates.put_nowait(None)
            await self.settle()


async def test_an_honest_login_waits_for_one_guess_and_not_for_all_of_them():
    work = Work()
    flood = [work.start(f"account-{n}", "192.0.2.66") for n in range(120)]
    await work.settle()
    honest = work.start("ann", "198.51.100.1")
    await work.settle()
    assert len(work.refused) == 120 - 1 - MAX_PER_NETWORK
    await work.step(2)
    assert Party("ann", "198.51.100.1") in work.began[:3]
    await work.step(20)
    await asyncio.gather(honest, *flood)


async def test_an_account_under_attack_from_many_networks_waits_and_others_do_not():
    work = Work()
    guesses = [work.start("victim", f"192.0.2.{n}") for n in range(60)]
    await work.settle()
    assert len(work.refused) == 60 - 1 - MAX_PER_ACCOUNT
    other = work.start("ann", "198.51.100.1")
    await work.step(1 + MAX_PER_ACCOUNT)
    assert Party("ann", "198.51.100.1") in work.began
    await work.step(10)
    await asyncio.gather(other, *guesses)


async def test_where_the_queue_is_full_the_largest_crowd_gives_a_place_up():
    work = Work(max_waiting=MAX_PER_NETWORK)
    crowd = [work.start(f"account-{n}", "192.0.2.66") for n in range(1 + MAX_PER_NETWORK)]
    await work.settle()
    assert work.refused == []
    honest = work.start("ann", "198.51.100.1")
    await work.settle()
    assert work.refused == [Party(f"account-{MAX_PER_NETWORK}", "192.0.2.66")]
    await work.step(20)
    assert Party("ann", "198.51.100.1") in work.began
    await asyncio.gather(honest, *crowd)


async def test_turns_are_never_lost_whoever_is_cancelled():
    dice = random.Random(3)
    work = Work(concurrency=2, max_waiting=20)
    tasks = []
    for _ in range(400):
        tasks.append(work.start(f"a{dice.randrange(9)}", f"n{dice.randrange(5)}"))
        if dice.random() < 0.4:
            dice.choice(tasks).cancel()
        if dice.random() < 0.6:
            await work.step()
    await work.step(500)
    await asyncio.gather(*tasks, return_exceptions=True)
    queue = work.queue
    assert (queue._free, queue._count, len(queue._waiting), len(queue._by_account)) == (2, 0, 0, 0)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::", "2001:db8:1::"),
        ("2001:db8:1:ffff::", "2001:db8:1::"),
        ("unknown", "unknown"),
    ],
)
def test_a_network_of_guessers_is_an_ipv4_address_or_an_ipv6_48(address, network):
    assert login_network(address) == network


async def test_who_was_sent_away_and_leaves_in_that_moment_gives_no_turn_back():
    work = Work(max_waiting=2)
    crowd = [work.start(f"account-{n}", "192.0.2.66") for n in range(3)]
    await work.settle()
    other = work.start("ann", "198.51.100.1")
    await asyncio.sleep(0)  # It took the place of the last of the crowd, who has not heard of it.
    crowd[2].cancel()
    await asyncio.gather(crowd[2], return_exceptions=True)
    await work.step(3)
    await asyncio.gather(other, *crowd[:2])
    last = [work.start(f"later-{n}", "203.0.113.1") for n in range(2)]
    await work.settle()
    assert len(work.began) == 3 + 1, "one at a time, as before"
    await work.step(2)
    await asyncio.gather(*last)
