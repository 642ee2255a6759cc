"""Several transfers as one call, and what is asked about them afterwards. Pure."""

from collections.abc import Sequence
from typing import Any, Final

from service.payment.checks import Prepared
from service.payment.erc3009 import authorization_state, one_word
from service.payment.evm_rpc import Call, ChainError, hex_data
from service.payment.multicall import MULTICALL3, aggregate, results

BATCH_GAS_PER_TRANSFER: Final = 120_000
"""Twice what a transfer by key uses in a batch. The simulation has the same gas, so too little is noticed there."""

BATCH_GAS: Final = 60_000
"""The transaction itself and Multicall3's own work, on top of the transfers."""

MAX_TRANSACTION_GAS: Final = 16_000_000
"""Below the limit of one transaction on Ethereum since EIP-7825 (2**24)."""


def transaction_of(payments: Sequence[Prepared]) -> tuple[str, bytes, int]:
    """Target, data and gas limit of the transaction that executes these payments."""
    calls = [call for payment in payments for call in payment.calls]
    target, data = calls[0] if len(calls) == 1 else (MULTICALL3, aggregate(calls))
    return target, data, gas_for(payments)


def gas_for(payments: Sequence[Prepared]) -> int:
    """Gas limit of the transaction that executes these payments."""
    if len(payments) == 1:
        return payments[0].gas
    return BATCH_GAS + BATCH_GAS_PER_TRANSFER * len(payments)


def states_of(payments: Sequence[Prepared]) -> Call:
    """The question whether the nonces of these payments are spent."""
    calls = [(payment.authorization.asset, authorization_state(payment.authorization)) for payment in payments]
    target, data = calls[0] if len(calls) == 1 else (MULTICALL3, aggregate(calls))
    return ("eth_call", [{"to": target, "data": "0x" + data.hex()}, "latest"])


def spent_in(answer: Any, count: int) -> list[bool]:
    """The answer to `_states`; what is no clear yes is a no."""
    try:
        data = hex_data(answer)
        words = [data] if count == 1 else [said for _, said in results(data, count)]
        return [one_word(word) == 1 for word in words]
    except ChainError:
        return [False] * count
