"""Taking one payment through facilitator and ledger, for a buyer who waits.

What a payment buys is not known here. Whoever has the answer passes it on as sealed bytes, to be kept before the
payment is executed, and may have a receipt signed in the moment in which it is.
"""

from collections.abc import Callable
from typing import Final

from service.payment.authorization import Authorization, PaymentMismatchError, check_window
from service.payment.facilitator import (
    Facilitator,
    FacilitatorUnavailableError,
    Invalid,
    Unavailable,
    Unused,
    Used,
    Void,
)
from service.payment.ledger import Ledger, Moved, Row, Stale, State
from service.payment.reconcile import RAN_OUT, REORG_MARGIN_SECONDS
from service.payment.settlement import Kept, SignReceipt, settle

RETRY_AFTER_SECONDS: Final = 2
"""When a buyer is told to come back about a payment whose outcome is not known: about one block."""

PENDING: Final = (State.SETTLING, State.UNKNOWN)
"""The transfer may have happened."""

UNFINISHED: Final = (State.RESERVED, State.SERVED, *PENDING)


class PaidCallError(Exception):
    """Root of the ways in which a paid call ends without an answer."""


class PaymentRefusedError(PaidCallError):
    """The payment cannot be accepted, or was not executed: nothing was charged (402)."""


class PaymentConflictError(PaidCallError):
    """The payment belongs to another request (409)."""


class ComeBackError(PaidCallError):
    """It is not known yet whether the payment was executed, or whether it can be: the same payment gets the answer
    later (503)."""

    retry_after_seconds = RETRY_AFTER_SECONDS


class Charging:
    """Reserves and executes payments.

    Args:
        ledger: remembers payments.
        facilitator: checks and executes them.
        clock: unix seconds.
        window_seconds: how long an authorization must stay valid for its answer to be made and settled.
        lease_seconds: after which other replicas take a payment for abandoned.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        facilitator: Facilitator,
        clock: Callable[[], int],
        window_seconds: int,
        lease_seconds: int,
    ) -> None:
        self._ledger = ledger
        self._facilitator = facilitator
        self._clock = clock
        self._window = window_seconds
        self._lease = lease_seconds

    async def claim(
        self, authorization: Authorization, request_digest: str, known: Row | None, identifier: str | None = None
    ) -> Row:
        """The payment's row: reserved for the caller, or as far as it got before.

        Of the callers in this process, one at a time may claim a payment.

        Args:
            known: what the ledger said of the payment a moment ago.
            identifier: the buyer's own name for the purchase, from `service.payment.identifier`.

        Raises:
            PaymentRefusedError: it cannot be accepted; nothing was charged.
            PaymentConflictError: it belongs to another request, or its name to another purchase.
            ComeBackError: it cannot be known now, or somebody else is at work on it.
        """
        if known is None or known.state is State.RELEASED:
            row = await self._reserve(authorization, request_digest)
        else:
            row = known
        if row.request_digest != request_digest or row.authorization != authorization:
            raise _used()
        if row.state is State.RESERVED and row.owner != self._ledger.owner:
            # Another replica holds it; taking its work over could make one answer twice. One that is ours is new, or
            # was left by a call that failed.
            raise _busy()
        await self._name(row, identifier)
        if row.state is State.REJECTED:
            return await self._doubted(row)
        return await self.ask_chain(row) if row.state in PENDING else row

    async def charge(self, row: Row, kept: Kept | None = None, sign: SignReceipt | None = None) -> Row:
        """The row after `service.payment.settlement.settle`: finished, UNKNOWN, or as somebody else left it."""
        done = await settle(self._ledger, self._facilitator, row, self._clock, kept=kept, sign=sign)
        return row_of(done)

    async def ask_chain(self, row: Row) -> Row:
        """What became of a transfer that may have happened (EIP-3009 `authorizationState` and events)."""
        now = self._clock()
        match await self._facilitator.outcome(row.authorization):
            case Used(transaction=transaction):
                return row_of(await self._ledger.settled(row, transaction=transaction, now=now))
            case Void(reason):
                return row_of(await self._ledger.rejected(row, reason=reason, now=now))
            case Unused(chain_time) if chain_time >= row.authorization.valid_before + REORG_MARGIN_SECONDS:
                return row_of(await self._ledger.rejected(row, reason=RAN_OUT, now=now))
            case Unused(chain_time) if row.state is State.UNKNOWN and chain_time < row.authorization.valid_before:
                # Settling again is safe even if a transaction still waits: the token executes a nonce once.
                if row.result is None:
                    return row_of(await self._ledger.reclaim(row, now=now, lease_seconds=self._lease))
                return row_of(await self._ledger.resume(row, now=now))
            case Unused() | Unavailable():
                return row

    async def _doubted(self, row: Row) -> Row:
        """A payment that was refused, after asking the chain whether it was executed all the same.

        Whoever was asked to settle has a signature in hand that is good until it runs out. His no is only his word.
        """
        match await self._facilitator.outcome(row.authorization):
            case Used(transaction=transaction):
                return row_of(await self._ledger.settled(row, transaction=transaction, now=self._clock()))
            case _:
                return row

    async def _reserve(self, authorization: Authorization, request_digest: str) -> Row:
        try:
            check_window(authorization, now=self._clock(), needed_seconds=self._window)
            verified = await self._facilitator.verify(authorization)
        except PaymentMismatchError as error:
            raise PaymentRefusedError(str(error)) from error
        except FacilitatorUnavailableError as error:
            raise ComeBackError(f"{error}; nothing was charged") from error
        if isinstance(verified, Invalid):
            # Perhaps because it has just been executed, for somebody with the same payment here or at another replica.
            row = await self._ledger.find(authorization.key)
            if row is not None and row.state is not State.RELEASED:
                return row
            raise PaymentRefusedError(f"{verified.reason}: {verified.message}")
        now = self._clock()
        reserved = await self._ledger.reserve(authorization, request_digest, now, lease_seconds=self._lease)
        return reserved.row

    async def _name(self, row: Row, identifier: str | None) -> None:
        """Bind the purchase's name, when it has one; only now, so that a payment that is refused takes none."""
        if identifier is None:
            return
        paid, now = row.authorization, self._clock()
        if await self._ledger.bind_identifier(paid.payer, identifier, row.request_digest, paid.key, now):
            return
        if row.state is State.RESERVED:
            await self._ledger.release(row, reason="its name belongs to another purchase", now=now)
        raise PaymentConflictError("this identifier was used for another purchase")


def require_settled(row: Row) -> None:
    """
    Raises:
        PaymentRefusedError: the payment was not executed, and will not be.
        ComeBackError: that is not known yet.
    """
    if row.state is State.REJECTED:
        raise PaymentRefusedError(row.reason or "the payment was not executed")
    if row.state is not State.SETTLED:
        raise ComeBackError("it is not known yet whether the payment was executed; send the same one again")


def row_of(change: Moved | Stale) -> Row:
    """The row as it is after a transition, whoever made it.

    Raises:
        ComeBackError: it was removed.
    """
    if change.row is None:
        raise ComeBackError("the payment's record was removed; send the same request with the same payment again")
    return change.row


def _used() -> PaymentConflictError:
    return PaymentConflictError("this payment was used for another request")


def _busy() -> ComeBackError:
    return ComeBackError("the payment is being worked on; send the same request with it again")
