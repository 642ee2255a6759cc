"""The small model, and model servers that behave as real ones were seen to, for tests of inference."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from service.inference.backend import Timeouts
from service.inference.catalog import SMOLLM2_135M
from service.inference.embedded import EmbeddedBackend
from service.inference.weights import VerifiedWeights, fetch_weights

MODEL_CACHE = Path.home() / ".cache" / "tollseal" / "models"
THREADS = 1
"""One, because tests run beside each other: engine threads that wait for a busy core make everything crawl."""

Counting = Literal["llama-server", "vllm", "none"]


@pytest.fixture(scope="session")
def smollm2_weights() -> VerifiedWeights:
    """The small model's weights, fetched when this machine does not have them yet."""
    return fetch_weights(SMOLLM2_135M, MODEL_CACHE)


@pytest.fixture
async def small_model(smollm2_weights: VerifiedWeights) -> AsyncIterator[EmbeddedBackend]:
    """The small model, loaded (a quarter of a second) for one test, with a context of 2048 tokens."""
    backend = await EmbeddedBackend.open(smollm2_weights, threads=THREADS, timeouts=Timeouts(60), context_size=2048)
    yield backend
    await backend.close()


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[str]:
    """Run `app` on a free local port, in this event loop; yields its base URL."""
    started = asyncio.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started.set()

    server = Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", ws="none"))
    task = asyncio.create_task(server.serve())
    await started.wait()
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        with suppress(asyncio.CancelledError):
            await task


def fake_tokens(messages: list[dict[str, str]]) -> int:
    """The tokens of the fake servers: words and signs, ten for the template."""
    return 10 + sum(len(re.findall(r"\w+|[^\w\s]", message["content"])) for message in messages)


@dataclass
class FakeServer:
    """What a fake does next, and what it was sent.

    `answer` replaces the next chat answers when set. `hold`, when set, is waited for before answering; `gone` is set
    when the caller left in the meantime. Streams are held, or end in the middle, after so many pieces; `last_lines`
    replaces what a stream ends with.
    """

    model: str = "fake-model:1b"
    bodies: list[bytes] = field(default_factory=list)
    answer: Callable[[], Response] | None = None
    text: str = "one two three four five"
    hold: asyncio.Event | None = None
    hold_after: int | None = None
    break_after: int | None = None
    last_lines: list[str] | None = None
    started: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    async def chat(self, request: Request) -> tuple[dict[str, Any], Response | None]:
        """Note the request; wait when told to. Returns its body, and the answer when the test has set one."""
        body = await request.body()
        self.bodies.append(body)
        self.started.set()
        if self.hold_after is None:
            await self.wait(request)
        return json.loads(body), self.answer() if self.answer is not None else None

    async def wait(self, request: Request) -> None:
        """Wait as long as the test wants it and the caller is there."""
        try:
            while self.hold is not None and not self.hold.is_set():
                if await request.is_disconnected():
                    self.gone.set()
                    break
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:  # how a response that is being streamed hears of it
            self.gone.set()
            raise

    def generate(self, limit: int, stop: list[str]) -> tuple[str, str, int]:
        """(text, finish reason, tokens) of an answer of at most `limit` tokens, which a stop text may end."""
        text = self.text
        for end in stop:
            text = text.partition(end)[0]
        pieces = pieces_of(text)
        if len(pieces) > limit:
            return "".join(pieces[:limit]), "length", limit
        return text, "stop", len(pieces)

    def streamed(self, request: Request, pieces: list[str], last: list[str], media_type: str) -> Response:
        """A stream of these pieces, each as it goes over the wire, and what comes after them."""

        async def send() -> AsyncIterator[str]:
            for number, piece in enumerate(pieces):
                if number == self.break_after:
                    raise ConnectionAbortedError("as a test wants it")
                if number == self.hold_after:
                    self.hold = self.hold or asyncio.Event()
                    await self.wait(request)
                yield piece
            for line in last if self.last_lines is None else self.last_lines:
                yield line

        return StreamingResponse(send(), media_type=media_type)


def pieces_of(text: str) -> list[str]:
    """Words with the space before them: the tokens of a fake."""
    return re.findall(r"\s*\S+|\s+$", text)


