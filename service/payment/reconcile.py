"""Bringing payments to an end that a stopped process, a facilitator or a chain left in the middle.

What to do with a row depends on its state, on whether it has an answer, and on what the chain says, and on nothing
else; `decide` is that table:

| state               | answer | the chain says       | then                                                         |
|---------------------|--------|----------------------|--------------------------------------------------------------|
| RESERVED            | none   | (not asked)          | RELEASED: who worked on it is gone, and nothing was sent     |
| RESERVED, reclaimed | none   | (not asked)          | UNKNOWN: a transaction may be on its way; then as such       |
| SERVED              | stored | (not asked)          | settle; one that ran out is REJECTED and was never charged   |
| SETTLING, UNKNOWN   | either | executed             | SETTLED, with the transaction; a missing answer is owed      |
|                     | either | spent otherwise      | REJECTED                                                     |
|                     | stored | unspent, still valid | back to SERVED, then settle again                            |
|                     | none   | unspent, still valid | UNKNOWN: answered when its buyer comes (`reclaim`)           |
|                     | either | unspent, run out     | REJECTED: no transaction can execute it any more             |
|                     | either | nothing conclusive   | UNKNOWN, for the next time                                   |

Settling again while an earlier transaction may still be waiting is safe: the token executes a nonce once, so of two
transactions one reverts, and the facilitator then finds the payment made.

"Run out" is read from the chain's own clock, in the block in which the nonce was unspent, plus a margin in case that
block is replaced. Our clock may be wrong, and a waiting transaction cares only about the chain's.

The answer of a row that is settled here after a restart cannot be decrypted any more; it is owed to whoever sends the
same payment again.

Rows that a replica works on are left alone until their lease is over. Each row is then taken over before anything is
done about it, so that of several replicas that look at the same time one acts.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from service.payment.facilitator import Facilitator, Outcome, Unavailable, Unused, Used, Void
from service.payment.ledger import Ledger, LedgerError, Moved, Row, Stale, State, Unfinished
from service.payment.settlement import settle

REORG_MARGIN_SECONDS: Final = 60
"""How much later than `valid_before` the chain's clock must be before an unspent nonce counts as dead."""

AT_ONCE: Final = 16
"""Payments that are looked at side by side: as much as a node or facilitator of somebody else's is asked to bear."""

TAKEN_SECONDS: Final = 300
"""How long a row that was taken over is ours: longer than a settlement takes."""

ABANDONED: Final = "the process that worked on it has stopped"
RAN_OUT: Final = "the authorization ran out before it was executed"
UNANSWERED: Final = "its settlement broke off; its buyer gets an answer for it, or it runs out"

_log: Final = logging.getLogger(__name__)


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
            return Action.WAIT if row.result is None else Action.SETTLE
        case Unused(chain_time) if chain_time >= row.authorization.valid_before + REORG_MARGIN_SECONDS:
            return Action.REJECT
        case Unused() | Unavailable():
            return Action.WAIT


async def reconcile(
    ledger: Ledger, facilitator: Facilitator, clock: Callable[[], int], *, owner: str | None = None
) -> ReconcileReport:
    """Finish what can be finished. A payment that cannot be, whatever the reason, holds up no other one.

    Args:
        clock: unix seconds.
        owner: also what this replica left behind, whatever its lease: for boot, before anything is sold.

    Raises:
        LedgerUnavailableError: the ledger cannot be read; rows already finished stay so.
    """
    ends: Counter[State] = Counter()
    waiting: list[str] = []

    async def work(rows: Iterator[Row]) -> None:
        for row in rows:
            try:
                after = await _finish(ledger, facilitator, row, clock)
            except LedgerError as error:
                waiting.append(f"{_name(row)} could not be finished: {error}")
            except Exception as error:
                # Somebody else's words are not ours to repeat: they may quote the payment.
                waiting.append(f"{_name(row)} could not be finished: {type(error).__name__}")
            else:
                if after is not None and after.state in (State.RELEASED, State.SETTLED, State.REJECTED):
                    ends[after.state] += 1
                elif after is not None:
                    waiting.append(f"{_name(after)} is {after.state}: {after.reason}")

    async for page in _pages(ledger, clock, owner):
        waiting += page.damaged
        rows = iter(page.rows)
        await asyncio.gather(*(work(rows) for _ in range(AT_ONCE)))
    return ReconcileReport(
        released=ends[State.RELEASED],
        settled=ends[State.SETTLED],
        rejected=ends[State.REJECTED],
        waiting=tuple(waiting),
    )


