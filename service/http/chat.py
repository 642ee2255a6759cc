"""``POST /v1/chat/completions`` and ``GET /v1/models``: the model itself, as OpenAI's clients ask for it.

Priced by the counted prompt and the longest answer that may come. Nothing is cut: a prompt that does not fit is refused
before its price is named.
"""

import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from attestation.encoding import parse_json
from attestation.errors import MalformedError
from attestation.http_signature import STREAM_TYPE
from service.call import Produced
from service.http import paths
from service.http.answers import DONE, Usage, event, produced, usage_of
from service.http.body import body_limit, read_body, validated
from service.http.chat_request import ChatRequest
from service.http.openapi import PARAMETERS, bought, json_body, paid_responses, problem, responses, schema_of
from service.http.paid import Sale, no_answer, sell
from service.http.problems import Problem
from service.http.state import service_of
from service.inference.backend import (
    BackendError,
    BackendRejected,
    Completion,
    Delta,
    EmptyAnswer,
    GenerationParams,
    InvalidBackendAnswer,
    Message,
)
from service.payment.discovery import declare

if TYPE_CHECKING:
    from service.app import Service

router = APIRouter(tags=["chat"])

DESCRIPTION: Final = "A chat completion."

DEFAULT_MAX_TOKENS: Final = 1_024
"""The longest answer when a request names none, or what the context leaves when that is less."""


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """The one answer."""

    index: Literal[0] = 0
    message: AnswerMessage
    logprobs: None = None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """What a buyer gets. `system_fingerprint` is the digest of the build manifest."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    system_fingerprint: str


@dataclass(frozen=True, slots=True)
class _Plan:
    """A completion that can be sold."""

    messages: tuple[Message, ...]
    params: GenerationParams
    prompt_tokens: int
    include_usage: bool


_EXAMPLE: Final = ChatCompletion(
    id="chatcmpl-5b0c",
    created=1_790_000_000,
    model="qwen2.5-coder-1.5b",
    choices=[Choice(message=AnswerMessage(content="Air scatters blue light most."), finish_reason="stop")],
    usage=Usage(prompt_tokens=24, completion_tokens=7, total_tokens=31),
    system_fingerprint="sha256:5e5e",
)

_EVENT: Final = {
    "id": _EXAMPLE.id,
    "object": "chat.completion.chunk",
    "created": _EXAMPLE.created,
    "model": _EXAMPLE.model,
    "system_fingerprint": _EXAMPLE.system_fingerprint,
    "choices": [{"index": 0, "delta": {"content": "Air"}, "logprobs": None, "finish_reason": None}],
}

DISCOVERY: Final = declare(
    body={"model": _EXAMPLE.model, "messages": [{"role": "user", "content": "Why is the sky blue?"}]},
    # The few words that matter: the whole schema would make every 402 as large as a page.
    body_schema={
        "type": "object",
        "properties": {
            "model": {"type": "string"},
            "messages": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
                    "required": ["role", "content"],
                },
            },
            "max_completion_tokens": {"type": "integer"},
            "stream": {"type": "boolean"},
        },
        "required": ["model", "messages"],
    },
    answer=_EXAMPLE.model_dump(),
)


@router.post(
    paths.CHAT,
    response_model=ChatCompletion,
    responses={
        200: bought("The answer; with `stream`, events that end with `data: [DONE]`.", _EVENT),
        404: problem("There is no such model."),
        **paid_responses(refused="A parameter is refused, or the messages do not fit the context."),
    },
    openapi_extra={"requestBody": json_body(schema_of(ChatRequest)), "parameters": PARAMETERS},
)
async def chat_completions(http: HttpRequest) -> Response:
    """Answer a chat. Without a payment the answer is a 402 that says what it costs."""
    service = service_of(http)
    body = await read_body(http, limit=body_limit(service.settings.max_document_bytes))
    wanted = validated(body, ChatRequest)
    plan = await _plan(service, wanted)
    return await sell(
        http,
        service,
        Sale(
            body=body,
            description=DESCRIPTION,
            input_tokens=plan.prompt_tokens,
            produce=partial(_stream if wanted.stream else _produce, service, plan),
            max_output_tokens=plan.params.max_tokens,
            stream=bool(wanted.stream),
            discovery=DISCOVERY,
        ),
    )


@router.get("/v1/models", responses=responses("The list."))
async def models(http: HttpRequest) -> JSONResponse:
    """The one model, with what is known of its weights."""
    return JSONResponse({"object": "list", "data": [_model(service_of(http))]})


@router.get(
    "/v1/models/{name:path}",
    responses=responses("The model.", status_404="There is no such model."),
    # Read past the framework, which would document a refusal that cannot happen.
    openapi_extra={"parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]},
)
async def model(http: HttpRequest) -> JSONResponse:
    """One model by its name."""
    service = service_of(http)
    _check_model(service, http.path_params["name"])
    return JSONResponse(_model(service))


def _model(service: "Service") -> dict[str, Any]:
    identity = service.backend.identity.to_json()
    return {
        "id": identity.pop("name"),
        "object": "model",
        "created": service.clock(),
        "owned_by": str(service.identity.agent),
        **identity,
    }


def _check_model(service: "Service", name: str) -> None:
    served = service.backend.identity.name
    if name != served:
        raise Problem(404, "model-not-found", "No such model", f"The model served here is {served}.", field="model")


async def _plan(service: "Service", wanted: ChatRequest) -> _Plan:
    _check_model(service, wanted.model)
    backend, messages = service.backend, wanted.turns()
    if wanted.output is not None and not backend.forces_json:
        raise Problem(
            422,
            "format-not-offered",
            "Format not offered",
            "response_format: the model server behind this service cannot be held to JSON.",
            field="response_format",
        )
    try:
        prompt = (await backend.count_tokens(messages)).value
    except BackendRejected as error:
        detail = "messages: the model has no form for a conversation of this order of roles."
        raise Problem(422, "messages-refused", "Messages refused", detail, field="messages") from error
    except BackendError as error:
        raise no_answer(error) from error
    context = backend.identity.context_size
    room = context - prompt
    max_tokens = wanted.limit or max(1, min(DEFAULT_MAX_TOKENS, room))
    if max_tokens > room:
        raise Problem(
            422,
            "context-exceeded",
            "Context exceeded",
            f"The messages have {prompt} tokens and the answer may have {max_tokens}; the context has {context}.",
            field="messages",
            members={"prompt_tokens": prompt, "max_tokens": max_tokens, "limit": context},
        )
    return _Plan(messages, wanted.params(max_tokens), prompt, wanted.include_usage)


async def _produce(service: "Service", plan: _Plan) -> Produced:
    async with service.admission.slot():
        result = await service.backend.complete(plan.messages, plan.params)
    _check(result, plan)
    answer = ChatCompletion(
        id=_new_id(),
        created=service.clock(),
        model=service.backend.identity.name,
        choices=[Choice(message=AnswerMessage(content=result.text), finish_reason=result.finish_reason)],
        usage=usage_of(result),
        system_fingerprint=service.identity.manifest_digest,
    )
    body = json.dumps(answer.model_dump(), ensure_ascii=False).encode()
    return produced(answer.id, body, result, service.backend.identity)


async def _stream(service: "Service", plan: _Plan) -> AsyncGenerator[bytes | Produced, None]:
    model, answer_id = service.backend.identity, _new_id()
    head = {
        "id": answer_id,
        "object": "chat.completion.chunk",
        "created": service.clock(),
        "model": model.name,
        "system_fingerprint": service.identity.manifest_digest,
    }
    uncounted = {"usage": None} if plan.include_usage else {}
    sent: list[bytes] = []

    def chunk(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        sent.append(event({**head, "choices": [choice], **uncounted}))
        return sent[-1]

    stream = service.backend.stream(plan.messages, plan.params)
    async with service.admission.slot(), aclosing(stream) as pieces:
        async for piece in pieces:
            if isinstance(piece, Delta):
                role = {} if sent else {"role": "assistant"}
                yield chunk({**role, "content": piece.text})
                continue
            _check(piece, plan)
            yield chunk({}, piece.finish_reason)
            if plan.include_usage:
                sent.append(event({**head, "choices": [], "usage": usage_of(piece).model_dump()}))
                yield sent[-1]
            yield DONE
            yield produced(answer_id, b"".join([*sent, DONE]), piece, model, media_type=STREAM_TYPE)


def _check(result: Completion, plan: _Plan) -> None:
    """No answer is sold that is none, or is not of the form that was asked for."""
    if not result.text:
        raise EmptyAnswer("the model answered with an empty text")
    if plan.params.output is not None and result.finish_reason == "stop" and not plan.params.stop:
        try:
            parse_json(result.text, "answer")
        except MalformedError as error:
            raise InvalidBackendAnswer("the model server did not hold the answer to JSON") from error


def _new_id() -> str:
    return f"chatcmpl-{secrets.token_hex(16)}"
