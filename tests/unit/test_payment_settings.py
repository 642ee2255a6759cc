"""Ways to be paid, from the environment to the manifest: what is written there is offered, or refused with a name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from attestation.digest import digest
from attestation.enclave import open_enclave
from attestation.errors import EnclaveError
from attestation.pricing import PriceBasis, check_price
from service.boot import refuse_mainnet
from service.build import offered_prices, payment_terms
from service.facilitators import open_facilitator
from service.payment.local import LocalFacilitator
from service.payment.remote import RemoteFacilitator
from service.payment.terms import as_json, requirements_for
from service.settings import Settings

PAY_TO, TOKEN = "0x" + "22" * 20, "0x" + "ab" * 20
SECRET = "Bearer canary-7731"
REQUIRED = {
    "RPC_URL": "http://127.0.0.1:9",
    "OPERATOR_KEY": "0x" + "77" * 32,
    "PAY_TO": PAY_TO,
    "AGENT_OWNER": "0x" + "44" * 20,
    "ENCLAVE": "simulated:",
}
LOCAL_CHAIN = {"network": "eip155:31337", "asset": TOKEN, "asset_decimals": 18, "pay_to": PAY_TO, "rpc_url": "http://n"}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Any:
    def from_environment(**variables: Any) -> Settings:
        texts: Mapping[str, Any] = {**REQUIRED, **variables}
        for name, value in texts.items():
            monkeypatch.setenv(f"TOLLSEAL_{name}", value if isinstance(value, str) else json.dumps(value))
        return Settings()

    return from_environment


def test_one_network_needs_no_list(read: Any) -> None:
    settings = read(NETWORK="eip155:31337", ASSET=TOKEN, PRICE="0.02")
    (price,) = offered_prices(settings, endpoint="/v1/summarize", input_tokens=1, max_output_tokens=1)
    assert (price.asset.network, price.asset.address, price.amount) == ("eip155:31337", TOKEN, 20_000)


def test_further_ways_to_pay_are_offered_in_their_order_and_in_their_own_units(read: Any) -> None:
    settings = read(PAYMENTS=[LOCAL_CHAIN, {**LOCAL_CHAIN, "asset": "0x" + "cd" * 20, "asset_decimals": 6}])
    prices = offered_prices(settings, endpoint="/v1/summarize", input_tokens=1, max_output_tokens=1)
    assert [(price.asset.network, price.amount) for price in prices] == [
        ("eip155:84532", 10_000),
        ("eip155:31337", 10**16),
        ("eip155:31337", 10_000),
    ]


RULES = {
    "/v1/summarize": {"per_call": "0.10", "tiers": [{"up_to_tokens": 1000, "price": "0.01"}]},
    "/v1/chat/completions": {"per_1k_input_tokens": "0.0005", "per_1k_output_tokens": "0.002"},
}


@pytest.mark.parametrize(
    ("endpoint", "input_tokens", "max_output_tokens", "amount"),
    [
        ("/v1/summarize", 1_000, 5_000, 10_000),
        ("/v1/summarize", 1_001, 5_000, 100_000),
        ("/v1/chat/completions", 1_000, 1_000, 2_500),
        ("/v1/chat/completions", 4, 0, 2),
    ],
)
def test_endpoints_have_prices_of_their_own_and_a_buyer_recomputes_them_from_the_manifest(
    read: Any, endpoint: str, input_tokens: int, max_output_tokens: int, amount: int
) -> None:
    settings = read(PRICE_RULES=RULES, PAYMENTS=[LOCAL_CHAIN])
    tokens = {"input_tokens": input_tokens, "max_output_tokens": max_output_tokens}
    prices = offered_prices(settings, endpoint=endpoint, **tokens)
    assert [price.amount for price in prices] == [amount, amount * 10**12]
    manifest = json.loads(json.dumps(payment_terms(settings)))
    basis = PriceBasis(settings.price_rule(endpoint), digest(b""), *tokens.values())
    for price in prices:
        check_price(manifest, as_json(requirements_for(price)), endpoint=endpoint, basis=basis)


def test_the_manifest_names_all_terms_and_no_secret(read: Any) -> None:
    settings = read(
        PAYMENTS=[{**LOCAL_CHAIN, "facilitator": ["https://a.example", "https://b.example/x402/"]}],
        FACILITATOR_AUTH={"https://a.example": SECRET},
        SETTLE="before",
        SETTLEMENT_DEPTH="3",
    )
    terms = payment_terms(settings)
    assert [set(accept) for accept in terms["accepts"]] == [{"scheme", "network", "asset", "payTo", "amount"}] * 2
    assert terms["facilitators"] == {
        "eip155:84532": ["local"],
        "eip155:31337": ["https://a.example", "https://b.example/x402"],
    }
    assert (terms["settle"], terms["settlement_depth"]) == ("before", 3)
    assert terms["price_rule"]["per_call"] == "0.01"
    assert "canary" not in json.dumps(terms) + repr(settings)


def test_where_prices_depend_on_the_call_the_manifest_has_rules_in_place_of_amounts(read: Any) -> None:
    with_rules = payment_terms(read(PRICE_RULES=RULES))
    assert [set(accept) for accept in with_rules["accepts"]] == [{"scheme", "network", "asset", "payTo", "decimals"}]
    assert with_rules["price_rules"].keys() == RULES.keys()


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("PAYMENTS", "not json", "payments\n.*must be JSON"),
        ("PAYMENTS", {}, "payments"),
        ("PAYMENTS", [{}], r"payments.0.network"),
        ("PAYMENTS", [{**LOCAL_CHAIN, "network": "base"}], "payments.0.network"),
        ("PAYMENTS", [{**LOCAL_CHAIN, "decimals": 6}], "payments.0.decimals"),
        ("PAYMENTS", [{**LOCAL_CHAIN, "asset_decimals": 1}], "the token has 1"),
        ("PAYMENTS", [{**LOCAL_CHAIN, "pay_to": "0x" + "00" * 20}], "zero address"),
        ("PAYMENTS", [LOCAL_CHAIN, {**LOCAL_CHAIN, "asset": TOKEN.upper().replace("0X", "0x")}], "is named twice"),
        ("PAYMENTS", [LOCAL_CHAIN, {**LOCAL_CHAIN, "asset": PAY_TO, "rpc_url": "http://m"}], "need the same rpc_url"),
        ("PAYMENTS", [{**LOCAL_CHAIN, "facilitator": ["local", "https://a.example"]}], "stands alone"),
        ("PAYMENTS", [LOCAL_CHAIN] * 17, "payments"),
        ("FACILITATOR", "https://a.example,https://a.example", "facilitator\n.*twice"),
        ("FACILITATOR", "https://a.example,", "facilitator.1"),
        ("FACILITATOR", "", "facilitator"),
        ("FACILITATOR", "https://me:pw@a.example", "facilitator\n.*user name"),
        ("FACILITATOR_AUTH", {"https://a.example": SECRET}, "no facilitator of this service"),
        ("PRICE_RULES", {"/v1/sumarize": {"per_call": "1"}}, "price_rules"),
        ("PRICE_RULES", {"/v1/summarize": {}}, "greater than zero"),
        ("PRICE_RULES", {"/v1/summarize": {"per_call": "0.0000001"}}, "7 decimals; the token has 6"),
        ("PRICE_RULES", {"/v1/summarize": {"per_call": 0.1}}, "price_rules./v1/summarize.per_call"),
        ("PRICE_RULES", {"/v1/summarize": {"per_call": "1", "tiers": [{"up_to_tokens": 0, "price": "1"}]}}, "tiers.0"),
        ("SETTLE", "maybe", "settle"),
        ("SETTLEMENT_DEPTH", "0", "settlement_depth"),
    ],
)
def test_what_cannot_be_offered_is_refused_by_name(read: Any, variable: str, value: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says) as refusal:
        read(**{variable: value})
    assert SECRET not in str(refusal.value)
    assert "77" * 32 not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "value", "says"),
    [
        ("http://a.example", SECRET, "without TLS"),
        ("https://a.example", "Bearer x\r\nx: y", "not the value of a header"),
        ("https://a.example", "", "not the value of a header"),
    ],
)
def test_a_credential_that_would_leak_or_break_a_header_is_refused(read: Any, url: str, value: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says) as refusal:
        read(FACILITATOR=url, FACILITATOR_AUTH={url: value})
    assert not value or value not in str(refusal.value)


def test_a_simulated_enclave_refuses_a_mainnet_wherever_it_is_named(read: Any) -> None:
    enclave = open_enclave("simulated:")
    refuse_mainnet(enclave, read(PAYMENTS=[LOCAL_CHAIN]))
    for payments in (
        [{**LOCAL_CHAIN, "network": "eip155:8453"}],
        [LOCAL_CHAIN, {**LOCAL_CHAIN, "network": "eip155:8453"}],
    ):
        with pytest.raises(EnclaveError, match="does not start with the payment network eip155:8453"):
            refuse_mainnet(enclave, read(PAYMENTS=payments))


async def test_each_network_has_its_own_facilitator(read: Any, tmp_path: Path) -> None:
    router = open_facilitator(read(PAYMENTS=[{**LOCAL_CHAIN, "facilitator": "http://127.0.0.1:9"}]))
    assert isinstance(router.on("eip155:84532"), LocalFacilitator)
    assert isinstance(router.on("eip155:31337"), RemoteFacilitator)
    assert router.on("eip155:1") is None
    problems = await router.ready()
    assert any("eip155:84532" in problem for problem in problems)
    assert any("eip155:31337" in problem for problem in problems)
    await router.close()
