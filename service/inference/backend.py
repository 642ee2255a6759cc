"""What the service asks of a model server, whichever it is: one Protocol, its values and its errors.

    BackendError
     ├─ BackendUnavailable    not reachable, overloaded, or it died while answering
     ├─ BackendTimeout        no answer in time
     ├─ ModelNotFound         the server does not have the model
     ├─ BackendRejected       the server refused the request itself
     ├─ ContextExceeded       prompt and answer do not fit the context; nothing was computed
     ├─ TruncatedPrompt       the server computed on less than it was sent
     ├─ WeightsChanged        the weights file is no longer the one that was hashed
     ├─ EmptyAnswer           the model wrote nothing
     └─ InvalidBackendAnswer  the answer is not what the API promises

Every one of these means: no answer, no charge.
"""

# ruff: noqa: N818 - the names say what happened, not that it is an error

import json
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from attestation.digest import jcs

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
WeightsOrigin = Literal["measured", "claimed"]

_TEMPERATURE: Final = re.compile(r"[01](\.\d{1,3})?|2")
_SHARE: Final = re.compile(r"0\.\d{1,3}|1")


class BackendError(Exception):
    """Root of everything a backend can fail with."""


class BackendUnavailable(BackendError):
    """The server cannot be reached, is overloaded, or went away before it had answered."""


class BackendTimeout(BackendError):
    """The server did not answer in time."""


class ModelNotFound(BackendError):
    """The server does not have the model."""


class BackendRejected(BackendError):
    """The server refused the request itself. Our mistake or an incompatible server; trying again does not help."""


class ContextExceeded(BackendError):
    """Prompt and answer need `needed` tokens and the context has `limit`."""

    def __init__(self, limit: int, needed: int) -> None:
        super().__init__(f"the context has {limit} tokens; prompt and answer need {needed}")
        self.limit = limit
        self.needed = needed


class TruncatedPrompt(BackendError):
    """The server computed on `seen` tokens although the prompt has at least `sent`."""

    def __init__(self, sent: int, seen: int) -> None:
        super().__init__(f"the model server computed on {seen} tokens of a prompt of at least {sent}")
        self.sent = sent
        self.seen = seen


class WeightsChanged(BackendError):
    """The weights file changed after it was hashed, so nobody can say what would compute the answer."""


class EmptyAnswer(BackendError):
    """The model answered with nothing. There is nothing to sell."""


class InvalidBackendAnswer(BackendError):
    """The server's answer is not what its API promises."""


@dataclass(frozen=True, slots=True)
class Message:
    """One chat message."""

    role: Role
    content: str

    def to_json(self) -> dict[str, str]:
        """``{"role": …, "content": …}``, as every chat API takes it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class JsonOutput:
    """The answer has to be one JSON document: an object, or what `schema` describes.

    `schema` is the text of a JSON Schema, already found harmless: engines compile it.
    """

    schema: str | None = None

    def to_json(self) -> dict[str, Any]:
        """``response_format`` as OpenAI's API takes it."""
        if self.schema is None:
            return {"type": "json_object"}
        described = {"name": "answer", "schema": json.loads(self.schema), "strict": True}
        return {"type": "json_schema", "json_schema": described}


@dataclass(frozen=True, slots=True)
class GenerationParams:
    """How an answer is generated.

    `max_tokens` bounds the answer. `temperature` is 0 or a decimal in text ("0.7"), between 0 and 2, because the
    build manifest holds no floats; so is `top_p`, above 0 and up to 1. Zero temperature means greedy; it does not
    promise the same answer twice. What is None is left to the engine.

    Raises:
        ValueError: a value out of range; the message names the field.
    """

    max_tokens: int
    temperature: int | str = 0
    seed: int = 0
    stop: tuple[str, ...] = ()
    top_p: str | None = None
    output: JsonOutput | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens is {self.max_tokens}; at least 1")
        if not _TEMPERATURE.fullmatch(str(self.temperature)):
            raise ValueError(f"temperature is {self.temperature!r}; 0 to 2 with at most three decimals")
        if self.top_p is not None and (not _SHARE.fullmatch(self.top_p) or float(self.top_p) == 0):
            raise ValueError(f"top_p is {self.top_p!r}; above 0, at most 1, with at most three decimals")
        if not 0 <= self.seed < 1 << 32:
            raise ValueError(f"seed is {self.seed}; 0 to 4294967295")
        if any(not text for text in self.stop):
            raise ValueError("stop holds an empty text")

    def to_json(self) -> dict[str, Any]:
        """The parameters with integers and texts only, for the build manifest."""
        return {
            "max_tokens": self.max_tokens,
            "output": None if self.output is None else self.output.to_json(),
            "seed": self.seed,
            "stop": list(self.stop),
            "temperature": self.temperature,
            "top_p": self.top_p,
        }

    def wire_temperature(self) -> int | float:
        """The temperature as the JSON number that model servers take."""
        return self.temperature if isinstance(self.temperature, int) else float(self.temperature)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long one call may take, in seconds. A streamed answer must also begin, and go on, in time."""

    total: float
    first_token: float = 300.0
    between_tokens: float = 60.0


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model answers.

    `weights_sha256` is bare hex over the weights file. `weights_origin` is ``measured`` when this process hashed the
    file itself, ``claimed`` when it is the server's word or unknown (then usually None). `context_size` is in tokens.
    `engine` names the software and, where known, its version.
    """

    name: str
    weights_sha256: str | None
    weights_origin: WeightsOrigin
    context_size: int
    quantization: str | None
    engine: str

    def to_json(self) -> dict[str, Any]:
        """All fields, for the build manifest."""
        return {
            "context_size": self.context_size,
            "engine": self.engine,
            "name": self.name,
            "quantization": self.quantization,
            "weights_origin": self.weights_origin,
            "weights_sha256": self.weights_sha256,
        }


