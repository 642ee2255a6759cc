"""Any x402 v2 facilitator over HTTP: `/verify`, `/settle`, `/supported`.

What a stranger's server says is taken for what it proves. A refusal counts as definite only with an error code that
excludes a transfer; a success counts as it is, unless an RPC endpoint is configured: then the chain has the last word.
Source: x402 v2 specification, "Facilitator interface".
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import httpx
from pydantic import BaseModel, ValidationError
from x402.mechanisms.evm.constants import ERR_NONCE_ALREADY_USED
from x402.mechanisms.evm.utils import is_valid_tx_hash
from x402.schemas import SettleResponse, SupportedResponse, VerifyResponse

from service.payment.authorization import Authorization
from service.payment.chain import ChainReader
from service.payment.facilitator import (
    FacilitatorUnavailableError,
    Invalid,
    Outcome,
    Rejected,
    Settled,
    SettleResult,
    Unavailable,
    Unknown,
    Unused,
    Used,
    Verified,
    VerifyResult,
    Void,
)
from service.payment.reasons import DEFINITE, message_for
from service.payment.terms import SCHEME, X402_VERSION
from service.pricing import Asset

Model = TypeVar("Model", bound=BaseModel)

MAX_RESPONSE_BYTES: Final = 65_536
"""Longest answer read from a facilitator."""

MAX_CONNECTIONS: Final = 64
"""Open connections to one facilitator."""

CONFIRM_INTERVAL_SECONDS: Final = 0.5
"""Pause between two looks at the chain for a transfer that the facilitator has reported."""


class _NoAnswerError(Exception):
    """The facilitator gave no answer that can be used; the text says why."""


class RemoteFacilitator:
    """Verifies and settles through a facilitator's HTTP interface.

    Args:
        url: base URL; `/verify` and the others are appended.
        assets: the tokens on offer; all on the same network.
        rpc_url: a node of that network, to ask what became of a payment. Without one, `outcome` is `Unavailable` and
            payments whose settlement broke off stay unknown.
        headers: sent with every request, such as an API key; never logged.
        timeout_seconds: for one request; a settlement answers only when its transaction is in a block.
        confirmation_timeout_seconds: how long a reported success may take to be seen by the node at `rpc_url`.

    Raises:
        ValueError: no assets, or assets on different networks.
    """

    def __init__(
        self,
        *,
        url: str,
        assets: Sequence[Asset],
        rpc_url: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float = 60.0,
        confirmation_timeout_seconds: float = 10.0,
    ) -> None:
        networks = {asset.network for asset in assets}
        if len(networks) != 1:
            raise ValueError(f"a facilitator serves the assets of exactly one network, not of {len(networks)}")
        self._network = networks.pop()
        self._assets = tuple(assets)
        self._url = url.rstrip("/")
        self._confirmation_timeout = confirmation_timeout_seconds
        self._client = httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, 5.0)),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
            headers=dict(headers or {}),
        )
        self._chain = None if rpc_url is None else ChainReader(rpc_url, self._network)

    async def verify(self, authorization: Authorization) -> VerifyResult:
        """See `Facilitator.verify`."""
        try:
            status, response = await self._post("/verify", authorization, VerifyResponse)
        except _NoAnswerError as error:
            raise FacilitatorUnavailableError(f"the facilitator could not check the payment: {error}") from error
        if response.is_valid:
            if status != httpx.codes.OK:
                raise FacilitatorUnavailableError(f"the facilitator says valid with status {status}")
            if response.payer is not None and response.payer.lower() != authorization.payer:
                raise FacilitatorUnavailableError("the facilitator has checked the payment of another payer")
            return Verified(authorization.payer)
        reason = response.invalid_reason or "invalid_payment"
        if reason.startswith("unexpected"):
            raise FacilitatorUnavailableError(f"the facilitator failed to check the payment ({reason[:100]})")
        return Invalid(reason, message_for(reason))

    async def settle(self, authorization: Authorization) -> SettleResult:
        """See `Facilitator.settle`."""
        try:
            status, response = await self._post("/settle", authorization, SettleResponse)
        except _NoAnswerError as error:
            return Unknown(f"the facilitator did not say whether it settled: {error}")
        transaction = response.transaction if is_valid_tx_hash(response.transaction) else None
        if response.success:
            mismatch = _mismatch(status, response, authorization)
            if mismatch is not None or transaction is None:
                return Unknown(f"the facilitator says settled, but {mismatch or 'names no transaction'}", transaction)
            return await self._confirmed(authorization, transaction)
        return await self._refused(authorization, response.error_reason or "unexpected_settle_error", transaction)

    async def outcome(self, authorization: Authorization) -> Outcome:
        """See `Facilitator.outcome`."""
        if self._chain is None:
            return Unavailable("no RPC endpoint is configured to ask the chain")
        return await self._chain.outcome(authorization)

    async def ready(self) -> list[str]:
        """See `Facilitator.ready`."""
        found = [] if self._chain is None else await self._chain.problems(self._assets)
        try:
            _, supported = await self._request("GET", "/supported", None, SupportedResponse)
        except _NoAnswerError as error:
            return [*found, f"the facilitator cannot be reached: {error}"]
        wanted = (X402_VERSION, SCHEME, self._network)
        if wanted not in {(one.x402_version, one.scheme, one.network) for one in supported.kinds}:
            found.append(
                f"the facilitator does not support {SCHEME} payments on {self._network} in x402 v{X402_VERSION}"
            )
        return found

    async def close(self) -> None:
        """Close pooled connections."""
        await self._client.aclose()
        if self._chain is not None:
            await self._chain.close()

    async def _confirmed(self, authorization: Authorization, transaction: str) -> SettleResult:
        if self._chain is None:
            return Settled(transaction.lower(), authorization.payer, None)
        deadline = time.monotonic() + self._confirmation_timeout
        while True:
            outcome = await self._chain.outcome(authorization)
            if isinstance(outcome, Used):
                return Settled(outcome.transaction, authorization.payer, outcome.block)
            if isinstance(outcome, Void):
                return Rejected(ERR_NONCE_ALREADY_USED, outcome.reason)
            if time.monotonic() >= deadline:
                return Unknown("the facilitator says settled, but the chain does not show it yet", transaction)
            await asyncio.sleep(CONFIRM_INTERVAL_SECONDS)

    async def _refused(self, authorization: Authorization, reason: str, transaction: str | None) -> SettleResult:
        match await self.outcome(authorization):
            case Used(used_in, block):
                return Settled(used_in, authorization.payer, block)
            case Void(why):
                return Rejected(ERR_NONCE_ALREADY_USED, why)
            case Unused() | Unavailable():
                if reason in DEFINITE and transaction is None:
                    return Rejected(reason, message_for(reason))
        return Unknown(f"the facilitator could not settle ({reason[:100]})", transaction)

    async def _post(self, path: str, authorization: Authorization, model: type[Model]) -> tuple[int, Model]:
        body = {
            "x402Version": X402_VERSION,
            "paymentPayload": authorization.payload.model_dump(mode="json", by_alias=True, exclude_none=True),
            "paymentRequirements": authorization.requirements.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        return await self._request("POST", path, body, model)

    async def _request(
        self, method: str, path: str, body: dict[str, object] | None, model: type[Model]
    ) -> tuple[int, Model]:
        content = bytearray()
        try:
            async with self._client.stream(method, self._url + path, json=body) as response:
                if response.status_code != httpx.codes.OK and not response.is_client_error:
                    raise _NoAnswerError(f"it answered with status {response.status_code}")
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > MAX_RESPONSE_BYTES:
                        raise _NoAnswerError(f"its answer is longer than {MAX_RESPONSE_BYTES} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise _NoAnswerError(f"the connection failed ({type(error).__name__})") from error
        try:
            return response.status_code, model.model_validate_json(bytes(content), strict=True)
        except ValidationError:
            raise _NoAnswerError(f"its answer (status {response.status_code}) is not one of x402 v2") from None


def _mismatch(status: int, response: SettleResponse, authorization: Authorization) -> str | None:
    if status != httpx.codes.OK:
        return f"with status {status}"
    if response.network != authorization.network:
        return "on another network"
    if response.payer is not None and response.payer.lower() != authorization.payer:
        return "for another payer"
    if response.amount is not None and response.amount != str(authorization.amount):
        return "another amount"
    return None
