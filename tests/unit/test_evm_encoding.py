"""Calls, answers and events of contracts, against the reference encoder and against nonsense."""

from typing import Any

import pytest
from eth_abi.abi import decode, encode
from hypothesis import given
from hypothesis import strategies as st

from service.payment.checks import revert_text
from service.payment.erc3009 import (
    Moved,
    nonce_key,
    paid_by,
    parse_logs,
    transfer_by_key,
    transfer_by_wallet,
    transfers,
)
from service.payment.evm_rpc import ChainError
from service.payment.multicall import AGGREGATE3, aggregate, results
from tests.payments import authorize

ADDRESSES = st.binary(min_size=20, max_size=20).map(lambda data: "0x" + data.hex())
CALLS = st.lists(st.tuples(ADDRESSES, st.binary(max_size=100)), max_size=8)


@given(CALLS)
def test_aggregate3_is_called_as_the_reference_encodes_it(calls: list[tuple[str, bytes]]) -> None:
    expected = encode(["(address,bool,bytes)[]"], [[(target, True, data) for target, data in calls]])
    assert aggregate(calls) == AGGREGATE3 + expected


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=100)), max_size=8))
def test_the_results_of_aggregate3_are_read_as_the_reference_encodes_them(answers: list[tuple[bool, bytes]]) -> None:
    assert results(encode(["(bool,bytes)[]"], [answers]), len(answers)) == answers
    with pytest.raises(ChainError):
        results(encode(["(bool,bytes)[]"], [answers]), len(answers) + 1)


@given(data=st.binary(max_size=400), count=st.integers(0, 5))
def test_nonsense_is_no_result(data: bytes, count: int) -> None:
    try:
        found = results(data, count)
    except ChainError:
        return
    assert len(found) == count


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), min_size=1, max_size=3), st.data())
def test_an_answer_with_one_number_changed_is_read_or_refused(answers: list[tuple[bool, bytes]], data: Any) -> None:
    encoded = bytearray(encode(["(bool,bytes)[]"], [answers]))
    at = data.draw(st.integers(0, len(encoded) // 32 - 1)) * 32
    value = data.draw(st.integers(0, 2**256 - 1) | st.integers(0, len(encoded)))
    encoded[at : at + 32] = value.to_bytes(32)
    try:
        found = results(bytes(encoded), len(answers))
    except ChainError:
        return
    assert len(found) == len(answers)


TYPES = ["address", "address", "uint256", "uint256", "uint256", "bytes32"]


def test_a_transfer_by_key_is_encoded_with_v_as_tokens_take_it() -> None:
    paid = authorize()
    signature = bytes.fromhex(paid.signature[2:])
    for v in (signature[64], signature[64] - 27):
        call = transfer_by_key(paid, signature[:64] + bytes([v]))
        values = decode([*TYPES, "uint8", "bytes32", "bytes32"], call[4:])
        assert values[:2] == (paid.payer, paid.pay_to)
        assert values[2:5] == (paid.amount, paid.valid_after, paid.valid_before)
        assert "0x" + values[5].hex() == paid.nonce
        assert values[6:] == (signature[64], signature[:32], signature[32:64])


@given(st.binary(min_size=65, max_size=300))
def test_a_transfer_by_wallet_carries_the_signature_as_it_is(signature: bytes) -> None:
    paid = authorize()
    call = transfer_by_wallet(paid, signature)
    assert call[4:] == encode(
        [*TYPES, "bytes"],
        [
            paid.payer,
            paid.pay_to,
            paid.amount,
            paid.valid_after,
            paid.valid_before,
            bytes.fromhex(paid.nonce[2:]),
            signature,
        ],
    )


def test_a_revert_is_shown_as_text_and_never_as_control_characters() -> None:
    def error(text: str) -> bytes:
        return bytes.fromhex("08c379a0") + encode(["string"], [text])

    assert revert_text(error("FiatToken: no")) == "FiatToken: no"
    assert revert_text(error("a\x1b[31m\nb")) == "a [31m b"
    assert len(revert_text(error("x" * 5_000))) == 200
    for data in (b"", b"\x08", bytes.fromhex("4e487b71") + bytes(32), bytes.fromhex("08c379a0") + b"\xff" * 64):
        assert len(revert_text(data)) <= 200


@given(st.binary(max_size=200))
def test_no_revert_breaks_us(data: bytes) -> None:
    assert revert_text(bytes.fromhex("08c379a0") + data).isprintable()


def test_each_authorization_gets_the_transfer_that_follows_it() -> None:
    first, second = authorize(), authorize()

    def used(paid: Any) -> dict[str, Any]:
        token, payer, nonce = nonce_key(paid)
        return {"address": token, "topics": [used_topic, payer, nonce], "data": "0x"}

    def moved(paid: Any) -> dict[str, Any]:
        what = paid_by(paid)
        return {
            "address": paid.asset,
            "topics": [transfer_topic, what.payer, what.pay_to],
            "data": f"0x{paid.amount:064x}",
        }

    used_topic = "0x98de503528ee59b575ef0c0a2576a82497bfc029a5685b209e9ec333479b10a5"
    transfer_topic = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
    found = transfers(parse_logs([used(first), moved(first), used(second)]))
    assert found == {nonce_key(first): paid_by(first), nonce_key(second): None}
    short = {**moved(first), "data": "0x01"}
    what = paid_by(first)
    assert transfers(parse_logs([used(first), short]))[nonce_key(first)] == Moved(what.payer, what.pay_to, None)


@pytest.mark.parametrize("value", [None, {}, "0x", [None], [{"topics": None}], [{"topics": [1]}], [7]])
def test_what_is_no_list_of_events_is_refused(value: Any) -> None:
    with pytest.raises(ChainError):
        parse_logs(value)
