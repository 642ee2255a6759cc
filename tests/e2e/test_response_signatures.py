"""Every response is signed: checked with npm http-message-signatures and the key from the published directory."""

import base64
import json
from typing import Any

import httpx
import pytest

from attestation.http_signature import DIRECTORY_PATH
from tests.e2e.conftest import Bought, RunScript
from tests.e2e.stack import DOCUMENT, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("stack")]

Exchange = dict[str, Any]

BOUND_TO_THE_REQUEST = {'"@status"', '"@method";req', '"@authority";req', '"@path";req', '"content-digest"'}


def exchange(url: str, method: str, path: str, **request: Any) -> Exchange:
    answer = httpx.request(method, url + path, **request)
    return {
        "method": method,
        "url": str(answer.request.url),
        "status": answer.status_code,
        "headers": dict(answer.headers),
        "body": base64.b64encode(answer.content).decode(),
    }


@pytest.fixture(scope="module")
def directory(stack: Stack) -> Any:
    return httpx.get(stack.dev.url + DIRECTORY_PATH).json()


def stored(exchange: Any) -> Exchange:
    """An exchange of a saved bundle as the checking script wants it."""
    request, response = exchange["request"], exchange["response"]
    return {
        "method": request["method"],
        "url": request["url"],
        "status": response["status"],
        "headers": response["headers"],
        "body": base64.b64encode(response["body"].encode()).decode(),
    }


@pytest.fixture(scope="module")
def exchanges(stack: Stack, bought: Bought) -> dict[str, Exchange]:
    """One exchange of every kind."""
    bundle = bought.document
    url = stack.dev.url
    json_type = {"content-type": "application/json"}
    return {
        "paid 200": stored(bundle["answer"]),
        "its 402": stored(bundle["terms"]),
        "its report": stored(bundle["attestation"]),
        "its manifest": stored(bundle["manifest"]),
        "healthz": exchange(url, "GET", "/healthz"),
        "readyz": exchange(url, "GET", "/readyz"),
        "docs": exchange(url, "GET", "/docs"),
        "openapi": exchange(url, "GET", "/openapi.json"),
        "registration": exchange(url, "GET", "/.well-known/agent-registration.json"),
        "receipt": exchange(url, "GET", f"/v1/aci/receipts/{bundle['receipt']['receipt_id']}"),
        "the directory itself": exchange(url, "GET", DIRECTORY_PATH),
        "402": exchange(url, "POST", "/v1/summarize", json={"document": DOCUMENT}),
        "402 with a query": exchange(url, "POST", "/v1/summarize?a=1&b=%20", json={"document": DOCUMENT}),
        "404": exchange(url, "GET", "/nothing-here"),
        "404 with a query": exchange(url, "GET", "/nothing-here?x=%2F&y"),
        "404 of a strange path": exchange(url, "GET", "/a//b/%2Fc;d=e"),
        "404 of a receipt": exchange(url, "GET", "/v1/aci/receipts/none"),
        "405": exchange(url, "GET", "/v1/summarize"),
        "422": exchange(url, "POST", "/v1/summarize", json={"document": DOCUMENT, "unknown": 1}),
        "422 of a trivial document": exchange(url, "POST", "/v1/summarize", json={"document": "x"}),
        "400": exchange(url, "POST", "/v1/summarize", content=b"\xff", headers=json_type),
        "400 of a payment": exchange(
            url, "POST", "/v1/summarize", json={"document": DOCUMENT}, headers={"payment-signature": "?"}
        ),
        "400 of a nonce": exchange(url, "GET", "/v1/aci/attestation?nonce=short"),
        "413": exchange(url, "POST", "/v1/summarize", content=b" " * 4_000_000, headers=json_type),
        "415": exchange(url, "POST", "/v1/summarize", content=b"{}", headers={"content-type": "text/plain"}),
        "cors preflight": exchange(
            url,
            "OPTIONS",
            "/v1/summarize",
            headers={"origin": "https://shop.example", "access-control-request-method": "POST"},
        ),
    }


