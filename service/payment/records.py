"""What the ledger returns: rows of payments, and the outcome of asking for a change."""

from dataclasses import dataclass

from sqlalchemy import RowMapping

from service.payment.authorization import (
    Authorization,
    PaymentHeaderError,
    PaymentMismatchError,
    authorization_from_json,
)
from service.payment.ledger_schema import LedgerCorruptError, State


@dataclass(frozen=True, slots=True)
class Row:
    """A payment as it stood when it was read.

    Attributes:
        id: identifies the row; transitions refer to it.
        reservation: counts how often the payment was reserved; a holder of an older reservation can move nothing.
        request_digest: the request that this payment buys.
        authorization: the payment itself, complete, so that it can be settled after a restart.
        result: the stored answer, encrypted; None before SERVED.
        transaction: the settling transaction's hash, or that of an attempt whose outcome is unknown.
        reason: why the payment was released or rejected, or is unknown.
        created, updated: unix seconds.
    """

    id: int
    reservation: int
    state: State
    request_digest: str
    authorization: Authorization
    result: bytes | None
    receipt_id: str | None
    transaction: str | None
    reason: str | None
    created: int
    updated: int


@dataclass(frozen=True, slots=True)
class Reserved:
    """The payment is ours to serve; nobody else got it."""

    row: Row


@dataclass(frozen=True, slots=True)
class Existing:
    """The same payment for the same request was seen before; `row.state` says how far it got."""

    row: Row


@dataclass(frozen=True, slots=True)
class Conflict:
    """The payment is bound to another request, or to another signature over the same nonce."""

    row: Row


@dataclass(frozen=True, slots=True)
class Moved:
    """The transition happened; `row` is the new state."""

    row: Row


@dataclass(frozen=True, slots=True)
class Stale:
    """The transition did not happen: the row had left the expected state. `row` is as it is now, if it still exists."""

    row: Row | None


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept, at most.

    Attributes:
        max_receipts: receipts; the oldest go first, at once.
        receipt_max_age_seconds: age at which `prune` removes a receipt.
        payment_max_age_seconds: age at which `prune` removes a finished payment with its stored answer. A settled
            payment that is removed can still not be spent again: its nonce is used on the chain.
    """

    max_receipts: int = 100_000
    receipt_max_age_seconds: int = 30 * 86_400
    payment_max_age_seconds: int = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows `prune` removed."""

    receipts: int
    payments: int


def row_from(found: RowMapping) -> Row:
    """The value of a `payments` row.

    Raises:
        LedgerCorruptError: the stored payment cannot be read.
    """
    try:
        authorization = authorization_from_json(found["payment"])
    except (PaymentHeaderError, PaymentMismatchError) as error:
        raise LedgerCorruptError(f"row {found['id']} of the ledger holds a payment that cannot be read") from error
    return Row(
        id=found["id"],
        reservation=found["reservation"],
        state=State(found["state"]),
        request_digest=found["request_digest"],
        authorization=authorization,
        result=found["result"],
        receipt_id=found["receipt_id"],
        transaction=found["transaction_hash"],
        reason=found["reason"],
        created=found["created"],
        updated=found["updated"],
    )
