"""Putting a bundle together out of what a purchase brought. Whether it proves anything is for the verifier to say."""

import json
from collections.abc import Mapping
from typing import Any

from attestation import encoding
from attestation.bundle import Bundle, stored_headers
from attestation.digest import jcs
from attestation.errors import ServiceError
from attestation.http_signature import Exchange
from attestation.purchase import parse_payment, parse_settlement, parse_terms


def collect(
    *, attestation: Exchange, manifest: Exchange, terms: Exchange, answer: Exchange, fetched: Exchange | None
) -> Bundle:
    """A bundle of an answer.

    Args:
        attestation: the report.
        manifest: the build manifest.
        terms: the 402 that was accepted.
        answer: request, payment and answer.
        fetched: the exchange that brought the receipt of a streamed answer; None when the answer carries it.

    Raises:
        MalformedError: the answer does not carry its proof, or the terms are none.
        ServiceError: the terms do not have what the payment accepts.
    """
    receipt = encoding.b64url_bytes(answer.headers.get("x-receipt"), "x-receipt") if fetched is None else fetched.body
    return Bundle(
        attestation=attestation,
        manifest=manifest,
        terms=terms,
        answer=answer,
        receipt=encoding.as_object(encoding.parse_json(receipt, "receipt"), "receipt"),
        offer=accepted_offer(terms, answer),
        payment_receipt=parse_settlement(answer).receipt,
        receipt_exchange=fetched,
    )


def accepted_offer(terms: Exchange, answer: Exchange) -> Mapping[str, Any]:
    """The signed offer of some terms that an answer's payment accepts.

    Raises:
        MalformedError: not terms, or not a payment.
        ServiceError: the terms do not have what the payment accepts.
    """
    accepted = jcs(parse_payment(answer).accepted)
    parsed = parse_terms(terms)
    for offer in parsed.offers:
        index = encoding.integer(offer.get("acceptIndex"), "offer.acceptIndex")
        if index < len(parsed.accepts) and jcs(parsed.accepts[index]) == accepted:
            return offer
    raise ServiceError("the service does not offer the terms that were paid")


def dump_terms(terms: Exchange) -> str:
    """A checked 402 as text to keep, without the request: that may hold what nobody else should read."""
    return json.dumps({"headers": stored_headers(terms.headers), "body": terms.body.decode("utf-8")})


def load_terms(text: str, *, method: str, url: str, request_body: bytes) -> Exchange:
    """The 402 of `dump_terms`, with its request.

    Raises:
        MalformedError: the text is not what `dump_terms` wrote.
    """
    kept = encoding.as_object(encoding.parse_json(text, "terms"), "terms")
    encoding.only(kept, "terms", {"headers", "body"})
    headers = encoding.as_object(kept["headers"], "terms.headers")
    return Exchange(
        method=method,
        url=url,
        status=402,
        headers={name: encoding.text(value, f"terms.headers.{name}") for name, value in headers.items()},
        body=encoding.text(kept["body"], "terms.body").encode("utf-8"),
        request_body=request_body,
    )
