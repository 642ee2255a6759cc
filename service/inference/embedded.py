"""llama.cpp inside this process (xllamacpp), on weights that were hashed just before they were loaded.

URI: ``embedded:<catalogue name>``.

The engine is llama.cpp's server with one slot. It always opens a listener; we give it a Unix socket in a directory that
only this user can enter, so that nobody reaches the model without paying, and talk to it there: requests never block
the event loop, the bytes sent are ours, and a closed connection stops the work.

The answer at temperature 0 is stable only with one slot, no prompt cache and a fixed number of threads; so it is
configured. The cache would also keep earlier buyers' documents in memory.
"""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx
import xllamacpp  # type: ignore[import-untyped]  # ships no types
from pydantic import BaseModel, RootModel

from service.inference import wire
from service.inference.backend import (
    BackendTimeout,
    BackendUnavailable,
    Completion,
    Delta,
    GenerationParams,
    InvalidBackendAnswer,
    Message,
    ModelIdentity,
    Timeouts,
    TokenCount,
    WeightsChanged,
    check_fits,
)
from service.inference.openai import ChatCompletions
from service.inference.relay import relay
from service.inference.weights import VerifiedWeights

_BATCH_TOKENS: Final = 128
"""Prompt tokens per step. The engine notices a caller who left only between steps: with 128, Qwen 1.5B on two cores is
free again after 0.6 s; 512 would be 6 % faster and take 4.5 s."""

_QUIET: Final = -1
_TALKATIVE: Final = 3

_HEALTH_SECONDS: Final = 5.0

T = TypeVar("T")


class _Health(BaseModel):
    status: str


class _Slot(BaseModel):
    n_ctx: int


class _Slots(RootModel[list[_Slot]]):
    pass


