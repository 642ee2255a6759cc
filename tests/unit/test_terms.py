"""What we offer, and what we make of the payment headers that strangers send."""

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
    encode_payment_signature_header,
)
from x402.schemas import PaymentRequired

from service.payment.authorization import (
    MAX_HEADER_BYTES,
    PaymentHeaderError,
    PaymentMismatchError,
    authorization_from_json,
    authorization_to_json,
    check_window,
    decode_payment_header,
    match_requirements,
    payment_key,
)
from service.payment.discovery import declare
from service.payment.terms import (
    Resource,
    as_json,
    encoded,
    payment_required,
    payment_response,
    payment_response_header,
    requirements_for,
)
from service.pricing import USDC_BASE, USDC_BASE_SEPOLIA, Price
from tests.payments import PAY_TO, TOKEN, as_document, as_header, authorize, offer, pay

RESOURCE = Resource("https://example.org/v1/summarize", "A summary", "application/json")
GOOD = as_document(pay(offer(), nonce="0x" + "ab" * 32))


def changed(path: str, value: Any) -> dict[str, Any]:
    """The good payment with one value replaced, or removed when the value is `...`."""
    document = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    place = document
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


def test_an_offer_carries_the_exact_price_and_the_tokens_signing_domain() -> None:
    offered = as_json(requirements_for(Price(10_000, USDC_BASE_SEPOLIA, PAY_TO, 60)))
    assert offered == {
        "scheme": "exact",
        "network": "eip155:84532",
        "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
        "amount": "10000",
        "payTo": "0x2222222222222222222222222222222222222222",
        "maxTimeoutSeconds": 60,
        "extra": {"name": "USDC", "version": "2"},
    }


def test_the_402_header_and_body_say_the_same() -> None:
    extensions: dict[str, Any] = {"offer-receipt": {"info": {"offers": []}}}
    document = payment_required([offer()], resource=RESOURCE, error="payment required", extensions=extensions)
    header, body = encoded(document)
    assert base64.b64decode(header) == body, "the same bytes"
    assert json.loads(body) == document
    decoded = decode_payment_required_header(header)
    assert isinstance(decoded, PaymentRequired), "the SDK reads it"
    assert decoded.model_dump(mode="json", by_alias=True, exclude_none=True) == document
    assert document["x402Version"] == 2
    assert document["error"] == "payment required"
    assert document["resource"]["url"] == RESOURCE.url
    assert document["extensions"] == extensions


def test_what_a_schema_calls_a_field_survives_and_what_it_says_about_it_does_not() -> None:
    schema = {"title": "T", "properties": {"title": {"type": "string", "title": "Title", "default": ""}}}
    declared = declare(body={"title": "x"}, body_schema=schema, answer={})
    body = declared["schema"]["properties"]["input"]["properties"]["body"]
    assert body == {"properties": {"title": {"type": "string"}}}


def test_a_402_that_nobody_could_pay_is_not_made() -> None:
    with pytest.raises(ValueError, match="without any accepted payment"):
        payment_required([], resource=RESOURCE, error="pay")


def test_the_settlement_header_can_be_read_by_the_sdk() -> None:
    document = payment_response(transaction="0x" + "aa" * 32, network="eip155:84532", payer=PAY_TO, amount=10_000)
    decoded = decode_payment_response_header(payment_response_header(document))
    assert (decoded.success, decoded.amount, decoded.transaction) == (True, "10000", "0x" + "aa" * 32)


def test_a_payment_made_by_the_sdk_is_understood_and_matched() -> None:
    payload = pay(offer(), nonce="0x" + "AB" * 32, valid_after=5, valid_before=2**256 - 1)
    authorization = match_requirements(decode_payment_header(encode_payment_signature_header(payload)), [offer()])
    assert authorization.key == (TOKEN.network, TOKEN.address, authorization.payer, "0x" + "ab" * 32)
    assert authorization.payer == payload.payload["authorization"]["from"].lower()
    assert (authorization.amount, authorization.valid_after, authorization.valid_before) == (10_000, 5, 2**256 - 1)
    assert authorization.pay_to == PAY_TO
    assert payment_key(payload) == authorization.key


def test_the_signature_is_not_shown_when_a_payment_is_printed() -> None:
    authorization = authorize()
    assert authorization.signature[2:] not in repr(authorization)


