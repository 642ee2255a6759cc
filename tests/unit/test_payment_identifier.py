"""The id of a purchase: taken from the payment or from `Idempotency-Key`, and refused by name when it is none."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from x402.extensions.payment_identifier import (
    append_payment_identifier_to_extensions,
    is_valid_payment_id,
    validate_payment_identifier,
)
from x402.schemas import PaymentPayload

from service.payment.authorization import PaymentHeaderError
from service.payment.identifier import declaration, payment_identifier
from tests.payments import offer, pay

ID = "pay_7d5d747be160e280504c099d984bcfe0"


def payload(extensions: Any) -> PaymentPayload:
    return pay(offer()).model_copy(update={"extensions": extensions})


def test_what_is_declared_is_what_the_sdk_reads_and_fills_in() -> None:
    declared = declaration()
    assert validate_payment_identifier(declared["payment-identifier"]).valid
    filled = append_payment_identifier_to_extensions(declared, ID)
    assert payment_identifier(payload(filled), {}) == ID


@pytest.mark.parametrize("extensions", [None, {}, declaration(), {"payment-identifier": {"info": {"id": None}}}])
def test_an_id_is_welcome_and_not_needed(extensions: Any) -> None:
    assert payment_identifier(payload(extensions), {}) is None


@pytest.mark.parametrize("header", [ID, f'"{ID}"'])
def test_the_http_header_is_the_same_thing_by_another_name(header: str) -> None:
    assert payment_identifier(payload(None), {"idempotency-key": header}) == ID
    both = append_payment_identifier_to_extensions(declaration(), ID)
    assert payment_identifier(payload(both), {"idempotency-key": header}) == ID


def test_two_ids_for_one_purchase_are_refused() -> None:
    both = append_payment_identifier_to_extensions(declaration(), ID)
    with pytest.raises(PaymentHeaderError, match="not the id in the payment"):
        payment_identifier(payload(both), {"idempotency-key": ID + "x"})


@pytest.mark.parametrize("bad", ["x" * 15, "x" * 129, "x" * 16 + "\n", "pay id with spaces", "ключ-ключ-ключ-ключ", ""])
def test_an_id_of_another_form_is_refused_by_name_and_limit(bad: str) -> None:
    for extensions, headers, field in (
        ({"payment-identifier": {"info": {"required": False, "id": bad}}}, {}, "extensions.payment-identifier.info.id"),
        (None, {"idempotency-key": bad}, "Idempotency-Key"),
    ):
        with pytest.raises(PaymentHeaderError, match="16 to 128 letters, digits") as refusal:
            payment_identifier(payload(extensions), headers)
        assert refusal.value.field == field


@pytest.mark.parametrize("extension", ["x", [], {"info": []}, {"info": "x"}, {"id": ID}, {"info": {"id": 7}}])
def test_an_extension_that_is_none_is_refused(extension: Any) -> None:
    with pytest.raises(PaymentHeaderError, match="payment-identifier"):
        payment_identifier(payload({"payment-identifier": extension}), {})


@given(st.text(max_size=140))
def test_no_text_is_taken_for_an_id_that_the_sdk_would_not_take(text: str) -> None:
    try:
        found = payment_identifier(payload(None), {"idempotency-key": text})
    except PaymentHeaderError:
        return
    assert found is not None
    assert is_valid_payment_id(found)
