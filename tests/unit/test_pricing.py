"""Prices are exact integers or an error; networks that might carry real money are called mainnets."""

import contextlib
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.digest import digest
from attestation.errors import EvidenceError, MalformedError
from attestation.money import MAX_UINT256, format_amount, parse_amount
from attestation.pricing import (
    EXTENSION,
    InputTier,
    PriceBasis,
    PriceRule,
    basis_of,
    check_price,
    parse_rule,
    request_digest,
)
from attestation.registry.canonical import LOCAL_CHAIN_IDS, TESTNET_CHAIN_IDS
from service.payment.networks import is_mainnet_network
from service.pricing import KNOWN_USDC, USDC_BASE, USDC_BASE_SEPOLIA, Asset, Payee, PriceError, check_rule, prices_for

PAY_TO = "0x" + "12" * 20


@pytest.mark.parametrize(
    ("text", "decimals", "amount"),
    [
        ("0.01", 6, 10_000),
        ("1", 6, 1_000_000),
        ("0.000001", 6, 1),
        ("12.5", 6, 12_500_000),
        ("007", 0, 7),
        ("0.1", 18, 10**17),
        (str(MAX_UINT256), 0, MAX_UINT256),
    ],
)
def test_a_decimal_price_becomes_exact_atomic_units(text: str, decimals: int, amount: int) -> None:
    assert parse_amount(text, decimals) == amount
    assert PriceRule(text).amount(5, 5, decimals=decimals) == amount


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0.0000001", "7 decimals; the token has 6"),
        ("0.0100000", "7 decimals; the token has 6"),
        ("-1", "plain decimal"),
        ("+1", "plain decimal"),
        ("1e3", "plain decimal"),
        ("NaN", "plain decimal"),
        ("Infinity", "plain decimal"),
        ("", "plain decimal"),
        (" 1", "plain decimal"),
        ("1\n", "plain decimal"),
        ("1.", "plain decimal"),
        (".5", "plain decimal"),
        ("1,5", "plain decimal"),
        ("1_000", "plain decimal"),
        ("$1", "plain decimal"),
        ("١", "plain decimal"),
        ("1" * 101, "plain decimal"),
        ("0", "greater than zero"),
        ("0.00", "greater than zero"),
        (str(MAX_UINT256), "uint256"),
    ],
)
def test_a_price_without_an_exact_amount_is_refused(text: str, reason: str) -> None:
    with pytest.raises(MalformedError, match=reason):
        PriceRule(text).amount(0, 0, decimals=6)


@given(amount=st.integers(1, MAX_UINT256), decimals=st.integers(0, 20))
def test_formatting_and_parsing_lose_nothing(amount: int, decimals: int) -> None:
    assert parse_amount(format_amount(amount, decimals), decimals) == amount


@given(st.text(max_size=120))
def test_no_text_makes_price_parsing_fail_in_another_way(text: str) -> None:
    with contextlib.suppress(MalformedError):
        assert PriceRule(text).amount(0, 0, decimals=6) > 0


def test_amounts_are_shown_in_their_shortest_form() -> None:
    assert format_amount(10_000, 6) == "0.01"
    assert format_amount(2_000_000, 6) == "2"
    assert format_amount(0, 6) == "0"
    assert format_amount(1_000, 0) == "1000"
    with pytest.raises(MalformedError):
        format_amount(-1, 6)


def test_a_rule_prices_a_call_in_every_accepted_asset() -> None:
    eighteen = Asset("eip155:31337", "0x" + "ab" * 20, 18, "Test", "1", "TST")
    payees = (Payee(USDC_BASE_SEPOLIA, PAY_TO), Payee(eighteen, PAY_TO))
    rule = PriceRule("0.02", per_1k_output_tokens="0.0000005")
    prices = prices_for(rule, payees, input_tokens=5, max_output_tokens=1, max_timeout_seconds=60)
    assert [price.amount for price in prices] == [20_001, 2 * 10**16 + 5 * 10**8], "rounded in its own units"
    assert [price.asset for price in prices] == [USDC_BASE_SEPOLIA, eighteen]
    assert all(price.pay_to == PAY_TO and price.max_timeout_seconds == 60 for price in prices)


TIERED = PriceRule("0.10", tiers=(InputTier(100, "0.01"), InputTier(1000, "0.05")))


def test_tiers_price_by_input_size_and_the_base_price_covers_the_rest() -> None:
    assert [TIERED.base(n) for n in (0, 100, 101, 1000, 1001)] == ["0.01", "0.01", "0.05", "0.05", "0.10"]
    assert parse_rule(TIERED.to_json(), "rule") == TIERED
    assert TIERED.to_json() == {
        "per_call": "0.10",
        "tiers": [{"up_to_tokens": 100, "price": "0.01"}, {"up_to_tokens": 1000, "price": "0.05"}],
        "per_1k_input_tokens": "0",
        "per_1k_output_tokens": "0",
    }


