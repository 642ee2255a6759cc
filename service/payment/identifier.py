"""`payment-identifier`: a name that a buyer gives to a purchase, so that sending it twice is one purchase.

    same id, same request, same payment      the same answer
    same id, another request or payment      409, unless the first payment came to nothing

The id binds to the payer, so nobody can take another's. It may come in the payment (the x402 extension) or in the HTTP
header `Idempotency-Key`; both together must be equal.

Without an id nothing is lost: a payment already buys its answer once only, and the same one gets it again. What the id
adds is that a buyer who has lost his payment and signs another one for the same purchase is told so, not charged twice.
Source: x402 v2, "Extension: payment-identifier"; draft-ietf-httpapi-idempotency-key-header.
"""

import re
from collections.abc import Mapping
from typing import Any, Final, Protocol

from x402.extensions.payment_identifier import (
    PAYMENT_ID_MAX_LENGTH,
    PAYMENT_ID_MIN_LENGTH,
    PAYMENT_IDENTIFIER,
    declare_payment_identifier_extension,
)
from x402.schemas import PaymentPayload

from service.payment.authorization import PaymentHeaderError, PaymentKey

HEADER: Final = "idempotency-key"

FORMAT: Final = (
    f"must be {PAYMENT_ID_MIN_LENGTH} to {PAYMENT_ID_MAX_LENGTH} letters, digits, hyphens and underscores of ASCII"
)

_ID: Final = re.compile(rf"[a-zA-Z0-9_-]{{{PAYMENT_ID_MIN_LENGTH},{PAYMENT_ID_MAX_LENGTH}}}")
_FIELD: Final = f"extensions.{PAYMENT_IDENTIFIER}"


class Identifiers(Protocol):
    """Remembers which purchase an id stands for."""

    async def bind_identifier(
        self, payer: str, identifier: str, request_digest: str, key: PaymentKey, now: int
    ) -> bool:
        """Let an id stand for a request and a payment; once bound it stands for nothing else.

        Returns:
            Whether it stands for exactly these now.
        """
        ...


def declaration() -> dict[str, Any]:
    """The extension in a 402, by its name: ids are welcome and not needed."""
    return {PAYMENT_IDENTIFIER: declare_payment_identifier_extension(required=False)}


def payment_identifier(payload: PaymentPayload, headers: Mapping[str, str]) -> str | None:
    """The id of a purchase, when the buyer has given it one.

    Args:
        payload: from `decode_payment_header`.
        headers: of the request; names in lower case, or looked up whatever their case.

    Raises:
        PaymentHeaderError: it is not of the published form, or header and payment give different ones.
    """
    in_payment, in_header = _of_payload(payload), _of_header(headers.get(HEADER))
    if in_payment is not None and in_header is not None and in_payment != in_header:
        raise PaymentHeaderError("Idempotency-Key", "is not the id in the payment")
    return in_header if in_payment is None else in_payment


def _of_payload(payload: PaymentPayload) -> str | None:
    extension = (payload.extensions or {}).get(PAYMENT_IDENTIFIER)
    if extension is None:
        return None
    info = extension.get("info") if isinstance(extension, dict) else None
    if not isinstance(info, dict):
        raise PaymentHeaderError(f"{_FIELD}.info", "must be a JSON object")
    # Clients that know nothing of it echo what the 402 declares: no id, or null.
    return None if info.get("id") is None else _checked(info["id"], f"{_FIELD}.info.id")


def _of_header(value: str | None) -> str | None:
    if value is None:
        return None
    # The draft writes a string of RFC 8941, in quotes; what is in use is the bare text.
    bare = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    return _checked(bare, "Idempotency-Key")


def _checked(value: object, field: str) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise PaymentHeaderError(field, FORMAT)
    return value
