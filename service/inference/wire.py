"""JSON over HTTP to a model server, with every failure turned into a BackendError."""

from typing import Any, TypeVar

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
    if client.is_closed:
        raise BackendUnavailable("the connection to the model server is closed")
    headers = {"content-type": "application/json"} if body is not None else None
    try:
        response = await client.request(method, path, content=body, headers=headers)
    except httpx.TimeoutException as error:
        raise BackendTimeout(f"the model server did not answer in time ({type(error).__name__})") from error
    except httpx.HTTPError as error:
        raise BackendUnavailable(f"the model server cannot be reached: {str(error) or type(error).__name__}") from error
    if response.status_code != 200:
        raise refusal(response)
    return response


def parse(response: httpx.Response, answer: type[M]) -> M:
    """The body of a response as `answer`. Raises InvalidBackendAnswer."""
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as error:
        # Only places and kinds: pydantic's own text would quote the answer.
        wrong = ", ".join(f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['type']}" for e in error.errors())
        raise InvalidBackendAnswer(f"the model server's answer is not as its API says ({wrong})") from None


def refusal(response: httpx.Response) -> BackendError:
    """What an answer other than 200 means, for the OpenAI and the Ollama error shapes."""
    status = response.status_code
    kind, limit, needed = _error_fields(response)
    if kind == "exceed_context_size_error" and limit is not None and needed is not None:
        return ContextExceeded(limit, needed)
    # Without the server's words: some quote the request, and so the document.
    said = f"{status} ({kind})" if kind else f"{status}"
    if status == 404:
        return ModelNotFound(f"the model server answered {said}")
    if status in (408, 429) or status >= 500:
        return BackendUnavailable(f"the model server answered {said}")
    return BackendRejected(f"the model server refused the request with {said}")


def _error_fields(response: httpx.Response) -> tuple[str, int | None, int | None]:
    """(type, context limit, tokens needed) as far as the body says."""
    try:
        body: Any = response.json()
    except ValueError:
        return "", None, None
    error = body.get("error", "") if isinstance(body, dict) else ""
    if not isinstance(error, dict):
        return "", None, None
    limit, needed = error.get("n_ctx"), error.get("n_prompt_tokens")
    return (
        str(error.get("type", ""))[:60],
        limit if isinstance(limit, int) else None,
        needed if isinstance(needed, int) else None,
    )
