"""The load generator: kept-alive connections over raw sockets, one request at a time on each.

It does as little as it can: no parsing beyond status, Content-Length and the body's arrival, so that what is measured
is the server. A request that is not answered with 200 and a body counts as failed.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from bench.orders import Order

PATIENCE_SECONDS: Final = 900


@dataclass(slots=True)
class Round:
    """What one round came to.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: seconds, of the requests that were answered well.
        failed: how many were not; `complaints` has the first words of some.
        kept: the raw answers of the first orders, by their index.
    """

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    failed: int = 0
    complaints: list[str] = field(default_factory=list)
    kept: dict[int, bytes] = field(default_factory=dict)

    @property
    def per_second(self) -> float:
        return len(self.latencies) / self.seconds

    def percentile(self, percent: int) -> float:
        """A latency in milliseconds (nearest rank)."""
        ranked = sorted(self.latencies)
        return ranked[min(len(ranked) - 1, len(ranked) * percent // 100)] * 1e3


class _Connection(asyncio.Protocol):
    def __init__(
        self, requests: Iterator[tuple[int, bytes]], found: Round, keep: int, expected: Sequence[bytes]
    ) -> None:
        self._requests = requests
        self._found = found
        self._keep = keep
        self._expected = expected
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._size = 0  # of the whole answer, once its head has arrived
        self._index = -1
        self._sent_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send_next(self) -> None:
        assert self._transport is not None
        following = next(self._requests, None)
        if following is None:
            self._index = -1
            self._transport.close()
            return
        self._index, request = following
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._size:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._buffer[:end]).lower()
            _, found, rest = head.partition(b"\r\ncontent-length:")
            if not found:
                self._fail("an answer without Content-Length")
                return
            self._size = end + 4 + int(rest.partition(b"\r\n")[0])
        if len(self._buffer) < self._size:
            return
        answer = bytes(self._buffer[: self._size])
        del self._buffer[: self._size]
        self._size = 0
        if answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(self._ending()):
            self._found.latencies.append(time.perf_counter() - self._sent_at)
            if self._index < self._keep:
                self._found.kept[self._index] = answer
        else:
            self._complain(answer[:200].decode("latin-1"))
        self.send_next()

    def _ending(self) -> bytes:
        """How the answer has to end; with any body, unless one is expected."""
        return self._expected[self._index % len(self._expected)] if self._expected else b"}"

    def connection_lost(self, _error: Exception | None) -> None:
        if self._index >= 0:
            self._complain("the connection broke")
        if not self.done.done():
            self.done.set_result(None)

    def _fail(self, words: str) -> None:
        assert self._transport is not None
        self._complain(words)
        self._index = -1
        self._transport.abort()

    def _complain(self, words: str) -> None:
        self._found.failed += 1
        if len(self._found.complaints) < 3:
            self._found.complaints.append(words)


async def run_round(port: int, orders: Sequence[Order], connections: int, *, keep: int = 0) -> Round:
    """Send all orders over so many connections; returns once all are answered.

    Args:
        keep: the raw answers to so many of the first orders are kept.

    Raises:
        TimeoutError: not all were answered within `PATIENCE_SECONDS`.
    """
    host = f"127.0.0.1:{port}"
    return await _send(port, list(enumerate(order.wire(host) for order in orders)), connections, keep=keep)


async def replay(
    port: int, requests: Sequence[bytes], bodies: Sequence[bytes], *, times: int, connections: int
) -> Round:
    """Send the same requests over and over, so many in all, each of which has to be answered with its own body again.

    Raises:
        TimeoutError: not all were answered within `PATIENCE_SECONDS`.
    """
    numbered = [(index, requests[index % len(requests)]) for index in range(times)]
    return await _send(port, numbered, connections, expected=bodies)


async def _send(
    port: int,
    numbered: Sequence[tuple[int, bytes]],
    connections: int,
    *,
    keep: int = 0,
    expected: Sequence[bytes] = (),
) -> Round:
    found, requests, loop = Round(), iter(numbered), asyncio.get_running_loop()
    clients: list[_Connection] = []
    for _ in range(connections):
        _, client = await loop.create_connection(
            lambda: _Connection(requests, found, keep, expected), "127.0.0.1", port
        )
        clients.append(client)
    started = time.perf_counter()
    for client in clients:
        client.send_next()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await asyncio.gather(*(client.done for client in clients))
    found.seconds = time.perf_counter() - started
    answered = len(found.latencies) + found.failed
    if answered < len(numbered):
        found.failed += len(numbered) - answered
        found.complaints.append("requests were left over: every connection had broken")
    return found
