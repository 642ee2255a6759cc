"""Settling one payment: the only place that sends a payment to a facilitator."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from service.payment.facilitator import Facilitator, Rejected, Settled, Unknown
from service.payment.ledger import Ledger, Moved, NewReceipt, Row, Stale


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer as the ledger keeps it."""

    result: bytes
    receipt_id: str


SignReceipt: TypeAlias = Callable[[str, int], NewReceipt]
"""Signs the receipt of an answer, given the transaction that paid it and when that was (unix seconds)."""


async def settle(
    ledger: Ledger,
    facilitator: Facilitator,
    row: Row,
    clock: Callable[[], int],
    *,
    kept: Kept | None = None,
    sign: SignReceipt | None = None,
) -> Moved | Stale:
    """Take a RESERVED or SERVED payment to SETTLED, REJECTED or UNKNOWN.

    Run it in a task of its own that outlives the request: a buyer who hangs up must not stop it halfway. A row that is
    left in SETTLING all the same is finished by `reconcile`.

    Args:
        row: RESERVED, or SERVED with its answer in it.
        clock: unix seconds; asked again after settlement, which takes time.
        kept: the answer of a RESERVED payment; None where it is made after the payment.
        sign: called when the payment has been executed, for a receipt to be kept in the same moment.

    Returns:
        `Moved` with the finished row, or `Stale` when somebody else has taken it, as that somebody left it.

    Raises:
        LedgerUnavailableError: the ledger failed; the payment may have been made.
        Exception: what `sign` raised; the payment has been made, and that is recorded.
    """
    if kept is None:
        started = await ledger.start_settlement(row, now=clock())
    else:
        started = await ledger.start_settlement(row, now=clock(), result=kept.result, receipt_id=kept.receipt_id)
    if isinstance(started, Stale):
        return started
    match await facilitator.settle(row.authorization):
        case Settled(transaction):
            return await _settled(ledger, started.row, transaction, clock(), sign)
        case Rejected(reason, message):
            return await ledger.rejected(started.row, reason=f"{reason}: {message}", now=clock())
        case Unknown(reason, sent):
            return await ledger.unknown(started.row, reason=reason, transaction=sent, now=clock())


async def _settled(ledger: Ledger, row: Row, transaction: str, now: int, sign: SignReceipt | None) -> Moved | Stale:
    receipt, failure = None, None
    if sign is not None:
        try:
            receipt = sign(transaction, now)
        except Exception as error:
            failure = error  # the payment is recorded first: what cannot be signed now is owed
    done = await ledger.settled(row, transaction=transaction, now=now, receipt=receipt)
    if isinstance(done, Stale) and receipt is not None:
        # Somebody else has recorded it meanwhile. A nonce is executed once, so the receipt is right all the same.
        await ledger.put_receipt(receipt, now=now)
    if failure is not None:
        raise failure
    return done
