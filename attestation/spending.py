"""What a buyer is willing to pay: which tokens, and how much of each per call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from attestation import encoding
from attestation.errors import ServiceError
from attestation.money import format_amount, parse_amount


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
            elif amount > parse_amount(self.max_price, asset.decimals):
                refused.append(
                    f"it costs {format_amount(amount, asset.decimals)} USD, your limit is {self.max_price} USD"
                )
            else:
                return index
        raise ServiceError(
            "nothing was paid: " + "; ".join(refused),
            hint="--max-price raises the limit, --asset NETWORK:ADDRESS adds a token that you trust.",
        )
