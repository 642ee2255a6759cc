"""What a buyer gets: terms that bind the service, and an answer whose every proof holds together."""

import json
from pathlib import Path
from typing import Any

import pytest
from x402.http.utils import (
    decode_payment_required_header,
    decode_payment_response_header,
)
from x402.schemas import PaymentRequired, SettleResponse

from attestation import payment_proof, purchase, receipt
from attestation.digest import digest, jcs
from attestation.encoding import b64url_bytes
from attestation.keyset import ALGO_PAYMENT
from service.app import EXPOSED_HEADERS
from service.inference.summary import SummaryOptions, build_messages
from service.payment.authorization import decode_payment_header
from tests.http.bench import bench
from tests.http.conftest import Stack
from tests.http.world import (
    DOCUMENT,
    PRICE,
    SUMMARIZE,
    check_response,
    distinct_body,
    exchange_of,
    offered,
    request_body,
)
from tests.payments import as_document, as_header, pay

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]


async def test_a_402_names_exact_terms_and_says_the_same_in_header_and_body(stack: Stack) -> None:
    response = await stack.caller.ask()
    assert response.status_code == 402
    assert response.headers["cache-control"] == "no-store"
    required = decode_payment_required_header(response.headers["payment-required"])
    assert isinstance(required, PaymentRequired), "version 2"
    assert required.model_dump(mode="json", by_alias=True, exclude_none=True) == response.json()
    assert required.resource is not None
    assert required.resource.url == stack.url + SUMMARIZE
    (accept,) = required.accepts
    assert accept.scheme == "exact"
    assert accept.network == f"eip155:{stack.chain.chain_id}"
    assert accept.asset == stack.chain.token
    assert accept.pay_to == stack.chain.pay_to
    assert accept.amount == str(PRICE)
    assert accept.max_timeout_seconds == 900
    assert accept.extra == {"name": "USDC", "version": "2"}


async def test_every_way_to_pay_is_offered_over_the_attested_payment_key(stack: Stack) -> None:
    terms = purchase.parse_terms(exchange_of(await stack.caller.ask()))
    assert [offer["acceptIndex"] for offer in terms.offers] == list(range(len(terms.accepts)))
    key = stack.caller.keyset.key(ALGO_PAYMENT).public_key
    for document in terms.offers:
        offer = purchase.check_offer(terms, document, public_key=key)
        assert offer.resource_url == stack.url + SUMMARIZE
        assert 0 < offer.valid_until - stack.caller.clock() <= 900


async def test_an_offer_names_the_url_that_was_asked_for_without_its_query(ledger_path: Path) -> None:
    async with bench(ledger_path, base_url="http://summaries.test:8080") as shop:
        response = await shop.caller.send(
            "POST", f"{SUMMARIZE}?from=a-friend", content=request_body(), headers={"content-type": "application/json"}
        )
        assert response.json()["resource"]["url"] == f"http://summaries.test:8080{SUMMARIZE}"


async def test_behind_a_public_name_offers_and_signatures_use_that_name(ledger_path: Path) -> None:
    async with bench(ledger_path, public_url="https://summaries.example/", base_url="http://10.0.0.7") as shop:
        response = await shop.caller.http.post(
            SUMMARIZE, content=request_body(), headers={"content-type": "application/json"}
        )
        assert response.json()["resource"]["url"] == f"https://summaries.example{SUMMARIZE}"
        seen_by_buyer = exchange_of(response, url=f"https://summaries.example{SUMMARIZE}")
        check_response(seen_by_buyer, shop.caller.keyset, now=shop.clock())


async def test_a_bought_answer_costs_exactly_the_price(stack: Stack) -> None:
    before = await stack.earned()
    response = await stack.caller.buy(distinct_body("price"))
    assert response.status_code == 200, response.text
    assert await stack.earned() == before + PRICE


async def test_the_answer_is_what_the_model_said(stack: Stack) -> None:
    stack.model.text = "The old terminal waits for a vote in March."
    answer = (await stack.caller.buy(distinct_body("answer"))).json()
    assert set(answer) == {"id", "object", "created", "model", "summary", "finish_reason", "usage"}
    assert answer["object"] == "summary"
    assert answer["model"] == stack.model.model
    assert answer["summary"] == stack.model.text
    assert answer["finish_reason"] == "stop"
    assert abs(answer["created"] - stack.caller.clock()) < 60
    usage = answer["usage"]
    assert usage["completion_tokens"] == 9
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_an_answer_that_was_cut_says_so(stack: Stack) -> None:
    stack.model.text = "word " * 5_000
    answer = (await stack.caller.buy(distinct_body("cut"))).json()
    assert answer["finish_reason"] == "length"


async def test_payment_response_is_what_the_payment_sdk_reads(stack: Stack) -> None:
    response = await stack.caller.buy(distinct_body("sdk"))
    settled = decode_payment_response_header(response.headers["payment-response"])
    assert isinstance(settled, SettleResponse)
    assert settled.success is True
    assert settled.network == f"eip155:{stack.chain.chain_id}"
    assert settled.payer == stack.chain.buyer
    assert settled.amount == str(PRICE)
    row = stack.ledger.rows()[-1]
    assert settled.transaction == row["transaction_hash"]


async def test_the_x402_receipt_is_signed_by_the_attested_payment_key(stack: Stack) -> None:
    response = await stack.caller.buy(distinct_body("x402 receipt"))
    settlement = purchase.parse_settlement(exchange_of(response))
    payment_proof.check_signer(settlement.receipt, "Receipt", stack.caller.keyset.key(ALGO_PAYMENT).public_key)
    proof = payment_proof.parse_payment_receipt(settlement.receipt)
    assert proof.transaction == settlement.transaction
    assert proof.network == settlement.network
    assert proof.payer.lower() == stack.chain.buyer.lower()
    assert proof.resource_url == stack.url + SUMMARIZE
    assert abs(proof.issued_at - stack.caller.clock()) < 60


