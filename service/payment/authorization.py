"""From a `PAYMENT-SIGNATURE` header to an authorization we are willing to execute.

Two steps, both pure. `decode_payment_header` turns hostile bytes into a well-formed x402 v2 payload or one typed error.
`match_requirements` compares that payload with what WE offer: the client's own copy of the terms (`accepted`) is only
ever compared, never used. Neither looks at the signature; that is the facilitator's work.
Source: x402 v2 specification, "PaymentPayload"; scheme `exact` on EVM; EIP-3009.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn, TypeAlias

from pydantic import ValidationError
from pydantic_core import from_json
from x402.schemas import PaymentPayload, PaymentRequirements

from attestation.money import MAX_UINT256
from service.payment.terms import DISCOVERY, PAYMENT_SIGNATURE_HEADER, SCHEME, X402_VERSION, Resource

MAX_HEADER_BYTES: Final = 16_384
"""Longest accepted `PAYMENT-SIGNATURE`. A plain payment needs 1.5 kB; echoed offers and extensions need the rest."""

MIN_SIGNATURE_BYTES: Final = 65
"""r, s and v of a key; signatures of contract wallets are longer."""

MAX_SIGNATURE_BYTES: Final = 4_096
"""Longest signature passed on to a contract wallet (ERC-1271)."""

_HEX: Final = re.compile(r"0x(?:[0-9a-fA-F]{2})*")
_ADDRESS: Final = re.compile(r"0x[0-9a-fA-F]{40}")
_NONCE: Final = re.compile(r"0x[0-9a-fA-F]{64}")
_DECIMAL: Final = re.compile(r"(?:0|[1-9][0-9]{0,77})")


PaymentKey: TypeAlias = tuple[str, str, str, str]
"""(network, asset, payer, nonce) in lower case: what a chain allows only once."""


class PaymentHeaderError(ValueError):
    """The payment header is not a well-formed x402 v2 payment.

    Attributes:
        field: the part that is wrong, as a JSON path, or the header's name.
        message: what is wrong with it, for the buyer.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


