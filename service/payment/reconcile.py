"""Bringing payments to an end that a stopped process, a facilitator or a chain left in the middle.

What to do with a row depends on its state and on what the chain says, and on nothing else; `decide` is that table:

| state             | the chain says        | then                                                              |
|-------------------|-----------------------|-------------------------------------------------------------------|
| RESERVED          | (not asked)           | RELEASED: whoever worked on it is gone, and nothing was sent       |
| SERVED            | (not asked)           | settle; one that ran out comes back REJECTED and was never charged |
| SETTLING, UNKNOWN | executed              | SETTLED, with the transaction                                      |
|                   | spent otherwise       | REJECTED                                                           |
|                   | unspent, still valid  | back to SERVED, then settle again                                  |
|                   | unspent, run out      | REJECTED: no transaction can execute it any more                   |
|                   | nothing conclusive    | left as it is, for the next time                                   |

Settling again while an earlier transaction may still be waiting is safe: the token executes a nonce once, so of two
transactions one reverts, and the facilitator then finds the payment made.

"Run out" is read from the chain's own clock, in the block in which the nonce was unspent, plus a margin in case that
block is replaced. Our clock may be wrong, and a waiting transaction cares only about the chain's.

The answer of a row that is settled here after a restart cannot be decrypted any more; it is owed to whoever sends the
same payment again.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from service.payment.facilitator import Facilitator, Outcome, Unavailable, Unused, Used, Void
from service.payment.ledger import Ledger, Moved, Row, Stale, State
from service.payment.settlement import settle_served

REORG_MARGIN_SECONDS: Final = 60
"""How much later than `valid_before` the chain's clock must be before an unspent nonce counts as dead."""

ABANDONED: Final = "the process that worked on it has stopped"
RAN_OUT: Final = "the authorization ran out before it was executed"


class Action(StrEnum):
    """What `decide` asks for."""

    RELEASE = "release"
    SETTLE = "settle"
    RECORD = "record"
    REJECT = "reject"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class ReconcileReport:
    """What became of the unfinished payments.

    Attributes:
        released, settled, rejected: how many ended so.
        waiting: those that could not be finished now, one sentence each.
    """

    released: int
    settled: int
    rejected: int
    waiting: tuple[str, ...]


def decide(row: Row, outcome: Outcome | None) -> Action:
    """What to do with an unfinished row.

    Args:
        outcome: what the chain says; needed for SETTLING and UNKNOWN only.

    Raises:
        ValueError: the row is finished, or the chain was not asked where it has to be.
    """
    if row.state is State.RESERVED:
        return Action.RELEASE
    if row.state is State.SERVED:
        return Action.SETTLE
    if row.state not in (State.SETTLING, State.UNKNOWN) or outcome is None:
        raise ValueError(f"nothing can be decided about a payment that is {row.state} without asking the chain")
    match outcome:
        case Used():
            return Action.RECORD
        case Void():
            return Action.REJECT
        case Unused(chain_time) if chain_time < row.authorization.valid_before:
            return Action.SETTLE
        case Unused(chain_time) if chain_time >= row.authorization.valid_before + REORG_MARGIN_SECONDS:
            return Action.REJECT
        case Unused() | Unavailable():
            return Action.WAIT


async def reconcile(
    ledger: Ledger, facilitator: Facilitator, now: int, *, untouched_since: int | None = None
) -> ReconcileReport:
    """Finish what can be finished, one payment after the other.

    Args:
        now: unix seconds; becomes the time of change of the rows.
        untouched_since: only rows whose last change is not later than this. None means all, which is right at boot
            only, when no other process and no request works on the ledger.

    Raises:
        LedgerUnavailableError: the ledger failed; rows already finished stay so.
    """
    finished = {State.RELEASED: 0, State.SETTLED: 0, State.REJECTED: 0}
    waiting = []
    for row in await ledger.unfinished(untouched_since=untouched_since):
        after = await _finish(ledger, facilitator, row, now)
        if after.state in finished:
            finished[after.state] += 1
        else:
            waiting.append(f"payment {row.id} of {row.authorization.payer} is {after.state}: {after.reason}")
    return ReconcileReport(
        released=finished[State.RELEASED],
        settled=finished[State.SETTLED],
        rejected=finished[State.REJECTED],
        waiting=tuple(waiting),
    )


async def _finish(ledger: Ledger, facilitator: Facilitator, row: Row, now: int) -> Row:
    """The row after the attempt; when somebody else has moved it meanwhile, as that somebody left it."""
    asked = row.state in (State.SETTLING, State.UNKNOWN)
    outcome = await facilitator.outcome(row.authorization) if asked else None
    action = decide(row, outcome)
    if action is Action.RELEASE:
        done = await ledger.release(row, reason=ABANDONED, now=now)
    elif action is Action.SETTLE:
        done = await ledger.resume(row, now=now) if asked else Moved(row)
        if isinstance(done, Moved):
            done = await settle_served(ledger, facilitator, done.row, lambda: now)
    elif isinstance(outcome, Used):
        done = await ledger.settled(row, transaction=outcome.transaction, now=now)
    elif action is Action.REJECT:
        reason = outcome.reason if isinstance(outcome, Void) else RAN_OUT
        done = await ledger.rejected(row, reason=reason, now=now)
    else:
        done = await _wait(ledger, row, outcome, now)
    return done.row or row


async def _wait(ledger: Ledger, row: Row, outcome: Outcome | None, now: int) -> Moved | Stale:
    """A payment whose settlement broke off is UNKNOWN, so that its buyer is told so, until the chain has answered."""
    if row.state is State.UNKNOWN:
        return Moved(row)
    reason = outcome.reason if isinstance(outcome, Unavailable) else RAN_OUT
    return await ledger.unknown(row, reason=reason, now=now)
