"""Keep-alive HTTP/1.1 connections to one server that is not trusted: bounded answers, and whether a request was sent.

A paid call makes two requests to a facilitator, and its whole budget is some hundred microseconds: for such a request
aiohttp takes five times the CPU of what stands here, httpx eighty times. So here is what these requests need and no
more: one at a time on a connection, no redirects, no cookies, no proxies, no unpacking. Parsing is left to llhttp, in
its strict mode.
Source: RFC 9112.
"""

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_CONNECTIONS: Final = 64
"""Open connections to one server."""

CONNECT_SECONDS: Final = 5.0
"""For a place among the connections and for the connection itself, TLS included."""

KEEPALIVE_SECONDS: Final = 4.0
"""How long an idle connection is used again: less than the five seconds after which common servers close it. A request
that meets a closing connection may or may not have arrived, and of a settlement one must not guess."""

MAX_HEAD_BYTES: Final = 16_384
"""Longest status line with headers."""

_INFORMATIONAL: Final = range(100, 200)


class NoResponseError(Exception):
    """There is no response that can be used; the text says why, without the URL.

    Attributes:
        sent: whether the request may have arrived.
    """

    def __init__(self, message: str, *, sent: bool) -> None:
        super().__init__(message)
        self.sent = sent


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A complete response. Header names are lower case."""

    status: int
    headers: Mapping[bytes, bytes]
    body: bytes


class HttpPool:
    """Requests to one server.

    Args:
        url: base URL; paths are appended.
        headers: sent with every request; never logged or shown.
        max_body_bytes: longest body that is read.

    Raises:
        ValueError: the URL or a header cannot be sent.
    """

    def __init__(self, url: str, *, headers: Mapping[str, str], max_body_bytes: int) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.hostname is None or "@" in parts.netloc:
            raise ValueError("a server is named by http:// or https://, a host, perhaps a port and a path")
        self._host, tls = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if tls else 80)
        self._tls = ssl.create_default_context() if tls else None
        self._prefix = parts.path.rstrip("/")
        self._head = _header_lines({"host": parts.netloc, **headers})
        self._max_body = max_body_bytes
        self._places = asyncio.Semaphore(MAX_CONNECTIONS)
        self._idle: list[tuple[float, _Connection]] = []
        self._closed = False

    async def request(self, method: str, path: str, body: bytes, *, timeout_seconds: float) -> HttpResponse:
        """Ask once.

        Raises:
            NoResponseError: no connection, no complete response in time, one that is too long, or one that is no HTTP.
        """
        seconds = min(CONNECT_SECONDS, timeout_seconds)
        try:
            async with asyncio.timeout(seconds):
                await self._places.acquire()
        except TimeoutError as error:
            raise NoResponseError("all connections to it are in use", sent=False) from error
        try:
            connection = self._take_idle() or await self._connect(seconds)
            head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}content-length: {len(body)}\r\n\r\n"
            response = await connection.exchange(head.encode("ascii") + body, timeout_seconds)
            if self._closed:
                connection.abort()
            elif connection.is_reusable:
                self._idle.append((asyncio.get_running_loop().time(), connection))
            return response
        finally:
            self._places.release()

    async def close(self) -> None:
        """Close idle connections; those in use close with their request."""
        self._closed = True
        for _, connection in self._idle:
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # the loop closes sockets in its next round

    def _take_idle(self) -> "_Connection | None":
        now = asyncio.get_running_loop().time()
        while self._idle:
            since, connection = self._idle.pop()
            if connection.is_reusable and now - since < KEEPALIVE_SECONDS:
                return connection
            connection.abort()
        return None

    async def _connect(self, seconds: float) -> "_Connection":
        loop = asyncio.get_running_loop()
        name = self._host if self._tls else None
        try:
            async with asyncio.timeout(seconds):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self._max_body), self._host, self._port, ssl=self._tls, server_hostname=name
                )
        except (OSError, TimeoutError) as error:
            raise NoResponseError(f"no connection ({type(error).__name__})", sent=False) from error
        return connection


class _Connection(asyncio.Protocol):
    """One connection; at most one request is under way on it."""

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body = max_body_bytes
        self._parser = HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._waiter: asyncio.Future[HttpResponse] | None = None
        self._response: HttpResponse | None = None
        self._problem: str | None = None
        self._received = 0
        self._usable = False
        self._start()

    @property
    def is_reusable(self) -> bool:
        """Whether another request may be sent."""
        return self._usable and not self._transport.is_closing()

    async def exchange(self, request: bytes, timeout_seconds: float) -> HttpResponse:
        """Send a request and wait for its response. Whatever interrupts that ends the connection.

        Raises:
            NoResponseError: there is none that can be used.
        """
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[HttpResponse] = loop.create_future()
        self._waiter, self._received = waiter, 0
        timer = loop.call_later(timeout_seconds, self._fail, f"it did not answer within {timeout_seconds:g} s")
        try:
            self._transport.write(request)
            return await waiter
        except BaseException:
            self.abort()
            raise
        finally:
            timer.cancel()
            self._waiter = None

    def abort(self) -> None:
        """Close without waiting for anything."""
        self._usable = False
        self._transport.abort()

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._usable = True

    def data_received(self, data: bytes) -> None:
        if self._waiter is None or self._waiter.done():
            # An answer that nobody asked for. It must not be there when the next question is sent.
            self.abort()
            return
        self._received += len(data)
        if self._received > MAX_HEAD_BYTES + 2 * self._max_body:
            # Twice: a body in many small chunks is longer on the wire.
            self._fail(self._too_long)
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            # After a complete response, only what followed it was wrong.
            self._usable = False
            self._problem = self._problem or "its answer is not HTTP"
        self._deliver(or_fail=self._problem)

    def connection_lost(self, exc: Exception | None) -> None:
        self._usable = False
        if self._in_body and not self._has_length and exc is None:
            self._complete()
        self._deliver(or_fail="it closed the connection")

    # What the parser calls

    def on_message_begin(self) -> None:
        if self._response is not None:
            raise HttpParserError  # a second response to one request
        self._start()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._problem = self._too_long
            raise HttpParserError
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._has_length = b"content-length" in self._headers or b"transfer-encoding" in self._headers

    def on_body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._max_body:
            self._problem = self._too_long
            raise HttpParserError

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() in _INFORMATIONAL:
            self._start()
            return
        self._usable = self._usable and self._parser.should_keep_alive()
        self._complete()

    @property
    def _too_long(self) -> str:
        return f"its answer is longer than {self._max_body} bytes"

    def _start(self) -> None:
        self._headers: dict[bytes, bytes] = {}
        self._body = bytearray()
        self._head_bytes = 0
        self._in_body = self._has_length = False

    def _complete(self) -> None:
        self._in_body = False
        self._response = HttpResponse(self._parser.get_status_code(), self._headers, bytes(self._body))

    def _deliver(self, *, or_fail: str | None) -> None:
        response, waiter = self._response, self._waiter
        if response is not None and waiter is not None and not waiter.done():
            self._response = None
            if not self._usable:
                self.abort()
            waiter.set_result(response)
        elif or_fail is not None:
            self._fail(or_fail)

    def _fail(self, why: str) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(NoResponseError(why, sent=True))
        self.abort()


def _header_lines(headers: Mapping[str, str]) -> str:
    for name, value in headers.items():
        if not (name + value).isascii() or not (name + value).isprintable():
            raise ValueError(f"the header {name} cannot be sent")
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())
