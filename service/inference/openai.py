"""Any server that speaks OpenAI's chat completions: vLLM, SGLang, Ray Serve LLM, llama-server, LiteLLM.

URI: ``openai:https://host/v1#model``. The weights are the operator's claim: nothing here can look at them.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Final, Literal

import httpx
from pydantic import BaseModel, Field

from service.inference import wire
from service.inference.backend import (
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    Completion,
    Delta,
    FinishReason,
    GenerationParams,
    InvalidBackendAnswer,
    Message,
    ModelIdentity,
    ModelNotFound,
    Timeouts,
    TokenCount,
    check_fits,
    check_prompt_seen,
    estimate_tokens,
    serialise,
)
from service.inference.relay import relay

_EVENT: Final = b"data:"
_LAST: Final = b"[DONE]"

Count = Annotated[int, Field(ge=0)]


class _Answer(BaseModel):
    content: str


class _Choice(BaseModel):
    finish_reason: Literal["stop", "length"]
    message: _Answer


class _Usage(BaseModel):
    prompt_tokens: Count
    completion_tokens: Count


class _ChatCompletion(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1, max_length=1)]
    usage: _Usage


class _Piece(BaseModel):
    content: str | None = None


class _ChunkChoice(BaseModel):
    finish_reason: Literal["stop", "length"] | None = None
    delta: _Piece


class _Chunk(BaseModel):
    choices: Annotated[list[_ChunkChoice], Field(max_length=1)] | None = None
    usage: _Usage | None = None
    error: Any = None


class _InputTokens(BaseModel):
    input_tokens: Count


class _Tokenized(BaseModel):
    count: Count


class _ListedModel(BaseModel):
    id: str


class _ModelList(BaseModel):
    data: list[_ListedModel]


class ChatCompletions:
    """The chat completions API on one connection pool: request bytes out, checked answer in."""

    def __init__(self, client: httpx.AsyncClient, model: str, extra: dict[str, Any] | None = None) -> None:
        """`client` has the API's base URL; `extra` are fields that this engine takes beyond the API."""
        self._client = client
        self._model = model
        self._extra = extra or {}

    def request(self, messages: Sequence[Message], params: GenerationParams, *, stream: bool = False) -> bytes:
        """The exact body that `complete`, or `stream`, sends."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [message.to_json() for message in messages],
            "max_tokens": params.max_tokens,
            "temperature": params.wire_temperature(),
            "seed": params.seed,
            "stream": stream,
            **self._extra,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        if params.stop:
            body["stop"] = list(params.stop)
        if params.top_p is not None:
            body["top_p"] = float(params.top_p)
        if params.output is not None:
            body["response_format"] = params.output.to_json()
        return serialise(body)

    async def complete(self, body: bytes, count: TokenCount, timeout_seconds: float) -> Completion:
        """Send `body` and check the answer against `count`. Raises BackendError."""
        try:
            async with asyncio.timeout(timeout_seconds):
                answer = await wire.post(self._client, "chat/completions", body, _ChatCompletion)
        except TimeoutError as error:
            raise BackendTimeout(f"no answer within {timeout_seconds:g} seconds") from error
        check_prompt_seen(count, answer.usage.prompt_tokens)
        choice = answer.choices[0]
        return Completion(
            text=choice.message.content,
            finish_reason=choice.finish_reason,
            prompt_tokens=answer.usage.prompt_tokens,
            completion_tokens=answer.usage.completion_tokens,
            forwarded=body,
        )

    async def stream(self, body: bytes, count: TokenCount) -> AsyncGenerator[Delta | Completion, None]:
        """Send `body`; the answer as it comes, checked against `count`. Raises BackendError."""
        text: list[str] = []
        reason: FinishReason | None = None
        usage: _Usage | None = None
        async with aclosing(wire.lines(self._client, "chat/completions", body)) as lines:
            async for line in lines:
                data = line.removeprefix(_EVENT).strip()
                if data in (line, _LAST):  # a comment or another field of server-sent events; the end
                    continue
                chunk = wire.parse_json(data, _Chunk)
                if chunk.error is not None:
                    raise wire.refusal_of(500, chunk.error)
                if chunk.choices is None:
                    raise InvalidBackendAnswer("the model server sent an event without choices")
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    reason = choice.finish_reason or reason
                    if choice.delta.content:
                        text.append(choice.delta.content)
                        yield Delta(choice.delta.content)
        if reason is None:
            raise BackendUnavailable("the model server ended in the middle of its answer")
        if usage is None:
            raise InvalidBackendAnswer("the model server did not say how many tokens it computed")
        check_prompt_seen(count, usage.prompt_tokens)
        yield Completion("".join(text), reason, usage.prompt_tokens, usage.completion_tokens, body)

    async def input_tokens(self, messages: Sequence[Message]) -> TokenCount:
        """Exact count by llama-server (``POST chat/completions/input_tokens``). Raises BackendError."""
        body = serialise({"model": self._model, "messages": [message.to_json() for message in messages]})
        answer = await wire.post(self._client, "chat/completions/input_tokens", body, _InputTokens)
        return TokenCount(answer.input_tokens, answer.input_tokens)

    async def tokenize(self, messages: Sequence[Message]) -> TokenCount:
        """Exact count by vLLM (``POST /tokenize`` beside ``/v1``). Raises BackendError."""
        body = serialise({"model": self._model, "messages": [message.to_json() for message in messages]})
        answer = await wire.post(self._client, "../tokenize", body, _Tokenized)
        return TokenCount(answer.count, answer.count)


class OpenAIBackend:
    """A Backend over an OpenAI-compatible server. Make it with `open`."""

    def __init__(
        self, uri: str, client: httpx.AsyncClient, identity: ModelIdentity, *, counting: str, timeouts: Timeouts
    ) -> None:
        self._uri = uri
        self._client = client
        self._identity = identity
        self._chat = ChatCompletions(client, identity.name)
        self._counting = counting
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
        api_key: str | None = None,
    ) -> "OpenAIBackend":
        """Connect, check that the model is there and find out how the server counts tokens.

        Raises:
            ModelNotFound: the server does not list `model`.
            BackendError: the server is not usable.
        """
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        client = httpx.AsyncClient(
            base_url=base_url.rstrip("/") + "/",
            headers=headers,
            timeout=httpx.Timeout(timeouts.total, connect=min(5.0, timeouts.total)),
        )
        identity = ModelIdentity(
            name=model,
            weights_sha256=None,
            weights_origin="claimed",
            context_size=context_size,
            quantization=None,
            engine="openai-compatible",
        )
        try:
            backend = cls(uri, client, identity, counting="estimate", timeouts=timeouts)
            await backend.health()
            backend._counting = await backend._find_counting()
        except BaseException:
            await client.aclose()
            raise
        return backend

    @property
    def uri(self) -> str:
        return self._uri

    @property
    def identity(self) -> ModelIdentity:
        return self._identity

    @property
    def forces_json(self) -> bool:
        """llama-server and vLLM do, and they are known by how they count. Others take `response_format` and may not
        know what it means."""
        return self._counting != "estimate"

    async def _find_counting(self) -> str:
        probe = [Message("user", "count")]
        for name, count in (("input_tokens", self._chat.input_tokens), ("tokenize", self._chat.tokenize)):
            try:
                await count(probe)
            except (ModelNotFound, BackendRejected, InvalidBackendAnswer):
                continue
            return name
        return "estimate"

    async def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        match self._counting:
            case "input_tokens":
                return await self._chat.input_tokens(messages)
            case "tokenize":
                return await self._chat.tokenize(messages)
            case _:
                return estimate_tokens(messages)

    async def complete(self, messages: Sequence[Message], params: GenerationParams) -> Completion:
        count = await self.count_tokens(messages)
        check_fits(count, params, self._identity.context_size)
        return await self._chat.complete(self._chat.request(messages, params), count, self._timeouts.total)

    async def stream(
        self, messages: Sequence[Message], params: GenerationParams
    ) -> AsyncGenerator[Delta | Completion, None]:
        count = await self.count_tokens(messages)
        check_fits(count, params, self._identity.context_size)
        body = self._chat.request(messages, params, stream=True)
        async with aclosing(relay(self._chat.stream(body, count), self._timeouts)) as pieces:
            async for piece in pieces:
                yield piece

    async def health(self) -> None:
        try:
            async with asyncio.timeout(5):
                listed = await wire.get(self._client, "models", _ModelList)
        except TimeoutError as error:
            raise BackendTimeout("the model server did not list its models within 5 seconds") from error
        if all(model.id != self._identity.name for model in listed.data):
            raise ModelNotFound(f"the model server does not list the model {self._identity.name!r}")

    async def close(self) -> None:
        await self._client.aclose()