def fake_ollama(server: FakeServer, blob_sha256: str, *, modelfile_extra: str = "") -> FastAPI:
    """Ollama's API as measured: 404 for an unknown model, prompts cut in silence unless told not to."""
    app = FastAPI()

    def unknown(model: str) -> Response:
        return JSONResponse({"error": f"model '{model}' not found"}, 404)

    @app.post("/api/show")
    async def show(request: Request) -> Response:
        body = await request.json()
        if body["model"] != server.model:
            return unknown(body["model"])
        modelfile = f"# Modelfile\nFROM /root/.ollama/models/blobs/sha256-{blob_sha256}\nTEMPLATE x\n{modelfile_extra}"
        return JSONResponse(
            {
                "modelfile": modelfile,
                "details": {"format": "gguf", "family": "llama", "quantization_level": "Q4_1"},
                "model_info": {"general.architecture": "llama", "llama.context_length": 8192},
            }
        )

    @app.post("/api/chat")
    async def chat(request: Request) -> Response:
        body, answer = await server.chat(request)
        if answer is not None:
            return answer
        if body["model"] != server.model:
            return unknown(body["model"])
        options = body.get("options", {})
        context = options.get("num_ctx", 4096)
        tokens = fake_tokens(body["messages"])
        if tokens > context:
            if body.get("truncate", True) is False:
                return JSONResponse({"error": "the input length exceeds the context length"}, 400)
            tokens = context // 2 + 2
        text, reason, count = server.generate(options.get("num_predict", 128), options.get("stop", []))

        def line(content: str, **more: object) -> dict[str, object]:
            message = {"role": "assistant", "content": content}
            return {"model": server.model, "created_at": "2026-01-01T00:00:00Z", "message": message, **more}

        end = {"done": True, "done_reason": reason, "total_duration": 1}
        counts = {"prompt_eval_count": tokens, "eval_count": count}
        if not body["stream"]:
            return JSONResponse(line(text, **end, **counts))
        pieces = [json.dumps(line(piece, done=False)) + "\n" for piece in pieces_of(text)]
        return server.streamed(request, pieces, [json.dumps(line("", **end, **counts)) + "\n"], "application/x-ndjson")

    return app


def fake_openai(server: FakeServer, counting: Counting) -> FastAPI:
    """A chat completions server, with the way of counting tokens that llama-server, vLLM or nobody else has."""
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> Response:
        return JSONResponse({"object": "list", "data": [{"id": server.model, "object": "model"}]})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body, answer = await server.chat(request)
        if answer is not None:
            return answer
        text, reason, count = server.generate(body["max_tokens"], body.get("stop", []))
        message = {"role": "assistant", "content": text}
        usage = {"prompt_tokens": fake_tokens(body["messages"]), "completion_tokens": count}
        if body["stream"]:
            assert body["stream_options"] == {"include_usage": True}

            def event(choices: list[dict[str, object]], **more: object) -> str:
                chunk = {"object": "chat.completion.chunk", "model": server.model, "choices": choices, **more}
                return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"

            def choice(delta: dict[str, object], finish_reason: str | None = None) -> dict[str, object]:
                return {"index": 0, "delta": delta, "finish_reason": finish_reason}

            first = event([choice({"role": "assistant", "content": ""})])
            pieces = [event([choice({"content": piece})]) for piece in pieces_of(text)]
            last = [event([choice({}, reason)]), event([], usage=usage), "data: [DONE]\n\n"]
            return server.streamed(
                request, [first + pieces[0], *pieces[1:]] if pieces else [first], last, "text/event-stream"
            )
        return JSONResponse(
            {
                "object": "chat.completion",
                "model": server.model,
                "choices": [{"index": 0, "message": message, "finish_reason": reason}],
                "usage": usage,
            }
        )

    if counting == "llama-server":

        @app.post("/v1/chat/completions/input_tokens")
        async def input_tokens(request: Request) -> Response:
            body = await request.json()
            return JSONResponse({"object": "response.input_tokens", "input_tokens": fake_tokens(body["messages"])})

    if counting == "vllm":

        @app.post("/tokenize")
        async def tokenize(request: Request) -> Response:
            body = await request.json()
            return JSONResponse({"count": fake_tokens(body["messages"]), "max_model_len": 4096, "tokens": []})

    return app


def failing(status: int, body: object) -> Callable[[], Response]:
    """An answer with this status; a str is sent as it is, everything else as JSON."""
    return lambda: PlainTextResponse(body, status) if isinstance(body, str) else JSONResponse(body, status)
