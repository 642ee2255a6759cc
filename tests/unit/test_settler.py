"""The queue of settlements: whoever answers for a payment is whoever is settling it, and nobody else."""

import asyncio
from typing import Any

import pytest

from service.payment.checks import Prepared
from service.payment.facilitator import Settled, Unknown
from service.payment.sender import NotSentError
from service.payment.settler import Pipeline, Settler
from tests.payments import authorize


async def test_a_batch_that_fails_does_not_answer_for_what_was_queued_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing: Any = None
    settler = Settler(nothing, nothing, nothing, nothing, pipeline=Pipeline())
    first, second = (Prepared(authorize(), by_key=True, calls=()) for _ in range(2))
    again, failed = asyncio.Event(), asyncio.Event()
    batches: list[int] = []

    async def settle_batch(batch: list[Any]) -> None:
        batches.append(len(batch))
        if len(batches) == 1:
            settler._enqueue([batch[1]])
            await again.wait()
            raise NotSentError("the node is out of reach")
        again.set()
        await failed.wait()
        batch[0].result.set_result(Settled("0x" + "ab" * 32, "0xpayer", 7))

    monkeypatch.setattr(settler, "_settle_batch", settle_batch)
    settling = [asyncio.create_task(settler.settle(payment, 5)) for payment in (first, second)]
    assert isinstance(await settling[0], Unknown)
    assert not settling[1].done(), "it is being settled in another transaction"
    failed.set()
    assert await settling[1] == Settled("0x" + "ab" * 32, "0xpayer", 7)
    assert batches == [2, 1]
    await settler.close()
