"""Threads that work for the event loop, one database connection each, and everything that waits at a time.

Work queues up while a transaction commits. The thread then takes all of it into the next one: one commit, one wait for
the disk and one wakeup on either side, however many are waiting. That is what makes a busy ledger cheap.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Final, Generic, Protocol, TypeAlias, TypeVar

from service.payment.ledger_schema import LedgerUnavailableError
from service.payment.ledger_statements import Params, Statement

T = TypeVar("T")

GATHER_SECONDS: Final = 0.001
"""How long after one batch the next may begin: while many are at work, more come together in that time."""

MAX_BATCH: Final = 256
"""Calls in one transaction, at most: others wait for the database's lock meanwhile."""

Rows: TypeAlias = list[tuple[Any, ...]]
Step: TypeAlias = tuple[Statement, Params]


class CallRefusedError(Exception):
    """The database refuses what one of the calls asks for. Nothing was changed; the others are asked again alone."""


class Call(Generic[T]):
    """Something to do in one transaction.

    Attributes:
        steps: statements, in order; the rows of the first one matter.
        otherwise: what is read instead when the first one had no rows.
        read: makes the answer of the rows of the first step and of `otherwise`.
        order: calls are made in this order, so that two transactions never wait for each other in a circle.
        durable: must be on disk before it is answered.
    """

    __slots__ = ("durable", "order", "otherwise", "read", "steps")

    def __init__(
        self,
        steps: tuple[Step, ...],
        read: Callable[[Rows, Rows], T],
        *,
        otherwise: Step | None = None,
        order: str = "",
        durable: bool = False,
    ) -> None:
        self.steps = steps
        self.read = read
        self.otherwise = otherwise
        self.order = order
        self.durable = durable


class Session(Protocol):
    """A connection, used by one thread; it connects when it is needed, and again when that was lost."""

    def run(self, calls: Sequence[Call[Any]]) -> list[tuple[Rows, Rows]]:
        """Make all calls in one transaction; for each the rows of its first step and of `otherwise`.

        Raises:
            CallRefusedError: one of the calls is at fault.
            LedgerUnavailableError: the database is; whether anything was changed is known only after reading it.
        """
        ...

    def close(self) -> None:
        """Close the connection, if there is one. Never raises."""
        ...


Waiting: TypeAlias = tuple[Call[Any], "asyncio.Future[Any]"]
Done: TypeAlias = tuple["asyncio.Future[Any]", Any, BaseException | None]


class Lane(Protocol):
    """Makes calls, one after the other or side by side."""

    def submit(self, call: Call[T]) -> "asyncio.Future[T]":
        """Queue a call. Its future is done on the event loop; cancelling it does not stop the call.

        Raises:
            LedgerUnavailableError: the lane is closed.
        """
        ...

    async def close(self) -> None:
        """Finish what is queued, then close the connections."""
        ...


class InlineLane:
    """Makes each call at once, on the event loop: for what takes less time than handing it to a thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._loop = asyncio.get_running_loop()
        self._closed = False

    def submit(self, call: Call[T]) -> "asyncio.Future[T]":
        if self._closed:
            raise LedgerUnavailableError("the ledger is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        _resolve(_run(self._session, [(call, future)]))
        return future

    async def close(self) -> None:
        self._closed = True
        self._session.close()


class ThreadLane:
    """Threads with a connection each, and what waits for one of them.

    A thread that is done takes everything that waits by then. Nothing is handed over before the callers who can run
    have run, so that those who were answered together ask again together.
    """

    def __init__(self, name: str, sessions: Sequence[Session]) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Waiting] = []
        self._scheduled = False
        self._last = 0.0
        self._many = False
        self._closed = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._workers = [_Worker(f"ledger-{name}", session, self._finished, self._loop) for session in sessions]
        self._idle = list(self._workers)

    def submit(self, call: Call[T]) -> "asyncio.Future[T]":
        if self._closed:
            raise LedgerUnavailableError("the ledger is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append((call, future))
        self._quiet.clear()
        self._schedule()
        return future

    async def close(self) -> None:
        self._closed = True
        await self._quiet.wait()
        for worker in self._workers:
            worker.queue.put(None)
        for worker in self._workers:
            await self._loop.run_in_executor(None, worker.thread.join)

    def _schedule(self) -> None:
        if self._idle and self._waiting and not self._scheduled:
            self._scheduled = True
            rest = self._last + GATHER_SECONDS - self._loop.time()
            if rest > 0 and self._many:
                self._loop.call_later(rest, self._hand_over)
            else:
                self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._scheduled = False
        self._last, self._many = self._loop.time(), len(self._waiting) > 1
        while self._idle and self._waiting:
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            self._idle.pop().queue.put(batch)

    def _finished(self, worker: "_Worker", done: "list[Done]") -> None:
        self._idle.append(worker)
        _resolve(done)
        self._schedule()
        if not self._waiting and len(self._idle) == len(self._workers):
            self._quiet.set()


class _Worker:
    """One thread and its connection."""

    def __init__(
        self,
        name: str,
        session: Session,
        finished: Callable[["_Worker", "list[Done]"], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.queue: SimpleQueue[list[Waiting] | None] = SimpleQueue()
        self._session = session
        self._finished = finished
        self._loop = loop
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while (batch := self.queue.get()) is not None:
            done = _run(self._session, batch)
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._finished, self, done)
        self._session.close()


def _run(session: Session, batch: list[Waiting]) -> list[Done]:
    try:
        rows = session.run([call for call, _ in batch])
    except CallRefusedError as error:
        if len(batch) == 1:
            return [(batch[0][1], None, LedgerUnavailableError(str(error)))]
        return [done for each in batch for done in _run(session, [each])]
    except LedgerUnavailableError as error:
        return [(future, None, LedgerUnavailableError(str(error))) for _, future in batch]
    except Exception as error:  # a thread that ends here would leave everybody waiting
        session.close()
        failure = f"the ledger did not answer: {type(error).__name__}"
        return [(future, None, LedgerUnavailableError(failure)) for _, future in batch]
    return [_read(call, future, *found) for (call, future), found in zip(batch, rows, strict=True)]


def _read(call: Call[Any], future: "asyncio.Future[Any]", first: Rows, otherwise: Rows) -> Done:
    try:
        return future, call.read(first, otherwise), None
    except Exception as error:  # it belongs to this caller, not to the thread
        return future, None, error


def _resolve(done: list[Done]) -> None:
    for future, result, error in done:
        if future.done():  # its caller has gone
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


def number_of(found: Rows, _: Rows) -> int:
    return len(found)
