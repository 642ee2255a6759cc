"""A buyer pays at most the limit, only in tokens he knows, and money is never rounded."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import MalformedError, ServiceError
from attestation.money import format_amount, parse_amount
from attestation.spending import Asset, SpendingLimit

TOKEN = "0x" + "c0" * 20
LIMIT = SpendingLimit("0.05", (Asset("eip155:84532", TOKEN),))


def accept(**changes: Any) -> dict[str, Any]:
    return {"scheme": "exact", "network": "eip155:84532", "asset": TOKEN, "amount": "50000", **changes}


@given(st.integers(min_value=0, max_value=10**17))
def test_what_is_printed_is_what_is_paid(amount: int) -> None:
    assert parse_amount(format_amount(amount, 6), 6) == amount


@pytest.mark.parametrize(("text", "units"), [("0.05", 50_000), ("1", 1_000_000), ("0.000001", 1), ("2.50", 2_500_000)])
def test_prices_are_exact(text: str, units: int) -> None:
    assert parse_amount(text, 6) == units


@pytest.mark.parametrize(
    "text", ["", "-1", "1e3", ".5", "5.", "0.0000001", "1.0000000", "NaN", "1,5", "٣", "0x1", " 1"]
)
def test_a_price_that_is_not_a_plain_decimal_is_refused(text: str) -> None:
    with pytest.raises(MalformedError):
        parse_amount(text, 6)


def test_the_first_affordable_terms_are_chosen() -> None:
    assert LIMIT.choose([accept(amount="50001"), accept(amount="50000"), accept(amount="1")]) == 1


def test_a_checksummed_token_is_the_same_token() -> None:
    assert LIMIT.choose([accept(asset=TOKEN.upper().replace("0X", "0x"))]) == 0


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (accept(amount="50001"), "0.050001 USD, your limit is 0.05 USD"),
        (accept(asset="0x" + "00" * 20), "not one you know"),
        (accept(network="eip155:8453"), "not one you know"),
        (accept(scheme="upto"), "scheme upto"),
    ],
)
def test_other_terms_are_refused_with_the_reason(terms: dict[str, Any], reason: str) -> None:
    with pytest.raises(ServiceError, match=reason):
        LIMIT.choose([terms])


@pytest.mark.parametrize("change", [{"amount": "1.5"}, {"amount": 1}, {"amount": "-1"}, {"asset": "0x1"}])
def test_malformed_terms_are_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        LIMIT.choose([accept(**change)])
