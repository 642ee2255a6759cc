"""What a call costs, by the rule in the build manifest: one arithmetic for the seller and for whoever checks him.

    price = base + input_tokens * per_1k_input_tokens / 1000 + max_output_tokens * per_1k_output_tokens / 1000

`base` is the price of the first tier that covers the input, else `per_call`. All of it is exact: decimal texts become
fractions, no float exists on the way. The sum is rounded once, in `PriceRule.amount`: up to the next atomic unit of the
token, and to at least one. Whoever has the rule and the two numbers of tokens gets the same integer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil
from typing import Any, Final

from attestation import encoding
from attestation.digest import jcs_digest
from attestation.errors import EvidenceError, MalformedError
from attestation.money import MAX_DECIMALS, MAX_UINT256, check_decimal, parse_amount

EXTENSION: Final = "price-basis"
"""Extension of a 402 that says what its price was computed from; docs/formats.md describes it."""

_RATES: Final = ("per_1k_input_tokens", "per_1k_output_tokens")
_SOLD: Final = ("scheme", "network", "asset", "payTo")


@dataclass(frozen=True, slots=True)
class InputTier:
    """The price of a call whose input has at most `up_to_tokens` tokens."""

    up_to_tokens: int
    price: str


@dataclass(frozen=True, slots=True)
class PriceRule:
    """How a call is priced, in decimal texts of one currency for all tokens.

    Attributes:
        per_call: the base price of a call that no tier covers; may be "0" where tokens cost something.
        tiers: cheaper (or dearer) base prices by input size, smallest first.
        per_1k_input_tokens: for a thousand tokens of input; may be finer than any token's decimals.
        per_1k_output_tokens: for a thousand tokens of the longest possible answer; likewise.

    Raises:
        MalformedError: tiers that are not in ascending order, a text that is not a plain decimal, or a rule by which
            everything is free.
    """

    per_call: str
    tiers: tuple[InputTier, ...] = ()
    per_1k_input_tokens: str = "0"
    per_1k_output_tokens: str = "0"
    _rates: tuple[Fraction, Fraction] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rates = tuple(Fraction(check_decimal(getattr(self, name), name)) for name in _RATES)
        object.__setattr__(self, "_rates", rates)
        for price in (self.per_call, *(tier.price for tier in self.tiers)):
            check_decimal(price, "price")
            if not self.counts_tokens and Fraction(price) == 0:
                raise MalformedError("price", f"{price!r} must be greater than zero")
        limits = [tier.up_to_tokens for tier in self.tiers]
        if any(limit < 1 for limit in limits) or limits != sorted(set(limits)):
            raise MalformedError("price tiers", f"must have ascending token limits of at least 1, not {limits}")

    @property
    def counts_tokens(self) -> bool:
        """Whether every token costs something."""
        return any(rate > 0 for rate in self._rates)

    def base(self, input_tokens: int) -> str:
        """The decimal base price of a call with so many tokens of input."""
        for tier in self.tiers:
            if input_tokens <= tier.up_to_tokens:
                return tier.price
        return self.per_call

    def amount(self, input_tokens: int, max_output_tokens: int, *, decimals: int) -> int:
        """What a call costs in atomic units of a token with so many decimals, at least 1.

        Raises:
            MalformedError: the base price has no exact form in the token's decimals, or the sum is beyond uint256.
        """
        base = parse_amount(self.base(input_tokens), decimals)
        if not self.counts_tokens:
            return base
        per_input, per_output = self._rates
        unit: int = 10**decimals
        amount = max(1, base + ceil((per_input * input_tokens + per_output * max_output_tokens) * unit / 1000))
        if amount > MAX_UINT256:
            raise MalformedError("price", "does not fit in a uint256")
        return amount

    def to_json(self) -> dict[str, Any]:
        """The rule as it stands in the build manifest and in a 402."""
        return {
            "per_call": self.per_call,
            "tiers": [{"up_to_tokens": tier.up_to_tokens, "price": tier.price} for tier in self.tiers],
            **{name: getattr(self, name) for name in _RATES},
        }


def parse_rule(value: Any, where: str) -> PriceRule:
    """The inverse of `PriceRule.to_json`; everything but `per_call` may be missing.

    Raises:
        MalformedError: not a rule.
    """
    document = encoding.as_object(value, where)
    encoding.only(document, where, {"per_call"}, frozenset({"tiers", *_RATES}))
    tiers = document.get("tiers", [])
    if not isinstance(tiers, list):
        raise MalformedError(f"{where}.tiers", "must be a list")
    return PriceRule(
        per_call=encoding.text(document["per_call"], f"{where}.per_call"),
        tiers=tuple(_tier(encoding.as_object(tier, f"{where}.tiers"), f"{where}.tiers") for tier in tiers),
        **{name: encoding.text(document.get(name, "0"), f"{where}.{name}") for name in _RATES},
    )


def request_digest(*, endpoint: str, method: str, body_hash: str) -> str:
    """What a price and a payment are bound to: the digest of a request, over its path, method and its body's digest."""
    return jcs_digest({"endpoint": endpoint, "method": method, "body": body_hash})


