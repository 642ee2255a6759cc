"""``/facilitator``: our facilitator for other sellers. Any recipient, but only the tokens that we settle for ourselves.

An invalid payment is an answer (200 with `isValid` false); a problem (RFC 9457) is only what is wrong with the request
or with us. Gas is paid by our operator, so nothing is settled that does not verify.
Source: x402 v2 specification, "Facilitator interface".
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse
from x402.mechanisms.evm.constants import (
    ERR_AUTHORIZATION_VALUE_MISMATCH,
    ERR_NETWORK_MISMATCH,
    ERR_NONCE_ALREADY_USED,
    ERR_RECIPIENT_MISMATCH,
    ERR_SETTLEMENT_PENDING,
    ERR_TOKEN_NAME_MISMATCH,
    ERR_TOKEN_VERSION_MISMATCH,
    ERR_UNSUPPORTED_SCHEME,
    ERR_VALID_BEFORE_EXPIRED,
)
from x402.schemas import (
    PaymentPayload,
    PaymentRequirements,
    SettleResponse,
    SupportedKind,
    SupportedResponse,
    VerifyResponse,
)

from attestation.encoding import address, decimal_text
from attestation.errors import MalformedError
from service.http.body import json_object, read_body
from service.http.problems import Problem, unavailable
from service.payment.authorization import (
    Authorization,
    PaymentHeaderError,
    PaymentMismatchError,
    match_requirements,
)
from service.payment.checks import invalid
from service.payment.facilitator import FacilitatorUnavailableError, Invalid, Rejected, Settled, Verified
from service.payment.local import LocalFacilitator
from service.payment.reasons import INVALID_REQUIREMENTS
from service.payment.terms import SCHEME, X402_VERSION

PREFIX: Final = "/facilitator"

MAX_BODY_BYTES: Final = 65_536
"""Longest request: a payment with a contract wallet's signature and its extensions, and the terms."""

MAX_REQUESTS: Final = 512
"""Payments of others that are being verified or settled at the same time."""

RETRY_AFTER_SECONDS: Final = 2

_NETWORK: Final = re.compile(r"[a-z0-9-]{3,8}:[a-zA-Z0-9_-]{1,32}")  # CAIP-2

_REASONS: Final = {
    "scheme": ERR_UNSUPPORTED_SCHEME,
    "network": ERR_NETWORK_MISMATCH,
    "payTo": ERR_RECIPIENT_MISMATCH,
    "amount": ERR_AUTHORIZATION_VALUE_MISMATCH,
    "extra.name": ERR_TOKEN_NAME_MISMATCH,
    "extra.version": ERR_TOKEN_VERSION_MISMATCH,
    "authorization.to": ERR_RECIPIENT_MISMATCH,
    "authorization.value": ERR_AUTHORIZATION_VALUE_MISMATCH,
    "authorization.validBefore": ERR_VALID_BEFORE_EXPIRED,
}
"""x402 codes for what a payment may differ in from the terms it is presented with."""

_BODY: Final = {
    "required": True,
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["x402Version", "paymentPayload", "paymentRequirements"],
                "properties": {
                    "x402Version": {"type": "integer", "const": X402_VERSION},
                    "paymentPayload": {"type": "object", "description": "x402 v2 PaymentPayload"},
                    "paymentRequirements": {"type": "object", "description": "x402 v2 PaymentRequirements"},
                },
            }
        }
    },
}


def router_for(served: Sequence[LocalFacilitator]) -> APIRouter:
    """The resources of these facilitators, one for each network."""
    desk = Desk(served)
    router = APIRouter(prefix=PREFIX, tags=["facilitator"])
    problems: dict[int | str, dict[str, Any]] = {
        status: {"description": text}
        for status, text in {
            400: "Malformed request",
            413: "Request too large",
            415: "Not JSON",
            503: "Busy, or the chain is out of reach",
        }.items()
    }

    @router.get("/supported", response_model=SupportedResponse)
    async def supported() -> JSONResponse:
        """Which payments are verified and settled here."""
        return _json(desk.supported())

    @router.post("/verify", response_model=VerifyResponse, responses=problems, openapi_extra={"requestBody": _BODY})
    async def verify(request: Request) -> JSONResponse:
        """Whether a payment would be executed now. Moves nothing."""
        document = json_object(await read_body(request, limit=MAX_BODY_BYTES))
        with desk.working():
            return _json(await desk.verify(document))

    @router.post("/settle", response_model=SettleResponse, responses=problems, openapi_extra={"requestBody": _BODY})
    async def settle(request: Request) -> JSONResponse:
        """Execute a payment; answers when its transaction is in a block."""
        document = json_object(await read_body(request, limit=MAX_BODY_BYTES))
        with desk.working():
            return _json(await desk.settle(document))

    return router


