"""Amounts as people write them and as tokens hold them: decimal text and atomic integers, never floats.

A text that has no exact form in the token's decimals is refused, never rounded.
"""

import re
from typing import Final

from attestation.errors import MalformedError

MAX_UINT256: Final = 2**256 - 1
"""Largest amount an EVM token can hold or an EIP-3009 authorization can carry."""

MAX_DECIMALS: Final = 77
"""Most decimals of a token in which anything can still be expressed in a uint256."""

MAX_LENGTH: Final = 100
"""Characters in an amount: 78 digits are the most a uint256 needs, the rest is the point and some zeros."""

_DECIMAL: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def check_decimal(text: str, where: str = "price") -> str:
    """The text itself when it is a plain decimal: digits, and perhaps a point with digits after it.

    Raises:
        MalformedError: it has a sign, an exponent, spaces, missing digits or too many of them.
    """
    if len(text) > MAX_LENGTH or not _DECIMAL.fullmatch(text):
        raise MalformedError(where, f'{text[:MAX_LENGTH]!r} is not a plain decimal such as "0.01"')
    return text


def parse_amount(text: str, decimals: int, where: str = "price") -> int:
    """Atomic units for a decimal text: ("0.01", 6) -> 10000.

    Raises:
        MalformedError: not a plain decimal (sign, exponent, NaN, spaces, missing digits), more decimals than the token
            has, or more than a uint256 holds.
    """
    whole, _, fraction = check_decimal(text, where).partition(".")
    if len(fraction) > decimals:
        raise MalformedError(where, f"{text!r} has {len(fraction)} decimals; the token has {decimals}")
    amount = int(whole + fraction.ljust(decimals, "0"))
    if amount > MAX_UINT256:
        raise MalformedError(where, f"{text!r} does not fit in a uint256")
    return amount


def format_amount(amount: int, decimals: int) -> str:
    """The decimal text of an atomic amount, shortest form: (10000, 6) -> "0.01", (2000000, 6) -> "2".

    Raises:
        MalformedError: `amount` is negative.
    """
    if amount < 0:
        raise MalformedError("amount", f"cannot be negative: {amount}")
    digits = str(amount).rjust(decimals + 1, "0")
    whole, fraction = digits[: len(digits) - decimals], digits[len(digits) - decimals :].rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole
