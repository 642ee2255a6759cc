"""What we ask to be paid, in x402 v2 form: requirements, the 402 document, and the three headers.

What a client sends comes in through `service.payment.authorization`, because the official SDK's decoder is too trusting
for bytes from strangers.
Source: x402 v2 specification, "PaymentRequired" and "SettlementResponse"; HTTP transport v2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from pydantic_core import to_json
from x402.http.constants import PAYMENT_REQUIRED_HEADER, PAYMENT_RESPONSE_HEADER, PAYMENT_SIGNATURE_HEADER
from x402.mechanisms.evm.constants import SCHEME_EXACT
from x402.mechanisms.evm.utils import normalize_address
from x402.schemas import PaymentPayload, PaymentRequirements

from attestation.encoding import b64
from service.pricing import Price

__all__ = [
    "DISCOVERY",
    "PAYMENT_REQUIRED_HEADER",
    "PAYMENT_RESPONSE_HEADER",
    "PAYMENT_SIGNATURE_HEADER",
    "SCHEME",
    "X402_VERSION",
    "PaymentPayload",
    "PaymentRequirements",
    "Resource",
    "as_json",
    "encoded",
    "payment_required",
    "payment_response",
    "payment_response_header",
    "requirements_for",
]

X402_VERSION: Final = 2
SCHEME: Final = SCHEME_EXACT
"""The only scheme offered: EIP-3009 `transferWithAuthorization` of exactly the price."""


DISCOVERY: Final = "bazaar"
"""The x402 extension by which facilitators learn how an endpoint is called."""


@dataclass(frozen=True, slots=True)
class Resource:
    """What is sold, as the 402 document describes it.

    Attributes:
        url: the public URL of the endpoint; signed offers name the same one.
        mime_type: of the answer.
        discovery: the extension `bazaar` of this endpoint, from `service.payment.discovery`.
    """

    url: str
    description: str
    mime_type: str = "application/json"
    discovery: Mapping[str, Any] | None = field(default=None, hash=False)

    def to_json(self) -> dict[str, str]:
        """The member `resource` of a 402 (x402 v2, "ResourceInfo")."""
        return {"url": self.url, "description": self.description, "mimeType": self.mime_type}

    def members(self, *, listed: bool) -> str:
        """The members of a payment that describe what it buys, as JSON text without the braces around them.

        Args:
            listed: whether a facilitator may list the resource.
        """
        return _members(self, listed)


@lru_cache(maxsize=256)
def _members(resource: Resource, listed: bool) -> str:
    document: dict[str, Any] = {"resource": resource.to_json()}
    if listed and resource.discovery is not None:
        document["extensions"] = {DISCOVERY: resource.discovery}
    return to_json(document).decode()[1:-1]


@lru_cache(maxsize=4_096)
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
) -> dict[str, Any]:
    """The 402 document.

    Args:
        accepts: what would be accepted, from `requirements_for`; never empty.
        error: one sentence for the buyer: why this answer is a 402.
        extensions: x402 extensions by name, such as signed offers; that of the resource's discovery is added.
    """
    if not accepts:
        raise ValueError("a 402 without any accepted payment cannot be answered")
    offered = dict(extensions or {})
    if resource.discovery is not None:
        offered[DISCOVERY] = resource.discovery
    return {
        "x402Version": X402_VERSION,
        "error": error,
        "resource": resource.to_json(),
        "accepts": [as_json(accept) for accept in accepts],
        **({"extensions": offered} if offered else {}),
    }


def encoded(document: Mapping[str, Any]) -> tuple[str, bytes]:
    """A document as the value of a header, base64 of its JSON, and as a body: exactly the same JSON."""
    text = to_json(document)
    return b64(text), text


def payment_response(
    *, transaction: str, network: str, payer: str, amount: int, extensions: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The settlement document that goes with a paid answer. `amount` is in atomic units."""
    return {
        "success": True,
        "transaction": transaction,
        "network": network,
        "payer": _eip55(payer),
        "amount": str(amount),
        **({"extensions": dict(extensions)} if extensions else {}),
    }


# Spelling an address takes a hash, and buyers come back.
_eip55: Final = lru_cache(maxsize=4_096)(normalize_address)


def payment_response_header(document: Mapping[str, Any]) -> str:
    """The value of `PAYMENT-RESPONSE`: base64 of the JSON."""
    return encoded(document)[0]


def as_json(requirements: PaymentRequirements) -> dict[str, Any]:
    """The JSON value of requirements."""
    return requirements.model_dump(mode="json", by_alias=True, exclude_none=True)
