"""Reading a request's body: its exact bytes, bounded, and the JSON object in it."""

from typing import Any, Final, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from attestation.encoding import as_object, parse_json
from attestation.errors import MalformedError
from service.http.problems import Problem

M = TypeVar("M", bound=BaseModel)

MAX_LISTED: Final = 10
MAX_NAME: Final = 100
"""Mistakes that one answer lists, and characters of a field's name that it repeats: no error is a large answer."""

_ESCAPED_BYTES: Final = 3
"""JSON that escapes every character outside ASCII needs at most three bytes for each byte of UTF-8 text."""
_OPTIONS_BYTES: Final = 4_096

MAX_DISCARDED_BYTES: Final = 16 << 20
"""How much of a body that is too large is still taken in: a caller who is sending does not read, and would see a broken
connection instead of the answer."""


def body_limit(document_bytes: int) -> int:
    """How many bytes a body may have whose document has at most so many."""
    return document_bytes * _ESCAPED_BYTES + _OPTIONS_BYTES


async def read_body(request: Request, *, limit: int) -> bytes:
    """The bytes of a body, at most `limit` of them.

    Raises:
        Problem: 413 when there are more, 415 when they are not said to be JSON, 400 when the caller stopped sending.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise Problem(
            415, "not-json", "Unsupported media type", "Content-Type must be application/json.", field="content-type"
        )
    body, size = bytearray(), 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit + MAX_DISCARDED_BYTES:
                break
            if size <= limit:
                body += chunk
    except ClientDisconnect as error:
        raise Problem(400, "incomplete-body", "Incomplete request", "The body ended early.") from error
    if size > limit:
        raise _too_large(limit)
    return bytes(body)


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body.

    Raises:
        Problem: 400 when it is not UTF-8, not JSON, or not an object.
    """
    try:
        return as_object(parse_json(body, "body"), "body")
    except MalformedError as error:
        raise Problem(400, "malformed-body", "Malformed body", str(error), field="body") from error


def validated(body: bytes, model: type[M]) -> M:
    """The JSON object in a body, as a request of this kind.

    Raises:
        Problem: 400 when it is no JSON object, 422 when it is not such a request; the first wrong field is named.
    """
    try:
        return model.model_validate(json_object(body))
    except ValidationError as error:
        problems = [
            {"field": _place(item["loc"]), "message": item["msg"].removeprefix("Value error, ")}
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


def _place(parts: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in parts)[:MAX_NAME] or "body"


def _too_large(limit: int) -> Problem:
    return Problem(
        413,
        "body-too-large",
        "Request too large",
        f"The body may have at most {limit} bytes.",
        field="body",
        # Something of the body may be left unread, so the connection is not used again.
        headers={"connection": "close"},
        members={"limit": limit},
    )
