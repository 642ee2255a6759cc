"""The messages of a purchase are read strictly: one version, one scheme, one spelling, nothing unknown."""

import json
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings

from attestation.encoding import b64
from attestation.errors import EvidenceError, MalformedError
from attestation.http_signature import Exchange
from attestation.keyset import ALGO_PAYMENT
from attestation.payment_proof import EXTENSION
from attestation.purchase import Terms, check_offer, parse_payment, parse_settlement, parse_terms
from tests.fuzz import changed
from tests.purchases import AMOUNT, NOW, ORIGIN, PAY_TO, TOKEN, TRANSACTION, URL, Shop, payment_terms

SHOP = Shop()
KEY = SHOP.keyset.key(ALGO_PAYMENT).public_key
BUNDLE = SHOP.bundle()
TERMS: dict[str, Any] = SHOP.terms_document()
PAYMENT: dict[str, Any] = json.loads(b64decode(BUNDLE.answer.request_headers["payment-signature"]))
SETTLEMENT: dict[str, Any] = json.loads(b64decode(BUNDLE.answer.headers["payment-response"]))


def terms(document: Any, *, status: int = 402) -> Exchange:
    text = json.dumps(document).encode()
    return Exchange("POST", URL, status, {"payment-required": b64(text)}, text)


def payment(document: Any) -> Exchange:
    header = {"payment-signature": b64(json.dumps(document).encode())}
    return Exchange("POST", URL, 200, {}, b"", request_headers=header)


def settlement(document: Any) -> Exchange:
    return Exchange("POST", URL, 200, {"payment-response": b64(json.dumps(document).encode())}, b"")


def offering(*offers: Mapping[str, Any], **changes: Any) -> Terms:
    return parse_terms(terms({**TERMS, "extensions": {EXTENSION: {"info": {"offers": list(offers)}}}, **changes}))


# Terms


def test_the_terms_are_those_of_the_402() -> None:
    parsed = parse_terms(terms(TERMS))
    assert (parsed.resource_url, len(parsed.accepts), len(parsed.offers)) == (URL, 1, 1)
    assert parsed.document == TERMS


@pytest.mark.parametrize("status", [200, 401, 403])
def test_only_a_402_has_terms(status: int) -> None:
    with pytest.raises(MalformedError, match=rf"terms\.status: must be 402, is {status}"):
        parse_terms(terms(TERMS, status=status))


def test_a_402_without_its_header_has_no_terms() -> None:
    with pytest.raises(MalformedError, match="payment-required: header is missing"):
        parse_terms(replace(terms(TERMS), headers={}))


def test_header_and_body_of_a_402_say_the_same() -> None:
    with pytest.raises(MalformedError, match=r"terms\.body: must hold the same document"):
        parse_terms(replace(terms(TERMS), body=json.dumps({**TERMS, "x402Version": 1}).encode()))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"x402Version": 1}, r"terms\.x402Version: must be 2"),
        ({"resource": URL}, r"terms\.resource"),
        ({"resource": {}}, r"terms\.resource\.url"),
        ({"accepts": []}, r"terms\.accepts: must be a list that is not empty"),
        ({"accepts": {"0": 1}}, r"terms\.accepts: must be a list that is not empty"),
        ({"accepts": [1]}, r"terms\.accepts: must be a JSON object"),
        ({"extensions": None}, r"terms\.extensions"),
        ({"extensions": {}}, r"terms\.extensions\.offer-receipt"),
        ({"extensions": {EXTENSION: {}}}, r"terms\.extensions\.offer-receipt\.info"),
        ({"extensions": {EXTENSION: {"info": {"offers": []}}}}, r"info\.offers: must be a list that is not empty"),
        ({"extensions": {EXTENSION: {"info": {"offers": "x"}}}}, r"info\.offers: must be a list that is not empty"),
        ({"extensions": {EXTENSION: {"info": {"offers": [1]}}}}, r"terms\.offers"),
    ],
)
def test_terms_of_another_shape_are_refused_and_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(MalformedError, match=where):
        parse_terms(terms({**TERMS, **change}))


@settings(max_examples=100, deadline=None)
@given(changed(TERMS))
def test_terms_are_read_in_full_or_are_malformed(document: Any) -> None:
    try:
        parsed = parse_terms(terms(document))
    except MalformedError:
        return
    assert parsed.document == document
    assert [dict(accept) for accept in parsed.accepts] == document["accepts"]


# Offers


def test_an_offer_of_the_402_that_says_what_the_402_says_holds() -> None:
    offer = SHOP.offer()
    assert check_offer(offering(offer), offer, public_key=KEY).amount == str(AMOUNT)


def test_a_genuine_offer_that_this_402_did_not_make_is_refused() -> None:
    with pytest.raises(EvidenceError, match="not one of those in the 402"):
        check_offer(offering(SHOP.offer()), SHOP.offer(valid_until=NOW + 1), public_key=KEY)


def test_an_offer_points_at_terms_that_exist() -> None:
    offer = SHOP.offer(accept_index=1)
    with pytest.raises(EvidenceError, match=r"points at accepts\[1\], of which there are 1"):
        check_offer(offering(offer), offer, public_key=KEY)


