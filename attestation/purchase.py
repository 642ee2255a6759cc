"""The x402 messages of one purchase, parsed for checking: terms, payment, settlement.

Source: x402 v2 over HTTP. Parsing here is strict and independent of the payment library, because these bytes come out
of a bundle that anyone may have written.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from attestation import encoding, payment_proof
from attestation.bundle import PAYMENT_HEADER
from attestation.digest import jcs, jcs_digest
from attestation.errors import EvidenceError, MalformedError
from attestation.http_signature import Exchange

X402_VERSION: Final = 2
SCHEME: Final = "exact"

IDENTIFIER: Final = "payment-identifier"
"""The x402 extension in which a buyer may name a purchase."""


@dataclass(frozen=True, slots=True)
class Terms:
    """A 402's content."""

    document: Mapping[str, Any]
    resource_url: str
    accepts: tuple[Mapping[str, Any], ...]
    offers: tuple[Mapping[str, Any], ...]
    """Signed offers, each still to be checked."""


@dataclass(frozen=True, slots=True)
class Payment:
    """A signed EIP-3009 transfer authorization, as it was sent to the service."""

    document: Mapping[str, Any]
    accepted: Mapping[str, Any]
    network: str
    asset: str
    pay_to: str
    payer: str
    amount: int
    valid_after: int
    valid_before: int
    nonce: str
    signature: str