@dataclass(frozen=True, slots=True)
class TokenCount:
    """How many tokens a prompt has, template included: between `at_least` and `value`.

    Backends that can ask the model's own tokenizer give both the same. The others give bounds: prices and limits go by
    `value`; an engine that reports fewer than `at_least` has lost a part of the prompt.
    """

    value: int
    at_least: int

    @property
    def exact(self) -> bool:
        """Whether this is a count and not an estimate."""
        return self.value == self.at_least


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of an answer's text. Never empty, and never ends within a character."""

    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer, complete unless `finish_reason` is ``length``.

    `forwarded` is the exact request body sent to the engine: the bytes the receipt's hash covers.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    forwarded: bytes


class Backend(Protocol):
    """One model behind one engine.

    Cancelling a call ends the work: embedded within one batch of prompt tokens (about half a second with the largest
    catalogue model), servers when they notice the closed connection.
    """

    @property
    def uri(self) -> str:
        """The URI the backend was opened with, without credentials."""

    @property
    def identity(self) -> ModelIdentity:
        """Which model answers."""

    @property
    def forces_json(self) -> bool:
        """Whether the engine is known to hold an answer to `GenerationParams.output`."""

    async def count_tokens(self, messages: Sequence[Message]) -> TokenCount:
        """The prompt's size, with the model's chat template. Raises BackendError."""

    async def complete(self, messages: Sequence[Message], params: GenerationParams) -> Completion:
        """Generate an answer to the whole prompt, or raise a BackendError. Never truncates."""

    def stream(self, messages: Sequence[Message], params: GenerationParams) -> AsyncGenerator[Delta | Completion, None]:
        """Generate an answer piece by piece: its text as `Delta`s, then the whole as one `Completion`.

        The first piece comes when the model has begun to answer. Promises and errors are those of `complete`, but an
        error may come after pieces. Closing the generator ends the work.
        """

    async def health(self) -> None:
        """Return when the backend could answer now; otherwise raise a BackendError."""

    async def close(self) -> None:
        """Let go of the engine. Safe to call twice."""


def estimate_tokens(messages: Sequence[Message]) -> TokenCount:
    """Bounds on a prompt's size for servers that do not count.

    Upper bound: no tokenizer in use makes more tokens than UTF-8 bytes; templates add a few per message and may add a
    default system message. Lower bound: tokenizers do not join words across white space.
    """
    size = sum(len(message.content.encode()) for message in messages)
    words = sum(len(message.content.split()) for message in messages)
    return TokenCount(value=size + 16 * len(messages) + 64, at_least=words)


def check_fits(count: TokenCount, params: GenerationParams, context_size: int) -> None:
    """Refuse a prompt that, with the longest answer allowed, does not fit. Raises ContextExceeded."""
    needed = count.value + params.max_tokens
    if needed > context_size:
        raise ContextExceeded(context_size, needed)


def check_prompt_seen(count: TokenCount, seen: int) -> None:
    """Compare what the engine says it computed on with our own count.

    Raises:
        TruncatedPrompt: it saw less.
        InvalidBackendAnswer: it saw more.
    """
    if seen < count.at_least:
        raise TruncatedPrompt(count.at_least, seen)
    if seen > count.value:
        raise InvalidBackendAnswer(f"the model server reports {seen} prompt tokens; at most {count.value} were sent")


def serialise(request: dict[str, Any]) -> bytes:
    """A request body as canonical JSON (RFC 8785), so that anyone can rebuild the bytes a receipt covers.

    Raises:
        CanonicalizationError: a text holds a lone surrogate.
    """
    return jcs(request)