def test_a_payment_survives_being_stored() -> None:
    authorization = authorize()
    assert authorization_from_json(authorization_to_json(authorization)) == authorization
    for broken in ("", "[]", "{}", '{"payload":1,"requirements":2}', '{"payload":{},"requirements":{}}'):
        with pytest.raises(PaymentHeaderError):
            authorization_from_json(broken)


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("x402Version", 1, "x402Version"),
        ("x402Version", 3, "x402Version"),
        ("x402Version", "2", "x402Version"),
        ("x402Version", 2.0, "x402Version"),
        ("x402Version", True, "x402Version"),
        ("x402Version", ..., "x402Version"),
        ("payload", ..., "payload"),
        ("payload", "0x", "payload"),
        ("payload", [], "payload"),
        ("payload.permit2Authorization", {}, "payload.permit2Authorization"),
        ("payload.authorization", ..., "payload.authorization"),
        ("payload.authorization", None, "payload.authorization"),
        ("payload.authorization.from", ..., "payload.authorization.from"),
        ("payload.authorization.from", "0x12", "payload.authorization.from"),
        ("payload.authorization.from", "vitalik.eth", "payload.authorization.from"),
        ("payload.authorization.to", PAY_TO + "00", "payload.authorization.to"),
        ("payload.authorization.to", PAY_TO + "\n", "payload.authorization.to"),
        ("payload.authorization.value", 10_000, "payload.authorization.value"),
        ("payload.authorization.value", "-1", "payload.authorization.value"),
        ("payload.authorization.value", "1e4", "payload.authorization.value"),
        ("payload.authorization.value", "010", "payload.authorization.value"),
        ("payload.authorization.value", "0x2710", "payload.authorization.value"),
        ("payload.authorization.value", str(2**256), "payload.authorization.value"),
        ("payload.authorization.validAfter", None, "payload.authorization.validAfter"),
        ("payload.authorization.validBefore", "soon", "payload.authorization.validBefore"),
        ("payload.authorization.nonce", "0x" + "ab" * 31, "payload.authorization.nonce"),
        ("payload.authorization.nonce", "ab" * 32, "payload.authorization.nonce"),
        ("payload.authorization.nonce", 7, "payload.authorization.nonce"),
        ("payload.signature", ..., "payload.signature"),
        ("payload.signature", "0x" + "00" * 64, "payload.signature"),
        ("payload.signature", "0x" + "0" * 131, "payload.signature"),
        ("payload.signature", "0x" + "00" * 4097, "payload.signature"),
        ("payload.signature", "0x" + "zz" * 65, "payload.signature"),
        ("accepted", ..., "accepted"),
        ("accepted", [], "accepted"),
        ("accepted.amount", 10_000, "accepted.amount"),
        ("accepted.payTo", ..., "accepted.payTo"),
        ("accepted.extra", "USDC", "accepted.extra"),
        ("resource", "https://example.org", "resource"),
        ("extensions", [], "extensions"),
    ],
)
def test_a_malformed_payment_is_refused_by_the_name_of_the_field(path: str, value: Any, field: str) -> None:
    with pytest.raises(PaymentHeaderError) as refusal:
        decode_payment_header(as_header(changed(path, value)))
    assert refusal.value.field == field
    assert refusal.value.message


def test_version_1_is_told_what_is_spoken_here() -> None:
    with pytest.raises(PaymentHeaderError, match="version 1 is not supported; this service speaks x402 version 2"):
        decode_payment_header(as_header({"x402Version": 1, "scheme": "exact", "network": "base", "payload": {}}))


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("", "valid JSON"),
        ("not base64!", "base64"),
        ("eyJ4NDAy Vmpc24=", "base64"),
        ("\xff\xfe", "base64"),
        ("☃", "base64"),
        (base64.b64encode(b"\xff\xff").decode(), "valid JSON"),
        (base64.b64encode(b"{").decode(), "valid JSON"),
        (base64.b64encode(b"[" * 9_000).decode(), "valid JSON"),
        (base64.b64encode(b'{"a":' * 2_000).decode(), "valid JSON"),
        (base64.b64encode(b'{"x402Version":' + b"9" * 9_000 + b"}").decode(), "valid JSON"),
        (base64.b64encode(b'{"x402Version":NaN}').decode(), "valid JSON"),
        (base64.b64encode(b'{"extensions":"\\ud800"}').decode(), "valid JSON"),
        (as_header([]), "JSON object"),
        (as_header(None), "JSON object"),
        ("A" * (MAX_HEADER_BYTES + 1), f"longer than {MAX_HEADER_BYTES} bytes"),
    ],
)
def test_bytes_that_are_no_payment_are_refused(header: str, reason: str) -> None:
    with pytest.raises(PaymentHeaderError, match=reason) as refusal:
        decode_payment_header(header)
    assert refusal.value.field == "PAYMENT-SIGNATURE"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=20), inner, max_size=3),
    max_leaves=8,
)
paths = st.sampled_from(
    [
        "x402Version",
        "payload",
        "accepted",
        "resource",
        "extensions",
        *(f"payload.{name}" for name in GOOD["payload"]),
        *(f"payload.authorization.{name}" for name in GOOD["payload"]["authorization"]),
        *(f"accepted.{name}" for name in GOOD["accepted"]),
    ]
)