class SignedTransfer(Protocol):
    """An EIP-3009 transfer authorization with its signature; hex is in lower case."""

    @property
    def payer(self) -> str: ...
    @property
    def pay_to(self) -> str: ...
    @property
    def amount(self) -> int: ...
    @property
    def valid_after(self) -> int: ...
    @property
    def valid_before(self) -> int: ...
    @property
    def nonce(self) -> str: ...
    @property
    def signature(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Settlement:
    """What the service says became of the payment."""

    transaction: str
    network: str
    payer: str
    receipt: Mapping[str, Any]
    """The signed x402 receipt, still to be checked."""


def parse_terms(exchange: Exchange) -> Terms:
    """The terms of a 402; its header and its body must say the same (x402 v2, PAYMENT-REQUIRED).

    Raises:
        MalformedError: not such a 402.
    """
    if exchange.status != 402:
        raise MalformedError("terms.status", f"must be 402, is {exchange.status}")
    document = _header_json(exchange.headers, "payment-required")
    if encoding.parse_json(exchange.body, "terms.body") != document:
        raise MalformedError("terms.body", "must hold the same document as the PAYMENT-REQUIRED header")
    if document.get("x402Version") != X402_VERSION:
        raise MalformedError("terms.x402Version", f"must be {X402_VERSION}")
    resource = encoding.as_object(document.get("resource"), "terms.resource")
    accepts = document.get("accepts")
    if not isinstance(accepts, list) or not accepts:
        raise MalformedError("terms.accepts", "must be a list that is not empty")
    offers = _extension_info(document, "terms").get("offers")
    if not isinstance(offers, list) or not offers:
        raise MalformedError("terms.extensions.offer-receipt.info.offers", "must be a list that is not empty")
    return Terms(
        document=document,
        resource_url=encoding.text(resource.get("url"), "terms.resource.url"),
        accepts=tuple(encoding.as_object(item, "terms.accepts") for item in accepts),
        offers=tuple(encoding.as_object(item, "terms.offers") for item in offers),
    )


def check_offer(terms: Terms, offer_document: Mapping[str, Any], *, public_key: str) -> payment_proof.Offer:
    """Check a signed offer of some terms: who signed it, and that it says what the terms say.

    Args:
        terms: the 402's content.
        offer_document: one of its signed offers.
        public_key: the keyset's payment key.

    Raises:
        EvidenceError: another signer, or the offer differs from the terms.
        MalformedError: not an offer.
    """
    offer = payment_proof.parse_offer(offer_document)
    payment_proof.check_signer(offer_document, "Offer", public_key)
    if dict(offer_document) not in [dict(item) for item in terms.offers]:
        raise EvidenceError("the offer is not one of those in the 402")
    index = encoding.integer(offer_document.get("acceptIndex"), "offer.acceptIndex")
    if index >= len(terms.accepts):
        raise EvidenceError(f"the offer points at accepts[{index}], of which there are {len(terms.accepts)}")
    accept = terms.accepts[index]
    for name, offered in offer.payload().items():
        if name in {"version", "resourceUrl", "validUntil"}:
            continue
        if accept.get(name) != offered:
            raise EvidenceError(f"the offer's {name} is {offered!r}, the 402 says {accept.get(name)!r}")
    if offer.resource_url != terms.resource_url:
        raise EvidenceError(f"the offer is for {offer.resource_url}, the 402 for {terms.resource_url}")
    return offer


def parse_payment(exchange: Exchange) -> Payment:
    """The payment that a request carried (x402 v2, PAYMENT-SIGNATURE; scheme `exact` by EIP-3009).

    Raises:
        MalformedError: not such a payment.
    """
    document = _header_json(exchange.request_headers, PAYMENT_HEADER)
    encoding.only(document, "payment", {"x402Version", "payload", "accepted"}, frozenset({"resource", "extensions"}))
    if document.get("x402Version") != X402_VERSION:
        raise MalformedError("payment.x402Version", f"must be {X402_VERSION}")
    accepted = encoding.as_object(document.get("accepted"), "payment.accepted")
    if accepted.get("scheme") != SCHEME:
        raise MalformedError("payment.accepted.scheme", f"must be {SCHEME}")
    payload = encoding.as_object(document.get("payload"), "payment.payload")
    encoding.only(payload, "payment.payload", {"authorization", "signature"})
    where = "payment.authorization"
    authorization = encoding.as_object(payload.get("authorization"), where)
    encoding.only(authorization, where, {"from", "to", "value", "validAfter", "validBefore", "nonce"})
    return Payment(
        document=document,
        accepted=accepted,
        network=encoding.text(accepted.get("network"), "payment.accepted.network"),
        asset=encoding.exact_address(accepted.get("asset"), "payment.accepted.asset"),
        pay_to=encoding.exact_address(authorization.get("to"), f"{where}.to"),
        payer=encoding.exact_address(authorization.get("from"), f"{where}.from"),
        amount=encoding.decimal_text(authorization.get("value"), f"{where}.value"),
        valid_after=encoding.decimal_text(authorization.get("validAfter"), f"{where}.validAfter"),
        valid_before=encoding.decimal_text(authorization.get("validBefore"), f"{where}.validBefore"),
        nonce="0x" + encoding.prefixed_hex_bytes(authorization.get("nonce"), f"{where}.nonce", size=32).hex(),
        signature=encoding.text(payload.get("signature"), "payment.payload.signature"),
    )


def check_echo(payment: Payment, terms: Terms) -> None:
    """Check what a payment repeats of the terms (x402 v2, "PaymentPayload"): it may leave things out, not change them.

    An id may be added to the extension `payment-identifier`; that is what it is for.

    Raises:
        EvidenceError: it names another resource, or another content of an extension.
        MalformedError: its extensions are not an object.
    """
    # Compared as JSON: to Python, true is 1.
    if "resource" in payment.document and jcs(payment.document["resource"]) != jcs(terms.document["resource"]):
        raise EvidenceError("the payment echoes another resource than the terms")
    echoed = encoding.as_object(payment.document.get("extensions", {}), "payment.extensions")
    said = encoding.as_object(terms.document.get("extensions"), "terms.extensions")
    for name, value in echoed.items():
        if name not in said or jcs(_without_id(name, value)) != jcs(said[name]):
            raise EvidenceError("the payment echoes another extensions than the terms")


def _without_id(name: str, extension: Any) -> Any:
    info = extension.get("info") if isinstance(extension, dict) else None
    if name != IDENTIFIER or not isinstance(info, dict):
        return extension
    return {**extension, "info": {member: value for member, value in info.items() if member != "id"}}


def parse_settlement(exchange: Exchange) -> Settlement:
    """What the service says of the settlement (x402 v2, PAYMENT-RESPONSE).

    Raises:
        MalformedError: not the record of a settlement that succeeded.
    """
    document = _header_json(exchange.headers, "payment-response")
    if document.get("success") is not True:
        raise MalformedError("settlement.success", "must be true")
    transaction = encoding.prefixed_hex_bytes(document.get("transaction"), "settlement.transaction", size=32)
    return Settlement(
        transaction="0x" + transaction.hex(),
        network=encoding.text(document.get("network"), "settlement.network"),
        payer=encoding.exact_address(document.get("payer"), "settlement.payer"),
        receipt=encoding.as_object(_extension_info(document, "settlement").get("receipt"), "settlement.receipt"),
    )


def authorization_hash(transfer: SignedTransfer) -> str:
    """``sha256:<hex>`` of a signed transfer authorization, by which a receipt names the one that was presented.

    Over the RFC 8785 form of the EIP-3009 message and its signature as x402 writes them, hex in lower case.
    """
    return jcs_digest(
        {
            "from": transfer.payer,
            "to": transfer.pay_to,
            "value": str(transfer.amount),
            "validAfter": str(transfer.valid_after),
            "validBefore": str(transfer.valid_before),
            "nonce": transfer.nonce,
            "signature": transfer.signature.lower(),
        }
    )


def _header_json(headers: Mapping[str, str], name: str) -> dict[str, Any]:
    if name not in headers:
        raise MalformedError(name, "header is missing")
    return encoding.as_object(encoding.parse_json(encoding.b64_bytes(headers[name], name), name), name)


def _extension_info(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    extensions = encoding.as_object(document.get("extensions"), f"{where}.extensions")
    extension = encoding.as_object(extensions.get(payment_proof.EXTENSION), f"{where}.extensions.offer-receipt")
    return encoding.as_object(extension.get("info"), f"{where}.extensions.offer-receipt.info")
