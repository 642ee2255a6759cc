"""An x402 facilitator on a real port for tests: one that works, and one that answers whatever a test wants."""

import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from x402.schemas import (
    SettleRequest,
    SettleResponse,
    SupportedKind,
    SupportedResponse,
    VerifyRequest,
    VerifyResponse,
)

from service.payment.authorization import Authorization, PaymentMismatchError, match_requirements
from service.payment.facilitator import (
    Facilitator,
    FacilitatorUnavailableError,
    Invalid,
    Rejected,
    Settled,
    Unknown,
    Verified,
)

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


def working(make: Callable[[], Facilitator], network: str) -> FastAPI:
    """A facilitator over HTTP around the one that `make` builds inside the server's event loop."""
    inner: list[Facilitator] = []

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        inner.append(make())
        yield
        await inner[0].close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/verify")
    async def verify(request: VerifyRequest) -> Response:
        try:
            result = await inner[0].verify(_matched(request))
        except PaymentMismatchError:
            result = Invalid("invalid_payload", "")
        except FacilitatorUnavailableError:
            return Response(status_code=503)
        match result:
            case Verified(payer):
                return _json(VerifyResponse(is_valid=True, payer=payer))
            case Invalid(reason):
                return _json(VerifyResponse(is_valid=False, invalid_reason=reason))

    @app.post("/settle")
    async def settle(request: SettleRequest) -> Response:
        no = SettleResponse(success=False, transaction="", network=network)
        try:
            result = await inner[0].settle(_matched(request))
        except PaymentMismatchError:
            result = Rejected("invalid_payload", "")
        match result:
            case Settled(transaction, payer):
                yes = {"success": True, "transaction": transaction, "payer": payer}
                return _json(no.model_copy(update=yes))
            case Rejected(reason):
                return _json(no.model_copy(update={"error_reason": reason}))
            case Unknown():
                return _json(no.model_copy(update={"error_reason": "settlement_pending"}))

    @app.get("/supported")
    async def supported() -> Response:
        return _json(SupportedResponse(kinds=[SupportedKind(x402_version=2, scheme="exact", network=network)]))

    return app


def _matched(request: VerifyRequest | SettleRequest) -> Authorization:
    return match_requirements(request.payment_payload, [request.payment_requirements])


def _json(document: Any) -> Response:
    text = document.model_dump_json(by_alias=True, exclude_none=True)
    return Response(text, media_type="application/json")
