"""An x402 facilitator on a real port for tests: one that works, and one that answers whatever a test wants."""

import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from fastapi import FastAPI, Request, Response

from service.http import problems
from service.http.facilitator import router_for
from service.payment.local import LocalFacilitator

Handler = Callable[[Request], Awaitable[Response]]


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Run `app` on a free port in a thread of its own; yields its base URL."""
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started.set()

    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(uvicorn.Config(app, log_level="error", ws="none", lifespan="on"))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        assert started.wait(20), "the server did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


def answering(handler: Handler) -> FastAPI:
    """A facilitator whose every answer comes from `handler`."""
    app = FastAPI()
    app.add_api_route("/{path:path}", handler, methods=["GET", "POST"])
    return app


def working(facilitator: LocalFacilitator) -> FastAPI:
    """A facilitator under `/facilitator`, as a service offers it to others; it is closed with the server."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await facilitator.close()

    app = FastAPI(lifespan=lifespan)
    problems.install(app)
    app.include_router(router_for((facilitator,)))
    return app
