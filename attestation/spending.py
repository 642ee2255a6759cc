"""What a buyer is willing to pay: which tokens, and how much of each per call.

Money is exact here: decimal text in, atomic integers inside, never a float.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from attestation import encoding
from attestation.errors import MalformedError, ServiceError

_USD: Final = re.compile(r"(0|[1-9][0-9]{0,11})(?:\.([0-9]{1,18}))?")


@dataclass(frozen=True, slots=True)
class Asset:
    """A US-dollar stablecoin that a buyer knows."""

    network: str
    """CAIP-2."""
    address: str
    decimals: int = 6


KNOWN_ASSETS: Final = (
    Asset("eip155:8453", "0x833589fcd6edb6e08f4c7c32d4f71b54bda02913"),
    Asset("eip155:84532", "0x036cbd53842c5426634e7929541ec2318f3dcf7e"),
)
"""Circle's USDC on Base and on Base Sepolia."""


def atomic(usd: str, decimals: int) -> int:
    """An amount of US dollars in a token's atomic units, exactly.

    Raises:
        MalformedError: not a plain decimal number such as 0.05, or with more digits than the token has.
    """
    match = _USD.fullmatch(usd)
    if match is None:
        raise MalformedError("price", f"must be a plain decimal number such as 0.05, is {usd!r}")
    fraction = (match[2] or "").rstrip("0")
    if len(fraction) > decimals:
        raise MalformedError("price", f"has more than the {decimals} digits that the token can express")
    return int(match[1] + fraction.ljust(decimals, "0"))


def usd_text(amount: int, decimals: int = 6) -> str:
    """An atomic amount as decimal text, with at least two digits after the point."""
    whole, fraction = divmod(amount, 10**decimals)
    digits = str(fraction).rjust(decimals, "0").rstrip("0") if decimals else ""
    return f"{whole}.{digits.ljust(2, '0')}"


@dataclass(frozen=True, slots=True)
class SpendingLimit:
    """At most `max_price` US dollars per call, in one of `assets`."""

    max_price: str
    assets: tuple[Asset, ...] = KNOWN_ASSETS

    def choose(self, accepts: Sequence[Mapping[str, Any]]) -> int:
        """Index of the first of a 402's `accepts` that is within the limit.

        Raises:
            ServiceError: there is none; the message says what was asked for.
            MalformedError: an entry is malformed.
        """
        refused = []
        for index, accept in enumerate(accepts):
            amount = encoding.decimal_text(accept.get("amount"), "accepts.amount")
            network, address = accept.get("network"), encoding.address(accept.get("asset"), "accepts.asset")
            asset = next((item for item in self.assets if (item.network, item.address) == (network, address)), None)
            if accept.get("scheme") != "exact":
                refused.append(f"scheme {accept.get('scheme')} is not supported")
            elif asset is None:
                refused.append(f"token {address} on {network} is not one you know")
            elif amount > atomic(self.max_price, asset.decimals):
                refused.append(f"it costs {usd_text(amount, asset.decimals)} USD, your limit is {self.max_price} USD")
            else:
                return index
        raise ServiceError(
            "nothing was paid: " + "; ".join(refused),
            hint="--max-price raises the limit, --asset NETWORK:ADDRESS adds a token that you trust.",
        )