async def test_the_receipt_tells_the_whole_story_in_order(stack: Stack) -> None:
    body = distinct_body("story")
    header = await stack.caller.payment(body)
    response = await stack.caller.ask(body, payment=header)
    document: dict[str, Any] = json.loads(b64url_bytes(response.headers["x-receipt"], "x-receipt"))
    assert jcs(document) == b64url_bytes(response.headers["x-receipt"], "x-receipt"), "canonical on the wire"

    parsed = receipt.parse_receipt(document)
    receipt.check_signature(parsed, stack.caller.keyset)
    answer, service = response.json(), stack.service
    assert parsed.receipt_id == response.headers["x-receipt-id"]
    assert (parsed.chat_id, parsed.model) == (answer["id"], answer["model"])
    assert (parsed.method, parsed.endpoint) == ("POST", SUMMARIZE)
    assert parsed.keyset_digest == stack.caller.keyset.digest
    assert abs(parsed.served_at - stack.caller.clock()) < 60
    payment = decode_payment_header(header).payload["authorization"]
    transaction = purchase.parse_settlement(exchange_of(response)).transaction
    assert document["event_log"] == [
        {"type": "request.received", "body_hash": digest(body)},
        {
            "type": "agent.identified",
            "agent_registry": f"eip155:{stack.chain.chain_id}:{stack.chain.identity_registry.lower()}",
            "agent_id": service.identity.registered_agent.agent_id,
        },
        {"type": "build.identified", "manifest_digest": service.identity.manifest_digest},
        {"type": "request.forwarded", "body_hash": digest(stack.model.bodies[-1])},
        {
            "type": "inference.completed",
            "model": answer["model"],
            "weights_sha256": None,
            "weights_origin": "claimed",
            "prompt_tokens": answer["usage"]["prompt_tokens"],
            "completion_tokens": answer["usage"]["completion_tokens"],
            "finish_reason": "stop",
            "calls": 1,
        },
        {
            "type": "payment.settled",
            "scheme": "exact",
            "network": f"eip155:{stack.chain.chain_id}",
            "asset": stack.chain.token.lower(),
            "pay_to": stack.chain.pay_to.lower(),
            "payer": stack.chain.buyer.lower(),
            "amount": str(PRICE),
            "nonce": payment["nonce"],
            "authorization_hash": purchase.authorization_hash(purchase.parse_payment(exchange_of(response))),
            "transaction": transaction,
        },
        {"type": "response.returned", "body_hash": digest(response.content), "complete": True},
    ]


async def test_the_receipt_is_found_by_its_id_and_by_the_answers(stack: Stack) -> None:
    response = await stack.caller.buy(distinct_body("lookup"))
    sent = json.loads(b64url_bytes(response.headers["x-receipt"], "x-receipt"))
    for identifier in (response.headers["x-receipt-id"], response.json()["id"]):
        found = await stack.caller.get(f"/v1/aci/receipts/{identifier}")
        assert found.status_code == 200
        assert found.json() == sent
        assert found.headers["cache-control"].startswith("private")


async def test_a_paid_answer_is_kept_out_of_shared_caches_and_is_readable_in_browsers(stack: Stack) -> None:
    body = distinct_body("browser")
    origin = {"origin": "https://app.example"}
    unpaid = await stack.caller.ask(body, headers=origin)
    paid = await stack.caller.ask(body, payment=await stack.caller.payment(body), headers=origin)
    assert paid.status_code == 200
    assert paid.headers["cache-control"].split(",")[0] == "private"
    assert paid.headers["content-type"] == "application/json"
    for response in (unpaid, paid):
        assert response.headers["access-control-allow-origin"] == "*"
        exposed = {name.strip().lower() for name in response.headers["access-control-expose-headers"].split(",")}
        assert exposed == set(EXPOSED_HEADERS)
        assert {"payment-required", "payment-response", "signature", "signature-input", "content-digest"} <= exposed
        assert {"x-receipt", "x-receipt-id", "x-aci-version", "x-aci-keyset-digest"} <= exposed


async def test_options_reach_the_model_and_change_what_is_asked(stack: Stack) -> None:
    plain = build_messages(DOCUMENT, SummaryOptions())
    wanted = build_messages(DOCUMENT, SummaryOptions(style="bullets", max_words=60, language="de"))
    assert plain != wanted
    assert (await stack.caller.buy(request_body(style="bullets", max_words=60, language="de"))).status_code == 200
    assert json.loads(stack.model.bodies[-1])["messages"] == [message.to_json() for message in wanted]


async def test_a_sum_is_paid_to_the_seller_whoever_hands_the_payment_in(stack: Stack) -> None:
    """Terms are the service's own: what the payer's copy of them says beyond the required fields changes nothing."""
    body = distinct_body("copy")
    requirements = offered(await stack.caller.ask(body))
    document = as_document(pay(requirements, key=stack.chain.buyer_key))
    document["accepted"]["maxTimeoutSeconds"] = 1
    document["accepted"]["extra"]["callback"] = "https://elsewhere.example"
    document["extensions"] = {"unknown": {"info": {}}}
    before = await stack.earned()
    assert (await stack.caller.ask(body, payment=as_header(document))).status_code == 200
    assert await stack.earned() == before + PRICE
