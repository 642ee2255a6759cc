"""Keeping the ledger as small as its retention says, a little at a time, between payments."""

from collections.abc import Mapping
from typing import Final

from service.payment.ledger_lanes import Call, Lane, Rows, Step, number_of
from service.payment.ledger_statements import Statements
from service.payment.records import Pruned, Retention

AT_ONCE: Final = 500
"""Rows removed in one transaction: payments do not wait for longer."""


async def prune(lanes: Mapping[str, Lane], statements: Statements, keep: Retention, *, now: int) -> Pruned:
    """Remove what is more than `keep` allows; `now` is in unix seconds. See `Ledger.prune`."""

    async def emptied(step: Step) -> int:
        """Make a step that removes a part, until nothing is left; the number of rows removed."""
        total = 0
        while removed := await lanes["quick"].submit(Call((step,), number_of)):
            total += removed
        return total

    def beyond(stored: Rows, _: Rows) -> list[int]:
        total, dropped = 0, []
        for id_, size in stored:
            total += size
            if total > keep.max_answer_bytes:
                dropped.append(id_)
        return dropped

    surplus = (statements.first_surplus_receipt, (keep.max_receipts,))
    last: int = await lanes["scan"].submit(Call((surplus,), lambda rows, _: rows[0][0] if rows else 0))
    aged = {"given_before": now - keep.receipt_max_age_seconds, "given_last": last, "given_limit": AT_ONCE}
    receipts = await emptied((statements.drop_receipts, statements.drop_receipts.bind(aged)))
    old = {"given_before": now - keep.payment_max_age_seconds, "given_limit": AT_ONCE}
    payments = await emptied((statements.drop_payments, statements.drop_payments.bind(old)))
    await emptied((statements.drop_identifiers, statements.drop_identifiers.bind(old)))
    await emptied((statements.drop_copies, statements.drop_copies.bind(old)))

    def surplus_since(stored: Rows, _: Rows) -> int | None:
        total = 0
        for created, size in stored:
            total += size
            if total > keep.max_answer_bytes:
                return int(created)
        return None

    since = await lanes["scan"].submit(Call(((statements.stored_copies, ()),), surplus_since))
    if since is not None:
        most = {"given_before": since, "given_limit": AT_ONCE}
        await emptied((statements.drop_copies, statements.drop_copies.bind(most)))
    answers = 0
    for id_ in await lanes["scan"].submit(Call(((statements.stored_answers, ()),), beyond)):
        step = (statements.drop_answer, statements.drop_answer.bind({"given_id": id_}))
        answers += await lanes["quick"].submit(Call((step,), number_of))
    return Pruned(receipts, payments, answers)
