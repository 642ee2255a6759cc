"""The bundle: everything a stranger needs to check one paid answer, in one JSON file.

It holds the four HTTP exchanges of a purchase with their signatures (report, manifest, terms, answer) and the signed
artifacts that came out of them; for a streamed answer also the exchange that brought its receipt. Nothing in it is
trusted: every byte is covered by a check of `attestation.verifier`.
The shape is published in docs/formats.md.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from attestation import encoding
from attestation.errors import MalformedError
from attestation.http_signature import COVERED_FIELDS, SIGNATURE_FIELDS, Exchange

FORMAT: Final = "tollseal.bundle/1"
PAYMENT_HEADER: Final = "payment-signature"
"""The only request header that a bundle keeps: the payment itself (x402 v2 over HTTP)."""

MAX_BUNDLE_BYTES: Final = 64 << 20
"""Largest bundle that is read: far above the largest document and answer the service takes."""

_FIELD_VALUE: Final = re.compile(r"[!-~](?:[ -~]*[!-~])?")

_STORED_FIELDS: Final = frozenset((*COVERED_FIELDS, *SIGNATURE_FIELDS))


@dataclass(frozen=True, slots=True)
class Bundle:
    """One purchase, as it went over the wire."""

    attestation: Exchange
    """``GET /v1/aci/attestation?nonce=`` with the buyer's own nonce."""
    manifest: Exchange
    """``GET /.well-known/tee-manifest.json``."""
    terms: Exchange
    """The unpaid request and its 402."""
    answer: Exchange
    """The same request with the payment, and the answer."""
    receipt: Mapping[str, Any]
    offer: Mapping[str, Any]
    """The signed offer that was accepted."""
    payment_receipt: Mapping[str, Any]
    """The signed x402 receipt."""
    receipt_exchange: Exchange | None = None
    """``GET /v1/aci/receipts/<x-receipt-id>`` after the end of a streamed answer; None when it came in one piece."""

    def to_json(self) -> dict[str, Any]:
        fetched = self.receipt_exchange
        return {
            "format": FORMAT,
            "attestation": exchange_json(self.attestation),
            "manifest": exchange_json(self.manifest),
            "terms": exchange_json(self.terms),
            "answer": exchange_json(self.answer),
            "receipt": self.receipt,
            "offer": self.offer,
            "x402_receipt": self.payment_receipt,
            **({} if fetched is None else {"receipt_exchange": exchange_json(fetched)}),
        }

    def dumps(self) -> str:
        """The bundle as the text of a file, indented for reading."""
        return json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n"


def stored_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Those response headers that a signature covers or consists of; the others prove nothing and are dropped."""
    return {name.lower(): value for name, value in headers.items() if name.lower() in _STORED_FIELDS}


def parse_bundle(data: bytes) -> Bundle:
    """A bundle from the bytes of its file.

    Raises:
        MalformedError: not a bundle of this format; the field is named.
    """
    if len(data) > MAX_BUNDLE_BYTES:
        raise MalformedError("bundle", f"is larger than {MAX_BUNDLE_BYTES} bytes")
    document = encoding.as_object(encoding.parse_json(data, "bundle"), "bundle")
    encoding.only(
        document,
        "bundle",
        {"format", "attestation", "manifest", "terms", "answer", "receipt", "offer", "x402_receipt"},
        frozenset({"receipt_exchange"}),
    )
    if document["format"] != FORMAT:
        raise MalformedError("bundle.format", f"must be {FORMAT}")
    fetched = None
    if "receipt_exchange" in document:
        fetched = _parse_exchange(document["receipt_exchange"], "bundle.receipt_exchange", paid=False)
    return Bundle(
        attestation=_parse_exchange(document["attestation"], "bundle.attestation", paid=False),
        manifest=_parse_exchange(document["manifest"], "bundle.manifest", paid=False),
        terms=_parse_exchange(document["terms"], "bundle.terms", paid=False),
        answer=_parse_exchange(document["answer"], "bundle.answer", paid=True),
        receipt=encoding.as_object(document["receipt"], "bundle.receipt"),
        offer=encoding.as_object(document["offer"], "bundle.offer"),
        payment_receipt=encoding.as_object(document["x402_receipt"], "bundle.x402_receipt"),
        receipt_exchange=fetched,
    )


def exchange_json(exchange: Exchange) -> dict[str, Any]:
    """An exchange as bundles write it (docs/formats.md)."""
    return {
        "request": {
            "method": exchange.method,
            "url": exchange.url,
            "headers": dict(exchange.request_headers),
            **_body_json(exchange.request_body),
        },
        "response": {
            "status": exchange.status,
            "headers": stored_headers(exchange.headers),
            **_body_json(exchange.body),
        },
    }


def _body_json(body: bytes) -> dict[str, str]:
    """A body as text where it is text, so that people can read a bundle; as base64 where it is not."""
    try:
        return {"body": body.decode("utf-8")}
    except UnicodeDecodeError:
        return {"body_b64": encoding.b64(body)}


def _parse_body(value: Mapping[str, Any], where: str) -> bytes:
    if "body_b64" not in value:
        return encoding.text(value.get("body"), f"{where}.body").encode("utf-8")  # no JSON text has a lone surrogate
    data = encoding.b64_bytes(value["body_b64"], f"{where}.body_b64")
    if "body" in value or "body" in _body_json(data):
        raise MalformedError(f"{where}.body_b64", "is only for a body that is not UTF-8")
    return data


def _parse_exchange(value: Any, where: str, *, paid: bool) -> Exchange:
    exchange = encoding.as_object(value, where)
    encoding.only(exchange, where, {"request", "response"})
    bodies = frozenset({"body", "body_b64"})
    request = encoding.as_object(exchange["request"], f"{where}.request")
    encoding.only(request, f"{where}.request", {"method", "url", "headers"}, bodies)
    response = encoding.as_object(exchange["response"], f"{where}.response")
    encoding.only(response, f"{where}.response", {"status", "headers"}, bodies)
    headers = _parse_headers(response["headers"], f"{where}.response.headers")
    encoding.only(headers, f"{where}.response.headers", set(), _STORED_FIELDS)
    request_headers = _parse_headers(request["headers"], f"{where}.request.headers")
    encoding.only(request_headers, f"{where}.request.headers", {PAYMENT_HEADER} if paid else set())
    return Exchange(
        method=encoding.text(request["method"], f"{where}.request.method"),
        url=_parse_url(request["url"], f"{where}.request.url"),
        request_headers=request_headers,
        request_body=_parse_body(request, f"{where}.request"),
        status=encoding.integer(response["status"], f"{where}.response.status"),
        headers=headers,
        body=_parse_body(response, f"{where}.response"),
    )


def _parse_url(value: Any, where: str) -> str:
    """A URL in the one spelling that has no parts which signatures do not see."""
    url = encoding.text(value, where)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise MalformedError(where, "must be a URL") from error
    if parts.fragment or parts.geturl() != url or not parts.netloc:
        raise MalformedError(where, "must be an absolute URL in its normal spelling, without a fragment")
    return url


def _parse_headers(value: Any, where: str) -> dict[str, str]:
    headers = encoding.as_object(value, where)
    return {name: _parse_field(item, f"{where}.{name}") for name, item in headers.items()}


def _parse_field(value: Any, where: str) -> str:
    """A field's value as RFC 9110 section 5.5 means it: blanks around it are not part of it."""
    field = encoding.text(value, where)
    if not _FIELD_VALUE.fullmatch(field):
        raise MalformedError(where, "must be visible ASCII without blanks at its ends")
    return field