@pytest.mark.parametrize(
    ("input_tokens", "max_output_tokens", "amount"),
    [(0, 0, 1_000), (1_000, 0, 1_500), (0, 1_000, 3_000), (1_000, 1_000, 3_500), (1, 0, 1_001), (2, 0, 1_001)],
)
def test_tokens_add_to_the_base_and_only_the_sum_is_rounded_up(
    input_tokens: int, max_output_tokens: int, amount: int
) -> None:
    rule = PriceRule("0.001", per_1k_input_tokens="0.0005", per_1k_output_tokens="0.002")
    assert rule.amount(input_tokens, max_output_tokens, decimals=6) == amount


def test_a_price_is_at_least_one_atomic_unit() -> None:
    assert PriceRule("0", per_1k_input_tokens="1").amount(0, 9, decimals=6) == 1


decimals_ = st.from_regex(r"(0|[1-9][0-9]{0,4})(\.[0-9]{1,9})?", fullmatch=True)
counts = st.integers(0, 1 << 40)


@given(decimals_, decimals_, decimals_, counts, counts, st.integers(9, 18))
def test_the_price_is_the_exact_sum_or_less_than_a_unit_more(
    base: str, per_input: str, per_output: str, tokens: int, longest: int, decimals: int
) -> None:
    try:
        rule = PriceRule(base, per_1k_input_tokens=per_input, per_1k_output_tokens=per_output)
    except MalformedError:
        assert Fraction(base) == Fraction(per_input) == Fraction(per_output) == 0
        return
    exact = Fraction(base) + (Fraction(per_input) * tokens + Fraction(per_output) * longest) / 1000
    amount = rule.amount(tokens, longest, decimals=decimals)
    assert amount == 1 or 0 <= amount - exact * 10**decimals < 1
    assert parse_rule(rule.to_json(), "rule") == rule


def test_rules_and_payees_that_make_no_sense_are_refused() -> None:
    for tiers in ((10, 5), (10, 10), (0, 5)):
        with pytest.raises(MalformedError, match="ascending"):
            PriceRule("1", tiers=tuple(InputTier(limit, "1") for limit in tiers))
    for wrong in ({"per_call": "free"}, {"per_call": "1", "per_1k_input_tokens": "-1"}):
        with pytest.raises(MalformedError, match="plain decimal"):
            PriceRule(**wrong)  # type: ignore[arg-type]
    with pytest.raises(MalformedError, match="greater than zero"):
        PriceRule("1", tiers=(InputTier(5, "0"),))
    with pytest.raises(PriceError, match="zero address"):
        Payee(USDC_BASE, "0x" + "00" * 20)
    with pytest.raises(PriceError, match="pay_to"):
        Payee(USDC_BASE, "0x12")
    with pytest.raises(PriceError, match="CAIP-2"):
        Asset("base", PAY_TO, 6, "n", "1", "S")
    with pytest.raises(PriceError, match="decimals must be between 0 and 77"):
        Asset("eip155:1", PAY_TO, 78, "n", "1", "S")
    with pytest.raises(PriceError, match="EIP-712"):
        Asset("eip155:1", PAY_TO, 6, "", "1", "S")
    with pytest.raises(PriceError, match="max_timeout_seconds"):
        prices_for(PriceRule("1"), (), input_tokens=0, max_output_tokens=0, max_timeout_seconds=0)


def test_a_base_price_that_an_asset_cannot_express_is_refused_before_anything_is_offered() -> None:
    payee = Payee(USDC_BASE, PAY_TO)
    check_rule(PriceRule("0.000001", per_1k_input_tokens="0.0000000001"), [payee])
    for rule in (PriceRule("0.0000001"), PriceRule("1", tiers=(InputTier(9, "0.0000001"),))):
        with pytest.raises(PriceError, match=r"7 decimals; the token has 6 \(asset USDC on eip155:8453\)"):
            check_rule(rule, [payee])


# What a buyer checks

ENDPOINT = "/v1/summarize"
REQUEST = request_digest(endpoint=ENDPOINT, method="POST", body_hash=digest(b"{}"))
SOLD = {"scheme": "exact", "network": "eip155:84532", "asset": "0x1", "payTo": "0x2"}
BY_TOKEN = PriceRule("0.001", per_1k_input_tokens="0.0005", per_1k_output_tokens="0.002")
BASIS = PriceBasis(BY_TOKEN, REQUEST, 1_000, 1_000)


def terms(**changes: object) -> dict[str, object]:
    extension = BASIS.to_json()
    return {"extensions": {EXTENSION: {"info": {**extension["info"], **changes}}}}


def manifest_terms(**changes: object) -> dict[str, object]:
    return {
        "accepts": [{**SOLD, "decimals": 6}],
        "price_rule": {"per_call": "0.01"},
        "price_rules": {ENDPOINT: BY_TOKEN.to_json()},
        **changes,
    }


