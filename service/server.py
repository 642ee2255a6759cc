"""Running the application under uvicorn, inside a program that also has other things to close."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import uvicorn

from service.app import Service, create_app

MAX_HEADER_BYTES: Final = 64 << 10
"""All request headers together; a payment takes at most 16 KiB of it."""

KEEP_ALIVE_SECONDS: Final = 30
BACKLOG: Final = 256


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
    with socket.socket(family, socket.SOCK_STREAM) as listener:
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
        ssl_context_factory=None if context is None else lambda _config, _default: context,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
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
