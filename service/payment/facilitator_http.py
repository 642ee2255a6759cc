"""One facilitator's HTTP interface: a bounded request, a JSON object or one typed error, and a circuit breaker."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from pydantic_core import from_json

from service.payment.breaker import CircuitBreaker

MAX_RESPONSE_BYTES: Final = 65_536
"""Longest answer read from a facilitator."""

MAX_CONNECTIONS: Final = 64
"""Open connections to one facilitator."""

CONNECT_SECONDS: Final = 5.0
"""For a connection, TLS included."""

KEEPALIVE_SECONDS: Final = 4.0
"""How long an idle connection is kept: less than the five seconds after which common servers close it. A request that
meets a closing connection may or may not have arrived, and of a settlement one must not guess."""

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


def open_session() -> aiohttp.ClientSession:
    """Pooled connections without cookies, proxies from the environment or unpacking. Needs a running event loop."""
    connector = aiohttp.TCPConnector(limit=0, limit_per_host=MAX_CONNECTIONS, keepalive_timeout=KEEPALIVE_SECONDS)
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        headers={"accept": "application/json", "accept-encoding": "identity", "user-agent": "tollseal"},
    )


class Endpoint:
    """One facilitator.

    Args:
        url: base URL; paths are appended.
        authorization: value of the Authorization header; never logged or shown.
        clock: seconds that only grow.
    """

    def __init__(
        self, url: str, *, authorization: str | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._url = url.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if authorization is not None:
            self._headers["authorization"] = authorization
        self.breaker = CircuitBreaker(clock)

    async def ask(
        self, session: aiohttp.ClientSession, method: str, path: str, body: bytes | None, *, timeout_seconds: float
    ) -> Answer:
        """Ask once.

        Raises:
            NoAnswerError: no connection, no answer in time, or none that is a JSON object with status 200 or 4xx; or
                nothing was asked, because too many requests in a row have ended like this.
        """
        if not self.breaker.admits():
            raise NoAnswerError("it has failed several times in a row and is left alone for a while", sent=False)
        try:
            answer = await self._ask(session, method, path, body, timeout_seconds)
        except NoAnswerError:
            self.breaker.failed()
            raise
        except BaseException:
            self.breaker.abandoned()
            raise
        self.breaker.succeeded()
        return answer

    async def _ask(
        self, session: aiohttp.ClientSession, method: str, path: str, body: bytes | None, timeout_seconds: float
    ) -> Answer:
        timeout = aiohttp.ClientTimeout(total=timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds))
        try:
            async with session.request(
                method, self._url + path, data=body, headers=self._headers, timeout=timeout, allow_redirects=False
            ) as response:
                if response.status != OK and response.status not in _CLIENT_ERRORS:
                    raise NoAnswerError(f"it answered with status {response.status}", sent=True)
                if response.headers.get("content-encoding", "identity").lower() != "identity":
                    raise NoAnswerError("its answer is compressed, which was not asked for", sent=True)
                content = await _read(response)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NoAnswerError(f"no connection ({type(error).__name__})", sent=False) from error
        except TimeoutError as error:
            raise NoAnswerError(f"it did not answer within {timeout_seconds:g} s", sent=True) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Only the kind of failure is told: messages may quote the URL, and that may hold an access key.
            raise NoAnswerError(f"the connection failed ({type(error).__name__})", sent=True) from error
        try:
            document = from_json(content, allow_inf_nan=False)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise NoAnswerError(f"its answer (status {response.status}) is not a JSON object", sent=True)
        return Answer(response.status, document)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for chunk in response.content.iter_any():
        content += chunk
        if len(content) > MAX_RESPONSE_BYTES:
            raise NoAnswerError(f"its answer is longer than {MAX_RESPONSE_BYTES} bytes", sent=True)
    return bytes(content)
