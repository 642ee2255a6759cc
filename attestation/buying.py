"""Who buys and what comes of it: the values that the buyer's transport works with."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from eth_account.signers.local import LocalAccount

from attestation.bundle import Bundle
from attestation.checker import ChainSource, unix_now
from attestation.errors import ServiceError
from attestation.http_signature import Exchange
from attestation.policy import Policy
from attestation.spend_ledger import SpendLedger
from attestation.spending import SpendingLimit
from attestation.verdict import Verdict


class NotAcceptedError(ServiceError):
    """The verdict does not let this buyer go on. Nothing was paid unless `bundle` is there."""

    def __init__(self, message: str, verdict: Verdict, bundle: Bundle | None = None) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.bundle = bundle
        """The whole purchase, when the check that failed came after paying: the buyer's evidence."""


class PaymentRefusedError(ServiceError):
    """The service answered a payment, and not with what it was to buy."""

    def __init__(self, message: str, refusal: Exchange, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, status=refusal.status)
        self.refusal = refusal


class StreamBrokenError(ServiceError):
    """A streamed answer broke off, or its receipt cannot be had: what was received proves nothing.

    Sending the same request again sends the same payment, and gets the whole answer.
    """


@dataclass(frozen=True, slots=True)
class Purchase:
    """A paid answer with its proof."""

    bundle: Bundle
    verdict: Verdict
    entry_id: int
    """In the buyer's spend ledger."""


def _silent(_: str) -> None:
    pass


def _keep_nothing(_: Purchase) -> str | None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Buyer:
    """Who buys, and on which conditions."""

    account: LocalAccount
    limit: SpendingLimit
    policy: Policy = field(default_factory=Policy)
    chain: ChainSource | None = None
    ledger: SpendLedger = field(default_factory=SpendLedger.in_memory)
    """What was spent, and what is signed and not answered. One in a file outlives a crash, and holds the limits across
    processes."""
    keep: Callable[[Purchase], str | None] = _keep_nothing
    """Is given a verified purchase before its payment counts as finished, and returns where the bundle is kept. What it
    raises leaves the payment to be sent again, for the same answer."""
    patience_seconds: int = 900
    """How long the same payment is sent again before a call ends without an answer."""
    clock: Callable[[], int] = unix_now
    """Unix seconds."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    progress: Callable[[str], None] = _silent
    """Is told what is going on, in a few words."""
