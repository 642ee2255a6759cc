"""What a request costs: pure functions from a price rule to exact amounts.

Prices are written as decimal strings ("0.01") and become integers in the asset's atomic units at once; no float and no
rounding exists on the way. A price that has no exact form in the asset's decimals is refused, never rounded.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from attestation.errors import MalformedError
from attestation.money import parse_amount
from service.payment.networks import BASE, BASE_SEPOLIA

_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_NETWORK: Final = re.compile(r"eip155:[1-9][0-9]{0,31}")


class PriceError(ValueError):
    """A price, an asset or a price rule is not usable; the message names the field and the limit."""


def _require_address(field: str, value: str) -> None:
    if not _ADDRESS.fullmatch(value):
        raise PriceError(f"{field} {value!r} is not an address (0x and 40 hex digits)")


@dataclass(frozen=True, slots=True)
class Asset:
    """A token that can be transferred by EIP-3009.

    Attributes:
        network: CAIP-2 identifier, `eip155:<chain id>`.
        address: the token contract, 0x and 40 hex digits.
        decimals: digits after the point; 6 for USDC.
        name: EIP-712 domain name; not always the symbol ("USD Coin" on Base).
        version: EIP-712 domain version.
        symbol: for people only.
    """

    network: str
    address: str
    decimals: int
    name: str
    version: str
    symbol: str

    def __post_init__(self) -> None:
        if not _NETWORK.fullmatch(self.network):
            raise PriceError(f"asset network {self.network!r} is not a CAIP-2 name such as {BASE_SEPOLIA}")
        _require_address("asset address", self.address)
        if not 0 <= self.decimals <= 77:
            raise PriceError(f"asset decimals must be between 0 and 77, not {self.decimals}")
        if not self.name or not self.version:
            raise PriceError("an asset needs the name and the version of its EIP-712 domain")

    @property
    def chain_id(self) -> int:
        """The number in the CAIP-2 name."""
        return int(self.network.removeprefix("eip155:"))


USDC_BASE: Final = Asset(BASE, "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913", 6, "USD Coin", "2", "USDC")
USDC_BASE_SEPOLIA: Final = Asset(BASE_SEPOLIA, "0x036CbD53842c5426634e7929541eC2318f3dCF7e", 6, "USDC", "2", "USDC")

KNOWN_USDC: Final = {asset.network: asset for asset in (USDC_BASE, USDC_BASE_SEPOLIA)}
"""Circle's contracts by network. A local chain that borrows a testnet's id has its own token; settings name it."""


@dataclass(frozen=True, slots=True)
class Payee:
    """Where money goes: one asset and the address that receives it."""

    asset: Asset
    pay_to: str

    def __post_init__(self) -> None:
        _require_address("pay_to", self.pay_to)
        if int(self.pay_to, 16) == 0:
            raise PriceError("pay_to is the zero address: every payment would be burned")


@dataclass(frozen=True, slots=True)
class Price:
    """An exact price in one asset, ready to be offered.

    Attributes:
        amount: atomic units, at least 1.
        max_timeout_seconds: how long a buyer's authorization should stay valid.
    """

    amount: int
    asset: Asset
    pay_to: str
    max_timeout_seconds: int


@dataclass(frozen=True, slots=True)
class InputTier:
    """The price of a call whose input has at most `up_to_tokens` tokens."""

    up_to_tokens: int
    price: str


@dataclass(frozen=True, slots=True)
class PriceRule:
    """How a call is priced, in decimal strings of one currency for all assets.

    Attributes:
        per_call: the price of a call that no tier covers; the only price when there are no tiers.
        tiers: cheaper (or dearer) prices by input size, smallest first.

    Raises:
        PriceError: tiers that are not in ascending order, or a price that is not a positive decimal.
    """

    per_call: str
    tiers: tuple[InputTier, ...] = ()

    def __post_init__(self) -> None:
        for price in (self.per_call, *(tier.price for tier in self.tiers)):
            parse_price(price, decimals=len(price))  # whether it fits an asset is known per asset, in prices_for
        limits = [tier.up_to_tokens for tier in self.tiers]
        if any(limit < 1 for limit in limits) or limits != sorted(set(limits)):
            raise PriceError(f"price tiers must have ascending token limits of at least 1, not {limits}")

    def price_for(self, input_tokens: int) -> str:
        """The decimal price of a call with `input_tokens` tokens of input."""
        for tier in self.tiers:
            if input_tokens <= tier.up_to_tokens:
                return tier.price
        return self.per_call

    def as_json(self) -> dict[str, Any]:
        """The rule as it stands in the build manifest."""
        tiers = [{"up_to_tokens": tier.up_to_tokens, "price": tier.price} for tier in self.tiers]
        return {"per_call": self.per_call, "tiers": tiers}


def prices_for(
    rule: PriceRule, payees: Sequence[Payee], *, input_tokens: int, max_timeout_seconds: int
) -> tuple[Price, ...]:
    """The price of one request in every asset that is accepted, in the order of `payees`.

    Raises:
        PriceError: the price has no exact form in one of the assets, or `max_timeout_seconds` is not positive.
    """
    if max_timeout_seconds < 1:
        raise PriceError(f"max_timeout_seconds must be at least 1, not {max_timeout_seconds}")
    text = rule.price_for(input_tokens)
    return tuple(
        Price(parse_price(text, payee.asset.decimals), payee.asset, payee.pay_to, max_timeout_seconds)
        for payee in payees
    )


def parse_price(text: str, decimals: int) -> int:
    """Atomic units for a decimal string: ("0.01", 6) -> 10000.

    Raises:
        PriceError: not a plain positive decimal (sign, exponent, NaN, spaces, missing digits), more decimals than the
            asset has, zero, or more than a uint256 holds.
    """
    try:
        amount = parse_amount(text, decimals)
    except MalformedError as error:
        raise PriceError(str(error)) from error
    if amount == 0:
        raise PriceError(f"price {text!r} must be greater than zero")
    return amount
