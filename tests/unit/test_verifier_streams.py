"""A streamed answer is bound by its receipt alone, so without the whole of it nothing is verified."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation.bundle import Bundle, parse_bundle
from attestation.digest import digest
from attestation.policy import Policy
from attestation.verdict import Result, Status, Verdict
from attestation.verifier import Verifier
from tests.purchases import NOW, ORIGIN, Shop, stream_body

SHOP = Shop()
HONEST = SHOP.stream_bundle()


def judge(bundle: Bundle | bytes) -> Verdict:
    return Verifier(Policy(allow_simulated=True), now=NOW).verify_bundle(bundle)


def failures(verdict: Verdict) -> dict[str, str]:
    return {check.id: check.detail for check in verdict.checks if check.status is Status.FAIL}


def test_an_honest_stream_is_as_good_as_an_answer_in_one_piece() -> None:
    for bundle in (HONEST, HONEST.dumps().encode()):
        verdict = judge(bundle)
        assert failures(verdict) == {}
        assert verdict.result is Result.SIMULATED
    assert "without its body" in judge(HONEST).check("answer.signature").detail
    assert judge(HONEST).check("bundle.format").detail == f"5 exchanges with {ORIGIN}"
    body = stream_body()
    assert judge(HONEST).check("receipt.response").detail == f"{len(body)} bytes, {digest(body)}"


def test_a_stream_is_kept_with_the_exchange_that_brought_its_receipt() -> None:
    parsed = parse_bundle(HONEST.dumps().encode())
    assert parsed.receipt_exchange is not None
    assert parsed.dumps() == HONEST.dumps()
    assert "receipt_exchange" not in json.loads(SHOP.bundle().dumps())


@settings(max_examples=300, deadline=None)
@given(st.integers(0, len(HONEST.answer.body) - 1), st.integers(1, 255))
def test_any_byte_of_the_stream_changed_is_found(position: int, difference: int) -> None:
    body = HONEST.answer.body
    changed = body[:position] + bytes([body[position] ^ difference]) + body[position + 1 :]
    verdict = judge(replace(HONEST, answer=replace(HONEST.answer, body=changed)))
    assert set(failures(verdict)) == {"receipt.response"}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(HONEST.answer.body)), st.integers(0, 40), st.binary(max_size=4))
def test_bytes_inserted_or_cut_out_of_the_stream_are_found(position: int, size: int, filling: bytes) -> None:
    body = HONEST.answer.body
    changed = body[:position] + filling + body[position + size :]
    if changed != body:
        assert judge(replace(HONEST, answer=replace(HONEST.answer, body=changed))).result is Result.FAILED


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_byte_of_the_receipts_exchange_changed_is_found(data: st.DataObject) -> None:
    saved = HONEST.dumps().encode()
    start = saved.index(b'"receipt_exchange"')
    position = data.draw(st.integers(start, len(saved) - 1))
    changed = saved[:position] + data.draw(st.binary(min_size=1, max_size=1)) + saved[position + 1 :]
    try:
        same = json.loads(changed) == json.loads(saved)
    except ValueError:
        same = False
    if not same:
        assert judge(changed).result is Result.FAILED


def without_receipt() -> Bundle:
    return replace(HONEST, receipt_exchange=None)


def buffered_with_receipt() -> Bundle:
    bundle = SHOP.bundle()
    return replace(bundle, receipt_exchange=SHOP.receipt_exchange(bundle.receipt))


def incomplete() -> Bundle:
    shop = Shop(events={"response.returned": {"complete": False}})
    return shop.stream_bundle()


def other_receipt(receipt: str = "rcpt-2") -> Bundle:
    other = SHOP.receipt(stream_body(), receipt_id=receipt)
    return replace(HONEST, receipt_exchange=SHOP.receipt_exchange(other))


def other_receipt_of_the_same_id() -> Bundle:
    other = SHOP.receipt(stream_body(), served_at=NOW + 1)
    return replace(HONEST, receipt_exchange=SHOP.receipt_exchange(other))


def fetched(**changes: object) -> Callable[[], Bundle]:
    def make() -> Bundle:
        assert HONEST.receipt_exchange is not None
        unsigned = {name: value for name, value in HONEST.receipt_exchange.headers.items() if name == "content-type"}
        exchange = SHOP.signed(replace(HONEST.receipt_exchange, headers=unsigned, **changes))  # type: ignore[arg-type]
        return replace(HONEST, receipt_exchange=exchange)

    return make


def fetched_elsewhere() -> Bundle:
    shop = Shop()
    return replace(HONEST, receipt_exchange=shop.receipt_exchange(HONEST.receipt))


def stream(body: bytes) -> Callable[[], Bundle]:
    return lambda: SHOP.stream_bundle(body=body)


CASES: dict[str, tuple[Callable[[], Bundle], str, str]] = {
    "no receipt exchange": (without_receipt, "bundle.format", "must be there for a streamed answer"),
    "a receipt exchange of an answer in one piece": (buffered_with_receipt, "bundle.format", "and only then"),
    "a stream that broke": (incomplete, "receipt.response", "not complete"),
    "another receipt": (other_receipt, "receipt.signature", "not under its own id"),
    "another receipt of that id": (other_receipt_of_the_same_id, "receipt.signature", "another one than the bundle's"),
    "a receipt by chat id": (
        fetched(url=f"{ORIGIN}/v1/aci/receipts/sum-1"), "receipt.signature", "not under its own id"),
    "a receipt with a query": (
        fetched(url=f"{ORIGIN}/v1/aci/receipts/rcpt-1?a=1"), "receipt.signature", "not under its own id"),
    "a receipt from another host": (
        fetched(url="https://other.example/v1/aci/receipts/rcpt-1"), "bundle.format", "different services"),
    "a refusal": (fetched(status=404), "receipt.signature", "not a 200"),
    "a POST": (fetched(method="POST"), "receipt.signature", "not a 200"),
    "a request body": (fetched(request_body=b"x"), "receipt.signature", "without a body"),
    "a receipt under other keys": (fetched_elsewhere, "receipt.signature", "signature"),
    "events of another answer": (stream(stream_body(answer_id="sum-2")), "receipt.response", "another answer id"),
    "no events": (stream(b"data: [DONE]\n\n"), "receipt.response", "another answer id"),
    "no end": (stream(stream_body()[: -len(b"data: [DONE]\n\n")]), "receipt.response", "must end with"),
    "JSON in one piece": (stream(b'{"id":"sum-1"}'), "receipt.response", "ends within an event"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_a_whole_stream_with_its_receipt_is_not_verified(case: str) -> None:
    make, check, words = CASES[case]
    verdict = judge(make())
    assert words in failures(verdict)[check]
    assert verdict.exit_code == 1