class EmbeddedBackend:
    """A Backend that computes in this process. Make it with `open`, and `close` it."""

    def __init__(
        self,
        weights: VerifiedWeights,
        identity: ModelIdentity,
        server: Any,
        directory: "tempfile.TemporaryDirectory[str]",
        *,
        timeouts: Timeouts,
    ) -> None:
        self._weights = weights
        self._identity = identity
        self._server = server
        self._directory = directory
        self._timeouts = timeouts
        # The engine closes connections after a stream without saying so; a new one costs nothing here.
        transport = httpx.AsyncHTTPTransport(
            uds=str(_socket(directory)), limits=httpx.Limits(max_keepalive_connections=0)
        )
        self._client = httpx.AsyncClient(
            transport=transport, base_url="http://embedded/v1/", timeout=httpx.Timeout(timeouts.total)
        )
        self._chat = ChatCompletions(self._client, identity.name, {"cache_prompt": False})
        self._calls: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(
        cls,
        weights: VerifiedWeights,
        *,
        threads: int,
        timeouts: Timeouts,
        context_size: int | None = None,
        engine_log: bool = False,
    ) -> "EmbeddedBackend":
        """Load the weights. Takes seconds, during which the engine holds the interpreter: for boot only.

        Args:
            threads: fixed, because the answer depends on it. As many as there are cores for this process.
            context_size: in tokens; the catalogue's when None.
            engine_log: let the engine write its log to stderr.

        Raises:
            BackendUnavailable: the engine does not load the file.
            WeightsChanged: the file changed between hashing and loading.
            InvalidBackendAnswer: the engine runs with other settings than asked for.
            ValueError: `threads` or `context_size` out of range.
        """
        opening = asyncio.create_task(
            cls._open(weights, threads, timeouts, context_size=context_size, engine_log=engine_log)
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            # An engine that is dropped before it runs waits for itself forever.
            await asyncio.wait([opening])
            if opening.exception() is None:
                await opening.result().close()
            raise

    @classmethod
    async def _open(
        cls,
        weights: VerifiedWeights,
        threads: int,
        timeouts: Timeouts,
        *,
        context_size: int | None,
        engine_log: bool,
    ) -> "EmbeddedBackend":
        model = weights.model
        size = model.context_size if context_size is None else context_size
        if not 256 <= size <= model.trained_context:
            raise ValueError(f"context_size is {size}; {model.name} takes 256 to {model.trained_context} tokens")
        if threads < 1:
            raise ValueError(f"threads is {threads}; at least 1")
        identity = ModelIdentity(
            name=model.name,
            weights_sha256=weights.file.sha256,
            weights_origin="measured",
            context_size=size,
            quantization=model.quantization,
            engine=f"xllamacpp {xllamacpp.__version__}",
        )
        directory = tempfile.TemporaryDirectory(prefix="tollseal-")  # mode 0700
        try:
            params = _params(weights.file.path, model.name, size, threads, _socket(directory), engine_log)
            try:
                server = await asyncio.to_thread(xllamacpp.Server, params)
            except RuntimeError as error:
                raise BackendUnavailable(f"the engine does not load {weights.file.path}: {error}") from error
            backend = cls(weights, identity, server, directory, timeouts=timeouts)
        except BaseException:
            directory.cleanup()
            raise
        try:
            await backend._check_settings()
            backend._check_weights()
        except BaseException:
            await backend.close()
            raise
        return backend

    @property
    def uri(self) -> str:
        return f"embedded:{self._identity.name}"

    @property
    def identity(self) -> ModelIdentity:
        return self._identity

    @property
    def forces_json(self) -> bool:
        return True

    async def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        return await self._call(self._chat.input_tokens(messages))

    async def complete(self, messages: Sequence[Message], params: GenerationParams) -> Completion:
        self._check_weights()
        count = await self.count_tokens(messages)
        check_fits(count, params, self._identity.context_size)
        return await self._call(self._chat.complete(self._chat.request(messages, params), count, self._timeouts.total))

    async def stream(
        self, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Delta | Completion, None]:
        self._check_weights()
        count = await self.count_tokens(messages)
        check_fits(count, params, self._identity.context_size)
        body = self._chat.request(messages, params, stream=True)
        async with aclosing(relay(self._chat.stream(body, count), self._timeouts, self._calls)) as pieces:
            async for piece in pieces:
                yield piece

    async def health(self) -> None:
        self._check_weights()
        try:
            async with asyncio.timeout(_HEALTH_SECONDS):
                await self._call(wire.get(self._client, "health", _Health))
        except TimeoutError as error:
            raise BackendTimeout(f"the engine did not answer within {_HEALTH_SECONDS:g} seconds") from error

    async def close(self) -> None:
        """Stop what is running, at the latest after the current batch, and unload the model."""
        server, self._server = self._server, None
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await self._client.aclose()
        # Dropping the last reference stops the engine. It waits for open requests, so they had to go first.
        del server
        self._directory.cleanup()

    async def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work` so that both the caller and `close` can cancel it."""
        if self._server is None:
            work.close()
            raise BackendUnavailable("the embedded model is closed")
        task = asyncio.create_task(work)
        self._calls.add(task)
        try:
            return await task
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is not None and caller.cancelling():
                raise
            raise BackendUnavailable("the embedded model was closed while it was answering") from None
        finally:
            self._calls.discard(task)

    def _check_weights(self) -> None:
        if not self._weights.file.unchanged():
            raise WeightsChanged(f"the weights file {self._weights.file.path} changed after it was hashed")

    async def _check_settings(self) -> None:
        """Also returns no earlier than the engine runs: this question waits in the queue of its work."""
        slots = (await wire.get(self._client, "../slots", _Slots)).root
        expected = self._identity.context_size
        if [slot.n_ctx for slot in slots] != [expected]:
            found = ", ".join(str(slot.n_ctx) for slot in slots)
            raise InvalidBackendAnswer(f"the engine has slots of {found} tokens; expected one of {expected}")


def _socket(directory: "tempfile.TemporaryDirectory[str]") -> Path:
    # The engine takes a host name that ends in .sock for a Unix socket.
    return Path(directory.name) / "engine.sock"


def _params(weights: Path, name: str, context_size: int, threads: int, socket: Path, log: bool) -> Any:
    params = xllamacpp.CommonParams()
    params.model.path = str(weights)
    params.model_alias = {name}
    params.hostnames = [str(socket)]
    params.n_ctx = context_size
    params.n_parallel = 1
    params.n_batch = params.n_ubatch = _BATCH_TOKENS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_gpu_layers = 0
    params.ctx_shift = False
    params.fit_params = False
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.endpoint_slots = True
    # Into memory, not mapped: a later write to the file must not reach the model.
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    params.verbosity = _TALKATIVE if log else _QUIET
    return params
