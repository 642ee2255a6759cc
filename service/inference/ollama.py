"""A model served by Ollama.

URI: ``ollama:http://host:11434#<model>``.

Ollama cuts a prompt that does not fit and says nothing, so every request names its context size and forbids cutting
and shifting, and the number of tokens it reports is compared with our bounds. The official client has no arguments
for that; it serves for looking at the model, and the chat itself goes over Ollama's HTTP API.

Ollama never checks its files again either. With its models directory at hand (read-only is enough) we hash the blob
ourselves; without it the weights are a claim.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import httpx
import ollama
from pydantic import BaseModel, Field

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
    ModelNotFound,
    Timeouts,
    TokenCount,
    WeightsChanged,
    check_fits,
    check_prompt_seen,
    estimate_tokens,
    serialise,
)
from service.inference.relay import relay
from service.inference.weights import MeasuredFile, WeightsMismatch, measure

_BLOB: Final = re.compile(r"^FROM\s+\S*[/\\]blobs[/\\]sha256[-:]([0-9a-f]{64})\s*$", re.MULTILINE)
_EXTRA_FILES: Final = re.compile(r"^ADAPTER\s", re.MULTILINE)

_PROBE_SECONDS: Final = 5.0

Count = Annotated[int, Field(ge=0)]


class _Answer(BaseModel):
    content: str


class _ChatAnswer(BaseModel):
    message: _Answer
    done: Literal[True]
    # "load" means that the model was loaded and nothing was generated: no answer to sell.
    done_reason: Literal["stop", "length"]
    prompt_eval_count: Count
    eval_count: Count


class _Part(BaseModel):
    message: _Answer | None = None
    done: bool = False
    error: Any = None


class OllamaBackend:
    """A Backend over one Ollama server. Make it with `open`."""

    def __init__(
        self,
        uri: str,
        http: httpx.AsyncClient,
        client: ollama.AsyncClient,
        identity: ModelIdentity,
        weights: MeasuredFile | None,
        *,
        timeouts: Timeouts,
    ) -> None:
        self._uri = uri
        self._http = http
        self._client = client
        self._identity = identity
        self._weights = weights
        self._timeouts = timeouts

    @classmethod
    async def open(
        cls,
        uri: str,
        base_url: str,
        model: str,
        *,
        context_size: int,
        timeouts: Timeouts,
        models_dir: Path | None = None,
    ) -> "OllamaBackend":
        """Connect, look the model up and, with `models_dir` (``$OLLAMA_MODELS``), hash its weights.

        Raises:
            ModelNotFound: the server does not have `model`.
            WeightsMismatch: the blob does not have the hash that its name says.
            WeightsMissing: `models_dir` does not hold the blob.
            InvalidBackendAnswer: the model is of a kind we cannot account for, such as one with adapters.
            ValueError: `context_size` is more than the model was trained for.
            BackendError: the server is not usable.
        """
        base_url = base_url.rstrip("/")
        http = httpx.AsyncClient(
            base_url=base_url + "/", timeout=httpx.Timeout(timeouts.total, connect=min(5.0, timeouts.total))
        )
        client = ollama.AsyncClient(host=base_url, timeout=_PROBE_SECONDS)
        try:
            shown = await _show(client, model)
            _check_context(model, context_size, shown.modelinfo or {})
            blob = _blob(model, shown.modelfile or "")
            weights = await _measure(model, blob, models_dir) if models_dir is not None else None
            identity = ModelIdentity(
                name=model,
                weights_sha256=weights.sha256 if weights is not None else blob,
                weights_origin="measured" if weights is not None else "claimed",
                context_size=context_size,
                quantization=shown.details.quantization_level if shown.details else None,
                engine="ollama",
            )
        except BaseException:
            await http.aclose()
            await client.close()  # type: ignore[no-untyped-call]
            raise
        return cls(uri, http, client, identity, weights, timeouts=timeouts)

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def identity(self) -> ModelIdentity:
        return self._identity

    @property
    def forces_json(self) -> bool:
        return True

    async def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        """Bounds: Ollama has no way to count without computing."""
        return estimate_tokens(messages)

    async def complete(self, messages: Sequence[Message], params: GenerationParams) -> Completion:
        self._check_weights()
        count = await self.count_tokens(messages)
        check_fits(count, params, self._identity.context_size)
        body = self._request(messages, params)
        try:
            async with asyncio.timeout(self._timeouts.total):
                answer = await wire.post(self._http, "api/chat", body, _ChatAnswer)
        except TimeoutError as error:
            raise BackendTimeout(f"no answer within {self._timeouts.total:g} seconds") from error
        return _completion(answer, answer.message.content, count, body)

    async def stream(
        self, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Delta | Completion, None]:
        self._check_weights()
        count = await self.count_tokens(messages)
        check_fits(count, params, self._identity.context_size)
        body = self._request(messages, params, stream=True)
        async with aclosing(relay(self._pieces(body, count), self._timeouts)) as pieces:
            async for piece in pieces:
                yield piece

    async def _pieces(self, body: bytes, count: TokenCount) -> AsyncGenerator[Delta | Completion, None]:
        text: list[str] = []
        async with aclosing(wire.lines(self._http, "api/chat", body)) as lines:
            async for line in lines:
                part = wire.parse_json(line, _Part)
                if part.error is not None:
                    raise wire.refusal_of(500, part.error)
                if part.message is None:
                    raise InvalidBackendAnswer("Ollama sent a line without a message")
                if part.message.content:
                    text.append(part.message.content)
                    yield Delta(part.message.content)
                if part.done:
                    yield _completion(wire.parse_json(line, _ChatAnswer), "".join(text), count, body)
                    return
        raise BackendUnavailable("Ollama ended in the middle of its answer")

    async def health(self) -> None:
        self._check_weights()
        await _show(self._client, self._identity.name)

    async def close(self) -> None:
        await self._http.aclose()
        await self._client.close()  # type: ignore[no-untyped-call]

    def _request(self, messages: Sequence[Message], params: GenerationParams, *, stream: bool = False) -> bytes:
        options: dict[str, Any] = {
            "num_ctx": self._identity.context_size,
            "num_predict": params.max_tokens,
            "seed": params.seed,
            "temperature": params.wire_temperature(),
        }
        if params.stop:
            options["stop"] = list(params.stop)
        if params.top_p is not None:
            options["top_p"] = float(params.top_p)
        body: dict[str, Any] = {
            "model": self._identity.name,
            "messages": [message.to_json() for message in messages],
            "options": options,
            "shift": False,
            "stream": stream,
            "truncate": False,
        }
        if params.output is not None:
            schema = params.output.schema
            body["format"] = "json" if schema is None else json.loads(schema)
        return serialise(body)

    def _check_weights(self) -> None:
        if self._weights is not None and not self._weights.unchanged():
            raise WeightsChanged(f"the weights file {self._weights.path} changed after it was hashed")


def _completion(answer: _ChatAnswer, text: str, count: TokenCount, body: bytes) -> Completion:
    check_prompt_seen(count, answer.prompt_eval_count)
    return Completion(text, answer.done_reason, answer.prompt_eval_count, answer.eval_count, body)


async def _show(client: ollama.AsyncClient, model: str) -> ollama.ShowResponse:
    try:
        return await client.show(model)
    except ollama.ResponseError as error:
        if error.status_code == 404:
            raise ModelNotFound(f"Ollama does not have the model {model!r}") from error
        raise BackendUnavailable(f"Ollama answered {error.status_code}: {error.error[:200]}") from error
    except httpx.TimeoutException as error:
        raise BackendTimeout(f"Ollama did not answer within {_PROBE_SECONDS:g} seconds") from error
    except (httpx.HTTPError, ConnectionError) as error:
        raise BackendUnavailable(f"Ollama cannot be reached: {str(error) or type(error).__name__}") from error
    except ValueError as error:  # no JSON, or not of the shape that the client expects
        raise InvalidBackendAnswer("Ollama's description of the model is not as its API says") from error


def _check_context(model: str, context_size: int, info: Any) -> None:
    trained = next((value for key, value in info.items() if key.endswith(".context_length")), None)
    if isinstance(trained, int) and context_size > trained:
        raise ValueError(f"context_size is {context_size}; {model} was trained for {trained} tokens")


def _blob(model: str, modelfile: str) -> str:
    """The sha256 in the name of the one weights file of a model."""
    # A manifest of several files (a vision projector, adapters) has several; one hash would not say what computes.
    blobs = _BLOB.findall(modelfile)
    if len(blobs) != 1 or _EXTRA_FILES.search(modelfile):
        raise InvalidBackendAnswer(f"the model {model!r} does not consist of exactly one weights file")
    return str(blobs[0])


async def _measure(model: str, blob: str, models_dir: Path) -> MeasuredFile:
    path = models_dir / "blobs" / f"sha256-{blob}"
    measured = await asyncio.to_thread(measure, path)
    if measured.sha256 != blob:
        raise WeightsMismatch(f"weights of {model}: {path} has sha256 {measured.sha256}, its name says otherwise")
    return measured
