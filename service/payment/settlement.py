"""Settling one served payment: the only place that sends a payment to a facilitator."""

from collections.abc import Callable

from service.payment.facilitator import Facilitator, Rejected, Settled, Unknown
from service.payment.ledger import Ledger, Moved, Row, Stale


async def settle_served(ledger: Ledger, facilitator: Facilitator, row: Row, clock: Callable[[], int]) -> Moved | Stale:
    """Take a SERVED payment to SETTLED, REJECTED or UNKNOWN.

    Run it in a task of its own that outlives the request: a buyer who hangs up must not stop it halfway. A row that is
    left in SETTLING all the same is finished by `reconcile`.

    Args:
        clock: unix seconds; asked again after settlement, which takes time.

    Returns:
        `Moved` with the finished row, or `Stale` when somebody else has taken the row; it must then be read again.

    Raises:
        LedgerUnavailableError: the ledger failed; the payment may have been made.
    """
    started = await ledger.start_settlement(row, now=clock())
    if isinstance(started, Stale):
        return started
    match await facilitator.settle(row.authorization):
        case Settled(transaction):
            return await ledger.settled(started.row, transaction=transaction, now=clock())
        case Rejected(reason, message):
            return await ledger.rejected(started.row, reason=f"{reason}: {message}", now=clock())
        case Unknown(reason, sent):
            return await ledger.unknown(started.row, reason=reason, transaction=sent, now=clock())