def test_a_buyer_recomputes_the_price_from_the_attested_rule() -> None:
    assert basis_of(terms(), request=REQUEST) == BASIS
    check_price(manifest_terms(), {**SOLD, "amount": "3500"}, endpoint=ENDPOINT, basis=BASIS)
    for amount in ("3499", "3501", 3500, None):
        with pytest.raises(EvidenceError, match="does not sell on these terms"):
            check_price(manifest_terms(), {**SOLD, "amount": amount}, endpoint=ENDPOINT, basis=BASIS)
    default = PriceBasis(PriceRule("0.01"), REQUEST, 1_000, 1_000)
    check_price(manifest_terms(), {**SOLD, "amount": "10000"}, endpoint="/v1/other", basis=default)


def test_a_price_by_another_rule_or_for_another_payee_is_not_the_builds() -> None:
    accept = {**SOLD, "amount": "3500"}
    with pytest.raises(EvidenceError, match="another rule than the attested build's for /v1/other"):
        check_price(manifest_terms(), accept, endpoint="/v1/other", basis=BASIS)
    with pytest.raises(EvidenceError, match="does not say what it was computed from"):
        check_price(manifest_terms(), accept, endpoint=ENDPOINT, basis=None)
    for name in SOLD:
        with pytest.raises(EvidenceError, match="does not sell on these terms"):
            check_price(manifest_terms(), {**accept, name: "other"}, endpoint=ENDPOINT, basis=BASIS)
    with pytest.raises(EvidenceError, match="does not sell on these terms"):
        check_price({"accepts": None}, accept, endpoint=ENDPOINT, basis=BASIS)


def test_a_price_is_that_of_exactly_this_request() -> None:
    for other in (
        request_digest(endpoint=ENDPOINT, method="POST", body_hash=digest(b"{} ")),
        request_digest(endpoint=ENDPOINT, method="PUT", body_hash=digest(b"{}")),
        request_digest(endpoint="/v1/other", method="POST", body_hash=digest(b"{}")),
    ):
        with pytest.raises(EvidenceError, match="asked was"):
            basis_of(terms(), request=other)
    silents: tuple[dict[str, object], ...] = ({}, {"extensions": None}, {"extensions": {}})
    for silent in silents:
        assert basis_of(silent, request=REQUEST) is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"inputTokens": -1}, "inputTokens"),
        ({"inputTokens": "7"}, "inputTokens"),
        ({"maxOutputTokens": True}, "maxOutputTokens"),
        ({"requestDigest": None}, "requestDigest"),
        ({"rule": []}, "rule"),
        ({"rule": {}}, "rule.per_call"),
        ({"rule": {"per_call": 1}}, "rule.per_call"),
        ({"rule": {"per_call": "1", "discount": "1"}}, "rule.discount"),
        ({"rule": {"per_call": "1", "tiers": {}}}, "rule.tiers"),
        ({"rule": {"per_call": "1", "tiers": [{"up_to_tokens": 1}]}}, "rule.tiers.price"),
    ],
)
def test_a_basis_of_another_form_is_refused_by_the_name_of_the_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(MalformedError) as refusal:
        basis_of(terms(**change), request=REQUEST)
    assert refusal.value.where == f"terms.extensions.price-basis.{field}"


def test_a_manifest_that_would_take_forever_to_compute_with_is_refused() -> None:
    forever = manifest_terms(accepts=[{**SOLD, "decimals": 10**9}])
    with pytest.raises(MalformedError, match="at most 77"):
        check_price(forever, {**SOLD, "amount": "1"}, endpoint=ENDPOINT, basis=BASIS)
    with pytest.raises(MalformedError, match="uint256"):
        PriceRule("1", per_1k_input_tokens="9" * 60).amount(1 << 60, 0, decimals=6)


def test_the_known_usdc_contracts_are_those_of_base_and_base_sepolia() -> None:
    assert KNOWN_USDC["eip155:8453"] is USDC_BASE
    assert KNOWN_USDC["eip155:84532"] is USDC_BASE_SEPOLIA
    assert (USDC_BASE.name, USDC_BASE_SEPOLIA.name) == ("USD Coin", "USDC")
    assert USDC_BASE.chain_id == 8453


@pytest.mark.parametrize(
    "network", ["eip155:1", "eip155:8453", "eip155:999999", "", "84532", "EIP155:84532", "eip155:84532 "]
)
def test_every_network_that_is_not_a_known_testnet_is_a_mainnet(network: str) -> None:
    assert is_mainnet_network(network)


def test_known_testnets_are_not_mainnets() -> None:
    assert 84532 in TESTNET_CHAIN_IDS
    assert not any(is_mainnet_network(f"eip155:{chain_id}") for chain_id in TESTNET_CHAIN_IDS | LOCAL_CHAIN_IDS)
