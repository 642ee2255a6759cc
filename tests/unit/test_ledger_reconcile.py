"""What becomes of unfinished payments: every state crossed with everything a chain can say."""

from collections.abc import AsyncIterator
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
from service.payment.ledger import Ledger, Row, Stale, State
from service.payment.reconcile import REORG_MARGIN_SECONDS, Action, decide, reconcile
from service.payment.settlement import settle_served
from tests.payments import authorize
from tests.unit.test_ledger import in_state

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
    opened = await Ledger.open(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    await opened.close()


async def row_in(ledger: Ledger, state: State) -> Row:
    return await in_state(ledger, state, authorize(valid_before=VALID_BEFORE))


RUN_OUT = Unused(VALID_BEFORE + REORG_MARGIN_SECONDS)
JUST_RUN_OUT = Unused(VALID_BEFORE)
STILL_VALID = Unused(VALID_BEFORE - 1)
LOST = Unavailable("no answer")
VOID = Void("cancelled")


@pytest.mark.parametrize(
    ("state", "outcome", "action", "after"),
    [
        (State.RESERVED, LOST, Action.RELEASE, State.RELEASED),
        (State.SERVED, LOST, Action.SETTLE, State.SETTLED),
        *(
            (state, outcome, action, after)
            for state in (State.SETTLING, State.UNKNOWN)
            for outcome, action, after in (
                (USED, Action.RECORD, State.SETTLED),
                (VOID, Action.REJECT, State.REJECTED),
                (RUN_OUT, Action.REJECT, State.REJECTED),
                (JUST_RUN_OUT, Action.WAIT, State.UNKNOWN),
                (STILL_VALID, Action.SETTLE, State.SETTLED),
                (LOST, Action.WAIT, State.UNKNOWN),
            )
        ),
    ],
)
async def test_every_unfinished_payment_ends_as_the_chain_says(
    ledger: Ledger, state: State, outcome: Outcome, action: Action, after: State
) -> None:
    row = await row_in(ledger, state)
    assert decide(row, outcome) is action
    facilitator = ScriptedFacilitator(outcome=outcome)
    report = await reconcile(ledger, facilitator, now=500)

    found = await ledger.find(row.authorization.key)
    assert found is not None
    assert found.state is after
    assert len(facilitator.settlements) == (action is Action.SETTLE), "settled exactly when the table says so"
    counts = (report.released, report.settled, report.rejected, len(report.waiting))
    assert counts == tuple(int(after is one) for one in (State.RELEASED, State.SETTLED, State.REJECTED, State.UNKNOWN))
    if after is State.SETTLED:
        assert found.transaction == (USED.transaction if outcome is USED else SETTLED.transaction)
        assert found.result == b"answer"


@pytest.mark.parametrize("state", [State.SETTLED, State.REJECTED, State.RELEASED])
async def test_finished_payments_are_left_alone(ledger: Ledger, state: State) -> None:
    row = await row_in(ledger, state)
    facilitator = ScriptedFacilitator(outcome=USED)
    await reconcile(ledger, facilitator, now=500)
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
    first = await reconcile(ledger, facilitator, now=500)
    assert (first.released, first.settled, first.waiting) == (1, 3, ())
    second = await reconcile(ledger, facilitator, now=501)
    assert (second.released, second.settled, second.rejected, second.waiting) == (0, 0, 0, ())
    assert len(facilitator.settlements) == 3


async def test_rows_touched_lately_are_left_to_whoever_works_on_them(ledger: Ledger) -> None:
    row = await row_in(ledger, State.SETTLING)
    await reconcile(ledger, ScriptedFacilitator(outcome=USED), now=500, untouched_since=row.updated - 1)
    assert await ledger.find(row.authorization.key) == row


async def test_a_payment_that_stays_unknown_is_reported_without_its_signature(ledger: Ledger) -> None:
    row = await row_in(ledger, State.UNKNOWN)
    report = await reconcile(ledger, ScriptedFacilitator(outcome=LOST), now=500)
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
    done = await settle_served(ledger, ScriptedFacilitator(outcome=LOST, settle=result), row, lambda: next(ticks))
    assert done.row == await ledger.find(row.authorization.key)
    assert done.row is not None
    assert (done.row.state, done.row.transaction, done.row.reason) == (after, transaction, reason)
    assert done.row.updated == 700


async def test_a_payment_is_not_settled_by_two(ledger: Ledger) -> None:
    row = await row_in(ledger, State.SERVED)
    facilitator = ScriptedFacilitator(outcome=LOST)
    await settle_served(ledger, facilitator, row, lambda: 1)
    assert isinstance(await settle_served(ledger, facilitator, row, lambda: 1), Stale)
    assert len(facilitator.settlements) == 1
