"""Ways to be paid and price rules as an operator writes them: the JSON inside the payment settings."""

import re
from collections.abc import Collection, Mapping
from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, StringConstraints
from pydantic_core import from_json

from attestation.errors import MalformedError
from attestation.pricing import InputTier, PriceRule
from service.pricing import Asset, Payee

Address = Annotated[str, StringConstraints(pattern=r"^0x[0-9a-fA-F]{40}$")]
Caip2 = Annotated[str, StringConstraints(pattern=r"^eip155:[1-9][0-9]{0,17}$")]
HttpUrl = Annotated[str, StringConstraints(pattern=r"^https?://[^\s/?#]+[^\s?#]*$")]
Amount = Annotated[str, StringConstraints(pattern=r"^[0-9]+(\.[0-9]+)?$", max_length=100)]

Endpoint = Literal["/v1/summarize", "/v1/chat/completions"]
"""What can be bought."""

LOCAL: Final = "local"
"""The facilitator in this process."""

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_HEADER_VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,8190}[\x21-\x7e])?")

MAX_FACILITATORS: Final = 8
"""Facilitators of one network: each that does not answer costs a payment its waiting time."""


def json_text(value: object) -> object:
    """The value of a variable that holds JSON.

    Raises:
        ValueError: it does not.
    """
    if not isinstance(value, str):
        return value
    try:
        return from_json(value)
    except ValueError:
        raise ValueError("must be JSON") from None  # the parser's message may quote what stands there


def _listed(value: object) -> object:
    """Several URLs may be one text, with commas, or a JSON list."""
    if not isinstance(value, str):
        return value
    return json_text(value) if value.startswith("[") else [part.strip() for part in value.split(",")]


def _alone_or_remote(value: tuple[str, ...]) -> tuple[str, ...]:
    if LOCAL in value and len(value) > 1:
        raise ValueError("the local facilitator stands alone; name either `local` or URLs")
    if len(set(value)) != len(value):
        raise ValueError("names a facilitator twice")
    if any("@" in urlsplit(url).netloc for url in value):
        raise ValueError("must not hold a user name or a password; facilitator_auth takes credentials")
    return tuple(url.rstrip("/") for url in value)


Facilitators: TypeAlias = Annotated[
    tuple[Literal["local"] | HttpUrl, ...],
    BeforeValidator(_listed),
    Field(min_length=1, max_length=MAX_FACILITATORS),
    AfterValidator(_alone_or_remote),
]
"""`local`, or URLs of x402 v2 facilitators: the first one that can be reached is used."""


def check_authorizations(values: Mapping[str, SecretStr], facilitators: Collection[str]) -> None:
    """Refuse a credential that would go to nobody, to everybody on the way, or into a broken header.

    Args:
        values: facilitator's URL -> value of its Authorization header.
        facilitators: the URLs in use.

    Raises:
        ValueError: it would; the URL is named, the value is not.
    """
    for url, value in values.items():
        if url.rstrip("/") not in facilitators:
            raise ValueError(f"facilitator_auth names {url}, which is no facilitator of this service")
        parts = urlsplit(url)
        if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
            raise ValueError(f"facilitator_auth would send a secret to {url} without TLS")
        if not _HEADER_VALUE.fullmatch(value.get_secret_value()):
            raise ValueError(f"facilitator_auth for {url} is not the value of a header, such as 'Bearer ...'")


class _Option(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class PaymentOption(_Option):
    """One token on one network, who receives it, and through whom."""

    network: Caip2
    asset: Address
    asset_name: Annotated[str, Field(min_length=1, max_length=100)] = "USDC"
    asset_version: Annotated[str, Field(min_length=1, max_length=20)] = "2"
    asset_decimals: Annotated[int, Field(ge=0, le=36)] = 6
    pay_to: Address
    rpc_url: HttpUrl
    facilitator: Facilitators = (LOCAL,)

    @property
    def payee(self) -> Payee:
        """The token, and who receives it.

        Raises:
            PriceError: nobody could be paid like this.
        """
        asset = Asset(
            network=self.network,
            address=self.asset,
            decimals=self.asset_decimals,
            name=self.asset_name,
            version=self.asset_version,
            symbol=self.asset_name,
        )
        return Payee(asset=asset, pay_to=self.pay_to)


class TierOption(_Option):
    """The base price of calls with at most so many tokens of input."""

    up_to_tokens: Annotated[int, Field(ge=1, lt=1 << 53)]
    price: Amount


class PriceOption(_Option):
    """How the calls of one endpoint are priced; see `attestation.pricing`."""

    per_call: Amount = "0"
    tiers: tuple[TierOption, ...] = ()
    per_1k_input_tokens: Amount = "0"
    per_1k_output_tokens: Amount = "0"

    @property
    def rule(self) -> PriceRule:
        """The rule.

        Raises:
            ValueError: it makes no sense.
        """
        try:
            return PriceRule(
                per_call=self.per_call,
                tiers=tuple(InputTier(tier.up_to_tokens, tier.price) for tier in self.tiers),
                per_1k_input_tokens=self.per_1k_input_tokens,
                per_1k_output_tokens=self.per_1k_output_tokens,
            )
        except MalformedError as error:
            raise ValueError(str(error)) from error
