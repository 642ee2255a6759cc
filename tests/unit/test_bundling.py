"""A bundle holds what came, and the offer in it is the one that the payment accepts."""

import json
from dataclasses import replace
from typing import Any

import pytest

from attestation.bundling import accepted_offer, collect, dump_terms, load_terms
from attestation.errors import MalformedError, ServiceError
from attestation.http_signature import Exchange
from attestation.payment_proof import EXTENSION
from tests.purchases import AMOUNT, BODY, URL, Shop

SHOP = Shop()
HONEST = SHOP.bundle()
STREAMED = SHOP.stream_bundle()


def terms(**changes: Any) -> Exchange:
    return SHOP.terms(SHOP.terms_document(**changes))


def collected(**changes: Any) -> Any:
    parts: dict[str, Any] = {
        "attestation": HONEST.attestation,
        "manifest": HONEST.manifest,
        "terms": HONEST.terms,
        "answer": HONEST.answer,
        "fetched": None,
    }
    return collect(**{**parts, **changes})


def test_a_bundle_is_put_together_from_what_came() -> None:
    assert collected() == HONEST
    streamed = collected(
        attestation=STREAMED.attestation,
        answer=STREAMED.answer,
        terms=STREAMED.terms,
        fetched=STREAMED.receipt_exchange,
    )
    assert streamed.receipt == STREAMED.receipt
    assert streamed.receipt_exchange == STREAMED.receipt_exchange


def test_the_offer_is_the_one_for_what_was_paid_and_not_the_first() -> None:
    accept = SHOP.terms_document()["accepts"][0]
    dearer = {**accept, "amount": str(AMOUNT + 1)}
    offers = [SHOP.offer(amount=str(AMOUNT + 1)), SHOP.offer(accept_index=1)]
    found = terms(accepts=[dearer, accept], extensions={EXTENSION: {"info": {"offers": offers}}})
    assert accepted_offer(found, HONEST.answer) == offers[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"accepts": [{**SHOP.terms_document()["accepts"][0], "amount": str(AMOUNT + 1)}]},
        {"extensions": {EXTENSION: {"info": {"offers": [SHOP.offer(accept_index=1)]}}}},
    ],
    ids=["other terms", "an offer for terms that are not there"],
)
def test_terms_without_what_was_paid_are_named(changes: dict[str, Any]) -> None:
    with pytest.raises(ServiceError, match="does not offer the terms that were paid"):
        collected(terms=terms(**changes))


def test_an_answer_without_its_receipt_is_malformed() -> None:
    bare = {name: value for name, value in HONEST.answer.headers.items() if name != "x-receipt"}
    with pytest.raises(MalformedError, match="x-receipt"):
        collected(answer=replace(HONEST.answer, headers=bare))


def test_terms_are_kept_without_the_request_and_come_back_with_it() -> None:
    kept = dump_terms(HONEST.terms)
    assert "A long text" not in kept
    assert load_terms(kept, method="POST", url=URL, request_body=BODY) == HONEST.terms


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"headers":[],"body":""}', '{"headers":{"a":1},"body":""}', "{"])
def test_anything_else_does_not_come_back_as_terms(text: str) -> None:
    with pytest.raises(MalformedError, match="terms"):
        load_terms(text, method="POST", url=URL, request_body=BODY)


def test_what_is_kept_is_json() -> None:
    assert set(json.loads(dump_terms(HONEST.terms))) == {"headers", "body"}
