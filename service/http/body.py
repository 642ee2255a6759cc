"""Reading a request's body: its exact bytes, bounded, and the JSON object in it."""

from typing import Any

from starlette.requests import ClientDisconnect, Request

from attestation.encoding import as_object, parse_json
from attestation.errors import MalformedError
from service.http.problems import Problem


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
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise _too_large(limit)
    except ClientDisconnect as error:
        raise Problem(400, "incomplete-body", "Incomplete request", "The body ended early.") from error
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
        # What is left of the body was not read, so the connection cannot be used again.
        headers={"connection": "close"},
        members={"limit": limit},
    )
