"""A circuit breaker: who has failed several times in a row is left alone for a while, then tried with one request."""

from collections.abc import Callable
from typing import Final

FAILURES: Final = 5
"""Failures in a row after which nobody is sent there any more."""

OPEN_SECONDS: Final = 10.0
"""How long. Then one request is let through, and its outcome decides."""


class CircuitBreaker:
    """Remembers how requests to one place have ended.

    Every `admits()` that says yes must be followed by exactly one of `succeeded`, `failed` and `abandoned`.

    Args:
        clock: seconds that only grow.
    """

    def __init__(
        self, clock: Callable[[], float], *, failures: int = FAILURES, open_seconds: float = OPEN_SECONDS
    ) -> None:
        self._clock = clock
        self._limit = failures
        self._open_seconds = open_seconds
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False

    def admits(self) -> bool:
        """Whether a request may be made now."""
        if self._opened_at is None:
            return True
        if self._probing or self._clock() - self._opened_at < self._open_seconds:
            return False
        self._probing = True
        return True

    def succeeded(self) -> None:
        """The request was answered."""
        self._failures, self._opened_at, self._probing = 0, None, False

    def failed(self) -> None:
        """The request was not answered usefully."""
        self._failures += 1
        self._probing = False
        if self._failures >= self._limit:
            self._opened_at = self._clock()

    def abandoned(self) -> None:
        """Whoever made the request has given up waiting: it says nothing about the other side."""
        self._probing = False
