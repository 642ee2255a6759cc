"""A bundle has one spelling: what is read is what was written, and anything else is named and refused."""

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attestation import bundle as bundles
from attestation.bundle import Bundle, parse_bundle, stored_headers
from attestation.errors import MalformedError
from tests.fuzz import changed
from tests.purchases import Shop

SAVED = Shop().bundle().dumps()


def edited(change: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(SAVED)
    change(document)
    return json.dumps(document).encode()


def put(path: str, value: Any) -> Callable[[dict[str, Any]], object]:
    def change(document: dict[str, Any]) -> None:
        *parents, name = path.split("/")
        for parent in parents:
            document = document[parent]
        document[name] = value

    return change


def test_a_bundle_is_read_as_it_was_written() -> None:
    parsed = parse_bundle(SAVED.encode())
    assert isinstance(parsed, Bundle)
    assert parsed.dumps() == SAVED


def test_headers_that_no_signature_covers_are_not_kept() -> None:
    kept = stored_headers({"Content-Type": "text/plain", "Date": "today", "SIGNATURE": "sig=:AA==:"})
    assert kept == {"content-type": "text/plain", "signature": "sig=:AA==:"}


def test_a_body_that_is_not_text_is_kept_byte_for_byte() -> None:
    binary = b"\xff\x00binary"

    def change(document: dict[str, Any]) -> None:
        del document["terms"]["response"]["body"]
        document["terms"]["response"]["body_b64"] = b64encode(binary).decode()

    parsed = parse_bundle(edited(change))
    assert parsed.terms.body == binary
    assert json.loads(parsed.dumps())["terms"]["response"]["body_b64"] == b64encode(binary).decode()


@pytest.mark.parametrize("beside", [False, True])
def test_a_body_has_one_of_two_spellings_and_never_both(beside: bool) -> None:
    def change(document: dict[str, Any]) -> None:
        response = document["answer"]["response"]
        text = response["body"] if beside else response.pop("body")
        response["body_b64"] = b64encode(b"\xff" if beside else text.encode()).decode()

    with pytest.raises(MalformedError, match=r"answer\.response\.body_b64: is only for a body that is not UTF-8"):
        parse_bundle(edited(change))


def test_an_exchange_without_a_body_is_refused() -> None:
    with pytest.raises(MalformedError, match=r"manifest\.response\.body: must be a string"):
        parse_bundle(edited(lambda document: document["manifest"]["response"].pop("body")))


def test_a_file_beyond_the_limit_is_not_even_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "MAX_BUNDLE_BYTES", len(SAVED.encode()))
    assert parse_bundle(SAVED.encode()).dumps() == SAVED
    with pytest.raises(MalformedError, match="larger than"):
        parse_bundle(b"\xff" * (len(SAVED.encode()) + 1))


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("format", "tollseal.bundle/2", r"bundle\.format: must be"),
        ("more", 1, r"bundle\.more: is not a known field"),
        ("receipt", [], r"bundle\.receipt: must be a JSON object"),
        ("answer/request/url", "https://a.example/#part", "without a fragment"),
        ("answer/request/url", "https://a.example/p?", "normal spelling"),
        ("answer/request/url", "HTTPS://a.example/p", "normal spelling"),
        ("answer/request/url", "/v1/summarize", "absolute URL"),
        ("answer/request/url", "https://[::1/p", r"answer\.request\.url: must be a URL"),
        ("answer/request/headers/x-more", "1", r"headers\.x-more: is not a known field"),
        ("terms/request/headers", {"payment-signature": "e30="}, r"terms\.request\.headers\.payment-signature: is not"),
        ("answer/request/headers", {}, r"answer\.request\.headers\.payment-signature: is missing"),
        ("answer/response/headers/date", "today", r"response\.headers\.date: is not a known field"),
        ("answer/response/headers/content-type", " text/plain", "without blanks at its ends"),
        ("answer/response/headers/content-type", "text/plain\t", "visible ASCII"),
        ("answer/response/headers/content-type", "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "visible ASCII"),
        ("answer/response/headers/content-type", "", "visible ASCII"),
        ("answer/response/status", "200", r"response\.status: must be an integer"),
        ("answer/response/more", 1, r"response\.more: is not a known field"),
        ("answer/more", 1, r"answer\.more: is not a known field"),
    ],
)
def test_any_other_shape_is_refused_and_named(path: str, value: Any, where: str) -> None:
    with pytest.raises(MalformedError, match=where):
        parse_bundle(edited(put(path, value)))


@settings(max_examples=150, deadline=None)
@given(changed(json.loads(SAVED)))
def test_what_can_be_read_is_written_as_it_was_read_and_all_else_is_malformed(document: Any) -> None:
    try:
        parsed = parse_bundle(json.dumps(document).encode())
    except MalformedError:
        return
    assert json.loads(parsed.dumps()) == document


@given(st.binary(max_size=200))
def test_bytes_that_are_no_bundle_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedError):
        parse_bundle(data)
