"""What gas costs, and what we are willing to pay for it. Pure.

All amounts are wei per unit of gas. Source: EIP-1559; a node accepts another transaction with the same nonce only when
it pays enough more (go-ethereum: 10 percent, others 12.5).
"""

from dataclasses import dataclass
from typing import Any, Final

from service.payment.evm_rpc import ChainError, NodeRefusedError, json_object, quantity

BASE_FEE_ROOM: Final = 2
"""The base fee may double, which takes six full blocks, before a transaction has to be replaced."""

DEFAULT_MAX_FEE: Final = 100 * 10**9
"""100 gwei."""


class FeeTooHighError(Exception):
    """Gas costs more than we are willing to pay."""


@dataclass(frozen=True, slots=True)
class Fees:
    """What a transaction pays: at most `max_fee`, of which `tip` for the block's maker. No tip: before EIP-1559."""

    max_fee: int
    tip: int | None

    def fields(self) -> dict[str, int]:
        """As a transaction carries them."""
        if self.tip is None:
            return {"gasPrice": self.max_fee}
        return {"type": 2, "maxFeePerGas": self.max_fee, "maxPriorityFeePerGas": self.tip}


@dataclass(frozen=True, slots=True)
class Market:
    """What gas costs now. `base_fee` is None on a chain without EIP-1559, where `price` counts."""

    base_fee: int | None
    price: int
    tip: int


def read_market(block: Any, gas_price: Any, tip: Any) -> Market:
    """From the answers to eth_getBlockByNumber, eth_gasPrice and eth_maxPriorityFeePerGas, which not every node knows.

    Raises:
        ChainError: an answer makes no sense.
    """
    base = json_object(block, "latest block").get("baseFeePerGas")
    price = quantity(gas_price)
    if base is None:
        return Market(None, price, 0)
    base_fee = quantity(base)
    if isinstance(tip, NodeRefusedError):
        return Market(base_fee, price, max(price - base_fee, 0))
    return Market(base_fee, price, quantity(tip))


def first_fees(market: Market, max_fee: int) -> Fees:
    """What a new transaction offers.

    Raises:
        FeeTooHighError: it would not be included for `max_fee`.
    """
    if market.base_fee is None:
        if market.price > max_fee:
            raise FeeTooHighError(_too_high(market.price, max_fee))
        return Fees(market.price, None)
    if market.base_fee + market.tip > max_fee:
        raise FeeTooHighError(_too_high(market.base_fee + market.tip, max_fee))
    return Fees(min(BASE_FEE_ROOM * market.base_fee + market.tip, max_fee), market.tip)


def raised_fees(old: Fees, market: Market, max_fee: int) -> Fees | None:
    """What a transaction offers that takes the place of another with the same nonce: an eighth more at least, and what
    the market asks. None when that is more than `max_fee`."""
    try:
        fresh = first_fees(market, max_fee)
    except FeeTooHighError:
        return None
    needed = _eighth_more(old.max_fee)
    if needed > max_fee:
        return None
    if old.tip is None:
        return Fees(max(needed, fresh.max_fee), None)
    tip = max(_eighth_more(old.tip), fresh.tip or 0)
    total = max(needed, fresh.max_fee)
    return Fees(max(total, tip), tip) if tip <= max_fee else None


def includable(fees: Fees, market: Market) -> bool:
    """Whether a transaction with these fees may be in a block now."""
    return market.base_fee is None or fees.max_fee >= market.base_fee


def block_gas_limit(block: Any) -> int:
    """Gas that a block has.

    Raises:
        ChainError: the block does not say.
    """
    limit = quantity(json_object(block, "latest block").get("gasLimit"))
    if limit == 0:
        raise ChainError("the node's latest block has no gas")
    return limit


def _eighth_more(value: int) -> int:
    return value + (value + 7) // 8 + 1


def _too_high(price: int, max_fee: int) -> str:
    return f"a unit of gas costs {price} wei; at most {max_fee} wei are paid (max_fee_wei)"
