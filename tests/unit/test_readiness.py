"""Readiness is asked for by every buyer, and looked up now and then."""

import asyncio
from dataclasses import dataclass, field

from service.inference.backend import BackendUnavailable
from service.readiness import Readiness
from tests.http.fakes import ScriptedFacilitator, StubBackend


@dataclass
class Looks(ScriptedFacilitator):
    """Counts how often it is asked, and answers when it may."""

    asked: int = 0
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)

    async def ready(self) -> list[str]:
        self.asked += 1
        await self.may_answer.wait()
        return await super().ready()


@dataclass
class Clockwork:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def made(problems: list[str] | None = None) -> tuple[Readiness, Looks, StubBackend, Clockwork]:
    facilitator, backend, clock = Looks(problems=problems or []), StubBackend(), Clockwork()
    facilitator.may_answer.set()
    ready = Readiness(facilitator, backend, fresh_seconds=1, stale_seconds=10, monotonic=clock)
    return ready, facilitator, backend, clock


async def test_many_buyers_cost_one_look() -> None:
    ready, facilitator, _, _ = made()
    facilitator.may_answer.clear()
    asking = [asyncio.create_task(ready.problems()) for _ in range(50)]
    await asyncio.sleep(0)
    facilitator.may_answer.set()
    assert [await one for one in asking] == [()] * 50
    assert await ready.problems() == ()
    assert facilitator.asked == 1


async def test_a_slow_node_keeps_nobody_waiting_while_the_last_answer_is_recent() -> None:
    ready, facilitator, _, clock = made()
    assert await ready.problems() == ()
    facilitator.may_answer.clear()
    clock.now += 5
    assert await asyncio.wait_for(ready.problems(), 1) == ()
    await asyncio.sleep(0)
    assert facilitator.asked == 2
    await ready.close()


async def test_an_old_answer_is_not_told() -> None:
    ready, facilitator, _, clock = made()
    assert await ready.problems() == ()
    facilitator.problems.append("no gas")
    clock.now += 11
    assert list(await ready.problems()) == ["no gas"]


async def test_a_problem_that_is_mended_is_not_told_from_memory() -> None:
    ready, facilitator, _, clock = made(["no gas"])
    assert list(await ready.problems()) == ["no gas"]
    facilitator.problems.clear()
    clock.now += 2
    assert await ready.problems() == ()


async def test_what_the_model_says_counts_too() -> None:
    ready, _, backend, _ = made(["no gas"])
    backend.sick = BackendUnavailable("it is gone")
    assert list(await ready.problems()) == ["no gas", "the model cannot answer: it is gone"]


async def test_a_look_that_fails_is_not_taken_for_an_answer() -> None:
    class Broken(Looks):
        async def ready(self) -> list[str]:
            self.asked += 1
            raise RuntimeError

    facilitator = Broken()
    ready = Readiness(facilitator, StubBackend(), monotonic=Clockwork())
    for _ in range(2):
        try:
            await ready.problems()
        except RuntimeError:
            continue
        raise AssertionError("nothing was known, and all was said to be well")
    assert facilitator.asked == 2
