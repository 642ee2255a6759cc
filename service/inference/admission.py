"""A bounded number of slots with a bounded queue before them, so that nobody pays for a call that has no place."""

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

# ruff: noqa: N818 - the names say what happened, not that it is an error

_MAX_RETRY_AFTER: Final = 600
"""Seconds. Whoever is told to wait longer does not come back."""

_SMOOTHING: Final = 0.2
"""Weight of the newest call in the running mean of how long a call takes."""


class Saturated(Exception):
    """All slots are taken and the queue is full. Try again after `retry_after_seconds`, an estimate of at least 1."""

    def __init__(self, retry_after_seconds: int) -> None:
        super().__init__(f"the service is at its limit; try again in {retry_after_seconds} seconds")
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True, slots=True)
class Depth:
    """How busy it is now, and since the start: callers let in, callers sent away."""

    active: int
    waiting: int
    slots: int
    queue: int
    admitted: int
    refused: int


class Admission:
    """Slots handed out first come, first served. For one event loop."""

    def __init__(
        self, slots: int, queue: int, *, typical_seconds: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """
        Args:
            slots: calls at the same time; at least 1.
            queue: callers that may wait; 0 or more.
            typical_seconds: how long a call takes, until calls have been seen.

        Raises:
            ValueError: a number out of range.
        """
        if slots < 1 or queue < 0 or typical_seconds <= 0:
            raise ValueError("admission needs slots >= 1, queue >= 0 and typical_seconds > 0")
        self._slots = slots
        self._queue = queue
        self._clock = clock
        self._mean_seconds = typical_seconds
        self._active = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._admitted = 0
        self._refused = 0

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Hold a slot. Waits in the queue when all are taken; a caller who is cancelled leaves no trace.

        Raises:
            Saturated: the queue is full. Raised at once.
        """
        await self._acquire()
        self._admitted += 1
        started = self._clock()
        try:
            yield
        finally:
            self._mean_seconds += _SMOOTHING * (self._clock() - started - self._mean_seconds)
            self._release()

    def depth(self) -> Depth:
        """The numbers for metrics and health."""
        return Depth(self._active, len(self._waiters), self._slots, self._queue, self._admitted, self._refused)

    def check(self) -> None:
        """Whether a caller who came now would be let in or could wait.

        Raises:
            Saturated: neither.
        """
        if self._active >= self._slots and len(self._waiters) >= self._queue:
            self._refused += 1
            raise Saturated(self._retry_after())

    async def _acquire(self) -> None:
        self.check()
        if self._active < self._slots:
            self._active += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiters.remove(turn)
            else:  # the slot was already ours when the caller left
                self._release()
            raise

    def _release(self) -> None:
        """Hand the slot to whoever waits longest; only when nobody waits is it free."""
        for turn in self._waiters:
            if not turn.done():
                self._waiters.remove(turn)
                turn.set_result(None)
                return
        self._active -= 1

    def _retry_after(self) -> int:
        seconds = self._mean_seconds * (len(self._waiters) + 1) / self._slots
        return max(1, min(_MAX_RETRY_AFTER, math.ceil(seconds)))
