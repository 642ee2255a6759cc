"""Admission: nobody waits for a place that will not come, and no place is ever lost."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.inference.admission import Admission, Saturated


async def settle() -> None:
    """Let every task that can run, run."""
    for _ in range(5):
        await asyncio.sleep(0)


class Caller:
    """A task that takes a slot and keeps it until told to leave."""

    def __init__(self, admission: Admission) -> None:
        self.inside = False
        self.leave = asyncio.Event()
        self.task = asyncio.create_task(self._call(admission))

    async def _call(self, admission: Admission) -> None:
        async with admission.slot():
            self.inside = True
            try:
                await self.leave.wait()
            finally:
                self.inside = False


async def test_over_the_limit_a_caller_is_refused_at_once() -> None:
    admission = Admission(slots=1, queue=1)
    first, second = Caller(admission), Caller(admission)
    await settle()
    with pytest.raises(Saturated) as refused:
        async with admission.slot():
            pytest.fail("there was no place")
    assert refused.value.retry_after_seconds >= 1
    assert (first.inside, second.inside) == (True, False)
    assert admission.depth().refused == 1
    first.leave.set()
    second.leave.set()
    await asyncio.gather(first.task, second.task)
    assert admission.depth().active == 0


async def test_callers_are_served_in_the_order_they_came() -> None:
    admission = Admission(slots=1, queue=5)
    callers = [Caller(admission) for _ in range(5)]
    for position, caller in enumerate(callers):
        await settle()
        assert [c.inside for c in callers].index(True) == position
        caller.leave.set()
        await caller.task


async def test_a_cancelled_caller_gives_its_place_in_the_queue_to_the_next() -> None:
    admission = Admission(slots=1, queue=2)
    first, second, third = (Caller(admission) for _ in range(3))
    await settle()
    second.task.cancel()
    await settle()
    assert admission.depth().waiting == 1
    first.leave.set()
    await settle()
    assert third.inside
    third.leave.set()
    await third.task


async def test_a_caller_cancelled_in_the_moment_its_turn_comes_passes_the_slot_on() -> None:
    admission = Admission(slots=1, queue=2)
    first, second, third = (Caller(admission) for _ in range(3))
    await settle()
    first.leave.set()
    await asyncio.sleep(0)
    assert (admission.depth().waiting, second.inside) == (1, False)  # the slot is handed over, nobody has run yet
    second.task.cancel()
    await settle()
    assert (second.inside, third.inside) == (False, True)
    third.leave.set()
    await third.task
    assert admission.depth().active == 0


async def test_a_failing_call_frees_its_slot() -> None:
    admission = Admission(slots=1, queue=0)
    with pytest.raises(RuntimeError, match="broken"):
        async with admission.slot():
            raise RuntimeError("broken")
    async with admission.slot():
        assert admission.depth().active == 1


async def test_retry_after_follows_how_long_calls_take() -> None:
    now = 0.0
    admission = Admission(slots=1, queue=0, typical_seconds=1, clock=lambda: now)
    for _ in range(30):
        async with admission.slot():
            now += 60
    async with admission.slot():
        with pytest.raises(Saturated) as refused:
            await admission.slot().__aenter__()
    assert 50 <= refused.value.retry_after_seconds <= 60


@pytest.mark.parametrize(("slots", "queue", "typical"), [(0, 1, 1.0), (1, -1, 1.0), (1, 1, 0.0)])
def test_numbers_out_of_range_are_refused(slots: int, queue: int, typical: float) -> None:
    with pytest.raises(ValueError, match="admission needs"):
        Admission(slots, queue, typical_seconds=typical)


@settings(max_examples=150, deadline=None)
@given(
    slots=st.integers(1, 3),
    queue=st.integers(0, 3),
    moves=st.lists(st.tuples(st.sampled_from(["come", "leave", "cancel", "run"]), st.integers(0, 20)), max_size=40),
)
def test_no_slot_is_lost_or_given_twice(slots: int, queue: int, moves: list[tuple[str, int]]) -> None:
    async def play() -> None:
        admission = Admission(slots, queue)
        callers: list[Caller] = []
        actions: dict[str, Callable[[Caller], object]] = {
            "leave": lambda caller: caller.leave.set(),
            "cancel": lambda caller: caller.task.cancel(),
        }
        for move, index in moves:
            if move == "come":
                callers.append(Caller(admission))
            elif move == "run":
                await settle()
            elif callers:
                actions[move](callers[index % len(callers)])
            depth = admission.depth()
            assert sum(caller.inside for caller in callers) <= depth.active <= slots
            assert depth.waiting <= queue
        for caller in callers:
            caller.leave.set()
        results: list[Awaitable[None]] = [caller.task for caller in callers]
        for outcome in await asyncio.gather(*results, return_exceptions=True):
            assert outcome is None or isinstance(outcome, Saturated | asyncio.CancelledError)
        depth = admission.depth()
        assert (depth.active, depth.waiting) == (0, 0)
        assert depth.admitted + depth.refused <= len(callers)

    asyncio.run(play())
