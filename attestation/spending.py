"""What a buyer is willing to pay: which tokens, to whom, how much per call, per day and in all.

Limits are US dollars as decimal text. Tokens count in atomic units of their own; to be added up they are taken to
`USD_DECIMALS`, so nothing is ever rounded.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from attestation import encoding
from attestation.errors import MalformedError, ServiceError, SpendingError
from attestation.money import format_amount, parse_amount

USD_DECIMALS: Final = 18
"""Decimals in which amounts of different tokens are added up; no token that a buyer may know has more."""

DAY_SECONDS: Final = 86_400
"""The daily limit holds for any 24 hours, so it cannot be spent twice around midnight."""

MAX_VALIDITY_SECONDS: Final = 86_400
"""Longest time that a signed payment may stay valid: until it ends, an unanswered one counts as spent."""


@dataclass(frozen=True, slots=True)
class Asset:
    """A US-dollar stablecoin that a buyer knows."""

    network: str
    """CAIP-2."""
    address: str
    decimals: int = 6

    def __post_init__(self) -> None:
        if not 0 <= self.decimals <= USD_DECIMALS:
            raise MalformedError("asset.decimals", f"must be between 0 and {USD_DECIMALS}")


KNOWN_ASSETS: Final = (
    Asset("eip155:8453", "0x833589fcd6edb6e08f4c7c32d4f71b54bda02913"),
    Asset("eip155:84532", "0x036cbd53842c5426634e7929541ec2318f3dcf7e"),
)
"""Circle's USDC on Base and on Base Sepolia."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A payment that counts as spent."""

    amount: int
    """Atomic units."""
    decimals: int
    at: int
    """Unix seconds at which it was signed."""

    @property
    def usd(self) -> int:
        return usd(self.amount, self.decimals)


@dataclass(frozen=True, slots=True)
class SpendingLimit:
    """At most `max_price` US dollars per call, in one of `assets`, to one of `payees`; and so much in all."""

    max_price: str
    assets: tuple[Asset, ...] = KNOWN_ASSETS
    per_day: str | None = None
    """US dollars in any 24 hours; None sets no limit."""
    total: str | None = None
    """US dollars since the ledger began; None sets no limit."""
    payees: tuple[str, ...] = ()
    """Addresses in lower case; none accepts any payee."""

    @property
    def adds_up(self) -> bool:
        """Whether it matters what was spent before."""
        return self.per_day is not None or self.total is not None

    def choose(self, accepts: Sequence[Mapping[str, Any]]) -> tuple[int, Asset]:
        """Index of the first of a 402's `accepts` that is within the limit for one call, and its token.

        Raises:
            ServiceError: there is none; the message says what was asked for.
            MalformedError: an entry is malformed.
        """
        refused = []
        for index, accept in enumerate(accepts):
            amount = encoding.decimal_text(accept.get("amount"), "accepts.amount")
            network, address = accept.get("network"), encoding.address(accept.get("asset"), "accepts.asset")
            pay_to = encoding.address(accept.get("payTo"), "accepts.payTo")
            validity = encoding.integer(accept.get("maxTimeoutSeconds"), "accepts.maxTimeoutSeconds")
            asset = next((item for item in self.assets if (item.network, item.address) == (network, address)), None)
            if accept.get("scheme") != "exact":
                refused.append(f"scheme {accept.get('scheme')} is not supported")
            elif asset is None:
                refused.append(f"token {address} on {network} is not one you know")
            elif self.payees and pay_to not in self.payees:
                refused.append(f"{pay_to} is not one of those you pay")
            elif validity > MAX_VALIDITY_SECONDS:
                refused.append(
                    f"the payment would stay valid for {validity} s, at most {MAX_VALIDITY_SECONDS} are right"
                )
            elif amount > parse_amount(self.max_price, asset.decimals):
                refused.append(
                    f"it costs {format_amount(amount, asset.decimals)} USD, your limit is {self.max_price} USD"
                )
            else:
                return index, asset
        raise ServiceError(
            "nothing was paid: " + "; ".join(refused),
            hint="--max-price raises the limit, --asset NETWORK:ADDRESS adds a token that you trust.",
        )

    def check(self, amount: int, decimals: int, spent: Iterable[Outgoing], *, now: int) -> None:
        """Check that one more payment stays within the limits for a day and in all.

        Args:
            amount: atomic units of a token with `decimals`.
            decimals: of the token.
            spent: everything that counts as spent.
            now: unix seconds.

        Raises:
            SpendingError: it does not; the message names the limit.
        """
        spent = tuple(spent)
        for name, limit, counted in (
            ("in 24 hours", self.per_day, spent_since(spent, now - DAY_SECONDS)),
            ("in all", self.total, spent_since(spent, None)),
        ):
            if limit is not None and counted + usd(amount, decimals) > parse_amount(limit, USD_DECIMALS, "limit"):
                raise SpendingError(
                    f"nothing was paid: it costs {format_amount(amount, decimals)} USD, and of your limit of {limit} "
                    f"USD {name}, {format_amount(counted, USD_DECIMALS)} USD are spent or may still be taken",
                    hint="`tollseal spend` lists the payments; --max-per-day and --max-total raise the limits.",
                )

    def left(self, spent: Iterable[Outgoing], *, now: int) -> dict[str, str | None]:
        """What the limits leave, in US dollars by name; None where there is no limit."""
        spent = tuple(spent)
        limits = {"per_day": (self.per_day, now - DAY_SECONDS), "total": (self.total, None)}
        return {
            name: None
            if limit is None
            else format_amount(max(0, parse_amount(limit, USD_DECIMALS) - spent_since(spent, since)), USD_DECIMALS)
            for name, (limit, since) in limits.items()
        }


def usd(amount: int, decimals: int) -> int:
    """An amount of a token as US dollars in `USD_DECIMALS`."""
    return amount * int(10 ** (USD_DECIMALS - decimals))


def spent_since(spent: Iterable[Outgoing], since: int | None) -> int:
    """The sum of what was signed after `since` (unix seconds; None for ever), in `USD_DECIMALS`."""
    return sum(one.usd for one in spent if since is None or one.at > since)
