"""Whether the next paid call would work: asked of facilitator, chain and model, and remembered for a moment.

Every 402 depends on it, and asking takes several requests to a node. What was found a moment ago is therefore told
again; what is older is told once more while it is looked up anew; what is too old is waited for. However many ask,
one look is under way at a time.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from service.inference.backend import Backend, BackendError
from service.payment.facilitator import Facilitator

FRESH_SECONDS: Final = 1.0
"""For so long an answer is taken as it is."""

STALE_SECONDS: Final = 10.0
"""For so long it is still told while a new one is looked for; an outage is noticed one unpaid request late."""


class Readiness:
    """What stands in the way of the next paid call.

    Args:
        facilitator: says whether payments could be settled.
        backend: says whether the model could answer.
        fresh_seconds, stale_seconds: see the module's constants.
        monotonic: seconds, by a clock that only goes forward.
    """

    def __init__(
        self,
        facilitator: Facilitator,
        backend: Backend,
        *,
        fresh_seconds: float = FRESH_SECONDS,
        stale_seconds: float = STALE_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._facilitator = facilitator
        self._backend = backend
        self._fresh = fresh_seconds
        self._stale = stale_seconds
        self._monotonic = monotonic
        self._found: tuple[str, ...] = ()
        self._at: float | None = None
        self._looking: asyncio.Task[tuple[str, ...]] | None = None

    async def problems(self) -> Sequence[str]:
        """What would make the next paid call fail, one sentence each; empty when all is well."""
        age = self._stale if self._at is None else self._monotonic() - self._at
        if age < self._fresh:
            return self._found
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
            self._looking.add_done_callback(self._looked)
        # A problem is never told from memory: whoever comes back after it was mended is not sent away again.
        if age < self._stale and not self._found:
            return self._found
        return await asyncio.shield(self._looking)

    async def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking

    async def _look(self) -> tuple[str, ...]:
        found = list(await self._facilitator.ready())
        try:
            await self._backend.health()
        except BackendError as error:
            found.append(f"the model cannot answer: {error}")
        return tuple(found)

    def _looked(self, task: asyncio.Task[tuple[str, ...]]) -> None:
        self._looking = None
        if not task.cancelled() and task.exception() is None:
            self._found, self._at = task.result(), self._monotonic()
