"""One facilitator's HTTP interface: a JSON object or one typed error, behind a circuit breaker."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json

from service.payment.breaker import CircuitBreaker
from service.payment.http_pool import HttpPool, NoResponseError

MAX_RESPONSE_BYTES: Final = 65_536
"""Longest answer read from a facilitator."""

OK: Final = 200
_CLIENT_ERRORS: Final = range(400, 500)


class NoAnswerError(Exception):
    """The facilitator gave no answer that can be used; the text says why.

    Attributes:
        sent: whether the request may have reached it.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and the JSON object that came with it: 200, or a refusal (4xx)."""

    status: int
    document: Mapping[str, Any]


class Endpoint:
    """One facilitator.

    Args:
        url: base URL; paths are appended.
        authorization: value of the Authorization header; never logged or shown.
        clock: seconds that only grow.

    Raises:
        ValueError: the URL or the header cannot be sent.
    """

    def __init__(
        self, url: str, *, authorization: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "content-type": "application/json",
            "user-agent": "tollseal",
        }
        if authorization is not None:
            headers["authorization"] = authorization
        self._pool = HttpPool(url, headers=headers, max_body_bytes=MAX_RESPONSE_BYTES)
        self._breaker = CircuitBreaker(clock)

    async def ask(self, method: str, path: str, body: bytes, *, timeout_seconds: float) -> Answer:
        """Ask once.

        Raises:
            NoAnswerError: no connection, no answer in time, or none that is a JSON object with status 200 or 4xx; or
                nothing was asked, because too many requests in a row have ended like this.
        """
        if not self._breaker.admits():
            raise NoAnswerError("it has failed several times in a row and is left alone for a while", sent=False)
        try:
            answer = await self._ask(method, path, body, timeout_seconds)
        except NoAnswerError:
            self._breaker.failed()
            raise
        except BaseException:
            self._breaker.abandoned()
            raise
        self._breaker.succeeded()
        return answer

    async def close(self) -> None:
        """Close pooled connections."""
        await self._pool.close()

    async def _ask(self, method: str, path: str, body: bytes, timeout_seconds: float) -> Answer:
        try:
            response = await self._pool.request(method, path, body, timeout_seconds=timeout_seconds)
        except NoResponseError as error:
            raise NoAnswerError(str(error), sent=error.sent) from error
        if response.status != OK and response.status not in _CLIENT_ERRORS:
            raise NoAnswerError(f"it answered with status {response.status}", sent=True)
        try:
            document = from_json(response.body, allow_inf_nan=False)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise NoAnswerError(f"its answer (status {response.status}) is not a JSON object", sent=True)
        return Answer(response.status, document)
