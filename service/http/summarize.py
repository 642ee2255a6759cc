"""``POST /v1/summarize``: a document in, a payment, a summary out."""

import json
import secrets
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from attestation.digest import digest
from service.call import Produced
from service.http import paths
from service.http.body import json_object, read_body
from service.http.openapi import PAID_HEADERS, PARAMETERS, json_body, paid_responses
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

_ESCAPED_BYTES: Final = 3
"""JSON that escapes every character outside ASCII needs at most three bytes for each byte of UTF-8 text."""
_OPTIONS_BYTES: Final = 4_096

MAX_LISTED: Final = 10
MAX_NAME: Final = 100
"""Mistakes that one answer lists, and characters of a field's name that it repeats: no error is a large answer."""


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


class Usage(BaseModel):
    """Tokens that were computed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


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

DISCOVERY: Final = declare(
    body={"document": "The committee met on Tuesday.", "style": "paragraph"},
    body_schema=SummarizeRequest.model_json_schema(),
    answer=_EXAMPLE.model_dump(),
)


@router.post(
    paths.SUMMARIZE,
    response_model=Summary,
    responses={
        200: {"description": "The summary.", "headers": PAID_HEADERS},
        **paid_responses(refused="The document or an option is refused."),
    },
    openapi_extra={"requestBody": json_body(SummarizeRequest.model_json_schema()), "parameters": PARAMETERS},
)
async def summarize(http: HttpRequest) -> Response:
    """Summarise a document. Without a payment the answer is a 402 that says what it costs."""
    service = service_of(http)
    limit = service.settings.max_document_bytes * _ESCAPED_BYTES + _OPTIONS_BYTES
    body = await read_body(http, limit=limit)
    plan = await _plan(service, _parse(body))

    async def produce() -> Produced:
        async with service.admission.slot():
            return await _produce(service, plan)

    sale = Sale(
        body=body,
        description=DESCRIPTION,
        input_tokens=plan.prompt_tokens,
        max_output_tokens=plan.max_output_tokens,
        produce=produce,
        discovery=DISCOVERY,
    )
    return await sell(http, service, sale)


def _parse(body: bytes) -> SummarizeRequest:
    try:
        return SummarizeRequest.model_validate(json_object(body))
    except ValidationError as error:
        problems = [
            {"field": ".".join(str(part) for part in item["loc"])[:MAX_NAME] or "body", "message": item["msg"]}
            for item in error.errors(include_url=False, include_context=False, include_input=False)[:MAX_LISTED]
        ]
        first = problems[0]
        raise Problem(
            422,
            "invalid-request",
            "Invalid request",
            f"{first['field']}: {first['message']}",
            field=first["field"],
            members={"errors": problems},
        ) from error


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
    result = await service.summarizer.run(plan)
    model = service.backend.identity
    answer_id = f"sum-{secrets.token_hex(16)}"
    answer = Summary(
        id=answer_id,
        created=service.clock(),
        model=model.name,
        summary=result.text,
        finish_reason=result.finish_reason,
        usage=Usage(
            prompt_tokens=result.prompt_tokens,
            completion_tokens=result.completion_tokens,
            total_tokens=result.prompt_tokens + result.completion_tokens,
        ),
    )
    return Produced(
        answer_id=answer_id,
        model=model.name,
        body=json.dumps(answer.model_dump(), ensure_ascii=False).encode(),
        forwarded=tuple(digest(request) for request in result.forwarded),
        completed={
            "model": model.name,
            "weights_sha256": model.weights_sha256,
            "weights_origin": model.weights_origin,
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "finish_reason": result.finish_reason,
            "calls": result.calls,
        },
    )
