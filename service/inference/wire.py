"""JSON over HTTP to a model server, with every failure turned into a BackendError."""

from collections.abc import AsyncGenerator
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from service.inference.backend import (
    BackendError,
    BackendRejected,
    BackendTimeout,
    BackendUnavailable,
    ContextExceeded,
    InvalidBackendAnswer,
    ModelNotFound,
)

M = TypeVar("M", bound=BaseModel)

MAX_LINE_BYTES: Final = 1 << 20
"""Of a streamed answer. A line holds the text of a few tokens."""


async def post(client: httpx.AsyncClient, path: str, body: bytes, answer: type[M]) -> M:
    """POST canonical JSON and parse the answer.

    Raises:
        BackendError: whatever went wrong, by its kind.
    """
    response = await send(client, "POST", path, body)
    return parse(response, answer)


async def get(client: httpx.AsyncClient, path: str, answer: type[M]) -> M:
    """GET and parse the answer. Raises BackendError."""
    return parse(await send(client, "GET", path), answer)


async def send(client: httpx.AsyncClient, method: str, path: str, body: bytes | None = None) -> httpx.Response:
    """Send a request and return its successful response. Raises BackendError."""
    _check_open(client)
    headers = {"content-type": "application/json"} if body is not None else None
    try:
        response = await client.request(method, path, content=body, headers=headers)
    except httpx.HTTPError as error:
        raise _failure(error) from error
    if response.status_code != 200:
        raise refusal(response)
    return response


async def lines(client: httpx.AsyncClient, path: str, body: bytes) -> AsyncGenerator[bytes, None]:
    """POST canonical JSON and yield the lines of the answer as they come, without empty ones.

    Raises:
        BackendError: whatever went wrong, by its kind; also in the middle.
    """
    _check_open(client)
    try:
        async with client.stream("POST", path, content=body, headers={"content-type": "application/json"}) as response:
            if response.status_code != 200:
                await response.aread()
                raise refusal(response)
            pending = b""
            # Not httpx's own lines: it also splits at signs that may stand inside JSON texts, such as U+2028.
            async for chunk in response.aiter_bytes():
                *complete, pending = (pending + chunk).split(b"\n")
                for line in filter(None, map(bytes.strip, complete)):
                    yield line
                if len(pending) > MAX_LINE_BYTES:
                    raise InvalidBackendAnswer(f"the model server sent a line of more than {MAX_LINE_BYTES} bytes")
            if pending.strip():
                yield pending.strip()
    except httpx.HTTPError as error:
        raise _failure(error) from error


def parse(response: httpx.Response, answer: type[M]) -> M:
    """The body of a response as `answer`. Raises InvalidBackendAnswer."""
    return parse_json(response.content, answer)


def parse_json(data: bytes, answer: type[M]) -> M:
    """JSON as `answer`. Raises InvalidBackendAnswer."""
    try:
        return answer.model_validate_json(data)
    except ValidationError as error:
        # Only places and kinds: pydantic's own text would quote the answer.
        wrong = ", ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['type']}" for e in error.errors())
        raise InvalidBackendAnswer(f"the model server's answer is not as its API says ({wrong})") from None


def refusal(response: httpx.Response) -> BackendError:
    """What an answer other than 200 means, for the OpenAI and the Ollama error shapes."""
    try:
        body: Any = response.json()
    except ValueError:
        body = None
    return refusal_of(response.status_code, body.get("error") if isinstance(body, dict) else None)


def refusal_of(status: int, said_error: object) -> BackendError:
    """What an error means: an HTTP status, and the member `error` of a body."""
    kind, limit, needed = _error_fields(said_error)
    if kind == "exceed_context_size_error" and limit is not None and needed is not None:
        return ContextExceeded(limit, needed)
    # Without the server's words: some quote the request, and so the document.
    said = f"{status} ({kind})" if kind else f"{status}"
    if status == 404:
        return ModelNotFound(f"the model server answered {said}")
    if status in (408, 429) or status >= 500:
        return BackendUnavailable(f"the model server answered {said}")
    return BackendRejected(f"the model server refused the request with {said}")


def _error_fields(error: object) -> tuple[str, int | None, int | None]:
    """(type, context limit, tokens needed) as far as an error says."""
    if not isinstance(error, dict):
        return "", None, None
    limit, needed = error.get("n_ctx"), error.get("n_prompt_tokens")
    return (
        str(error.get("type", ""))[:60],
        limit if isinstance(limit, int) else None,
        needed if isinstance(needed, int) else None,
    )


def _check_open(client: httpx.AsyncClient) -> None:
    if client.is_closed:
        raise BackendUnavailable("the connection to the model server is closed")


def _failure(error: httpx.HTTPError) -> BackendError:
    name = type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        return BackendTimeout(f"the model server did not answer in time ({name})")
    return BackendUnavailable(f"the model server cannot be reached: {str(error) or name}")
