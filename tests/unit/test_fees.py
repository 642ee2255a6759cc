"""What gas costs, and what is paid for it at most."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.payment.evm_rpc import ChainError, NodeRefusedError
from service.payment.fees import Fees, FeeTooHighError, Market, first_fees, includable, raised_fees, read_market

GWEI = 10**9
WEI = st.integers(0, 10**15)
UNKNOWN_METHOD = NodeRefusedError("eth_maxPriorityFeePerGas", "method not found", -32601, b"")


def test_a_new_transaction_leaves_room_for_the_base_fee_to_double() -> None:
    assert first_fees(Market(10 * GWEI, 11 * GWEI, GWEI), 100 * GWEI) == Fees(21 * GWEI, GWEI)
    assert first_fees(Market(60 * GWEI, 61 * GWEI, GWEI), 100 * GWEI) == Fees(100 * GWEI, GWEI)
    assert first_fees(Market(None, 7 * GWEI, 0), 100 * GWEI) == Fees(7 * GWEI, None)


@given(base=st.none() | WEI, price=WEI, tip=WEI, cap=WEI)
def test_nobody_pays_more_than_the_limit_nor_too_little_to_be_included(
    base: int | None, price: int, tip: int, cap: int
) -> None:
    market = Market(base, price, tip)
    try:
        fees = first_fees(market, cap)
    except FeeTooHighError:
        assert cap < (price if base is None else base + tip)
        return
    assert fees.max_fee <= cap
    assert fees.tip is None or fees.tip <= fees.max_fee
    assert includable(fees, market)


@given(old=WEI, tip=st.none() | WEI, base=WEI, asked=WEI, cap=WEI)
def test_a_replacement_pays_an_eighth_more_of_everything_and_never_more_than_the_limit(
    old: int, tip: int | None, base: int, asked: int, cap: int
) -> None:
    market = Market(None if tip is None else base, asked, asked)
    before = Fees(old, None if tip is None else min(tip, old))
    after = raised_fees(before, market, cap)
    if after is None:
        return
    assert after.max_fee <= cap
    assert after.max_fee * 8 >= before.max_fee * 9
    assert (after.tip is None) == (before.tip is None)
    if after.tip is not None and before.tip is not None:
        assert before.tip * 9 <= after.tip * 8
        assert after.tip <= after.max_fee


def test_a_replacement_follows_the_market() -> None:
    assert raised_fees(Fees(2 * GWEI, GWEI), Market(50 * GWEI, 51 * GWEI, GWEI), 200 * GWEI) is not None
    raised = raised_fees(Fees(2 * GWEI, GWEI), Market(50 * GWEI, 51 * GWEI, GWEI), 200 * GWEI)
    assert raised is not None
    assert raised.max_fee >= 100 * GWEI
    assert raised_fees(Fees(90 * GWEI, GWEI), Market(GWEI, GWEI, GWEI), 100 * GWEI) is None


def test_fees_are_written_as_the_chain_wants_them() -> None:
    assert Fees(5, 2).fields() == {"type": 2, "maxFeePerGas": 5, "maxPriorityFeePerGas": 2}
    assert Fees(5, None).fields() == {"gasPrice": 5}


def test_the_market_is_read_from_nodes_of_every_kind() -> None:
    assert read_market({"baseFeePerGas": "0x10"}, "0x18", "0x2") == Market(16, 24, 2)
    assert read_market({"baseFeePerGas": "0x10"}, "0x18", UNKNOWN_METHOD) == Market(16, 24, 8)
    assert read_market({"baseFeePerGas": "0x20"}, "0x18", UNKNOWN_METHOD) == Market(32, 24, 0)
    assert read_market({}, "0x18", UNKNOWN_METHOD) == Market(None, 24, 0)


@pytest.mark.parametrize(
    ("block", "price", "tip"),
    [
        (None, "0x1", "0x1"),
        ({"baseFeePerGas": 7}, "0x1", "0x1"),
        ({}, None, "0x1"),
        ({"baseFeePerGas": "0x1"}, "0x1", 1),
    ],
)
def test_a_market_that_makes_no_sense_is_no_market(block: object, price: object, tip: object) -> None:
    with pytest.raises(ChainError):
        read_market(block, price, tip)
