"""A buyer pays at most the limit, only in tokens he knows, and money is never rounded."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import MalformedError, ServiceError, SpendingError
from attestation.money import format_amount, parse_amount
from attestation.spending import Asset, Outgoing, SpendingLimit

TOKEN = "0x" + "c0" * 20
PAYEE = "0x" + "9e" * 20
LIMIT = SpendingLimit("0.05", (Asset("eip155:84532", TOKEN),))


def accept(**changes: Any) -> dict[str, Any]:
    honest = {"scheme": "exact", "network": "eip155:84532", "asset": TOKEN, "payTo": PAYEE, "amount": "50000"}
    return {**honest, "maxTimeoutSeconds": 900, **changes}


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
    assert LIMIT.choose([accept(amount="50001"), accept(amount="50000"), accept(amount="1")]) == (1, LIMIT.assets[0])


def test_a_checksummed_token_is_the_same_token() -> None:
    assert LIMIT.choose([accept(asset=TOKEN.upper().replace("0X", "0x"))])[0] == 0


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (accept(amount="50001"), "0.050001 USD, your limit is 0.05 USD"),
        (accept(asset="0x" + "00" * 20), "not one you know"),
        (accept(network="eip155:8453"), "not one you know"),
        (accept(scheme="upto"), "scheme upto"),
        (accept(maxTimeoutSeconds=86_401), "stay valid for 86401 s"),
    ],
)
def test_other_terms_are_refused_with_the_reason(terms: dict[str, Any], reason: str) -> None:
    with pytest.raises(ServiceError, match=reason):
        LIMIT.choose([terms])


@pytest.mark.parametrize(
    "change", [{"amount": "1.5"}, {"amount": 1}, {"amount": "-1"}, {"asset": "0x1"}, {"payTo": "0x1"}]
)
def test_malformed_terms_are_an_error(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        LIMIT.choose([accept(**change)])


def test_only_payees_on_the_list_are_paid_when_there_is_one() -> None:
    limit = replace(LIMIT, payees=(PAYEE,))
    assert limit.choose([accept(payTo="0x" + "aa" * 20), accept(payTo=PAYEE.upper().replace("0X", "0x"))])[0] == 1
    with pytest.raises(ServiceError, match="is not one of those you pay"):
        limit.choose([accept(payTo="0x" + "aa" * 20)])


# In all


NOW = 1_790_000_000


def spent(*amounts: int, at: int = NOW, decimals: int = 6) -> list[Outgoing]:
    return [Outgoing(amount, decimals, at) for amount in amounts]


def test_the_last_unit_of_a_limit_can_be_spent_and_no_more() -> None:
    for limit in (replace(LIMIT, per_day="0.1"), replace(LIMIT, total="0.1")):
        assert limit.adds_up
        limit.check(50_000, 6, spent(50_000), now=NOW)
        with pytest.raises(SpendingError, match=r"it costs 0\.05 USD, and of your limit of 0\.1 USD"):
            limit.check(50_000, 6, spent(50_000, 1), now=NOW)


def test_a_day_is_any_24_hours() -> None:
    limit = replace(LIMIT, per_day="0.1")
    with pytest.raises(SpendingError, match="in 24 hours"):
        limit.check(1, 6, spent(100_000, at=NOW - 86_399), now=NOW)
    limit.check(1, 6, spent(100_000, at=NOW - 86_400), now=NOW)
    with pytest.raises(SpendingError, match="in all"):
        replace(limit, total="0.1").check(1, 6, spent(100_000, at=NOW - 86_400), now=NOW)


def test_tokens_of_different_decimals_add_up() -> None:
    limit = replace(LIMIT, total="0.3")
    mixed = [*spent(100_000), *spent(10**17, decimals=18)]
    limit.check(10, 2, mixed, now=NOW)
    with pytest.raises(SpendingError):
        limit.check(11, 2, mixed, now=NOW)


def test_without_a_limit_everything_is_allowed() -> None:
    assert not LIMIT.adds_up
    LIMIT.check(2**255, 0, spent(2**255), now=NOW)
    assert LIMIT.left(spent(1), now=NOW) == {"per_day": None, "total": None}


def test_what_is_left_is_never_below_nothing() -> None:
    limit = replace(LIMIT, per_day="0.1", total="0.15")
    assert limit.left(spent(30_000), now=NOW) == {"per_day": "0.07", "total": "0.12"}
    assert limit.left(spent(30_000, at=0), now=NOW) == {"per_day": "0.1", "total": "0.12"}
    assert limit.left(spent(200_000), now=NOW) == {"per_day": "0", "total": "0"}


@given(st.lists(st.integers(0, 200_000), max_size=12), st.integers(0, 500_000))
def test_no_order_of_payments_gets_beyond_a_limit(amounts: list[int], cap: int) -> None:
    limit = replace(LIMIT, total=format_amount(cap, 6))
    taken: list[Outgoing] = []
    for amount in amounts:
        with suppress(SpendingError):
            limit.check(amount, 6, taken, now=NOW)
            taken += spent(amount)
    assert sum(one.amount for one in taken) <= cap
    assert sum(amounts) > cap or len(taken) == len(amounts)


@pytest.mark.parametrize("decimals", [-1, 19])
def test_a_token_that_cannot_be_added_up_is_refused(decimals: int) -> None:
    with pytest.raises(MalformedError, match="decimals"):
        Asset("eip155:1", TOKEN, decimals)
