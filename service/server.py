"""Running the application under uvicorn, inside a program that also has other things to close."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.app import Service, create_app

MAX_HEADER_BYTES: Final = 64 << 10
"""All request headers together; a payment takes at most 16 KiB of it."""

KEEP_ALIVE_SECONDS: Final = 30
BACKLOG: Final = 256


def spare_what_stays() -> None:
    """Have the garbage collector leave alone what has been loaded so far, and look less often. For the whole process.

    A running service consists of some hundred thousand objects that live as long as it does, and looking through them
    again and again took a tenth of the time of every paid call. What calls leave behind is mostly freed at once, by its
    reference count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


class _Protocol(HttpToolsProtocol):
    """uvicorn's own limit on a request's head holds for its other parser only."""

    _in_head = True
    _head_bytes = 0

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of this request is too large.")


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs it: uvicorn would end the process before the ledger and the chain are closed."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def listening(port: int, host: str = "127.0.0.1", *, exact: bool = True) -> Iterator[socket.socket]:
    """A socket that listens on `host` at `port`; unless `exact`, at any free port when that one is taken.

    Raises:
        OSError: the address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns off Nagle's algorithm only where it is: an answer leaves in two
    # writes, and the second would wait 40 ms for the acknowledgement of the first.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            if exact:
                raise OSError(error.errno, f"{host}:{port} cannot be listened on: {error.strerror}") from error
            listener.bind((host, 0))
        listener.listen(BACKLOG)
        yield listener


@asynccontextmanager
async def serve(service: Service, sockets: Sequence[socket.socket]) -> AsyncIterator[None]:
    """The service answers on listening sockets while the context is open; on leaving, running requests are finished."""
    context = service.tls
    config = uvicorn.Config(
        create_app(service),
        lifespan="off",
        http=_Protocol,
        ws="none",  # an offer to speak WebSocket is passed over; its refusal would not be signed
        ssl_context_factory=None if context is None else lambda _config, _default: context,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=service.settings.inference_timeout_seconds,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=list(sockets)))
    try:
        while not server.started:
            if task.done():
                await task
                raise RuntimeError("the HTTP server ended before it had started")
            await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await task