class PaymentMismatchError(ValueError):
    """The payment is well-formed, but is not one that we offer.

    Attributes:
        field: the part that differs: scheme, network, asset, payTo, amount, extra, authorization.to ...
        message: what was expected, for the buyer.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True)
class Authorization:
    """An EIP-3009 transfer that, once verified and executed, pays exactly one of our offers.

    Addresses and the nonce are lower case, so equal values are equal strings.

    Attributes:
        amount: atomic units of the asset.
        valid_after: unix seconds; the chain's clock must be later than this.
        valid_before: unix seconds; the chain's clock must be earlier than this. Up to 2**256 - 1.
        nonce: 0x and 64 hex digits.
        signature: what the buyer signed with; spendable, so it is kept out of `repr`.
        payload: the x402 payload, with `accepted` replaced by our own terms, and nothing else that a client could
            have added.
        requirements: the terms it was matched with.
        resource: what it buys, in our own words; None when it was read from the ledger.
        listed: whether the buyer agrees to the resource being listed by the facilitator (x402 extension `bazaar`).
    """

    scheme: str
    network: str
    asset: str
    payer: str
    pay_to: str
    amount: int
    valid_after: int
    valid_before: int
    nonce: str
    signature: str = field(repr=False)
    payload: PaymentPayload = field(repr=False, hash=False, compare=False)
    requirements: PaymentRequirements = field(repr=False, hash=False, compare=False)
    resource: Resource | None = field(default=None, repr=False, hash=False, compare=False)
    listed: bool = field(default=False, repr=False, hash=False, compare=False)
    _request: list[bytes] = field(default_factory=list, init=False, repr=False, hash=False, compare=False)

    @property
    def facilitator_request(self) -> bytes:
        """The body of `/verify` and `/settle`, made once (x402 v2, "Facilitator interface")."""
        if not self._request:
            requirements = self.requirements.model_dump_json(by_alias=True, exclude_none=True)
            payload = self.payload.model_dump_json(by_alias=True, exclude_none=True)
            if self.resource is not None:
                payload = f"{payload[:-1]},{self.resource.members(listed=self.listed)}}}"
            self._request.append(
                f'{{"x402Version":{X402_VERSION},"paymentPayload":{payload},"paymentRequirements":{requirements}}}'.encode()
            )
        return self._request[0]

    @property
    def key(self) -> PaymentKey:
        """What the ledger knows this payment by."""
        return (self.network, self.asset, self.payer, self.nonce)


def decode_payment_header(value: str) -> PaymentPayload:
    """Read the value of a `PAYMENT-SIGNATURE` header.

    Raises:
        PaymentHeaderError: too long, not base64 of a JSON object, not x402 version 2, fields missing or of the wrong
            type, not an EIP-3009 payment. No other exception, whatever the bytes.
    """
    document = _json_object(value)
    _require_version(document)
    for name in ("payload", "accepted"):
        if name not in document:
            raise PaymentHeaderError(name, "is missing")
        if not isinstance(document[name], dict):
            raise PaymentHeaderError(name, "must be a JSON object")
    if "permit2Authorization" in document["payload"]:
        raise PaymentHeaderError(
            "payload.permit2Authorization", "Permit2 payments are not accepted; sign an EIP-3009 authorization"
        )
    _check_authorization(document["payload"])
    try:
        return PaymentPayload.model_validate(document)
    except ValidationError as error:
        _raise_invalid(error)


def payment_key(payload: PaymentPayload) -> PaymentKey:
    """What the ledger knows this payment by, whatever is on offer today: a buyer is owed what was bought yesterday.

    Raises:
        PaymentHeaderError: the payload did not come from `decode_payment_header` and is malformed.
    """
    _check_authorization(payload.payload)
    signed = payload.payload["authorization"]
    accepted = payload.accepted
    return (accepted.network.lower(), accepted.asset.lower(), signed["from"].lower(), signed["nonce"].lower())


def match_requirements(
    payload: PaymentPayload, offered: Sequence[PaymentRequirements], *, resource: Resource | None = None
) -> Authorization:
    """Find the offer that this payment pays, and check every field of the payment against it.

    Args:
        payload: from `decode_payment_header`.
        offered: what we accept for this request.
        resource: what the request buys; facilitators are told of it in these words, not in the client's.

    Raises:
        PaymentMismatchError: names the first field that differs.
        PaymentHeaderError: the payload did not come from `decode_payment_header` and is malformed.
    """
    _check_authorization(payload.payload)
    accepted = payload.accepted
    offer = _select_offer(accepted, offered)
    if accepted.pay_to.lower() != offer.pay_to.lower():
        raise PaymentMismatchError("payTo", f"the payment names another recipient than {offer.pay_to}")
    if accepted.amount != offer.amount:
        raise PaymentMismatchError("amount", f"the price is {offer.amount}; the payment accepts another")
    for name, expected in offer.extra.items():
        if accepted.extra.get(name) != expected:
            raise PaymentMismatchError(f"extra.{name}", f"must be {expected!r}, as offered")

    signed = payload.payload["authorization"]
    if signed["to"].lower() != offer.pay_to.lower():
        raise PaymentMismatchError("authorization.to", f"must pay {offer.pay_to}")
    if int(signed["value"]) != int(offer.amount):
        raise PaymentMismatchError("authorization.value", f"must be exactly the price, {offer.amount}")
    if int(signed["validAfter"]) >= int(signed["validBefore"]):
        raise PaymentMismatchError("authorization.validBefore", "must be later than validAfter")
    return Authorization(
        scheme=offer.scheme,
        network=offer.network.lower(),
        asset=offer.asset.lower(),
        payer=signed["from"].lower(),
        pay_to=offer.pay_to.lower(),
        amount=int(signed["value"]),
        valid_after=int(signed["validAfter"]),
        valid_before=int(signed["validBefore"]),
        nonce=signed["nonce"].lower(),
        signature=payload.payload["signature"].lower(),
        payload=PaymentPayload.model_construct(
            x402_version=X402_VERSION, payload=_known_fields(payload.payload), accepted=offer
        ),
        requirements=offer,
        resource=resource,
        listed=payload.extensions is not None and DISCOVERY in payload.extensions,
    )


def check_window(authorization: Authorization, *, now: int, needed_seconds: int) -> None:
    """Refuse an authorization that would run out before the answer is ready and settled.

    Args:
        now: unix seconds.
        needed_seconds: how long inference and settlement may take together.

    Raises:
        PaymentMismatchError: expired, too short, or not valid yet.
    """
    if authorization.valid_before <= now:
        raise PaymentMismatchError("authorization.validBefore", "the authorization has expired")
    if authorization.valid_before < now + needed_seconds:
        raise PaymentMismatchError(
            "authorization.validBefore",
            f"must leave at least {needed_seconds} seconds for the answer and its settlement",
        )
    if authorization.valid_after >= now:
        raise PaymentMismatchError("authorization.validAfter", "the authorization is not valid yet")


def authorization_to_json(authorization: Authorization) -> str:
    """The payment as one JSON text, from which `authorization_from_json` builds it again after a restart."""
    payload, requirements = (
        part.model_dump_json(by_alias=True, exclude_none=True)
        for part in (authorization.payload, authorization.requirements)
    )
    return f'{{"payload":{payload},"requirements":{requirements}}}'


def authorization_from_json(text: str) -> Authorization:
    """The inverse of `authorization_to_json`.

    Raises:
        PaymentHeaderError: the text is not one that `authorization_to_json` made.
        PaymentMismatchError: payload and requirements in it do not belong together.
    """
    try:
        document = from_json(text)
        payload = PaymentPayload.model_validate(document["payload"])
        requirements = PaymentRequirements.model_validate(document["requirements"])
    except (ValueError, KeyError, TypeError) as error:
        raise PaymentHeaderError("payment", "the stored payment cannot be read") from error
    return match_requirements(payload, [requirements])


def _json_object(value: str) -> dict[str, Any]:
    if len(value) > MAX_HEADER_BYTES:
        raise PaymentHeaderError(PAYMENT_SIGNATURE_HEADER, f"is longer than {MAX_HEADER_BYTES} bytes")
    try:
        # The SDK's decoder skips characters outside the alphabet; two different headers would then be one payment.
        text = base64.b64decode(value.strip(" \t"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise PaymentHeaderError(PAYMENT_SIGNATURE_HEADER, "is not base64") from error
    try:
        # Not json.loads: eth-account raises the interpreter's recursion limit so far that deep nesting would end the
        # process. This parser has its own limit.
        document = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise PaymentHeaderError(PAYMENT_SIGNATURE_HEADER, "does not contain valid JSON in UTF-8") from error
    if not isinstance(document, dict):
        raise PaymentHeaderError(PAYMENT_SIGNATURE_HEADER, "must contain a JSON object")
    return document


def _require_version(document: dict[str, Any]) -> None:
    version = document.get("x402Version")
    if version == 1 and not isinstance(version, bool):
        raise PaymentHeaderError("x402Version", "version 1 is not supported; this service speaks x402 version 2")
    if version != X402_VERSION or not isinstance(version, int):
        raise PaymentHeaderError("x402Version", f"must be {X402_VERSION}")


def _check_authorization(payload: dict[str, Any]) -> None:
    authorization = payload.get("authorization")
    if not isinstance(authorization, dict):
        raise PaymentHeaderError("payload.authorization", "must be a JSON object")
    for name in ("from", "to"):
        _require(_ADDRESS, authorization, name, "must be an address (0x and 40 hex digits)")
    for name in ("value", "validAfter", "validBefore"):
        text = _require(_DECIMAL, authorization, name, "must be a decimal number in a string")
        if int(text) > MAX_UINT256:
            raise PaymentHeaderError(f"payload.authorization.{name}", "does not fit in a uint256")
    _require(_NONCE, authorization, "nonce", "must be 32 bytes (0x and 64 hex digits)")
    signature = payload.get("signature")
    if not isinstance(signature, str) or not _HEX.fullmatch(signature):
        raise PaymentHeaderError("payload.signature", "must be hex bytes (0x and an even number of hex digits)")
    length = len(signature) // 2 - 1
    if not MIN_SIGNATURE_BYTES <= length <= MAX_SIGNATURE_BYTES:
        raise PaymentHeaderError(
            "payload.signature", f"must be {MIN_SIGNATURE_BYTES} to {MAX_SIGNATURE_BYTES} bytes, not {length}"
        )


def _known_fields(payload: dict[str, Any]) -> dict[str, Any]:
    """Only what was checked: no other key of the client's reaches a facilitator."""
    names = ("from", "to", "value", "validAfter", "validBefore", "nonce")
    return {
        "authorization": {name: payload["authorization"][name] for name in names},
        "signature": payload["signature"],
    }


def _require(pattern: re.Pattern[str], authorization: dict[str, Any], name: str, message: str) -> str:
    value = authorization.get(name)
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise PaymentHeaderError(f"payload.authorization.{name}", message)
    return value


def _raise_invalid(error: ValidationError) -> NoReturn:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    path = ".".join(str(part) for part in first["loc"]) or PAYMENT_SIGNATURE_HEADER
    raise PaymentHeaderError(path, first["msg"]) from None


def _select_offer(accepted: PaymentRequirements, offered: Sequence[PaymentRequirements]) -> PaymentRequirements:
    if accepted.scheme != SCHEME:
        raise PaymentMismatchError("scheme", f"must be {SCHEME}")
    on_network = [offer for offer in offered if offer.network.lower() == accepted.network.lower()]
    if not on_network:
        networks = ", ".join(sorted({offer.network for offer in offered}))
        raise PaymentMismatchError("network", f"is not accepted; accepted: {networks}")
    for offer in on_network:
        if offer.asset.lower() == accepted.asset.lower():
            return offer
    assets = ", ".join(offer.asset for offer in on_network)
    raise PaymentMismatchError("asset", f"is not accepted on {on_network[0].network}; accepted: {assets}")