@given(st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()) | json_values.map(as_header))
def test_no_header_makes_decoding_fail_in_another_way(header: str) -> None:
    with pytest.raises(PaymentHeaderError):
        decode_payment_header(header)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(path=paths, value=json_values)
def test_no_change_of_a_good_payment_makes_it_fail_in_another_way_or_pay_less(path: str, value: Any) -> None:
    try:
        authorization = match_requirements(decode_payment_header(as_header(changed(path, value))), [offer()])
    except (PaymentHeaderError, PaymentMismatchError):
        return
    assert authorization.amount == 10_000
    assert authorization.pay_to == PAY_TO
    assert authorization.requirements == offer()
    assert authorization.payload.accepted == offer()
    assert authorization_from_json(authorization_to_json(authorization)) == authorization


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        ("accepted.scheme", "upto", "scheme"),
        ("accepted.network", "eip155:8453", "network"),
        ("accepted.asset", "0x" + "44" * 20, "asset"),
        ("accepted.payTo", "0x" + "44" * 20, "payTo"),
        ("accepted.amount", "9999", "amount"),
        ("accepted.extra.name", "USD Coin", "extra.name"),
        ("accepted.extra.version", ..., "extra.version"),
        ("payload.authorization.to", "0x" + "44" * 20, "authorization.to"),
        ("payload.authorization.value", "9999", "authorization.value"),
        ("payload.authorization.value", "10001", "authorization.value"),
        ("payload.authorization.validBefore", "0", "authorization.validBefore"),
    ],
)
def test_a_payment_of_other_terms_is_refused_by_the_name_of_the_field(path: str, value: Any, field: str) -> None:
    with pytest.raises(PaymentMismatchError) as refusal:
        match_requirements(decode_payment_header(as_header(changed(path, value))), [offer()])
    assert refusal.value.field == field


def test_a_clients_own_copy_of_the_terms_is_never_used() -> None:
    cheap = changed("accepted.amount", "1")
    cheap["payload"]["authorization"]["value"] = "1"
    with pytest.raises(PaymentMismatchError, match="amount"):
        match_requirements(decode_payment_header(as_header(cheap)), [offer()])
    slow = match_requirements(decode_payment_header(as_header(changed("accepted.maxTimeoutSeconds", 10**9))), [offer()])
    assert slow.requirements.max_timeout_seconds == slow.payload.accepted.max_timeout_seconds == 600


def test_nothing_of_a_client_but_what_was_checked_is_sent_on_or_stored() -> None:
    text = json.dumps({**GOOD, "extensions": {"x": "HUGE"}, "resource": {"url": "https://other.example"}})
    header = base64.b64encode(text.replace('"HUGE"', "1e999").encode()).decode()
    for resource, url in ((None, None), (RESOURCE, RESOURCE.url)):
        authorization = match_requirements(decode_payment_header(header), [offer()], resource=resource)
        sent = json.loads(authorization.facilitator_request)["paymentPayload"]
        assert set(sent) - {"resource"} == {"x402Version", "payload", "accepted"}
        assert sent.get("resource", {}).get("url") == url
        assert "other.example" not in authorization_to_json(authorization)


def test_unknown_keys_beside_the_authorization_go_no_further() -> None:
    authorization = match_requirements(
        decode_payment_header(as_header(changed("payload.sponsor", {"a": 1}))), [offer()]
    )
    assert set(authorization.payload.payload) == {"authorization", "signature"}


def test_addresses_that_differ_only_in_case_are_equal() -> None:
    document = as_document(pay(offer(USDC_BASE), nonce="0x" + "ab" * 32))
    for place, name in ((document["accepted"], "asset"), (document["accepted"], "payTo")):
        place[name] = place[name].lower()
    lower = match_requirements(decode_payment_header(as_header(document)), [offer(USDC_BASE)])
    assert lower.asset == USDC_BASE.address.lower()


def test_the_matching_offer_is_found_among_several() -> None:
    offers = [offer(USDC_BASE), offer(USDC_BASE_SEPOLIA), offer()]
    assert match_requirements(pay(offers[1]), offers).requirements == offers[1]
    assert match_requirements(pay(offers[2]), offers).requirements == offers[2]


def test_an_authorization_must_outlive_the_work_it_pays_for() -> None:
    authorization = authorize(valid_after=1_000, valid_before=2_000)
    check_window(authorization, now=1_001, needed_seconds=999)
    for now, reason in ((2_000, "has expired"), (1_950, "at least 100 seconds"), (1_000, "not valid yet")):
        with pytest.raises(PaymentMismatchError, match=reason):
            check_window(authorization, now=now, needed_seconds=100)
