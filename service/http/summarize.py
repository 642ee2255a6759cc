"""``POST /v1/summarize``: a document in, a payment, a summary out."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from attestation.http_signature import STREAM_TYPE
from service.call import Produced
from service.http import paths
from service.http.answers import DONE, Usage, event, produced, usage_of
from service.http.body import body_limit, read_body, validated
from service.http.openapi import PARAMETERS, bought, json_body, paid_responses, schema_of
from service.http.paid import Sale, no_answer, sell
from service.http.problems import Problem
from service.http.state import service_of
from service.inference.backend import BackendError
from service.inference.document import Unsummarizable
from service.inference.summary import (
    LANGUAGES,
    MAX_MAX_WORDS,
    MIN_MAX_WORDS,
    Style,
    SummaryOptions,
    SummaryPlan,
)
from service.payment.discovery import declare

if TYPE_CHECKING:
    from service.app import Service

router = APIRouter(tags=["summaries"])

DESCRIPTION: Final = "A summary of one document."


class SummarizeRequest(BaseModel):
    """What a buyer asks for."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    document: Annotated[str, Field(description="The text to summarise.")]
    style: Annotated[Style, Field(description="The form of the summary.")] = "paragraph"
    max_words: Annotated[
        int | None, Field(ge=MIN_MAX_WORDS, le=MAX_MAX_WORDS, description="A limit the model is told.")
    ] = None
    language: Annotated[
        str | None,
        Field(max_length=35, description=f"ISO 639-1 code: {', '.join(LANGUAGES)}. The document's own when absent."),
    ] = None
    stream: Annotated[bool, Field(description="Send the summary while it is being written, as events.")] = False


class Summary(BaseModel):
    """What a buyer gets."""

    id: str
    object: str = "summary"
    created: int
    model: str
    summary: str
    finish_reason: str
    usage: Usage


_EXAMPLE: Final = Summary(
    id="sum-5b0c",
    created=1_790_000_000,
    model="qwen2.5-coder-1.5b",
    summary="1. The committee decides in March.",
    finish_reason="stop",
    usage=Usage(prompt_tokens=412, completion_tokens=38, total_tokens=450),
)

_EVENT: Final = {
    "id": _EXAMPLE.id,
    "object": "summary.chunk",
    "created": _EXAMPLE.created,
    "model": _EXAMPLE.model,
    "delta": "The committee",
    "finish_reason": None,
}

DISCOVERY: Final = declare(
    body={"document": "The committee met on Tuesday.", "style": "paragraph"},
    body_schema=schema_of(SummarizeRequest),
    answer=_EXAMPLE.model_dump(),
)


@router.post(
    paths.SUMMARIZE,
    response_model=Summary,
    responses={
        200: bought("The summary; with `stream`, events that end with `data: [DONE]`.", _EVENT),
        **paid_responses(refused="The document or an option is refused."),
    },
    openapi_extra={"requestBody": json_body(schema_of(SummarizeRequest)), "parameters": PARAMETERS},
)
async def summarize(http: HttpRequest) -> Response:
    """Summarise a document. Without a payment the answer is a 402 that says what it costs."""
    service = service_of(http)
    body = await read_body(http, limit=body_limit(service.settings.max_document_bytes))
    wanted = validated(body, SummarizeRequest)
    plan = await _plan(service, wanted)
    return await sell(
        http,
        service,
        Sale(
            body=body,
            description=DESCRIPTION,
            input_tokens=plan.prompt_tokens,
            produce=partial(_stream if wanted.stream else _produce, service, plan),
            max_output_tokens=plan.max_output_tokens,
            stream=wanted.stream,
            discovery=DISCOVERY,
        ),
    )


async def _plan(service: "Service", wanted: SummarizeRequest) -> SummaryPlan:
    try:
        options = SummaryOptions(style=wanted.style, max_words=wanted.max_words, language=wanted.language)
        return await service.summarizer.plan(wanted.document, options)
    except Unsummarizable as error:
        kind = "".join(f"-{c.lower()}" if c.isupper() else c for c in type(error).__name__).lstrip("-")
        raise Problem(422, kind, "Cannot be summarised", f"{error}.", field=error.field) from error
    except BackendError as error:
        raise no_answer(error) from error


async def _produce(service: "Service", plan: SummaryPlan) -> Produced:
    async with service.admission.slot():
        result = await service.summarizer.run(plan)
    answer = Summary(
        id=_new_id(),
        created=service.clock(),
        model=service.backend.identity.name,
        summary=result.text,
        finish_reason=result.finish_reason,
        usage=usage_of(result),
    )
    return produced(answer.id, answer.model_dump_json().encode(), result, service.backend.identity)


async def _stream(service: "Service", plan: SummaryPlan) -> AsyncGenerator[bytes | Produced, None]:
    model = service.backend.identity
    head = {"id": _new_id(), "object": "summary.chunk", "created": service.clock(), "model": model.name}
    sent: list[bytes] = []

    def chunk(delta: str, **end: object) -> bytes:
        sent.append(event({**head, "delta": delta, "finish_reason": None, **end}))
        return sent[-1]

    async with service.admission.slot(), aclosing(service.summarizer.stream(plan)) as pieces:
        async for piece in pieces:
            if isinstance(piece, str):
                yield chunk(piece)
                continue
            yield chunk("", finish_reason=piece.finish_reason, usage=usage_of(piece).model_dump())
            yield DONE
            body = b"".join([*sent, DONE])
            yield produced(str(head["id"]), body, piece, model, media_type=STREAM_TYPE)


def _new_id() -> str:
    return f"sum-{secrets.token_hex(16)}"
