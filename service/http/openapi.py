"""What the OpenAPI document says of every paid endpoint: its 402, its errors, and the headers that matter."""

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel

from attestation.http_signature import STREAM_TYPE
from service.http.answers import DONE, event

_TEXT: Final = {"type": "string"}
_COUNT: Final = {"type": "integer", "minimum": 0}

PROBLEM: Final[dict[str, Any]] = {
    "content": {
        "application/problem+json": {
            "schema": {
                "type": "object",
                "required": ["type", "title", "status", "detail", "error"],
                "properties": {
                    "type": _TEXT,
                    "title": _TEXT,
                    "status": {"type": "integer"},
                    "detail": _TEXT,
                    "field": _TEXT,
                    "error": {
                        "type": "object",
                        "description": "The same in the words of OpenAI's API.",
                        "required": ["message", "type", "code", "param"],
                        "properties": {
                            "message": _TEXT,
                            "type": _TEXT,
                            "code": {"type": ["string", "null"]},
                            "param": {"type": ["string", "null"]},
                        },
                    },
                },
            }
        }
    }
}
"""RFC 9457 problem details."""

PAYMENT_REQUIRED: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["x402Version", "error", "resource", "accepts", "extensions"],
    "properties": {
        "x402Version": {"const": 2},
        "error": {"type": "string", "description": "Why this is a 402."},
        "resource": {
            "type": "object",
            "required": ["url", "description", "mimeType"],
            "properties": {"url": _TEXT, "description": _TEXT, "mimeType": _TEXT},
        },
        "accepts": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["scheme", "network", "asset", "amount", "payTo", "maxTimeoutSeconds", "extra"],
                "properties": {
                    "scheme": {"const": "exact"},
                    "network": {"type": "string", "description": "CAIP-2."},
                    "asset": _TEXT,
                    "amount": {"type": "string", "pattern": "^[1-9][0-9]*$", "description": "Atomic units."},
                    "payTo": _TEXT,
                    "maxTimeoutSeconds": {"type": "integer", "minimum": 1},
                    "extra": {
                        "type": "object",
                        "description": "Name and version of the token's EIP-712 domain.",
                        "required": ["name", "version"],
                        "properties": {"name": _TEXT, "version": _TEXT},
                    },
                },
            },
        },
        "extensions": {
            "type": "object",
            "required": ["offer-receipt", "price-basis", "payment-identifier"],
            "properties": {
                "offer-receipt": {"type": "object", "description": "Signed offers, one for each of `accepts`."},
                "price-basis": {
                    "type": "object",
                    "description": "What the price was computed from.",
                    "required": ["info"],
                    "properties": {
                        "info": {
                            "type": "object",
                            "required": ["rule", "requestDigest", "inputTokens", "maxOutputTokens"],
                            "properties": {
                                "rule": {"type": "object"},
                                "requestDigest": {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"},
                                "inputTokens": _COUNT,
                                "maxOutputTokens": _COUNT,
                            },
                        }
                    },
                },
                "payment-identifier": {"type": "object"},
                "bazaar": {"type": "object", "description": "How the endpoint is called."},
            },
        },
    },
}
"""The body of a 402, x402 v2 "PaymentRequired"; the header PAYMENT-REQUIRED holds the base64 of exactly this JSON."""


_COME_BACK: Final = {"Retry-After": {"description": "Seconds.", "required": True, "schema": {"type": "integer"}}}


def _header(description: str, *, required: bool = True) -> dict[str, Any]:
    return {"description": description, "required": required, "schema": _TEXT}


SIGNED: Final[dict[str, Any]] = {
    "Content-Digest": _header("RFC 9530, sha-256."),
    "Signature": _header("RFC 9421, by the attested http key."),
    "Signature-Input": _header("RFC 9421."),
    "X-ACI-Version": _header("aci/1."),
    "X-ACI-Keyset-Digest": _header("Digest of the attested keyset."),
}
"""Headers of every response."""

PAID_HEADERS: Final[dict[str, Any]] = {
    "PAYMENT-RESPONSE": _header("The settlement with a signed x402 receipt, base64 of JSON."),
    "X-Receipt-Id": _header("Where the receipt is found: /v1/aci/receipts/{id}."),
    "X-Receipt": _header("The aci/1 receipt, base64url of JSON; not for streams.", required=False),
    **SIGNED,
}
"""Headers of a paid answer."""

PARAMETERS: Final[list[dict[str, Any]]] = [
    {
        "name": "PAYMENT-SIGNATURE",
        "in": "header",
        "required": False,
        "schema": _TEXT,
        "description": "An x402 v2 payment, base64 of JSON.",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "schema": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{16,128}$"},
        "description": "The id of this purchase, as the x402 extension payment-identifier has it.",
    },
]
"""Request headers of a paid endpoint."""


def bought(description: str, example: Mapping[str, Any]) -> dict[str, Any]:
    """The answer that is bought: as JSON, or as a stream of events, of which one is given."""
    stream = {"schema": _TEXT, "example": (event(example) + DONE).decode()}
    return {"description": description, "headers": PAID_HEADERS, "content": {STREAM_TYPE: stream}}


def paid_responses(*, refused: str) -> dict[int | str, dict[str, Any]]:
    """Every answer of a paid endpoint but the one that was bought.

    Args:
        refused: what a 422 says of this endpoint's request.
    """
    return {
        402: {
            "description": "Payment is required: terms and signed offers, in the header PAYMENT-REQUIRED and the body.",
            "headers": {
                "PAYMENT-REQUIRED": _header("Base64 of the body."),
                "Cache-Control": {"required": True, "schema": {"const": "no-store"}},
                **SIGNED,
            },
            "content": {"application/json": {"schema": PAYMENT_REQUIRED}},
        },
        400: problem("The body, the payment or its id is malformed."),
        409: problem("The payment, or the id of the purchase, belongs to another request."),
        413: problem("The body is too large."),
        415: problem("The body is not JSON."),
        422: problem(refused),
        500: problem("The service made a mistake. The same payment is never charged twice."),
        503: problem("No answer now; nothing was charged, or the same payment gets it later.", headers=_COME_BACK),
    }


def problem(description: str, *, headers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """An answer that is an error."""
    return {"description": description, "headers": {**(headers or {}), **SIGNED}, **PROBLEM}


def responses(description: str, *, media_type: str | None = None, **problems: str) -> dict[int | str, dict[str, Any]]:
    """The answers of an endpoint that costs nothing.

    Args:
        description: of the answer that is no error.
        media_type: its media type, when that is not JSON's own.
        problems: what the other statuses mean, as `status_404="..."`.
    """
    good: dict[str, Any] = {"description": description, "headers": SIGNED}
    if media_type is not None:
        good["content"] = {media_type: {"schema": {"type": "object"}}}
    statuses = {int(name.removeprefix("status_")): text for name, text in problems.items()}
    return {
        200: good,
        **{status: problem(text, headers=_COME_BACK if status == 503 else None) for status, text in statuses.items()},
        500: problem("The service made a mistake."),
    }


def json_body(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A request body that is read and validated past the framework."""
    return {"required": True, "content": {"application/json": {"schema": dict(schema)}}}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON schema of a request without references: in the OpenAPI document they would lead elsewhere."""
    schema = model.model_json_schema()
    whole: dict[str, Any] = _inlined(schema, schema.pop("$defs", {}))
    return whole


def _inlined(schema: Any, definitions: Mapping[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].removeprefix("#/$defs/")], definitions)
    return {name: _inlined(value, definitions) for name, value in schema.items() if name != "discriminator"}
