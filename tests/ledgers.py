"""Payments in a ledger, brought to any state in the way the service does it."""

import traceback
from collections.abc import Awaitable

from service.payment.authorization import Authorization
from service.payment.ledger import Ledger, Moved, Reserved, Row, Stale, State
from tests.payments import authorize

OWNER = "main"
LEASE = 60
REQUEST = "sha256:" + "aa" * 32
OTHER_REQUEST = "sha256:" + "bb" * 32
TRANSACTION = "0x" + "cc" * 32


async def reserved(ledger: Ledger, authorization: Authorization | None = None) -> Row:
    """A new payment, reserved at 100 until 160."""
    result = await ledger.reserve(authorization or authorize(), REQUEST, 100, lease_seconds=LEASE)
    assert isinstance(result, Reserved)
    return result.row


async def moved(step: Awaitable[Moved | Stale]) -> Row:
    """The row after a transition that must happen."""
    result = await step
    assert isinstance(result, Moved)
    return result.row


async def in_state(
    ledger: Ledger, state: State, authorization: Authorization | None = None, *, answered: bool = True
) -> Row:
    """A payment in this state: reserved at 100, served at 101, settling since 102, ended at 103.

    Args:
        answered: whether its answer is made before it is settled.
    """
    row = await reserved(ledger, authorization)
    if state is State.RESERVED:
        return row
    if state is State.RELEASED:
        return await moved(ledger.release(row, reason="model failed", now=101))
    if answered:
        row = await moved(ledger.serve(row, result=b"answer", receipt_id="r1", now=101))
    if state is State.SERVED:
        return row
    row = await moved(ledger.start_settlement(row, now=102))
    if state is State.SETTLED:
        return await moved(ledger.settled(row, transaction=TRANSACTION, now=103))
    if state is State.REJECTED:
        return await moved(ledger.rejected(row, reason="broke", now=103))
    if state is State.UNKNOWN:
        return await moved(ledger.unknown(row, reason="timeout", transaction="0xu", now=103))
    return row


async def reclaimed(ledger: Ledger, authorization: Authorization | None = None) -> Row:
    """A payment whose settlement broke off before its answer was made, taken back at 200 to be answered anew."""
    row = await in_state(ledger, State.UNKNOWN, authorization, answered=False)
    return await moved(ledger.reclaim(row, now=200, lease_seconds=LEASE))


def traceback_of(error: BaseException) -> str:
    """Everything that a log would show of an error, its causes included."""
    return "".join(traceback.format_exception(error))
