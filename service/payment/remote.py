"""Any x402 v2 facilitators over HTTP: `/verify`, `/settle`, `/supported`.

What a stranger's server says is taken for what it proves. A refusal counts as definite only with an error code that
excludes a transfer; a success counts as it is, unless an RPC endpoint is configured: then the chain has the last word.

Several URLs stand in for each other, in their order. A verification moves nothing: it goes on to the next one whenever
there is no usable answer, and is repeated. A settlement goes on, and is repeated, only while nothing has been sent: no
connection, or a circuit that is open. From the moment a facilitator may have it, it goes to no other, although that
would not charge twice (the token executes a nonce once): the second one's honest "insufficient funds" or "nonce already
used" may be the effect of the first one's transfer, so no refusal could be believed any more, and a buyer who had paid
would be told that he had not. The chain is asked instead. When it says unspent, the payment is `Unknown`; whoever
presents it again has it settled again, by then through a facilitator that answers.
Source: x402 v2 specification, "Facilitator interface"; EIP-3009.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from x402.mechanisms.evm.constants import ERR_NONCE_ALREADY_USED
from x402.mechanisms.evm.utils import is_valid_tx_hash

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
from service.payment.facilitator_http import OK, Answer, Endpoint, NoAnswerError
from service.payment.reasons import DEFINITE, message_for
from service.payment.terms import SCHEME, X402_VERSION
from service.pricing import Asset

CONFIRM_INTERVAL_SECONDS: Final = 0.5
"""Pause between two looks at the chain for a transfer that the facilitator has reported."""

VERIFY_SECONDS: Final = 15.0
"""Longest wait for a verification by whomever: it asks a node and needs no block."""

UNSENT_PAUSE_SECONDS: Final = 0.5
"""Pause before a settlement that could be sent to nobody is tried once more."""

MAX_REASON: Final = 100
"""Characters of a stranger's error code that are repeated."""

_T = TypeVar("_T")


