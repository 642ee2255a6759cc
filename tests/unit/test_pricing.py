"""Prices are exact integers or an error; networks that might carry real money are called mainnets."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import MalformedError
from attestation.money import MAX_UINT256, format_amount
from attestation.registry.canonical import LOCAL_CHAIN_IDS, TESTNET_CHAIN_IDS
from service.payment.networks import is_mainnet_network
from service.pricing import (
    KNOWN_USDC,
    USDC_BASE,
    USDC_BASE_SEPOLIA,
    Asset,
    InputTier,
    Payee,
    PriceError,
    PriceRule,
    parse_price,
    prices_for,
)

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
    assert parse_price(text, decimals) == amount


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
    with pytest.raises(PriceError, match=reason):
        parse_price(text, 6)


@given(amount=st.integers(1, MAX_UINT256), decimals=st.integers(0, 20))
def test_formatting_and_parsing_lose_nothing(amount: int, decimals: int) -> None:
    assert parse_price(format_amount(amount, decimals), decimals) == amount


@given(st.text(max_size=120))
def test_no_text_makes_price_parsing_fail_in_another_way(text: str) -> None:
    with contextlib.suppress(PriceError):
        assert parse_price(text, 6) > 0


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
    prices = prices_for(PriceRule("0.02"), payees, input_tokens=5, max_timeout_seconds=60)
    assert [price.amount for price in prices] == [20_000, 2 * 10**16]
    assert [price.asset for price in prices] == [USDC_BASE_SEPOLIA, eighteen]
    assert all(price.pay_to == PAY_TO and price.max_timeout_seconds == 60 for price in prices)


def test_tiers_price_by_input_size_and_the_base_price_covers_the_rest() -> None:
    rule = PriceRule("0.10", tiers=(InputTier(100, "0.01"), InputTier(1000, "0.05")))
    assert [rule.price_for(n) for n in (0, 100, 101, 1000, 1001)] == ["0.01", "0.01", "0.05", "0.05", "0.10"]
    assert rule.as_json() == {
        "per_call": "0.10",
        "tiers": [{"up_to_tokens": 100, "price": "0.01"}, {"up_to_tokens": 1000, "price": "0.05"}],
    }


def test_rules_and_payees_that_make_no_sense_are_refused() -> None:
    with pytest.raises(PriceError, match="ascending"):
        PriceRule("1", tiers=(InputTier(10, "1"), InputTier(5, "1")))
    with pytest.raises(PriceError, match="ascending"):
        PriceRule("1", tiers=(InputTier(10, "1"), InputTier(10, "1")))
    with pytest.raises(PriceError, match="plain decimal"):
        PriceRule("free")
    with pytest.raises(PriceError, match="zero address"):
        Payee(USDC_BASE, "0x" + "00" * 20)
    with pytest.raises(PriceError, match="pay_to"):
        Payee(USDC_BASE, "0x12")
    with pytest.raises(PriceError, match="CAIP-2"):
        Asset("base", PAY_TO, 6, "n", "1", "S")
    with pytest.raises(PriceError, match="EIP-712"):
        Asset("eip155:1", PAY_TO, 6, "", "1", "S")
    with pytest.raises(PriceError, match="max_timeout_seconds"):
        prices_for(PriceRule("1"), (), input_tokens=0, max_timeout_seconds=0)


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
