"""What we ask to be paid, in x402 v2 form: requirements, the 402 document, and the three headers.

The types and the outgoing encodings are those of the official SDK. What a client sends comes in through
`service.payment.authorization`, because the SDK's decoder is too trusting for bytes from strangers.
Source: x402 v2 specification, "PaymentRequired" and "SettlementResponse"; HTTP transport v2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from x402.http.constants import PAYMENT_REQUIRED_HEADER, PAYMENT_RESPONSE_HEADER, PAYMENT_SIGNATURE_HEADER
from x402.http.utils import encode_payment_required_header, encode_payment_response_header
from x402.mechanisms.evm.constants import SCHEME_EXACT
from x402.mechanisms.evm.utils import normalize_address
from x402.schemas import PaymentPayload, PaymentRequired, PaymentRequirements, ResourceInfo, SettleResponse

from service.pricing import Price

__all__ = [
    "PAYMENT_REQUIRED_HEADER",
    "PAYMENT_RESPONSE_HEADER",
    "PAYMENT_SIGNATURE_HEADER",
    "SCHEME",
    "X402_VERSION",
    "PaymentPayload",
    "PaymentRequirements",
    "Resource",
    "as_json",
    "payment_required",
    "payment_required_header",
    "payment_response",
    "payment_response_header",
    "requirements_for",
]

X402_VERSION: Final = 2
SCHEME: Final = SCHEME_EXACT
"""The only scheme offered: EIP-3009 `transferWithAuthorization` of exactly the price."""


@dataclass(frozen=True, slots=True)
class Resource:
    """What is sold, as the 402 document describes it.

    Attributes:
        url: the public URL of the endpoint; signed offers name the same one.
        mime_type: of the answer.
    """

    url: str
    description: str
    mime_type: str = "application/json"


def requirements_for(price: Price) -> PaymentRequirements:
    """The x402 requirements of one price. `extra` holds the token's EIP-712 domain name and version."""
    return PaymentRequirements(
        scheme=SCHEME,
        network=price.asset.network,
        asset=normalize_address(price.asset.address),
        amount=str(price.amount),
        pay_to=normalize_address(price.pay_to),
        max_timeout_seconds=price.max_timeout_seconds,
        extra={"name": price.asset.name, "version": price.asset.version},
    )


def payment_required(
    accepts: Sequence[PaymentRequirements],
    *,
    resource: Resource,
    error: str,
    extensions: Mapping[str, Any] | None = None,
) -> PaymentRequired:
    """The 402 document.

    Args:
        accepts: what would be accepted, from `requirements_for`; never empty.
        error: one sentence for the buyer: why this answer is a 402.
        extensions: x402 extensions by name, such as signed offers.
    """
    if not accepts:
        raise ValueError("a 402 without any accepted payment cannot be answered")
    return PaymentRequired(
        x402_version=X402_VERSION,
        error=error,
        resource=ResourceInfo(url=resource.url, description=resource.description, mime_type=resource.mime_type),
        accepts=list(accepts),
        extensions=dict(extensions) if extensions else None,
    )


def payment_response(
    *, transaction: str, network: str, payer: str, amount: int, extensions: Mapping[str, Any] | None = None
) -> SettleResponse:
    """The settlement document that goes with a paid answer. `amount` is in atomic units."""
    return SettleResponse(
        success=True,
        transaction=transaction,
        network=network,
        payer=normalize_address(payer),
        amount=str(amount),
        extensions=dict(extensions) if extensions else None,
    )


def payment_required_header(document: PaymentRequired) -> str:
    """The value of `PAYMENT-REQUIRED`: base64 of the JSON."""
    return encode_payment_required_header(document)


def payment_response_header(document: SettleResponse) -> str:
    """The value of `PAYMENT-RESPONSE`: base64 of the JSON."""
    return encode_payment_response_header(document)


def as_json(document: PaymentRequired | PaymentRequirements | SettleResponse) -> dict[str, Any]:
    """The same JSON value as in the header, for a body: agents often cannot read headers."""
    return document.model_dump(mode="json", by_alias=True, exclude_none=True)