EXPECTED_STATUS = {"docs": 200, "healthz": 200, "readyz": 200, "cors preflight": 200}


def test_every_kind_of_response_is_signed_and_digested(
    exchanges: dict[str, Exchange], directory: Any, javascript: RunScript
) -> None:
    verdicts = javascript("signatures.mjs", {"directory": directory, "exchanges": list(exchanges.values())})
    for (name, sent), verdict in zip(exchanges.items(), verdicts, strict=True):
        expected = EXPECTED_STATUS.get(name) or next(
            (int(word) for word in name.split() if word.isdigit() and len(word) == 3), 200
        )
        assert sent["status"] == expected, name
        assert verdict["signature"] is True, (name, verdict)
        assert verdict["digest"] is True, name
        covered = set(verdict["covered"])
        present = {f'"{field}"' for field in ("content-type", "payment-required", "payment-response", "x-receipt")
                   if field in sent["headers"]}  # fmt: skip
        assert covered >= BOUND_TO_THE_REQUEST | present, name
        assert ('"@query";req' in covered) is ("?" in sent["url"]), name


def test_the_library_rejects_what_was_changed(
    exchanges: dict[str, Exchange], directory: Any, javascript: RunScript
) -> None:
    original = exchanges["402 with a query"]
    headers = original["headers"]
    inputs = headers["signature-input"]
    changes: dict[str, Exchange] = {
        "status": {"status": 200},
        "method": {"method": "PUT"},
        "path": {"url": original["url"].replace("summarize", "summarise")},
        "query": {"url": original["url"].replace("a=1", "a=2")},
        "authority": {"url": original["url"].replace("127.0.0.1", "127.0.0.2")},
        "type": {"headers": {**headers, "content-type": "text/html"}},
        "terms": {"headers": {**headers, "payment-required": headers["payment-required"][:-4] + "AAAA"}},
        "keyset": {"headers": {**headers, "x-aci-keyset-digest": "sha256:" + "0" * 64}},
        "time": {"headers": {**headers, "signature-input": inputs.replace("created=1", "created=2")}},
        "tag": {"headers": {**headers, "signature-input": inputs.replace("x402-", "x403-")}},
        "another's signature": {"headers": {**headers, "signature": exchanges["404"]["headers"]["signature"]}},
    }  # fmt: skip
    verdicts = javascript(
        "signatures.mjs",
        {"directory": directory, "exchanges": [{**original, **change} for change in changes.values()]},
    )
    assert [name for name, verdict in zip(changes, verdicts, strict=True) if verdict["signature"] is not False] == []
    [body] = javascript(
        "signatures.mjs",
        {"directory": directory, "exchanges": [{**original, "body": base64.b64encode(b"{}").decode()}]},
    )
    assert (body["signature"], body["digest"]) == (True, False), "the digest is what ties the body in"


def test_the_published_key_is_the_attested_one_and_signs_nothing_else(directory: Any, bought: Bought) -> None:
    report = json.loads(bought.document["attestation"]["response"]["body"])
    keys = report["attestation"]["workload_keyset"]["receipt_signing_keys"]
    [published] = directory["keys"]
    raw = base64.urlsafe_b64decode(published["x"] + "==").hex()
    assert [key["algo"] for key in keys if key["public_key"] == raw] == ["ed25519-rfc9421"]


def test_a_head_request_gets_a_digest_of_what_it_receives(stack: Stack, directory: Any, javascript: RunScript) -> None:
    head = exchange(stack.dev.url, "HEAD", "/healthz")
    [verdict] = javascript("signatures.mjs", {"directory": directory, "exchanges": [head]})
    assert verdict["signature"] is True
    assert verdict["digest"] is True


def test_payment_terms_and_paid_answers_are_not_cached(exchanges: dict[str, Exchange], stack: Stack) -> None:
    assert exchanges["402"]["headers"]["cache-control"] == "no-store"
    assert exchanges["405"]["headers"]["cache-control"] == "no-store"
