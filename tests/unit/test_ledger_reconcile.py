"""What becomes of unfinished payments: every state crossed with everything a chain can say."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.payment.authorization import Authorization
from service.payment.facilitator import (
    Outcome,
    Rejected,
    Settled,
    SettleResult,
    Unavailable,
    Unknown,
    Unused,
    Used,
    VerifyResult,
    Void,
)
from service.payment.ledger import Ledger, LedgerUnavailableError, Retention, Row, Stale, State
from service.payment.reconcile import AT_ONCE, REORG_MARGIN_SECONDS, Action, Reconciler, decide, reconcile
from service.payment.settlement import settle
from tests.ledgers import LEASE, OWNER, in_state, reclaimed
from tests.payments import authorize

VALID_BEFORE = 10_000
USED = Used("0x" + "aa" * 32, 7)
SETTLED = Settled("0x" + "bb" * 32, "0xpayer", 8)


class ScriptedFacilitator:
    """Says what the test tells it to, and counts what it is asked to settle."""

    def __init__(self, *, outcome: Outcome, settle: SettleResult = SETTLED) -> None:
        self.says = outcome
        self.settles = settle
        self.settlements: list[Authorization] = []

    async def verify(self, authorization: Authorization) -> VerifyResult:
        raise AssertionError("reconciling never verifies")

    async def settle(self, authorization: Authorization) -> SettleResult:
        self.settlements.append(authorization)
        return self.settles

    async def outcome(self, authorization: Authorization) -> Outcome:
        return self.says

    async def ready(self) -> list[str]:
        return []

    async def close(self) -> None:
        return None


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(f"sqlite:///{tmp_path}/ledger.db", owner=OWNER)
    yield opened
    await opened.close()


async def row_in(ledger: Ledger, state: State) -> Row:
    return await in_state(ledger, state, authorize(valid_before=VALID_BEFORE))


async def row_of(ledger: Ledger, row: Row) -> Row:
    found = await ledger.find(row.authorization.key)
    assert found is not None
    return found


RUN_OUT = Unused(VALID_BEFORE + REORG_MARGIN_SECONDS)
JUST_RUN_OUT = Unused(VALID_BEFORE)
STILL_VALID = Unused(VALID_BEFORE - 1)
LOST = Unavailable("no answer")
VOID = Void("cancelled")


def at(now: int) -> Callable[[], int]:
    return lambda: now


@pytest.mark.parametrize(
    ("state", "answered", "outcome", "action", "after"),
    [
        (State.RESERVED, False, LOST, Action.RELEASE, State.RELEASED),
        (State.SERVED, True, LOST, Action.SETTLE, State.SETTLED),
        *(
            (state, answered, outcome, action, after)
            for state in (State.SETTLING, State.UNKNOWN)
            for answered in (True, False)
            for outcome, action, after in (
                (USED, Action.RECORD, State.SETTLED),
                (VOID, Action.REJECT, State.REJECTED),
                (RUN_OUT, Action.REJECT, State.REJECTED),
                (JUST_RUN_OUT, Action.WAIT, State.UNKNOWN),
                (STILL_VALID, Action.SETTLE, State.SETTLED) if answered else (STILL_VALID, Action.WAIT, State.UNKNOWN),
                (LOST, Action.WAIT, State.UNKNOWN),
            )
        ),
    ],
)
async def test_every_unfinished_payment_ends_as_the_chain_says(
    ledger: Ledger, state: State, answered: bool, outcome: Outcome, action: Action, after: State
) -> None:
    row = await in_state(ledger, state, authorize(valid_before=VALID_BEFORE), answered=answered)
    assert decide(row, outcome) is action
    facilitator = ScriptedFacilitator(outcome=outcome)
    report = await reconcile(ledger, facilitator, at(500))

    found = await ledger.find(row.authorization.key)
    assert found is not None
    assert found.state is after
    assert len(facilitator.settlements) == (action is Action.SETTLE), "settled exactly when the table says so"
    counts = (report.released, report.settled, report.rejected, len(report.waiting))
    assert counts == tuple(int(after is one) for one in (State.RELEASED, State.SETTLED, State.REJECTED, State.UNKNOWN))
    if after is State.SETTLED:
        assert found.transaction == (USED.transaction if outcome is USED else SETTLED.transaction)
        assert found.result == (b"answer" if answered else None), "what is not there is owed"


@pytest.mark.parametrize(
    ("outcome", "after"),
    [
        (USED, State.SETTLED),
        (VOID, State.REJECTED),
        (RUN_OUT, State.REJECTED),
        (STILL_VALID, State.UNKNOWN),
        (LOST, State.UNKNOWN),
    ],
)
async def test_a_reclaimed_payment_that_was_dropped_again_is_never_free(
    ledger: Ledger, outcome: Outcome, after: State
) -> None:
    row = await reclaimed(ledger, authorize(valid_before=VALID_BEFORE))
    facilitator = ScriptedFacilitator(outcome=outcome)
    await reconcile(ledger, facilitator, at(500))
    found = await ledger.find(row.authorization.key)
    assert found is not None
    assert (found.state, facilitator.settlements) == (after, [])


@pytest.mark.parametrize("state", [State.SETTLED, State.REJECTED, State.RELEASED])
async def test_finished_payments_are_left_alone(ledger: Ledger, state: State) -> None:
    row = await row_in(ledger, state)
    facilitator = ScriptedFacilitator(outcome=USED)
    await reconcile(ledger, facilitator, at(500))
    assert await ledger.find(row.authorization.key) == row
    assert facilitator.settlements == []
    with pytest.raises(ValueError, match="nothing can be decided"):
        decide(row, USED)


@pytest.mark.parametrize("state", [State.SETTLING, State.UNKNOWN])
async def test_nothing_is_decided_about_a_broken_settlement_without_asking_the_chain(
    ledger: Ledger, state: State
) -> None:
    row = await row_in(ledger, state)
    with pytest.raises(ValueError, match="without asking the chain"):
        decide(row, None)


async def test_reconciling_twice_changes_nothing_more(ledger: Ledger) -> None:
    for state in State:
        await row_in(ledger, state)
    facilitator = ScriptedFacilitator(outcome=STILL_VALID)
    first = await reconcile(ledger, facilitator, at(500))
    assert (first.released, first.settled, first.waiting) == (1, 3, ())
    second = await reconcile(ledger, facilitator, at(501))
    assert (second.released, second.settled, second.rejected, second.waiting) == (0, 0, 0, ())
    assert len(facilitator.settlements) == 3


async def test_what_somebody_works_on_is_left_alone_until_his_lease_is_over(ledger: Ledger) -> None:
    row = await row_in(ledger, State.SETTLING)
    facilitator = ScriptedFacilitator(outcome=USED)
    await reconcile(ledger, facilitator, at(100 + LEASE - 1))
    assert await ledger.find(row.authorization.key) == row
    await reconcile(ledger, facilitator, at(100 + LEASE))
    assert (await row_of(ledger, row)).state is State.SETTLED


async def test_at_boot_a_replica_finishes_what_its_earlier_life_left_whatever_the_lease(ledger: Ledger) -> None:
    mine = await row_in(ledger, State.SETTLING)
    await reconcile(ledger, ScriptedFacilitator(outcome=USED), at(104), owner="other")
    assert await ledger.find(mine.authorization.key) == mine
    await reconcile(ledger, ScriptedFacilitator(outcome=USED), at(104), owner=OWNER)
    assert (await row_of(ledger, mine)).state is State.SETTLED


async def test_of_replicas_that_reconcile_at_the_same_time_one_settles(ledger: Ledger, tmp_path: Path) -> None:
    rows = [await row_in(ledger, State.SERVED) for _ in range(10)]
    others = [await Ledger.open(f"sqlite:///{tmp_path}/ledger.db", owner=f"replica-{n}") for n in range(3)]
    facilitator = ScriptedFacilitator(outcome=LOST)
    reports = await asyncio.gather(*(reconcile(each, facilitator, at(500)) for each in (ledger, *others)))
    assert sum(report.settled for report in reports) == len(facilitator.settlements) == len(rows)
    for other in others:
        await other.close()


async def test_a_payment_in_doubt_is_asked_about_in_every_round(ledger: Ledger) -> None:
    row = await row_in(ledger, State.SETTLING)
    for now in (500, 501, 502):
        report = await reconcile(ledger, ScriptedFacilitator(outcome=LOST), at(now))
        assert len(report.waiting) == 1
    report = await reconcile(ledger, ScriptedFacilitator(outcome=USED), at(503))
    assert (report.settled, (await row_of(ledger, row)).state) == (1, State.SETTLED)


class Waits(ScriptedFacilitator):
    """Answers only when as many ask at a time as it waits for."""

    def __init__(self, together: int) -> None:
        super().__init__(outcome=USED)
        self.barrier = asyncio.Barrier(together)

    async def outcome(self, authorization: Authorization) -> Outcome:
        async with asyncio.timeout(20):
            await self.barrier.wait()
        return self.says


async def test_payments_are_looked_at_side_by_side(ledger: Ledger) -> None:
    for _ in range(3 * AT_ONCE):
        await row_in(ledger, State.UNKNOWN)
    assert (await reconcile(ledger, Waits(AT_ONCE), at(500))).settled == 3 * AT_ONCE


class Explodes(ScriptedFacilitator):
    """Breaks its promise never to raise, for one payment."""

    def __init__(self, nonce: str) -> None:
        super().__init__(outcome=USED)
        self.nonce = nonce

    async def outcome(self, authorization: Authorization) -> Outcome:
        if authorization.nonce == self.nonce:
            raise RuntimeError(f"secret {authorization.signature}")
        return self.says


async def test_one_payment_in_trouble_holds_up_no_other(ledger: Ledger) -> None:
    rows = [await row_in(ledger, State.SETTLING) for _ in range(5)]
    report = await reconcile(ledger, Explodes(rows[2].authorization.nonce), at(500))
    assert (report.settled, len(report.waiting)) == (4, 1)
    assert report.waiting[0].endswith("could not be finished: RuntimeError")
    assert (await row_of(ledger, rows[2])).state is State.SETTLING


async def test_rounds_go_on_whatever_happens_until_they_are_cancelled(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await row_in(ledger, State.SETTLING)
    rounds: asyncio.Queue[float] = asyncio.Queue()
    gate = asyncio.Semaphore(0)

    async def sleep(seconds: float) -> None:
        rounds.put_nowait(seconds)
        await gate.acquire()

    reconciler = Reconciler(ledger, ScriptedFacilitator(outcome=USED), at(500), interval_seconds=7, sleep=sleep)

    async def refuse(*_: object, **__: object) -> None:
        raise LedgerUnavailableError("database or disk is full")

    task = asyncio.create_task(reconciler.run())
    assert (await rounds.get(), reconciler.report, reconciler.problem) == (7, None, None)
    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "unfinished", refuse)
        gate.release()
        await rounds.get()
    assert (reconciler.report, reconciler.problem) == (None, "database or disk is full")
    gate.release()
    await rounds.get()
    assert reconciler.report is not None
    assert (reconciler.report.settled, reconciler.problem) == (1, None)
    assert (await row_of(ledger, row)).state is State.SETTLED
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_round_also_prunes(tmp_path: Path) -> None:
    keep = Retention(payment_max_age_seconds=10)
    ledger = await Ledger.open(f"sqlite:///{tmp_path}/ledger.db", owner=OWNER, retention=keep)
    row = await row_in(ledger, State.RELEASED)
    await Reconciler(ledger, ScriptedFacilitator(outcome=LOST), at(500), interval_seconds=1).once()
    assert await ledger.find(row.authorization.key) is None
    await ledger.close()


async def test_a_payment_that_stays_unknown_is_reported_without_its_signature(ledger: Ledger) -> None:
    row = await row_in(ledger, State.UNKNOWN)
    report = await reconcile(ledger, ScriptedFacilitator(outcome=LOST), at(500))
    assert len(report.waiting) == 1
    assert row.authorization.payer in report.waiting[0]
    assert row.authorization.signature[2:] not in report.waiting[0]


@pytest.mark.parametrize(
    ("result", "after", "transaction", "reason"),
    [
        (SETTLED, State.SETTLED, SETTLED.transaction, None),
        (Rejected("code", "why"), State.REJECTED, None, "code: why"),
        (Unknown("slow", "0xsent"), State.UNKNOWN, "0xsent", "slow"),
    ],
)
async def test_settling_records_what_the_facilitator_says(
    ledger: Ledger, result: SettleResult, after: State, transaction: str | None, reason: str | None
) -> None:
    row = await row_in(ledger, State.SERVED)
    ticks = iter([600, 700])
    done = await settle(ledger, ScriptedFacilitator(outcome=LOST, settle=result), row, lambda: next(ticks))
    assert done.row == await ledger.find(row.authorization.key)
    assert done.row is not None
    assert (done.row.state, done.row.transaction, done.row.reason) == (after, transaction, reason)
    assert done.row.updated == 700


async def test_a_payment_is_not_settled_by_two(ledger: Ledger) -> None:
    row = await row_in(ledger, State.SERVED)
    facilitator = ScriptedFacilitator(outcome=LOST)
    await settle(ledger, facilitator, row, lambda: 1)
    assert isinstance(await settle(ledger, facilitator, row, lambda: 1), Stale)
    assert len(facilitator.settlements) == 1
