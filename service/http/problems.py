"""Errors as callers see them: RFC 9457 problem details, each naming the field and the limit where there is one.

Every body also has the member `error` in the shape of OpenAI's API, which aci/1 section 10 asks for, so that clients of
either kind find what they expect.
"""

import logging
from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

MEDIA_TYPE: Final = "application/problem+json"
_TYPE_PREFIX: Final = "urn:tollseal:problem:"

_log: Final = logging.getLogger(__name__)


class Problem(Exception):  # noqa: N818 - the RFC's word
    """An answer that is an error.

    Args:
        status: the HTTP status.
        kind: short name that stays the same between releases, such as ``document-too-short``.
        title: what is wrong, the same for every occurrence.
        detail: what is wrong this time.
        field: the part of the request that is wrong, if one is.
        headers: further response headers.
        members: further members of the body.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        title: str,
        detail: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "type": _TYPE_PREFIX + kind,
            "title": title,
            "status": status,
            "detail": detail,
            **({"field": field} if field is not None else {}),
            **(members or {}),
            "error": {"message": detail, "type": _aci_type(status), "code": kind, "param": field},
        }

    def response(self) -> JSONResponse:
        headers = {"cache-control": "no-store", **self.headers}
        return JSONResponse(self.body, status_code=self.status, headers=headers, media_type=MEDIA_TYPE)


def internal_error(error: BaseException) -> Problem:
    """A 500 that tells the caller nothing, and the log where to look but not what was being worked on."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    where = "?" if frame is None else f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
    # No message and no traceback text: either may quote a document.
    _log.error("unhandled %s at %s", type(error).__name__, where)
    return Problem(
        500, "internal", "Internal error", "The service made a mistake. The same payment is never charged twice."
    )


def unavailable(kind: str, title: str, detail: str, *, retry_after: int) -> Problem:
    """A 503 that says when to come back, in seconds."""
    return Problem(503, kind, title, detail, headers={"retry-after": str(retry_after)})


def install(app: FastAPI) -> None:
    """Make an app answer every error as a problem."""

    async def on_problem(_: Request, error: Exception) -> JSONResponse:
        return error.response() if isinstance(error, Problem) else internal_error(error).response()

    async def on_http(_: Request, error: Exception) -> JSONResponse:
        status = error.status_code if isinstance(error, HTTPException) else 500
        headers = error.headers if isinstance(error, HTTPException) else None
        titles = {404: ("not-found", "Not found"), 405: ("method-not-allowed", "Method not allowed")}
        kind, title = titles.get(status, ("http", "Request refused"))
        return Problem(status, kind, title, f"{title}.", headers=headers).response()

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        errors = error.errors() if isinstance(error, RequestValidationError) else []
        where = ".".join(str(part) for part in errors[0]["loc"][1:]) if errors else ""
        message = str(errors[0]["msg"]) if errors else "malformed"
        return Problem(422, "invalid-parameter", "Invalid parameter", f"{where}: {message}", field=where).response()

    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_validation)


def _aci_type(status: int) -> str:
    return {404: "not_found", 402: "payment_required", 409: "conflict", 500: "server_error", 503: "unavailable"}.get(
        status, "invalid_request_error"
    )
