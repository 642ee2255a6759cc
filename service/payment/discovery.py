"""The x402 extension `bazaar`: how an endpoint is called, for those who list services.

Small on purpose: it is part of every 402's header, and clients send it back in theirs.
Source: x402 v2, "Extension: bazaar".
"""

from collections.abc import Mapping
from typing import Any, Final

_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_NOISE: Final = frozenset({"title", "description", "default"})
"""Members of a JSON schema that say nothing about what is valid."""


def declare(
    *, body: Mapping[str, Any], body_schema: Mapping[str, Any], answer: Mapping[str, Any], method: str = "POST"
) -> dict[str, Any]:
    """The extension for an endpoint that takes JSON and answers with JSON.

    Args:
        body: an example of a request.
        body_schema: JSON schema of requests, without references; what does not constrain is left out.
        answer: an example of an answer.
        method: POST, PUT or PATCH.
    """
    return {
        "info": {
            "input": {"type": "http", "method": method, "bodyType": "json", "body": dict(body)},
            "output": {"type": "json", "example": dict(answer)},
        },
        "schema": {
            "$schema": _DIALECT,
            "type": "object",
            "properties": {
                "input": {
                    "type": "object",
                    "properties": {
                        "type": {"type": "string", "const": "http"},
                        "method": {"type": "string", "enum": [method]},
                        "bodyType": {"type": "string", "enum": ["json"]},
                        "body": _terse(body_schema),
                    },
                    "required": ["type", "method", "bodyType", "body"],
                    "additionalProperties": False,
                },
                "output": {
                    "type": "object",
                    "properties": {"type": {"type": "string"}, "example": {"type": "object"}},
                    "required": ["type"],
                },
            },
            "required": ["input"],
        },
    }


def _terse(schema: Any) -> Any:
    if isinstance(schema, Mapping):
        kept = {name: value for name, value in schema.items() if name not in _NOISE or isinstance(value, Mapping)}
        return {name: _terse(value) for name, value in kept.items()}
    return [_terse(item) for item in schema] if isinstance(schema, list) else schema
