"""Reading a request's body: its exact bytes, bounded, and the JSON object in it."""

from typing import Any, Final

from starlette.requests import ClientDisconnect, Request

from attestation.encoding import as_object, parse_json
from attestation.errors import MalformedError
from service.http.problems import Problem

MAX_DISCARDED_BYTES: Final = 16 << 20
"""How much of a body that is too large is still taken in: a caller who is sending does not read, and would see a broken
connection instead of the answer."""


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