class Reconciler:
    """Reconciles at intervals, and removes what the ledger need not keep.

    Args:
        clock: unix seconds.
        interval_seconds: from the end of one round to the beginning of the next.
        sleep: waits for so many seconds.

    Attributes:
        report: of the last round that came to its end; None before the first.
        problem: why the last round did not come to its end; None when it did.
    """

    def __init__(
        self,
        ledger: Ledger,
        facilitator: Facilitator,
        clock: Callable[[], int],
        *,
        interval_seconds: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._ledger = ledger
        self._facilitator = facilitator
        self._clock = clock
        self._interval = interval_seconds
        self._sleep = sleep
        self.report: ReconcileReport | None = None
        self.problem: str | None = None

    async def once(self, *, owner: str | None = None) -> ReconcileReport:
        """One round.

        Args:
            owner: as in `reconcile`.

        Raises:
            LedgerError: the ledger failed.
        """
        report = await reconcile(self._ledger, self._facilitator, self._clock, owner=owner)
        await self._ledger.prune(now=self._clock())
        self.report, self.problem = report, None
        return report

    async def run(self) -> None:
        """Round after round, until cancelled. One that fails is logged, and the next one tries again."""
        while True:
            await self._sleep(self._interval)
            try:
                report = await self.once()
            except LedgerError as error:
                self.problem = str(error)
                _log.warning("payments could not be reconciled: %s", error)
            else:
                if report.waiting:
                    _log.warning("payments that wait for the chain or for their buyers: %d", len(report.waiting))


async def _pages(ledger: Ledger, clock: Callable[[], int], owner: str | None) -> AsyncIterator[Unfinished]:
    after: int | None = 0
    while after is not None:
        page = await ledger.unfinished(owner=owner, now=clock(), after=after)
        yield page
        after = page.last_id


async def _finish(ledger: Ledger, facilitator: Facilitator, row: Row, clock: Callable[[], int]) -> Row | None:
    """The row after the attempt, as whoever moved it last left it; None when somebody else has taken or removed it."""
    taken = await ledger.take_over(row, now=clock(), lease_seconds=TAKEN_SECONDS)
    if isinstance(taken, Stale):
        return None
    row = taken.row
    if row.state is State.RESERVED:
        released = await ledger.release(row, reason=ABANDONED, now=clock())
        if isinstance(released, Stale) or released.row.state is State.RELEASED:
            return released.row
        row = released.row
    asked = row.state is not State.SERVED
    outcome = await facilitator.outcome(row.authorization) if asked else None
    match decide(row, outcome):
        case Action.SETTLE:
            done = await ledger.resume(row, now=clock()) if asked else taken
            if isinstance(done, Moved):
                done = await settle(ledger, facilitator, done.row, clock)
        case Action.RECORD if isinstance(outcome, Used):
            done = await ledger.settled(row, transaction=outcome.transaction, now=clock())
        case Action.REJECT:
            reason = outcome.reason if isinstance(outcome, Void) else RAN_OUT
            done = await ledger.rejected(row, reason=reason, now=clock())
        case _:
            done = await _wait(ledger, row, outcome, clock())
    return done.row


async def _wait(ledger: Ledger, row: Row, outcome: Outcome | None, now: int) -> Moved | Stale:
    """A payment whose settlement broke off is UNKNOWN, so that its buyer is told so, until the chain has answered."""
    if row.state is State.UNKNOWN:
        return await ledger.renew(row, now=now, lease_seconds=0)
    match outcome:
        case Unavailable(reason):
            pass
        case Unused(chain_time) if chain_time < row.authorization.valid_before:
            reason = UNANSWERED
        case _:
            reason = RAN_OUT
    return await ledger.unknown(row, reason=reason, now=now)


def _name(row: Row) -> str:
    return f"payment {row.id} of {row.authorization.payer}"
