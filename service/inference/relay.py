"""Streamed answers: a model's pieces, read by a task of their own, on time or not at all.

The task goes on reading while whoever takes the pieces does something else, such as settling a payment, so that no slow
reader slows the engine down. It holds at most one answer, which `max_tokens` bounds.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from service.inference.backend import BackendTimeout, BackendUnavailable, Completion, Delta, Timeouts

Pieces = AsyncGenerator[Delta | Completion, None]


async def relay(source: Pieces, timeouts: Timeouts, running: "set[asyncio.Task[Any]] | None" = None) -> Pieces:
    """The pieces of `source`, which ends with a `Completion`. Closing this generator ends the work.

    Args:
        source: is closed in any case.
        timeouts: that `source` has to keep.
        running: holds the task while it reads; cancelling it there ends the stream with BackendUnavailable.

    Raises:
        BackendTimeout: no first piece, no next piece or no end in time.
        Exception: whatever `source` raises.
    """
    pieces: asyncio.Queue[Delta | Completion | Exception] = asyncio.Queue()
    task = asyncio.create_task(_read(source, timeouts, pieces))
    running = set() if running is None else running
    running.add(task)
    try:
        while True:
            piece = await pieces.get()
            if isinstance(piece, Exception):
                raise piece
            yield piece
            if isinstance(piece, Completion):
                return
    finally:
        task.cancel()
        # Only when the connection is closed does the engine know, and is the place free.
        await asyncio.wait([task])
        running.discard(task)


async def _read(source: Pieces, timeouts: Timeouts, pieces: "asyncio.Queue[Delta | Completion | Exception]") -> None:
    try:
        async with asyncio.timeout(timeouts.total), aclosing(source):
            seconds, which = timeouts.first_token, "the first token"
            while True:
                try:
                    async with asyncio.timeout(seconds):
                        piece = await anext(source)
                except TimeoutError as error:
                    raise BackendTimeout(f"{which} did not come within {seconds:g} seconds") from error
                pieces.put_nowait(piece)
                seconds, which = timeouts.between_tokens, "the next token"
    except TimeoutError:
        pieces.put_nowait(BackendTimeout(f"no complete answer within {timeouts.total:g} seconds"))
    except asyncio.CancelledError:
        pieces.put_nowait(BackendUnavailable("the model was closed while it was answering"))
        raise
    except Exception as error:
        pieces.put_nowait(error)
