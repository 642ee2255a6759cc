"""A receipt is one signed log: its shape is fixed, its events are in order, and no byte of it changes unnoticed."""

import json
from typing import Any

import pytest
from hypothesis import given, settings

from attestation.enclave.keyring import KeyRing
from attestation.errors import EvidenceError, MalformedError
from attestation.keyset import ALGO_HTTP, ALGO_RECEIPT, PublicKey, build_keyset
from attestation.receipt import (
    EVENT_ORDER,
    PAYMENT_SETTLED,
    REQUEST_FORWARDED,
    REQUEST_RECEIVED,
    check_signature,
    parse_receipt,
)
from tests.fuzz import changed
from tests.purchases import Shop

SHOP = Shop()
DOCUMENT: dict[str, Any] = SHOP.receipt(b"{}")
LOG: list[dict[str, Any]] = DOCUMENT["event_log"]


def test_a_paid_answers_receipt_holds_every_event_in_its_order() -> None:
    receipt = parse_receipt(DOCUMENT)
    assert tuple(event["type"] for event in receipt.events) == EVENT_ORDER
    assert receipt.event(PAYMENT_SETTLED)["type"] == PAYMENT_SETTLED
    check_signature(receipt, SHOP.keyset)


def test_an_event_that_is_missing_or_there_twice_is_no_answer() -> None:
    receipt = parse_receipt({**DOCUMENT, "event_log": [LOG[0], LOG[3], LOG[3]]})
    with pytest.raises(MalformedError, match=rf"exactly one {PAYMENT_SETTLED}, holds 0"):
        receipt.event(PAYMENT_SETTLED)
    with pytest.raises(MalformedError, match=rf"exactly one {REQUEST_FORWARDED}, holds 2"):
        receipt.event(REQUEST_FORWARDED)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"api_version": "aci/2"}, r"receipt\.api_version: must be aci/1"),
        ({"event_log": []}, r"receipt\.event_log: must be a list that is not empty"),
        ({"event_log": {"0": LOG[0]}}, r"receipt\.event_log: must be a list that is not empty"),
        ({"event_log": ["x"]}, r"receipt\.event_log: must be a JSON object"),
        ({"event_log": [{"type": 1}]}, r"receipt\.event_log\.type"),
        ({"event_log": [LOG[0], {}]}, r"receipt\.event_log\.type"),
        ({"event_log": LOG[1:]}, rf"receipt\.event_log: must begin with {REQUEST_RECEIVED}"),
        ({"receipt_id": None}, r"receipt\.receipt_id"),
        ({"chat_id": 1}, r"receipt\.chat_id"),
        ({"served_at": -1}, r"receipt\.served_at"),
        ({"served_at": True}, r"receipt\.served_at"),
        ({"signature": DOCUMENT["signature"].upper()}, r"receipt\.signature"),
        ({"signature": DOCUMENT["signature"][2:]}, r"receipt\.signature: must be 64 bytes"),
        ({"more": 1}, r"receipt\.more: is not a known field"),
    ],
)
def test_a_receipt_of_another_shape_is_refused_and_named(change: dict[str, Any], where: str) -> None:
    with pytest.raises(MalformedError, match=where):
        parse_receipt({**DOCUMENT, **change})


@pytest.mark.parametrize("name", sorted(DOCUMENT))
def test_a_receipt_without_a_field_is_refused(name: str) -> None:
    with pytest.raises(MalformedError, match=rf"receipt\.{name}: is missing"):
        parse_receipt({key: value for key, value in DOCUMENT.items() if key != name})


@pytest.mark.parametrize("change", [{"model": "other"}, {"chat_id": None}, {"served_at": 1}, {"event_log": LOG[:3]}])
def test_nothing_changes_under_the_signature(change: dict[str, Any]) -> None:
    with pytest.raises(EvidenceError, match="does not match its content"):
        check_signature(parse_receipt({**DOCUMENT, **change}), SHOP.keyset)


def test_a_receipt_of_another_keyset_is_refused() -> None:
    with pytest.raises(EvidenceError, match="the receipt names keyset"):
        check_signature(parse_receipt(DOCUMENT), Shop().keyset)


@pytest.mark.parametrize("key_id", ["", "nobody", "http", "payment"])
def test_only_a_key_whose_role_it_is_signs_receipts(key_id: str) -> None:
    with pytest.raises(EvidenceError, match=f"no {ALGO_RECEIPT} key with the id {key_id!r}"):
        check_signature(parse_receipt({**DOCUMENT, "key_id": key_id}), SHOP.keyset)


def test_the_receipt_keys_own_signature_is_refused_under_another_role() -> None:
    keys = KeyRing.generate()
    listed = tuple(
        PublicKey(key.key_id, ALGO_HTTP if key.algo == ALGO_RECEIPT else key.algo, key.public_key)
        for key in keys.public_keys()
    )
    keyset = build_keyset(subject=None, not_after=1, keys=listed)
    signed = parse_receipt(SHOP.receipt(b"{}", signer=keys, keyset_digest=keyset.digest))
    with pytest.raises(EvidenceError, match=f"no {ALGO_RECEIPT} key"):
        check_signature(signed, keyset)


@settings(max_examples=150, deadline=None)
@given(changed(DOCUMENT))
def test_what_can_be_read_is_the_signed_document_or_does_not_verify(document: Any) -> None:
    try:
        receipt = parse_receipt(document)
    except MalformedError:
        return
    if json.dumps(document, sort_keys=True) == json.dumps(DOCUMENT, sort_keys=True):  # to Python, true is 1
        check_signature(receipt, SHOP.keyset)
        return
    with pytest.raises((EvidenceError, MalformedError)):
        check_signature(receipt, SHOP.keyset)


def test_a_number_that_readers_do_not_agree_on_is_malformed() -> None:
    receipt = parse_receipt({**DOCUMENT, "served_at": 2**53})
    with pytest.raises(MalformedError, match="no canonical form"):
        check_signature(receipt, SHOP.keyset)
