"""What the ledger takes and returns: rows of payments, and the outcome of asking for a change."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        id: identifies the row, together with the payment's nonce; transitions refer to it.
        reservation: counts how often the payment was reserved; a holder of an older reservation can move nothing.
        request_digest: the request that this payment buys.
        authorization: the payment itself, complete, so that it can be settled after a restart.
        result: the stored answer, encrypted; None before SERVED, and where the answer follows the payment.
        transaction: the settling transaction's hash, or that of an attempt whose outcome is unknown.
        reason: why the payment was released or rejected, or is unknown.
        owner: the replica that works on the row, or did last; None in a row of a version that had no owners.
        lease_until: unix seconds; until then nobody but the owner touches the row. None as with `owner`.
        reclaimed: unix seconds at which a RESERVED row was last taken back from a settlement that did not happen as far
            as the chain had said. Such a row is never RELEASED: a transaction may still be on its way.
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
    owner: str | None
    lease_until: int | None
    reclaimed: int | None
    created: int
    updated: int


@dataclass(frozen=True, slots=True)
class NewReceipt:
    """A receipt to be kept.

    Attributes:
        receipt_id, chat_id: what it is found by.
        receipt_json: the receipt as it is handed out.
    """

    receipt_id: str
    chat_id: str
    receipt_json: str


@dataclass(frozen=True, slots=True)
class Unfinished:
    """Payments that somebody has to finish, oldest first.

    Attributes:
        rows: what can be read.
        damaged: a sentence for each row that cannot.
        last_id: where the next page begins; None when there is none.
    """

    rows: tuple[Row, ...]
    damaged: tuple[str, ...]
    last_id: int | None


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
    """What is kept, at most; `prune` removes what is more. Payments that are not finished are never removed.

    Attributes:
        max_receipts: receipts; the oldest go first.
        receipt_max_age_seconds: age of a receipt.
        payment_max_age_seconds: age of a finished payment with its stored answer, since its last change. A settled
            payment that is removed can still not be spent again: its nonce is used on the chain.
        max_answer_bytes: all stored answers of settled payments together. The oldest are dropped first: the payment
            stays, and its answer is made again for whoever comes back for it.
    """

    max_receipts: int = 100_000
    receipt_max_age_seconds: int = 30 * 86_400
    payment_max_age_seconds: int = 30 * 86_400
    max_answer_bytes: int = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Pruned:
    """How many rows `prune` removed, and how many answers it dropped from rows that stay."""

    receipts: int
    payments: int
    answers: int = 0


def row_from(found: Sequence[Any], known: tuple[str, Authorization] | None = None) -> Row:
    """The value of a `payments` row, read in the order of `ledger_statements.ROW`.

    Args:
        known: a payment as text and as value; where the row holds the same text, it is not read again.

    Raises:
        LedgerCorruptError: the stored payment cannot be read.
    """
    id_, reservation, state, request_digest, text, result, receipt_id, transaction, reason, *rest = found
    owner, lease_until, reclaimed, created, updated = rest
    try:
        authorization = known[1] if known is not None and known[0] == text else authorization_from_json(text)
    except (PaymentHeaderError, PaymentMismatchError):
        # Not the reason: it may quote the payment.
        raise LedgerCorruptError(f"row {id_} of the ledger holds a payment that cannot be read") from None
    return Row(
        id=id_,
        reservation=reservation,
        state=State(state),
        request_digest=request_digest,
        authorization=authorization,
        result=result,
        receipt_id=receipt_id,
        transaction=transaction,
        reason=reason,
        owner=owner,
        lease_until=lease_until,
        reclaimed=reclaimed,
        created=created,
        updated=updated,
    )
