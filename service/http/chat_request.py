"""A request for a chat completion, as OpenAI's API writes it, and what it asks of a model.

Source: OpenAI API reference, "Create chat completion". Everything that has an effect there and none here is refused by
name; a value that asks for nothing is accepted, because clients send it.
"""

from decimal import Decimal
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from service.inference.backend import GenerationParams, JsonOutput, Message, Role
from service.inference.json_schema import accepted_schema

MAX_MESSAGES: Final = 1_000
MAX_STOPS: Final = 4
MAX_STOP_CHARACTERS: Final = 200

_TURNS: Final[dict[str, Role]] = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class TextPart(_Model):
    """A part of a message's content. Images, audio and files are not understood here."""

    type: Literal["text"]
    text: str


def _joined(content: object) -> object:
    """A list of text parts as one text, a line each."""
    if not isinstance(content, list):
        return content
    if not content:
        raise ValueError("must hold at least one part")
    return "\n".join(TextPart.model_validate(part).text for part in content)


def _decimals(value: float | None) -> float | None:
    if value is not None and round(value, 3) != value:
        raise ValueError("may have at most three decimals")
    return value


def _listed(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Text = Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[TextPart])]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    list[Stop], Field(max_length=MAX_STOPS), BeforeValidator(_listed, json_schema_input_type=Stop | list[Stop])
]
One = Annotated[int, Field(ge=1, le=1)]
Zero = Annotated[float, Field(ge=0, le=0)]
NoList = Annotated[list[JsonValue], Field(max_length=0)]
NoMap = Annotated[dict[str, JsonValue], Field(max_length=0)]
Limit = Annotated[int, Field(ge=1, le=1_000_000)]


class ChatMessage(_Model):
    """One message. `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text

    # Members of an answer's message, for callers who send it back as it is.
    refusal: None = None
    annotations: NoList | None = None
    audio: None = None
    function_call: None = None
    tool_calls: NoList | None = None

    def turn(self) -> Message:
        """The message as models take it."""
        return Message(_TURNS[self.role], self.content)


class StreamOptions(_Model):
    """How a stream is sent."""

    include_usage: Annotated[bool | None, Field(description="Send the token counts before the end.")] = None


class TextFormat(_Model):
    """No format."""

    type: Literal["text"]

    def output(self) -> JsonOutput | None:
        """What the engine is held to."""
        return None


class JsonObjectFormat(_Model):
    """Any JSON object."""

    type: Literal["json_object"]

    def output(self) -> JsonOutput | None:
        """What the engine is held to."""
        return JsonOutput()


class JsonSchema(_Model):
    """A schema with its name."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, JsonValue], Field(alias="schema", description="A subset of JSON Schema.")]
    strict: Annotated[bool | None, Field(description="Has no effect: an answer is always held to the schema.")] = None

    @model_validator(mode="after")
    def _harmless(self) -> Self:
        accepted_schema(self.schema_)
        return self


class JsonSchemaFormat(_Model):
    """JSON as a schema describes it."""

    type: Literal["json_schema"]
    json_schema: JsonSchema

    def output(self) -> JsonOutput | None:
        """What the engine is held to."""
        return JsonOutput(accepted_schema(self.json_schema.schema_))


class ChatRequest(_Model):
    """What a buyer asks for."""

    model: Annotated[str, Field(max_length=200, description="The one that `GET /v1/models` lists.")]
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Annotated[Limit | None, Field(description="The longest answer; part of the price.")] = None
    max_tokens: Annotated[Limit | None, Field(description="An older name of max_completion_tokens.")] = None
    temperature: Annotated[
        float | None,
        Field(ge=0, le=2, description="0 when absent: the likeliest answer. At most three decimals."),
        AfterValidator(_decimals),
    ] = None
    top_p: Annotated[
        float | None, Field(gt=0, le=1, description="At most three decimals."), AfterValidator(_decimals)
    ] = None
    seed: Annotated[
        int | None, Field(ge=0, lt=1 << 32, description="0 when absent. Another one gives another answer.")
    ] = None
    stop: Stops | None = None
    response_format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat | None, Field(discriminator="type")] = (
        None
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # Without effect on the answer; the receipt covers them as a part of the request.
    user: Annotated[str | None, Field(max_length=512)] = None
    metadata: Annotated[dict[str, str] | None, Field(max_length=16)] = None

    # Accepted as long as they ask for nothing.
    n: One | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: NoMap | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=0)] | None = None
    tools: NoList | None = None
    tool_choice: Literal["none", "auto"] | None = None
    functions: NoList | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        limits = {self.max_completion_tokens, self.max_tokens} - {None}
        if len(limits) > 1:
            raise ValueError("max_tokens and max_completion_tokens must not differ")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options is only for stream: true")
        if self.messages[-1].role == "assistant":
            raise ValueError("messages must not end with an answer: the last one is what is answered")
        return self

    @property
    def limit(self) -> int | None:
        """The longest answer that is wanted, in tokens."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def output(self) -> JsonOutput | None:
        """What the answer is to be held to."""
        return None if self.response_format is None else self.response_format.output()

    @property
    def include_usage(self) -> bool:
        """Whether a stream tells its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage is True

    def turns(self) -> tuple[Message, ...]:
        """The messages as models take them."""
        return tuple(message.turn() for message in self.messages)

    def params(self, max_tokens: int) -> GenerationParams:
        """How the answer is generated."""
        return GenerationParams(
            max_tokens=max_tokens,
            temperature=decimal_text(self.temperature or 0),
            seed=self.seed or 0,
            stop=tuple(self.stop or ()),
            top_p=None if self.top_p is None else decimal_text(self.top_p),
            output=self.output,
        )


def decimal_text(value: float) -> str:
    """A number as the shortest decimal that is read as the same number: 0.70 -> "0.7", 1.0 -> "1"."""
    return format(Decimal(repr(value)).normalize(), "f")
