"""Many askers, few requests: what is asked while a request is under way goes into the next one together."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Question = TypeVar("Question")
Answer = TypeVar("Answer")


class Coalescer(Generic[Question, Answer]):
    """Asks for many at once.

    A question that comes alone is asked at once; nobody waits for company.

    Args:
        fetch: answers many questions, in their order. What it raises, everybody who is in the same round gets.
        limit: most questions in one round.
    """

    def __init__(self, fetch: Callable[[Sequence[Question]], Awaitable[Sequence[Answer]]], *, limit: int) -> None:
        self._fetch = fetch
        self._limit = limit
        self._waiting: list[tuple[Question, asyncio.Future[Answer]]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Question) -> Answer:
        """The answer to one question.

        Raises:
            Exception: what `fetch` raised for the round that this question was in.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    async def close(self) -> None:
        """End the round that is under way; whoever waits for it is cancelled."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        answered: list[tuple[Question, asyncio.Future[Answer]]] = []
        try:
            while self._waiting:
                answered, self._waiting = self._waiting[: self._limit], self._waiting[self._limit :]
                await self._round(answered)
        finally:
            self._task = None
            for _, future in [*answered, *self._waiting]:
                future.cancel()  # only of those that have no answer, and there are none unless this task was cancelled
            self._waiting = []

    async def _round(self, asked: Sequence[tuple[Question, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await self._fetch([question for question, _ in asked])
        except Exception as error:
            for _, future in asked:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), answer in zip(asked, answers, strict=True):
            if not future.done():
                future.set_result(answer)
