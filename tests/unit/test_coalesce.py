"""Many askers, few requests."""

import asyncio
from collections.abc import Sequence

import pytest

from service.payment.coalesce import Coalescer


class Slow:
    """Doubles numbers, one round at a time, when it is allowed to."""

    def __init__(self) -> None:
        self.rounds: list[list[int]] = []
        self.allowed = asyncio.Event()
        self.asked = asyncio.Event()

    async def __call__(self, questions: Sequence[int]) -> list[int]:
        self.rounds.append(list(questions))
        self.asked.set()
        await self.allowed.wait()
        if 99 in questions:
            raise ValueError("not this one")
        return [2 * question for question in questions]


async def test_what_comes_while_a_request_is_under_way_shares_the_next_one() -> None:
    slow = Slow()
    coalescer: Coalescer[int, int] = Coalescer(slow, limit=10)
    first = asyncio.create_task(coalescer.ask(1))
    await slow.asked.wait()
    others = [asyncio.create_task(coalescer.ask(number)) for number in range(2, 27)]
    await asyncio.sleep(0)
    slow.allowed.set()
    assert await first == 2
    assert await asyncio.gather(*others) == [2 * number for number in range(2, 27)]
    assert [len(one) for one in slow.rounds] == [1, 10, 10, 5]


async def test_a_failure_is_everybodys_of_its_round_and_nobody_elses() -> None:
    slow = Slow()
    coalescer: Coalescer[int, int] = Coalescer(slow, limit=2)
    tasks = [asyncio.create_task(coalescer.ask(number)) for number in (1, 99, 3)]
    slow.allowed.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [ValueError, ValueError, int]
    assert await coalescer.ask(4) == 8, "and it goes on"


async def test_whoever_leaves_takes_nobody_along() -> None:
    slow = Slow()
    coalescer: Coalescer[int, int] = Coalescer(slow, limit=10)
    tasks = [asyncio.create_task(coalescer.ask(number)) for number in (1, 2)]
    await slow.asked.wait()
    tasks[0].cancel()
    slow.allowed.set()
    assert await tasks[1] == 4


async def test_closing_ends_the_waiting() -> None:
    slow = Slow()
    coalescer: Coalescer[int, int] = Coalescer(slow, limit=1)
    tasks = [asyncio.create_task(coalescer.ask(number)) for number in (1, 2)]
    await slow.asked.wait()
    await coalescer.close()
    for task in tasks:
        with pytest.raises(asyncio.CancelledError):
            await task
