"""A response signature covers the whole response and the request it answers, and nothing less is accepted."""

import datetime
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import pytest
from http_message_signatures import (
    ContentDigest,
    HTTPMessageSignaturesException,
    HTTPMessageSigner,
    MappingKeyResolver,
)
from http_message_signatures.algorithms import ED25519
from hypothesis import given
from hypothesis import strategies as st

from attestation.enclave.keyring import KeyRing
from attestation.encoding import b64
from attestation.errors import EvidenceError, MalformedError
from attestation.http_signature import (
    Exchange,
    content_digest,
    key_directory,
    required_components,
    sign_response,
    sign_stream_head,
    verify_response,
    verify_stream_head,
)
from attestation.keyset import ALGO_HTTP, PublicKey

NOW = 1_790_000_000
KEYS = KeyRing.generate()
KEY = next(key for key in KEYS.public_keys() if key.algo == ALGO_HTTP)
PLAIN = Exchange(
    "GET", "https://a.example/p?q=1", 200, {"content-type": "application/json", "x-receipt-id": "r"}, b"{}"
)

STREAM = replace(PLAIN, headers={**PLAIN.headers, "content-type": "text/event-stream; charset=utf-8"}, body=b"")


def signed(exchange: Exchange = PLAIN, keys: KeyRing = KEYS, created: int = NOW) -> Exchange:
    return replace(exchange, headers={**exchange.headers, **sign_response(exchange, keys, created=created)})


def refused(exchange: Exchange, key: PublicKey = KEY, now: int = NOW) -> None:
    with pytest.raises(EvidenceError):
        verify_response(exchange, key, now=now)