class RemoteFacilitator:
    """Verifies and settles through facilitators' HTTP interface.

    Args:
        url: base URL, or several in the order in which they are tried; `/verify` and the others are appended.
        assets: the tokens on offer; all on the same network.
        rpc_url: a node of that network, to ask what became of a payment. Without one, `outcome` is `Unavailable` and
            payments whose settlement broke off stay unknown.
        authorizations: URL -> value of the Authorization header, such as `Bearer ...`; never logged.
        timeout_seconds: for one request; a settlement answers only when its transaction is in a block.
        confirmation_timeout_seconds: how long a reported success may take to be seen by the node at `rpc_url`.
        settlement_depth: how many blocks deep a transfer must be there before it counts, its own included.
        clock: seconds that only grow.

    Raises:
        ValueError: no URL or one that is none, no assets, or assets on different networks.
    """

    def __init__(
        self,
        *,
        url: str | Sequence[str],
        assets: Sequence[Asset],
        rpc_url: str | None = None,
        authorizations: Mapping[str, str] | None = None,
        timeout_seconds: float = 60.0,
        confirmation_timeout_seconds: float = 10.0,
        settlement_depth: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        networks = {asset.network for asset in assets}
        if len(networks) != 1:
            raise ValueError(f"a facilitator serves the assets of exactly one network, not of {len(networks)}")
        urls = (url,) if isinstance(url, str) else tuple(url)
        if not urls:
            raise ValueError("a remote facilitator needs a URL")
        self._network = networks.pop()
        self._assets = tuple(assets)
        self._endpoints = [Endpoint(one, authorization=(authorizations or {}).get(one), clock=clock) for one in urls]
        self._timeout = timeout_seconds
        self._confirmation_timeout = confirmation_timeout_seconds
        self._clock = clock
        self._chain = None if rpc_url is None else ChainReader(rpc_url, self._network, depth=settlement_depth)

    async def verify(self, authorization: Authorization) -> VerifyResult:
        """See `Facilitator.verify`. Each facilitator is asked at most twice, all of them within one deadline."""
        body, count = authorization.facilitator_request, len(self._endpoints)
        deadline = self._clock() + min(self._timeout, VERIFY_SECONDS)
        problem: NoAnswerError | None = None
        for index, endpoint in enumerate((*self._endpoints, *self._endpoints)):
            # In the first round nobody uses up the time of those who come after.
            seconds = (deadline - self._clock()) / max(1, count - index)
            if seconds <= 0:
                break
            try:
                return _verified(await endpoint.ask("POST", "/verify", body, timeout_seconds=seconds), authorization)
            except NoAnswerError as error:
                problem = error
        raise FacilitatorUnavailableError(f"the facilitator could not check the payment: {problem}") from problem

    async def settle(self, authorization: Authorization) -> SettleResult:
        """See `Facilitator.settle`."""
        body, why = authorization.facilitator_request, ""
        for pause in (0.0, UNSENT_PAUSE_SECONDS):
            await asyncio.sleep(pause)
            for endpoint in self._endpoints:
                try:
                    answer = await endpoint.ask("POST", "/settle", body, timeout_seconds=self._timeout)
                    return await self._settled(answer, authorization)
                except NoAnswerError as error:
                    if error.sent:
                        reason = f"the facilitator did not say whether it settled: {error}"
                        return await self._in_doubt(authorization, reason)
                    why = f"the facilitator cannot be reached: {error}"
        return await self._in_doubt(authorization, why)

    async def outcome(self, authorization: Authorization) -> Outcome:
        """See `Facilitator.outcome`."""
        if self._chain is None:
            return Unavailable("no RPC endpoint is configured to ask the chain")
        return await self._chain.outcome(authorization)

    async def ready(self) -> list[str]:
        """See `Facilitator.ready`. One facilitator that is ready is enough."""
        found = [] if self._chain is None else await self._chain.problems(self._assets)
        problems = []
        for endpoint in self._endpoints:
            if (problem := await self._unsupported(endpoint)) is None:
                return found
            problems.append(problem)
        return [*found, *problems]

    async def close(self) -> None:
        """Close pooled connections."""
        for endpoint in self._endpoints:
            await endpoint.close()
        if self._chain is not None:
            await self._chain.close()

    async def _unsupported(self, endpoint: Endpoint) -> str | None:
        try:
            answer = await endpoint.ask("GET", "/supported", b"", timeout_seconds=min(self._timeout, VERIFY_SECONDS))
        except NoAnswerError as error:
            return f"the facilitator cannot be reached: {error}"
        kinds = answer.document.get("kinds")
        wanted = {"x402Version": X402_VERSION, "scheme": SCHEME, "network": self._network}
        for kind in kinds if isinstance(kinds, list) else ():
            if isinstance(kind, dict) and wanted.items() <= kind.items():
                return None
        return f"the facilitator does not support {SCHEME} payments on {self._network} in x402 v{X402_VERSION}"

    async def _settled(self, answer: Answer, authorization: Authorization) -> SettleResult:
        """What an answer of `/settle` means (x402 v2, "SettlementResponse")."""
        document = answer.document
        success = _typed(document, "success", bool)
        transaction = _typed(document, "transaction", str, missing="").lower()
        transaction_ = transaction if is_valid_tx_hash(transaction) else None
        reason = _typed(document, "errorReason", str, missing="") or "unexpected_settle_error"
        if not success:
            return await self._refused(authorization, reason, transaction_)
        mismatch = _mismatch(answer, authorization)
        if mismatch is None and transaction_ is not None:
            return await self._confirmed(authorization, transaction_)
        why = f"the facilitator says settled, but {mismatch or 'names no transaction'}"
        return await self._in_doubt(authorization, why, transaction_)

    async def _confirmed(self, authorization: Authorization, transaction: str) -> SettleResult:
        if self._chain is None:
            return Settled(transaction, authorization.payer, None)
        deadline = self._clock() + self._confirmation_timeout
        while True:
            if (final := _final(await self._chain.outcome(authorization), authorization)) is not None:
                return final
            if self._clock() >= deadline:
                return Unknown("the facilitator says settled, but the chain does not show it yet", transaction)
            await asyncio.sleep(CONFIRM_INTERVAL_SECONDS)

    async def _refused(self, authorization: Authorization, reason: str, transaction: str | None) -> SettleResult:
        outcome = await self.outcome(authorization)
        if (final := _final(outcome, authorization)) is not None:
            return final
        if reason in DEFINITE and transaction is None and not await self._is_on_its_way(authorization):
            return Rejected(reason, message_for(reason))
        return Unknown(f"the facilitator could not settle ({reason[:MAX_REASON]})", transaction)

    async def _is_on_its_way(self, authorization: Authorization) -> bool:
        """Whether the transfer is in a block that does not count yet: of an attempt before this one."""
        if self._chain is None:
            return False
        return not isinstance(await self._chain.outcome(authorization, depth=1), Unused)

    async def _in_doubt(self, authorization: Authorization, why: str, transaction: str | None = None) -> SettleResult:
        """What the chain knows; when that is nothing yet, nobody does."""
        return _final(await self.outcome(authorization), authorization) or Unknown(why, transaction)


def _final(outcome: Outcome, authorization: Authorization) -> Settled | Rejected | None:
    match outcome:
        case Used(transaction, block):
            return Settled(transaction, authorization.payer, block)
        case Void(why):
            return Rejected(ERR_NONCE_ALREADY_USED, why)
        case Unused() | Unavailable():
            return None


def _verified(answer: Answer, authorization: Authorization) -> VerifyResult:
    """What an answer of `/verify` means (x402 v2, "VerifyResponse")."""
    document = answer.document
    if _typed(document, "isValid", bool):
        if answer.status != OK:
            raise NoAnswerError(f"it says valid with status {answer.status}", sent=True)
        if not _is_payer(document, authorization):
            raise NoAnswerError("it has checked the payment of another payer", sent=True)
        return Verified(authorization.payer)
    reason = _typed(document, "invalidReason", str, missing="") or "invalid_payment"
    if reason.startswith("unexpected"):
        raise NoAnswerError(f"it failed to check the payment ({reason[:MAX_REASON]})", sent=True)
    return Invalid(reason[:MAX_REASON], message_for(reason))


def _typed(document: Mapping[str, Any], name: str, kind: type[_T], *, missing: _T | None = None) -> _T:
    """A member of an answer; `missing` stands for one that is not there or null, where that is allowed."""
    value = document.get(name)
    if value is None and missing is not None:
        return missing
    if not isinstance(value, kind):
        raise NoAnswerError(f"its answer is not one of x402 v2 (member {name})", sent=True)
    return value


def _is_payer(document: Mapping[str, Any], authorization: Authorization) -> bool:
    payer = _typed(document, "payer", str, missing="")
    return not payer or payer.lower() == authorization.payer


def _mismatch(answer: Answer, authorization: Authorization) -> str | None:
    document = answer.document
    if answer.status != OK:
        return f"with status {answer.status}"
    if document.get("network") != authorization.network:
        return "on another network"
    if not _is_payer(document, authorization):
        return "for another payer"
    if document.get("amount") not in (None, str(authorization.amount)):
        return "another amount"
    return None
