"""Every response of every endpoint is signed; what cannot be signed does not leave."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from attestation.errors import EvidenceError
from attestation.http_signature import SIGNATURE_FIELDS, verify_response
from attestation.keyset import ALGO_HTTP
from service.app import Service
from service.inference.summary import Summarizer, SummaryOptions, SummaryPlan
from tests.http.bench import bench
from tests.http.conftest import Stack
from tests.http.fakes import BrokenRing
from tests.http.world import FAR, SUMMARIZE, distinct_body, exchange_of, problem_of, request_body
from tests.models import FakeServer

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

PREFLIGHT = {
    "origin": "https://app.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type,payment-signature",
}

HELLO = [{"role": "user", "content": "How deep is the harbour?"}]

RESPONSES: dict[str, tuple[int, str, str, dict[str, Any]]] = {
    "health": (200, "GET", "/healthz", {}),
    "readiness": (200, "GET", "/readyz", {}),
    "documentation": (200, "GET", "/docs", {}),
    "API description": (200, "GET", "/openapi.json", {}),
    "attestation": (200, "GET", "/v1/aci/attestation", {}),
    "attestation with a nonce": (200, "GET", f"/v1/aci/attestation?nonce={'0a' * 32}", {}),
    "malformed nonce": (400, "GET", "/v1/aci/attestation?nonce=7", {}),
    "unknown receipt": (404, "GET", "/v1/aci/receipts/rcpt-0", {}),
    "registration": (200, "GET", "/.well-known/agent-registration.json", {}),
    "page about the agent": (200, "GET", "/agent", {}),
    "agent": (200, "GET", "/agent.json", {}),
    "image of the agent": (200, "GET", "/agent.svg", {}),
    "key directory": (200, "GET", "/.well-known/http-message-signatures-directory", {}),
    "manifest": (200, "GET", "/.well-known/tee-manifest.json", {}),
    "unknown path": (404, "GET", "/nowhere", {}),
    "unknown path with odd signs": (404, "GET", "/%E2%82%AC/%00?q=%22&&=;a=1", {}),
    "wrong method": (405, "DELETE", "/healthz", {}),
    "preflight": (200, "OPTIONS", SUMMARIZE, {"headers": PREFLIGHT}),
    "preflight that is refused": (
        400,
        "OPTIONS",
        SUMMARIZE,
        {"headers": {**PREFLIGHT, "access-control-request-method": "PUT"}},
    ),
    "options without CORS": (405, "OPTIONS", SUMMARIZE, {}),
    "unpaid": (402, "POST", SUMMARIZE, {"content": request_body(), "headers": {"content-type": "application/json"}}),
    "unpaid chat": (402, "POST", "/v1/chat/completions", {"json": {"model": FakeServer().model, "messages": HELLO}}),
    "models": (200, "GET", "/v1/models", {}),
    "model": (200, "GET", f"/v1/models/{FakeServer().model}", {}),
    "unknown model": (404, "GET", "/v1/models/nobody", {}),
    "not JSON": (415, "POST", SUMMARIZE, {"content": b"hello", "headers": {"content-type": "text/plain"}}),
    "malformed": (400, "POST", SUMMARIZE, {"content": b"{", "headers": {"content-type": "application/json"}}),
    "invalid": (422, "POST", SUMMARIZE, {"content": b"{}", "headers": {"content-type": "application/json"}}),
    "head": (200, "HEAD", "/healthz", {}),
    "head of the wrong method": (405, "HEAD", SUMMARIZE, {}),
    "head of nothing": (404, "HEAD", "/nowhere", {}),
}


@pytest.mark.parametrize("name", RESPONSES)
async def test_every_response_is_signed(stack: Stack, name: str) -> None:
    status, method, path, request = RESPONSES[name]
    response = await stack.caller.send(method, path, **request)
    assert response.status_code == status, response.text


async def test_no_route_is_missing_from_this_list(stack: Stack) -> None:
    described = set((await stack.caller.get("/openapi.json")).json()["paths"])
    asked = {path.partition("?")[0] for _, _, path, _ in RESPONSES.values()}
    assert described - asked == {"/v1/aci/receipts/{identifier}", "/v1/models/{name}"}


async def test_a_signature_is_over_this_answer_to_this_request_only(stack: Stack) -> None:
    response = await stack.caller.ask(distinct_body("tampering"))
    exchange, key, now = exchange_of(response), stack.caller.keyset.key(ALGO_HTTP), stack.caller.clock()
    verify_response(exchange, key, now=now)
    changes: dict[str, dict[str, Any]] = {
        "status": {"status": 200},
        "body": {"body": exchange.body.replace(b"10000", b"10001")},
        "path": {"url": exchange.url.replace("/v1/", "/v2/")},
        "query": {"url": exchange.url + "?cheap=1"},
        "host": {"url": exchange.url.replace("127.0.0.1", "127.0.0.2")},
        "method": {"method": "GET"},
        **{
            name: {"headers": {**exchange.headers, name: exchange.headers[name] + "0"}}
            for name in ("content-type", "payment-required", "x-aci-version", "x-aci-keyset-digest", *SIGNATURE_FIELDS)
        },
        **{
            f"no {name}": {"headers": {k: v for k, v in exchange.headers.items() if k != name}}
            for name in ("payment-required", *SIGNATURE_FIELDS)
        },
    }
    for what, change in changes.items():
        try:
            verify_response(replace(exchange, **change), key, now=now)
        except EvidenceError:
            continue
        pytest.fail(f"{what} was changed and nobody noticed")


async def test_a_signature_covers_the_advice_to_come_back(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        shop.facilitator.problems = ["the chain is away"]
        response = await shop.caller.ask()
        assert response.status_code == 503
        assert '"retry-after"' in response.headers["signature-input"]


class Fault(Summarizer):
    """A resource that breaks in the middle of its work, with the document in its hands."""

    async def plan(self, document: str, options: SummaryOptions) -> SummaryPlan:
        raise RuntimeError(f"cannot think about {document}")


async def test_a_crash_in_a_handler_is_a_signed_500_that_gives_nothing_away(
    ledger_path: Path, canary: str, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(service: Service) -> Service:
        return replace(service, summarizer=Fault(service.backend))

    async with bench(ledger_path, wrap=broken) as shop:
        response = await shop.caller.ask(distinct_body(canary))
    problem_of(response, 500, "internal")
    for secret in (canary, "RuntimeError", "Traceback", "world.py", "test_signatures.py", "cannot think"):
        assert secret not in response.text
        assert secret not in str(response.headers)
    assert "unhandled RuntimeError" in caplog.text, "the operator learns what kind of fault it was, and where"
    assert canary not in caplog.text


async def test_a_crash_before_any_handler_is_signed_too(ledger_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def explode(*_: object) -> None:
        raise ZeroDivisionError

    async with bench(ledger_path) as shop:
        monkeypatch.setattr(FastAPI, "__call__", explode)
        problem_of(await shop.caller.get("/healthz"), 500, "internal")


@pytest.mark.parametrize(("method", "path"), [("GET", "/healthz"), ("GET", "/nowhere"), ("POST", SUMMARIZE)])
async def test_without_the_http_key_there_is_only_an_empty_500(ledger_path: Path, method: str, path: str) -> None:
    ring = BrokenRing.generate()
    ring.broken = frozenset({"http"})
    async with bench(ledger_path, keys=ring) as shop:
        response = await shop.caller.http.request(
            method, path, content=request_body(), headers={"content-type": "application/json"}
        )
        assert response.status_code == 500
        assert response.content == b""
        assert set(response.headers) == {"content-length"}


async def test_a_request_that_names_no_host_gets_an_empty_500_too_when_the_keys_are_gone(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        transport = shop.caller.http._transport
        assert isinstance(transport, httpx.ASGITransport)
        shop.service.keyholder.forget()
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b""}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http",
            "method": "GET",
            "path": "/healthz",
            "scheme": "http",
            "query_string": b"",
            "headers": [],
        }
        await transport.app(scope, receive, send)
        assert [message.get("status", message.get("body")) for message in sent] == [500, b""]


async def paid(caller_http: httpx.AsyncClient, payment: str) -> httpx.Response:
    """A paid request whose response nobody checks."""
    headers = {"content-type": "application/json", "payment-signature": payment}
    return await caller_http.post(SUMMARIZE, content=request_body(), headers=headers)


@pytest.mark.parametrize("role", ["http", "receipt", "payment"])
async def test_a_key_that_fails_before_settlement_takes_no_payment_and_releases_nothing(
    ledger_path: Path, role: str
) -> None:
    ring = BrokenRing.generate()
    async with bench(ledger_path, keys=ring) as shop:
        header = await shop.caller.payment(valid_before=FAR)
        ring.broken = frozenset({role})
        response = await paid(shop.caller.http, header)
        assert response.status_code == 500
        assert shop.backend.text not in response.text
        assert shop.facilitator.spent == {}, "somebody was charged"
        assert shop.ledger.states() == ["RELEASED"]
        ring.broken = frozenset()
        assert (await paid(shop.caller.http, header)).status_code == 200, "the payment is still good"


async def test_a_key_that_fails_after_settlement_owes_the_answer(ledger_path: Path) -> None:
    """The receipt's key answered when it was tried, and no more when the money had moved."""
    ring = BrokenRing.generate()
    async with bench(ledger_path, keys=ring) as shop:
        header = await shop.caller.payment(valid_before=FAR)
        ring.broken, ring.allowed = frozenset({"receipt"}), 1
        response = await paid(shop.caller.http, header)
        assert response.status_code == 500
        assert shop.backend.text not in response.text
        assert shop.ledger.states() == ["SETTLED"]
        assert "nothing was charged" not in response.text.lower(), "it was"
        ring.broken = frozenset()
        assert (await paid(shop.caller.http, header)).status_code == 200
        assert shop.facilitator.count("settle") == 1


async def test_two_services_never_share_a_signature(ledger_path: Path, tmp_path: Path) -> None:
    async with bench(ledger_path) as one, bench(tmp_path / "other.db") as other:
        response = await one.caller.get("/healthz")
        with pytest.raises(EvidenceError):
            verify_response(exchange_of(response), other.caller.keyset.key(ALGO_HTTP), now=one.clock())


async def test_signatures_are_made_now(ledger_path: Path) -> None:
    async with bench(ledger_path) as shop:
        for passed in (0, 1_000):
            shop.clock.now += passed
            response = await shop.caller.get("/healthz")
            key = shop.caller.keyset.key(ALGO_HTTP)
            assert verify_response(exchange_of(response), key, now=shop.clock()) == shop.clock()


async def test_json_says_what_it_is(stack: Stack) -> None:
    """A problem is a problem and an answer an answer, to whoever goes by the media type."""
    for path in ("/healthz", "/readyz", "/.well-known/tee-manifest.json", "/v1/aci/attestation"):
        response = await stack.caller.get(path)
        assert response.headers["content-type"] == "application/json"
        assert isinstance(json.loads(response.content), dict)