@dataclass(frozen=True, slots=True)
class PriceBasis:
    """What the price in a 402 was computed from."""

    rule: PriceRule
    request_digest: str
    input_tokens: int
    max_output_tokens: int

    def to_json(self) -> dict[str, Any]:
        """The extension `price-basis` of a 402."""
        return {
            "info": {
                "rule": self.rule.to_json(),
                "requestDigest": self.request_digest,
                "inputTokens": self.input_tokens,
                "maxOutputTokens": self.max_output_tokens,
            }
        }


def basis_of(terms: Mapping[str, Any], *, request: str) -> PriceBasis | None:
    """What the price in a 402 document was computed from, when it says so.

    Args:
        terms: the 402's document.
        request: the digest of the request that it answers.

    Raises:
        EvidenceError: the price was computed from another request.
        MalformedError: the extension is there and is not one.
    """
    extensions = terms.get("extensions")
    if not isinstance(extensions, dict) or EXTENSION not in extensions:
        return None
    where = f"terms.extensions.{EXTENSION}"
    extension = encoding.as_object(extensions[EXTENSION], where)
    info = encoding.as_object(extension.get("info"), f"{where}.info")
    basis = PriceBasis(
        rule=parse_rule(info.get("rule"), f"{where}.rule"),
        request_digest=encoding.text(info.get("requestDigest"), f"{where}.requestDigest"),
        input_tokens=encoding.integer(info.get("inputTokens"), f"{where}.inputTokens"),
        max_output_tokens=encoding.integer(info.get("maxOutputTokens"), f"{where}.maxOutputTokens"),
    )
    if basis.request_digest != request:
        raise EvidenceError(f"the price is that of the request {basis.request_digest}, asked was {request}")
    return basis


def check_price(
    payment: Mapping[str, Any], accept: Mapping[str, Any], *, endpoint: str, basis: PriceBasis | None
) -> None:
    """Check that one of a 402's `accepts` is what the attested build asks for such a call.

    Args:
        payment: the member `payment` of the build manifest.
        accept: what the 402 asks for.
        endpoint: the path that was asked.
        basis: what the 402 says its price was computed from.

    Raises:
        EvidenceError: the build does not sell on these terms.
        MalformedError: the manifest's terms are not of a known form.
    """
    promised = payment.get("accepts")
    wanted = {name: accept.get(name) for name in (*_SOLD, "amount")}
    for option in promised if isinstance(promised, list) else ():
        option = encoding.as_object(option, "manifest.payment.accepts")
        if any(option.get(name) != wanted[name] for name in _SOLD):
            continue
        if _promised_amount(payment, option, endpoint, basis) == wanted["amount"]:
            return
    raise EvidenceError(f"the attested build does not sell on these terms: {wanted}")


def _promised_amount(
    payment: Mapping[str, Any], option: Mapping[str, Any], endpoint: str, basis: PriceBasis | None
) -> str:
    if "amount" in option:
        return encoding.text(option["amount"], "manifest.payment.accepts.amount")
    if basis is None:
        raise EvidenceError("the price depends on the request, and the 402 does not say what it was computed from")
    rules = encoding.as_object(payment.get("price_rules", {}), "manifest.payment.price_rules")
    rule = parse_rule(rules.get(endpoint, payment.get("price_rule")), "manifest.payment.price_rule")
    if rule != basis.rule:
        raise EvidenceError(f"the 402 computes its price by another rule than the attested build's for {endpoint}")
    decimals = encoding.integer(option.get("decimals"), "manifest.payment.accepts.decimals")
    if decimals > MAX_DECIMALS:
        raise MalformedError("manifest.payment.accepts.decimals", f"must be at most {MAX_DECIMALS}")
    return str(rule.amount(basis.input_tokens, basis.max_output_tokens, decimals=decimals))


def _tier(tier: Mapping[str, Any], where: str) -> InputTier:
    encoding.only(tier, where, {"up_to_tokens", "price"})
    return InputTier(
        encoding.integer(tier["up_to_tokens"], f"{where}.up_to_tokens"),
        encoding.text(tier["price"], f"{where}.price"),
    )