def without(headers: Mapping[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in headers.items() if key != name}


def test_a_signed_response_verifies_and_says_when() -> None:
    assert verify_response(signed(), KEY, now=NOW) == NOW


@given(
    status=st.integers(min_value=100, max_value=599),
    body=st.binary(max_size=200),
    path=st.text("abc/%20", max_size=10).filter(lambda text: "%" not in text or "%20" in text),
)
def test_any_response_can_be_signed(status: int, body: bytes, path: str) -> None:
    exchange = Exchange("POST", f"http://localhost:8402/{path.replace('%', '')}", status, {}, body)
    assert verify_response(signed(exchange), KEY, now=NOW) == NOW


@pytest.mark.parametrize(
    "changed",
    [
        replace(signed(), status=201),
        replace(signed(), body=b"{ }"),
        replace(signed(), body=b""),
        replace(signed(), method="POST"),
        replace(signed(), url="https://a.example/other?q=1"),
        replace(signed(), url="https://b.example/p?q=1"),
        replace(signed(), url="https://a.example/p?q=2"),
        replace(signed(), url="https://a.example/p"),
        replace(signed(), headers={**signed().headers, "x-receipt-id": "s"}),
        replace(signed(), headers={**signed().headers, "payment-response": "e30="}),
        *(replace(signed(), headers=without(signed().headers, name)) for name in signed().headers),
    ],
)
def test_any_change_is_refused(changed: Exchange) -> None:
    refused(changed)


def test_a_query_must_be_covered_when_there_is_one() -> None:
    unasked = signed(replace(PLAIN, url="https://a.example/p"))
    refused(replace(unasked, url="https://a.example/p?q=1"))


def test_another_key_or_key_id_is_refused() -> None:
    other = next(key for key in KeyRing.generate().public_keys() if key.algo == ALGO_HTTP)
    refused(signed(), other)
    refused(signed(), PublicKey("http-2", KEY.algo, KEY.public_key))


def test_a_signature_from_the_future_is_refused_and_a_small_skew_is_not() -> None:
    refused(signed(created=NOW + 61))
    assert verify_response(signed(created=NOW + 59), KEY, now=NOW) == NOW + 59


def test_a_signature_without_a_time_or_with_an_end_is_refused() -> None:
    honest = signed().headers["signature-input"]
    for written, reason in (
        (honest.replace(f";created={NOW}", ""), 'it has no "created" time'),
        (honest + f";expires={NOW + 1}", "an expiry is not part of this profile"),
    ):
        with pytest.raises(EvidenceError, match=reason):
            verify_response(replace(signed(), headers={**signed().headers, "signature-input": written}), KEY, now=NOW)


def test_a_signature_has_one_spelling() -> None:
    exchange = signed()
    honest = exchange.headers["signature"]
    stray = honest[:-4] + {"A": "B", "Q": "R", "g": "h", "w": "x"}[honest[-4]] + honest[-3:]
    for written in (" " + honest, honest + " ", honest + ";a", honest.replace("==:", ":"), stray):
        changed = replace(exchange, headers={**exchange.headers, "signature": written})
        with pytest.raises(EvidenceError, match="exactly one signature, in canonical form"):
            verify_response(changed, KEY, now=NOW)


def test_what_is_signed_has_one_spelling() -> None:
    exchange = signed()
    written = exchange.headers["signature-input"].replace('" "', '"  "')
    with pytest.raises(EvidenceError, match="exactly one signature, in canonical form"):
        verify_response(replace(exchange, headers={**exchange.headers, "signature-input": written}), KEY, now=NOW)


def test_an_answer_from_what_is_no_address_is_refused() -> None:
    with pytest.raises(EvidenceError, match="malformed"):
        verify_response(replace(signed(), url="https://[::1/p?q=1"), KEY, now=NOW)


def test_a_signature_for_another_purpose_is_refused() -> None:
    headers = dict(signed().headers)
    headers["signature-input"] = headers["signature-input"].replace("x402-response", "other-purpose")
    refused(replace(signed(), headers=headers))


def test_a_second_signature_beside_ours_is_refused() -> None:
    headers = dict(signed().headers)
    headers["signature-input"] += ', b=("@status");created=1;keyid="http";alg="ed25519";tag="x402-response"'
    headers["signature"] += ", b=:AAAA:"
    refused(replace(signed(), headers=headers))


@pytest.mark.parametrize("url", ["not a url", "http://", "http://host/%zz", "http://host/\N{SNOWMAN}"])
def test_a_target_that_cannot_be_expressed_is_an_error_and_not_an_unsigned_response(url: str) -> None:
    with pytest.raises(MalformedError):
        sign_response(replace(PLAIN, url=url), KEYS, created=NOW)


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_header_makes_the_verifier_raise_anything_else(first: str, second: str) -> None:
    refused(
        replace(
            signed(), headers={**PLAIN.headers, "content-digest": "x", "signature-input": first, "signature": second}
        )
    )


def test_the_directory_holds_the_key_as_a_jwk() -> None:
    (entry,) = key_directory(KEY)["keys"]
    assert (entry["kty"], entry["crv"], entry["kid"]) == ("OKP", "Ed25519", KEY.key_id)


@given(
    method=st.sampled_from(["GET", "POST"]),
    url=st.sampled_from(["http://LocalHost:80/a%20b?x=%2F&y", "https://h:8443", "https://h/?", "http://[::1]:1/p"]),
    status=st.integers(min_value=100, max_value=599),
    value=st.text(st.characters(min_codepoint=1, max_codepoint=300), max_size=20),
)
def test_what_is_signed_is_what_the_library_would_sign_and_nothing_else_is_signed(
    method: str, url: str, status: int, value: str
) -> None:
    exchange = Exchange(method, url, status, {"content-type": value, "x-aci-version": "aci/1"}, b"body")
    request = SimpleNamespace(method=method, url=url, headers={})
    headers = {**exchange.headers, "content-digest": content_digest(b"body")}
    try:
        expected = HTTPMessageSigner(
            signature_algorithm=ED25519, key_resolver=MappingKeyResolver(public_keys={}, private_keys={})
        ).prepare(
            SimpleNamespace(status_code=status, headers=headers, request=request),
            key_id=KEYS.http_key_id,
            created=datetime.datetime.fromtimestamp(NOW, tz=datetime.UTC),
            label="sig",
            tag="x402-response",
            covered_component_ids=required_components(url, headers),
            use_existing_digest=True,
        )
    except HTTPMessageSignaturesException:
        with pytest.raises(MalformedError):
            sign_response(exchange, KEYS, created=NOW)
        return
    if "\r\n" in value:  # folded lines: the library unfolds them, no server sends them
        return
    fields = sign_response(exchange, KEYS, created=NOW)
    assert fields["content-digest"] == ContentDigest.create(b"body")
    assert fields["signature-input"] == f"sig={expected.signature_params}"
    assert fields["signature"] == f"sig=:{b64(KEYS.sign_http(expected.signature_base))}:"


@pytest.mark.parametrize("value", ["a\nb", "\x00", "caf\u00e9"])
def test_a_field_that_no_signature_covers_is_an_error_and_not_an_unsigned_response(value: str) -> None:
    with pytest.raises(MalformedError, match="content-type"):
        sign_response(replace(PLAIN, headers={"content-type": value}), KEYS, created=NOW)


# Streams: the head is signed before there is a body


def head(exchange: Exchange = STREAM) -> Exchange:
    return replace(exchange, headers={**exchange.headers, **sign_stream_head(exchange, KEYS, created=NOW)})


def test_the_head_of_a_stream_verifies_whatever_comes_after_it() -> None:
    assert verify_stream_head(head(), KEY, now=NOW) == NOW
    assert verify_stream_head(replace(head(), body=b"data: anything\n\n"), KEY, now=NOW) == NOW


@pytest.mark.parametrize(
    "changed",
    [
        replace(head(), status=201),
        replace(head(), method="POST"),
        replace(head(), url="https://a.example/other?q=1"),
        replace(head(), url="https://b.example/p?q=1"),
        replace(head(), headers={**head().headers, "x-receipt-id": "s"}),
        replace(head(), headers={**head().headers, "payment-response": "e30="}),
        replace(head(), headers={**head().headers, "content-type": "text/event-stream"}),
        replace(head(), headers={**head().headers, "content-digest": signed().headers["content-digest"]}),
        *(replace(head(), headers=without(head().headers, name)) for name in head().headers),
    ],
)
def test_any_change_of_a_streams_head_is_refused(changed: Exchange) -> None:
    with pytest.raises(EvidenceError):
        verify_stream_head(changed, KEY, now=NOW)


def test_a_streams_head_never_passes_for_a_signed_body() -> None:
    refused(head())
    refused(replace(head(), body=b"data: x\n\n"))


def test_a_signed_body_never_passes_for_a_streams_head() -> None:
    for exchange in (signed(), signed(STREAM)):
        with pytest.raises(EvidenceError, match="the response is"):
            verify_stream_head(exchange, KEY, now=NOW)
        bare = replace(exchange, headers=without(exchange.headers, "content-digest"))
        with pytest.raises(EvidenceError):
            verify_stream_head(bare, KEY, now=NOW)


@pytest.mark.parametrize("kind", ["application/json", "text/event-streams", "text/plain; a=text/event-stream", ""])
def test_only_a_stream_is_signed_without_its_body(kind: str) -> None:
    with pytest.raises(MalformedError, match="must cover its body"):
        sign_stream_head(replace(STREAM, headers={"content-type": kind}), KEYS, created=NOW)


def test_a_stream_with_a_digest_is_not_signed_without_its_body() -> None:
    with pytest.raises(MalformedError, match="carries a Content-Digest"):
        sign_stream_head(signed(STREAM), KEYS, created=NOW)
