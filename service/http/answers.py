"""What answers of a model have in common over HTTP: token counts, events of a stream, and what the receipt says."""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from attestation.digest import digest
from service.call import Produced
from service.inference.backend import Completion, ModelIdentity
from service.inference.summary import SummaryResult

DONE: Final = b"data: [DONE]\n\n"
"""The last event of every stream, as OpenAI's API ends them."""

# Line ends to some readers of event streams, though not to the standard: never raw in an event.
_LINE_ENDS: Final = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


class Usage(BaseModel):
    """Tokens that were computed."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


def usage_of(result: Completion | SummaryResult) -> Usage:
    """The tokens of an answer."""
    return Usage(
        prompt_tokens=result.prompt_tokens,
        completion_tokens=result.completion_tokens,
        total_tokens=result.prompt_tokens + result.completion_tokens,
    )


def event(document: Mapping[str, Any]) -> bytes:
    """One server-sent event with a JSON document."""
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".translate(_LINE_ENDS).encode()


def produced(
    answer_id: str,
    body: bytes,
    result: Completion | SummaryResult,
    model: ModelIdentity,
    *,
    media_type: str = "application/json",
) -> Produced:
    """An answer with what its receipt says about how it was made."""
    forwarded = result.forwarded if isinstance(result, SummaryResult) else (result.forwarded,)
    return Produced(
        answer_id=answer_id,
        model=model.name,
        body=body,
        forwarded=tuple(digest(request) for request in forwarded),
        completed={
            "model": model.name,
            "weights_sha256": model.weights_sha256,
            "weights_origin": model.weights_origin,
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "finish_reason": result.finish_reason,
            "calls": len(forwarded),
        },
        media_type=media_type,
    )
