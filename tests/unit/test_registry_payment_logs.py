"""Logs that no honest token writes do not add up to a payment either."""

from typing import Any, cast

import pytest
from hexbytes import HexBytes
from web3.types import LogReceipt

from attestation.registry.abi import AUTHORIZATION_USED, TRANSFER
from attestation.registry.payments import Payment, _mismatch
from attestation.registry.rpc import word

TOKEN, OTHER = "0x" + "70" * 20, "0x" + "71" * 20
PAYER, PAYEE, THIEF = "0x" + "0a" * 20, "0x" + "0b" * 20, "0x" + "0c" * 20
OURS, THEIRS = b"\x01" * 32, b"\x02" * 32
PAYMENT = Payment("eip155:84532", TOKEN, PAYER, PAYEE, 10_000, "0x" + OURS.hex(), "0x" + "ff" * 32)


def used(nonce: bytes = OURS, payer: str = PAYER, token: str = TOKEN) -> dict[str, Any]:
    return {"address": token, "topics": [AUTHORIZATION_USED, word(payer), nonce], "data": b""}


def moved(amount: int = 10_000, sender: str = PAYER, receiver: str = PAYEE, token: str = TOKEN) -> dict[str, Any]:
    return {"address": token, "topics": [TRANSFER, word(sender), word(receiver)], "data": word(amount)}


def mismatch(*logs: dict[str, Any]) -> str | None:
    numbered = [
        log | {"logIndex": index, "topics": [HexBytes(topic) for topic in log["topics"]], "data": HexBytes(log["data"])}
        for index, log in enumerate(logs)
    ]
    return _mismatch(PAYMENT, cast(list[LogReceipt], numbered[::-1]))  # the order in which a node lists them is its own


def test_an_authorization_followed_by_its_transfer_is_the_payment() -> None:
    assert mismatch(used(), moved()) is None
    assert mismatch(moved(1), used(THEIRS), moved(2), used(), moved()) is None


def test_other_tokens_may_talk_in_between() -> None:
    assert mismatch(used(), used(THEIRS, token=OTHER), moved(1, token=OTHER), moved()) is None


@pytest.mark.parametrize(
    "logs",
    [
        (),
        (moved(),),
        (used(),),
        (moved(), used()),
        (used(), used(THEIRS), moved()),
        (used(THEIRS), moved()),
        (used(payer=THIEF), moved()),
        (used(), moved(sender=THIEF)),
        (used(), moved(receiver=THIEF)),
        (used(), moved(9_999)),
        (used(), moved(9_999), moved()),
        (used(token=OTHER), moved()),
        (used(), moved(token=OTHER)),
        (used(token=OTHER), moved(token=OTHER)),
        (used(), {"address": TOKEN, "topics": [TRANSFER, word(PAYER), word(PAYEE), word(10_000)], "data": b""}),
        (used(), {"address": TOKEN, "topics": [], "data": b""}),
    ],
)
def test_anything_else_is_not(logs: tuple[dict[str, Any], ...]) -> None:
    assert mismatch(*logs) is not None
