"""What the OpenAPI document says of every resource that is sold."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from service.http.answers import DONE, EVENT_STREAM, event
from service.http.problems import MEDIA_TYPE

_TEXT: Final = {"schema": {"type": "string"}}

PROBLEM: Final[dict[str, Any]] = {
    "content": {
        MEDIA_TYPE: {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail", "error"],
                "properties": {
                    "type": {"type": "string"},
                    "title": {"type": "string"},
                    "status": {"type": "integer"},
                    "detail": {"type": "string"},
                    "field": {"type": "string"},
                    "error": {
                        "type": "object",
                        "description": "The same in the words of OpenAI's API.",
                        "properties": {
                            "message": {"type": "string"},
                            "type": {"type": "string"},
                            "code": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                        },
                    },
                },
            }
        }
    }
}

_PROOFS: Final = {
    "PAYMENT-RESPONSE": {"description": "The settlement, with the signed x402 receipt in it.", **_TEXT},
    "X-Receipt-Id": {"description": "The receipt is at /v1/aci/receipts/{id}; a stream's once it has ended.", **_TEXT},
    "X-Receipt": {"description": "The receipt itself, base64url of JSON; not with a stream.", **_TEXT},
}


def responses(refusals: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """Every answer that a resource for sale gives besides the one that is bought.

    Args:
        refusals: status -> description, of the refusals that are the resource's own.
    """
    common = {
        400: "The body or the payment is malformed.",
        409: "The payment belongs to another request.",
        413: "The body is too large.",
        415: "The body is not JSON.",
        503: "No answer now; nothing was charged, or the same payment gets it later.",
    }
    return {
        402: {
            "description": "Payment is required: terms and signed offers, in the header PAYMENT-REQUIRED and the body.",
            "content": {"application/json": {"schema": {"type": "object"}}},
            "headers": {"PAYMENT-REQUIRED": {"description": "The body, base64 of JSON.", **_TEXT}},
        },
        **{status: {"description": said, **PROBLEM} for status, said in sorted({**common, **refusals}.items())},
    }


def bought(description: str, example: Mapping[str, Any]) -> dict[str, Any]:
    """The answer that is bought: as JSON, or as a stream of events of which one is given."""
    stream = {"schema": {"type": "string"}, "example": (event(example) + DONE).decode()}
    return {"description": description, "headers": _PROOFS, "content": {EVENT_STREAM: stream}}


def request(model: type[BaseModel]) -> dict[str, Any]:
    """The body of a request, and the header that pays for it."""
    schema = model.model_json_schema()
    # A reference would be looked up in the whole OpenAPI document, which does not have these definitions.
    whole = _inlined(schema, schema.pop("$defs", {}))
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": whole}}},
        "parameters": [
            {
                "name": "PAYMENT-SIGNATURE",
                "in": "header",
                "required": False,
                "schema": {"type": "string"},
                "description": "An x402 v2 payment, base64 of JSON.",
            }
        ],
    }


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items() if name != "discriminator"}
