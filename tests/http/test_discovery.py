"""The 402 says how the endpoint is called, what its price was computed from, and that purchases may be named."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from x402.extensions.bazaar import (
    extract_discovery_info,
    validate_discovery_extension,
    validate_discovery_extension_spec,
)
from x402.extensions.bazaar.types import parse_discovery_extension
from x402.extensions.payment_identifier import validate_payment_identifier

from attestation import pricing
from attestation.digest import digest
from attestation.pricing import request_digest
from service.http.summarize import SummarizeRequest
from service.payment.terms import DISCOVERY
from tests.http.bench import bench
from tests.http.conftest import Stack
from tests.http.world import SUMMARIZE, distinct_body, offered, request_body
from tests.payments import as_document, as_header, pay

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.xdist_group("http")]

MAX_HEADER = 6_000
"""Longest PAYMENT-REQUIRED for one way to pay: common clients and proxies take 8 KiB of headers."""


async def test_the_discovery_data_is_valid_by_its_own_schema_and_by_the_sdk(stack: Stack) -> None:
    extension = (await stack.caller.ask()).json()["extensions"][DISCOVERY]
    jsonschema.Draft202012Validator.check_schema(extension["schema"])
    jsonschema.validate(extension["info"], extension["schema"], cls=jsonschema.Draft202012Validator)
    assert validate_discovery_extension(parse_discovery_extension(extension)).valid
    assert validate_discovery_extension_spec(extension).errors == []
    assert extension["info"]["input"]["method"] == "POST"


async def test_a_facilitator_finds_the_endpoint_in_the_payment_of_a_client_that_echoes(stack: Stack) -> None:
    document = (await stack.caller.ask(distinct_body("catalogue"))).json()
    payment = {**as_document(pay(offered(await stack.caller.ask()))), "resource": document["resource"]}
    payment["extensions"] = document["extensions"]
    found = extract_discovery_info(payment, payment["accepted"])
    assert found is not None
    assert (found.resource_url, found.method) == (stack.url + SUMMARIZE, "POST")


async def test_the_example_is_a_request_that_the_endpoint_takes_and_its_schema_refuses_others(stack: Stack) -> None:
    extension = (await stack.caller.ask()).json()["extensions"][DISCOVERY]
    SummarizeRequest.model_validate(extension["info"]["input"]["body"])
    for wrong in ({}, {"document": 7}, {"document": "x", "style": "poem"}, {"document": "x", "more": 1}):
        info = {**extension["info"], "input": {**extension["info"]["input"], "body": wrong}}
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(info, extension["schema"])


async def test_a_402_fits_into_the_headers_that_clients_and_proxies_take(stack: Stack) -> None:
    assert len((await stack.caller.ask()).headers["payment-required"]) < MAX_HEADER


async def test_the_price_names_the_request_and_the_tokens_that_it_was_computed_from(ledger_path: Path) -> None:
    rules = {SUMMARIZE: {"per_call": "0.001", "per_1k_input_tokens": "0.5", "per_1k_output_tokens": "0.002"}}
    async with bench(ledger_path, price_rules=rules) as shop:
        amounts = []
        for body in (request_body(), request_body(max_words=400), distinct_body("longer")):
            response = await shop.caller.ask(body)
            document = response.json()
            basis = pricing.basis_of(
                document, request=request_digest(endpoint=SUMMARIZE, method="POST", body_hash=digest(body))
            )
            assert basis is not None
            manifest: dict[str, Any] = dict(shop.service.manifest)
            for accept in document["accepts"]:
                pricing.check_price(manifest["payment"], accept, endpoint=SUMMARIZE, basis=basis)
            amounts.append(int(document["accepts"][0]["amount"]))
        assert amounts[0] < amounts[1], "a longer answer costs more"
        assert amounts[0] < amounts[2], "and so does a longer document"


async def test_a_cheap_offer_does_not_buy_a_dear_request(ledger_path: Path) -> None:
    rules = {SUMMARIZE: {"per_1k_output_tokens": "1"}}
    async with bench(ledger_path, price_rules=rules) as shop:
        payment = await shop.caller.payment(request_body(max_words=5))
        refused = await shop.caller.ask(request_body(max_words=600), payment=payment)
        assert refused.status_code == 402
        assert "amount" in refused.json()["error"]
        assert shop.backend.completions == 0
        assert (await shop.caller.ask(request_body(max_words=5), payment=payment)).status_code == 200


async def test_each_way_to_pay_is_offered_and_any_of_them_buys(ledger_path: Path) -> None:
    second = {
        "network": "eip155:31337",
        "asset": "0x" + "cd" * 20,
        "asset_decimals": 18,
        "pay_to": "0x" + "ef" * 20,
        "rpc_url": "http://127.0.0.1:1",
    }
    async with bench(ledger_path, payments=[second]) as shop:
        response = await shop.caller.ask()
        accepts, offers = response.json()["accepts"], response.json()["extensions"]["offer-receipt"]["info"]["offers"]
        assert [accept["network"] for accept in accepts] == ["eip155:84532", "eip155:31337"]
        assert [offer["acceptIndex"] for offer in offers] == [0, 1]
        assert accepts[1]["amount"] == str(10**16)
        requirements = offered(response).model_validate(accepts[1])
        bought = await shop.caller.ask(payment=as_header(as_document(pay(requirements, key=shop.caller.buyer_key))))
        assert bought.status_code == 200, bought.text
        assert [row["network"] for row in shop.ledger.rows()] == ["eip155:31337"]


async def test_purchases_may_be_named(stack: Stack) -> None:
    extension = (await stack.caller.ask()).json()["extensions"]["payment-identifier"]
    assert validate_payment_identifier(extension).valid
    assert extension["info"] == {"required": False}
    preflight = await stack.caller.send(
        "OPTIONS",
        SUMMARIZE,
        headers={
            "origin": "https://app.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,idempotency-key,payment-signature",
        },
    )
    assert preflight.status_code == 200, json.dumps(dict(preflight.headers))