class Desk:
    """Takes payments of strangers to the facilitator of their network."""

    def __init__(self, served: Sequence[LocalFacilitator]) -> None:
        self._by_network = {facilitator.network: facilitator for facilitator in served}
        self._working = 0

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a request as long as it is worked on.

        Raises:
            Problem: 503 when there are too many.
        """
        if self._working >= MAX_REQUESTS or any(one.busy for one in self._by_network.values()):
            raise _busy("Too many payments are being worked on.")
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1

    def supported(self) -> SupportedResponse:
        """The kinds of payment, and the accounts that pay for gas."""
        return SupportedResponse(
            kinds=[SupportedKind(x402_version=X402_VERSION, scheme=SCHEME, network=one) for one in self._by_network],
            extensions=[],
            signers={network: [one.operator] for network, one in self._by_network.items()},
        )

    async def verify(self, document: dict[str, Any]) -> VerifyResponse:
        """The answer to `/verify`.

        Raises:
            Problem: the request is no x402 request, or the payment cannot be checked now.
        """
        payment = self._read(document)
        result = payment if isinstance(payment, Invalid) else await self._verify(payment)
        payer = None if isinstance(payment, Invalid) else payment.payer
        if isinstance(result, Invalid):
            return VerifyResponse(
                is_valid=False, invalid_reason=result.reason, invalid_message=result.message, payer=payer
            )
        return VerifyResponse(is_valid=True, payer=payer)

    async def settle(self, document: dict[str, Any]) -> SettleResponse:
        """The answer to `/settle`; of a payment that is executed already, the same as the first time.

        Raises:
            Problem: the request is no x402 request, or the payment cannot be checked now.
        """
        payment = self._read(document)
        if isinstance(payment, Invalid):
            terms = document["paymentRequirements"].get("network")
            network = terms if isinstance(terms, str) and _NETWORK.fullmatch(terms) else "eip155:0"
            return _failure(payment, network=network)
        verified = await self._verify(payment)
        if isinstance(verified, Invalid) and verified.reason != ERR_NONCE_ALREADY_USED:
            return _failure(verified, network=payment.network, payer=payment.payer)
        match await self._by_network[payment.network].settle(payment):
            case Settled(transaction, payer):
                return SettleResponse(
                    success=True,
                    transaction=transaction,
                    network=payment.network,
                    payer=payer,
                    amount=str(payment.amount),
                )
            case Rejected(reason, message):
                return _failure(Invalid(reason, message), network=payment.network, payer=payment.payer)
            case unknown:
                return _failure(
                    Invalid(ERR_SETTLEMENT_PENDING, unknown.reason),
                    network=payment.network,
                    payer=payment.payer,
                    transaction=unknown.transaction or "",
                )

    async def _verify(self, payment: Authorization) -> Verified | Invalid:
        facilitator = self._by_network.get(payment.network)
        if facilitator is None:
            return invalid(ERR_NETWORK_MISMATCH)
        try:
            return await facilitator.verify(payment)
        except FacilitatorUnavailableError as error:
            raise _busy(f"{error}.") from error

    def _read(self, document: dict[str, Any]) -> Authorization | Invalid:
        """The payment in a request, matched with the terms in the same request.

        Raises:
            Problem: 400 when there is no payment or there are no terms.
        """
        for name in ("paymentPayload", "paymentRequirements"):
            if not isinstance(document.get(name), dict):
                raise Problem(400, "malformed-body", "Malformed body", f"{name}: must be a JSON object.", field=name)
        if document.get("x402Version") != X402_VERSION or isinstance(document["x402Version"], bool):
            return Invalid("invalid_x402_version", f"x402Version must be {X402_VERSION}")
        try:
            terms = _terms(document["paymentRequirements"])
        except (ValidationError, MalformedError):
            return invalid(INVALID_REQUIREMENTS)
        try:
            payload = PaymentPayload.model_validate(document["paymentPayload"])
            if payload.x402_version != X402_VERSION:
                return Invalid("invalid_x402_version", f"x402Version must be {X402_VERSION}")
            return match_requirements(payload, [terms])
        except PaymentMismatchError as error:
            return Invalid(_REASONS.get(error.field, INVALID_REQUIREMENTS), str(error))
        except PaymentHeaderError as error:
            return Invalid("invalid_payload", str(error))
        except ValidationError:
            return invalid("invalid_payload")


def _terms(document: dict[str, Any]) -> PaymentRequirements:
    """Terms that a stranger has written, in the form that ours have."""
    terms = PaymentRequirements.model_validate(document)
    address(terms.pay_to, "payTo")
    address(terms.asset, "asset")
    decimal_text(terms.amount, "amount")
    return terms


def _failure(problem: Invalid, *, network: str, payer: str | None = None, transaction: str = "") -> SettleResponse:
    return SettleResponse(
        success=False,
        error_reason=problem.reason,
        error_message=problem.message,
        payer=payer,
        transaction=transaction,
        network=network,
    )


def _busy(detail: str) -> Problem:
    return unavailable("facilitator-unavailable", "Not now", detail, retry_after=RETRY_AFTER_SECONDS)


def _json(document: SupportedResponse | VerifyResponse | SettleResponse) -> JSONResponse:
    return JSONResponse(
        document.model_dump(mode="json", by_alias=True, exclude_none=True), headers={"cache-control": "no-store"}
    )
