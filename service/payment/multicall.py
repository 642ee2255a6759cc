"""Multicall3's `aggregate3`: many calls in one, each of which may fail without failing the others.

The contract has the same address on every public chain that has it. Source: mds1/multicall3, `aggregate3`; Solidity
ABI specification, "Use of Dynamic Types".
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

from service.payment.erc3009 import word
from service.payment.evm_rpc import ChainError

MULTICALL3: Final = "0xca11bde05977b3631167028862be2a173976ca11"

AGGREGATE3: Final = bytes.fromhex("82ad56cb")
"""aggregate3((address,bool,bytes)[])"""

ContractCall: TypeAlias = tuple[str, bytes]
"""A contract and what it is called with."""


def aggregate(calls: Sequence[ContractCall]) -> bytes:
    """The call that makes all of `calls`, in order; none that fails keeps the others from being made."""
    heads, tails, offset = [], [], 32 * len(calls)
    for target, data in calls:
        padding = bytes(-len(data) % 32)
        tail = word(target) + word(1) + word(3 * 32) + word(len(data)) + data + padding
        heads.append(word(offset))
        tails.append(tail)
        offset += len(tail)
    return AGGREGATE3 + word(32) + word(len(calls)) + b"".join(heads) + b"".join(tails)


def results(answer: bytes, count: int) -> list[tuple[bool, bytes]]:
    """Whether each of `count` calls succeeded, and what it returned or reverted with.

    Raises:
        ChainError: the answer is not one of `aggregate3` for as many calls.
    """
    try:
        start = _number(answer, 0)
        if _number(answer, start) != count:
            raise ChainError(f"Multicall3 did not answer {count} calls")
        start += 32
        return [_result(answer, start + _number(answer, start + 32 * index)) for index in range(count)]
    except (IndexError, OverflowError) as error:
        raise ChainError("Multicall3 gave an answer that makes no sense") from error


def _result(answer: bytes, start: int) -> tuple[bool, bytes]:
    success = _number(answer, start)
    begin = start + _number(answer, start + 32)
    length = _number(answer, begin)
    data = answer[begin + 32 : begin + 32 + length]
    if success > 1 or len(data) != length:
        raise IndexError
    return bool(success), data


def _number(answer: bytes, start: int) -> int:
    piece = answer[start : start + 32]
    if len(piece) != 32:
        raise IndexError
    return int.from_bytes(piece)