def test_an_offer_that_points_at_nothing_is_malformed() -> None:
    offer = SHOP.offer()
    del offer["acceptIndex"]
    with pytest.raises(MalformedError, match=r"offer\.acceptIndex"):
        check_offer(offering(offer), offer, public_key=KEY)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"amount": "1"}, "amount"),
        ({"pay_to": TOKEN}, "payTo"),
        ({"asset": PAY_TO}, "asset"),
        ({"network": "eip155:1"}, "network"),
        ({"scheme": "upto"}, "scheme"),
    ],
)
def test_an_offer_cannot_promise_other_terms_than_the_402_shows(change: dict[str, Any], name: str) -> None:
    offer = SHOP.offer(**change)
    with pytest.raises(EvidenceError, match=f"the offer's {name} is"):
        check_offer(offering(offer), offer, public_key=KEY)


def test_an_offer_for_another_resource_is_refused() -> None:
    offer = SHOP.offer(resource_url=f"{ORIGIN}/v1/other")
    with pytest.raises(EvidenceError, match=f"the offer is for {ORIGIN}/v1/other"):
        check_offer(offering(offer), offer, public_key=KEY)


# Payments


def test_a_payment_is_read_with_its_addresses_in_lower_case() -> None:
    parsed = parse_payment(payment(PAYMENT))
    assert (parsed.payer, parsed.pay_to, parsed.asset) == (SHOP.buyer.address.lower(), PAY_TO, TOKEN)
    assert (parsed.amount, parsed.valid_after, parsed.valid_before) == (AMOUNT, 0, NOW + 900)
    assert parsed.nonce == "0x" + "05" * 32


def authorization(**changes: Any) -> dict[str, Any]:
    payload = PAYMENT["payload"]
    return {"payload": {**payload, "authorization": {**payload["authorization"], **changes}}}


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"x402Version": 1}, r"payment\.x402Version: must be 2"),
        ({"more": 1}, r"payment\.more: is not a known field"),
        ({"accepted": []}, r"payment\.accepted"),
        ({"accepted": {**payment_terms(), "scheme": "upto"}}, r"payment\.accepted\.scheme: must be exact"),
        ({"accepted": {**payment_terms(), "asset": "0x1"}}, r"payment\.accepted\.asset"),
        ({"accepted": {**payment_terms(), "network": 1}}, r"payment\.accepted\.network"),
        ({"payload": 1}, r"payment\.payload"),
        ({"payload": {**PAYMENT["payload"], "more": 1}}, r"payment\.payload\.more"),
        ({"payload": {**PAYMENT["payload"], "signature": None}}, r"payment\.payload\.signature"),
        (authorization(more=1), r"payment\.authorization\.more"),
        (authorization(value=AMOUNT), r"payment\.authorization\.value"),
        (authorization(value=str(2**256)), r"payment\.authorization\.value"),
        (authorization(validBefore="-1"), r"payment\.authorization\.validBefore"),
        (authorization(nonce="0x" + "05" * 31), r"payment\.authorization\.nonce"),
        (authorization(to=PAY_TO.upper().replace("0X", "0x")), r"payment\.authorization\.to: .* EIP-55"),
    ],
)
def test_a_payment_of_another_shape_is_refused_and_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(MalformedError, match=where):
        parse_payment(payment({**PAYMENT, **change}))


@pytest.mark.parametrize("header", ["", "!", "e30", "bnVsbA==", b64(b'{"a":1,"a":1}')])
def test_a_payment_that_is_no_document_is_malformed(header: str) -> None:
    with pytest.raises(MalformedError, match="payment-signature"):
        parse_payment(Exchange("POST", URL, 200, {}, b"", request_headers={"payment-signature": header}))


@settings(max_examples=100, deadline=None)
@given(changed(PAYMENT))
def test_a_payment_is_read_in_full_or_is_malformed(document: Any) -> None:
    try:
        parsed = parse_payment(payment(document))
    except MalformedError:
        return
    assert parsed.document == document
    assert str(parsed.amount) == document["payload"]["authorization"]["value"]


# Settlements


def test_a_settlement_names_its_transaction_and_its_payer() -> None:
    parsed = parse_settlement(settlement(SETTLEMENT))
    assert (parsed.transaction, parsed.payer) == (TRANSACTION, SHOP.buyer.address.lower())
    assert parsed.receipt == BUNDLE.payment_receipt


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"success": False}, r"settlement\.success: must be true"),
        ({"success": 1}, r"settlement\.success: must be true"),
        ({"success": "true"}, r"settlement\.success: must be true"),
        ({"transaction": ""}, r"settlement\.transaction"),
        ({"transaction": TRANSACTION.upper()}, r"settlement\.transaction"),
        ({"network": None}, r"settlement\.network"),
        ({"payer": "0x1"}, r"settlement\.payer"),
        ({"extensions": {EXTENSION: {"info": {}}}}, r"settlement\.receipt"),
    ],
)
def test_a_settlement_of_another_shape_is_refused_and_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(MalformedError, match=where):
        parse_settlement(settlement({**SETTLEMENT, **change}))


@settings(max_examples=100, deadline=None)
@given(changed(SETTLEMENT))
def test_a_settlement_is_read_in_full_or_is_malformed(document: Any) -> None:
    try:
        parsed = parse_settlement(settlement(document))
    except MalformedError:
        return
    assert (parsed.transaction, parsed.network) == (document["transaction"], document["network"])
    assert parsed.receipt == document["extensions"][EXTENSION]["info"]["receipt"]
