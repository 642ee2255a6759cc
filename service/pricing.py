"""What is accepted for a request, and how much of it: pure functions from a price rule to exact amounts.

The arithmetic is `attestation.pricing`, which buyers check with. A fixed price that has no exact form in an accepted
asset's decimals is refused, never rounded.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from attestation.errors import MalformedError
from attestation.money import MAX_DECIMALS
from attestation.pricing import PriceRule
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
        if not 0 <= self.decimals <= MAX_DECIMALS:
            raise PriceError(f"asset decimals must be between 0 and {MAX_DECIMALS}, not {self.decimals}")
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


def prices_for(
    rule: PriceRule,
    payees: Sequence[Payee],
    *,
    input_tokens: int,
    max_output_tokens: int,
    max_timeout_seconds: int,
) -> tuple[Price, ...]:
    """The price of one request in every asset that is accepted, in the order of `payees`.

    Raises:
        PriceError: the price has no exact form in one of the assets, or `max_timeout_seconds` is not positive.
    """
    if max_timeout_seconds < 1:
        raise PriceError(f"max_timeout_seconds must be at least 1, not {max_timeout_seconds}")
    return tuple(
        Price(
            _amount(rule, input_tokens, max_output_tokens, payee.asset), payee.asset, payee.pay_to, max_timeout_seconds
        )
        for payee in payees
    )


def check_rule(rule: PriceRule, payees: Sequence[Payee]) -> None:
    """Refuse a rule that some call could not be priced by, before anything is offered.

    Raises:
        PriceError: one of its base prices has no exact form in one of the assets.
    """
    for payee in payees:
        for input_tokens in (*(tier.up_to_tokens for tier in rule.tiers), _MANY_TOKENS):
            _amount(rule, input_tokens, _MANY_TOKENS, payee.asset)


_MANY_TOKENS: Final = 1 << 53
"""More than any call has: beyond every tier, and what sums must still hold."""


def _amount(rule: PriceRule, input_tokens: int, max_output_tokens: int, asset: Asset) -> int:
    try:
        return rule.amount(input_tokens, max_output_tokens, decimals=asset.decimals)
    except MalformedError as error:
        raise PriceError(f"{error} (asset {asset.symbol} on {asset.network})") from error
