"""One payment buys one answer: what the ledger promises, in SQLite and in PostgreSQL alike."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.payment.ledger import (
    Conflict,
    Existing,
    Ledger,
    LedgerUnavailableError,
    Moved,
    NewReceipt,
    Pruned,
    Reserved,
    Retention,
    Row,
    Stale,
    State,
)
from service.payment.ledger_statements import LEGACY_LEASE_SECONDS
from tests.ledgers import (
    LEASE,
    OTHER_REQUEST,
    OWNER,
    REQUEST,
    TRANSACTION,
    in_state,
    moved,
    reclaimed,
    reserved,
    traceback_of,
)
from tests.payments import authorize, offer

UNFINISHED = (State.RESERVED, State.SERVED, State.SETTLING, State.UNKNOWN)
FINISHED = (State.SETTLED, State.REJECTED, State.RELEASED)
RECEIPT = NewReceipt("rcpt-1", "chat-1", '{"n":1}')

Past = Callable[[str], None]
"""Executes a statement past the product."""


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    made: str = request.getfixturevalue("postgres_url")
    return made


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(url, owner=OWNER)
    yield opened
    await opened.close()


@pytest.fixture
async def other(url: str, ledger: Ledger) -> AsyncIterator[Ledger]:
    """Another replica's ledger in the same database."""
    opened = await Ledger.open(url, owner="other")
    yield opened
    await opened.close()


@pytest.fixture
def past(url: str, request: pytest.FixtureRequest) -> Past:
    def execute(statement: str) -> None:
        if url.startswith("sqlite"):
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
                connection.execute(statement)
        else:
            with request.getfixturevalue("postgres").connect(url) as connection:
                connection.execute(statement)

    return execute


async def unfinished(ledger: Ledger, *, owner: str | None = None, now: int) -> list[Row]:
    return list((await ledger.unfinished(owner=owner, now=now)).rows)


# Rows


async def test_a_paid_call_leaves_a_complete_row(ledger: Ledger) -> None:
    authorization = authorize(valid_before=2**256 - 1)
    row = await in_state(ledger, State.SETTLED, authorization)
    assert row == await ledger.find(authorization.key)
    assert row.authorization == authorization
    assert (row.request_digest, row.result, row.receipt_id, row.transaction) == (REQUEST, b"answer", "r1", TRANSACTION)
    assert (row.created, row.updated, row.reason) == (100, 103, None)
    assert (row.owner, row.lease_until, row.reclaimed) == (OWNER, 100 + LEASE, None)


async def test_a_payment_that_was_never_seen_is_not_found(ledger: Ledger) -> None:
    assert await ledger.find(authorize().key) is None


@pytest.mark.parametrize("state", list(State))
async def test_what_a_transition_returns_is_what_is_stored(ledger: Ledger, state: State) -> None:
    row = await in_state(ledger, state)
    assert await ledger.find(row.authorization.key) == row


async def test_whatever_a_payment_holds_is_stored_as_it_is(ledger: Ledger) -> None:
    odd = {"note": "\x00 ü 漢 \U0001f4b0 %s :x ?", "big": 2**200, "deep": [[[{}]]]}
    terms = offer()
    authorization = authorize(terms.model_copy(update={"extra": {**terms.extra, **odd}}))
    row = await reserved(ledger, authorization)
    found = await ledger.find(row.authorization.key)
    assert found is not None
    assert found.authorization.requirements == authorization.requirements
    assert found.authorization.payload == authorization.payload


@pytest.mark.parametrize("state", [state for state in State if state is not State.RELEASED])
async def test_the_same_payment_for_the_same_request_finds_its_row_and_for_another_conflicts(
    ledger: Ledger, state: State
) -> None:
    authorization = authorize()
    row = await in_state(ledger, state, authorization)
    assert await ledger.reserve(authorization, REQUEST, 200, lease_seconds=LEASE) == Existing(row)
    assert await ledger.reserve(authorization, OTHER_REQUEST, 200, lease_seconds=LEASE) == Conflict(row)
    assert await ledger.find(authorization.key) == row


async def test_another_signature_over_the_same_nonce_conflicts(ledger: Ledger) -> None:
    nonce = "0x" + "cd" * 32
    first = await reserved(ledger, authorize(nonce=nonce, valid_before=5_000))
    again = await ledger.reserve(authorize(nonce=nonce, valid_before=6_000), REQUEST, 200, lease_seconds=LEASE)
    assert again == Conflict(first), "and the row is the one that is stored"


async def test_a_released_payment_is_free_for_any_request(ledger: Ledger) -> None:
    authorization = authorize()
    released = await in_state(ledger, State.RELEASED, authorization)
    assert released.reason == "model failed"
    again = await ledger.reserve(authorization, OTHER_REQUEST, 200, lease_seconds=LEASE)
    assert isinstance(again, Reserved)
    assert (again.row.id, again.row.reservation) == (released.id, released.reservation + 1)
    assert await ledger.find(authorization.key) == again.row
    assert (again.row.request_digest, again.row.reason, again.row.created) == (OTHER_REQUEST, None, 200)


async def test_the_holder_of_an_older_reservation_can_move_nothing(ledger: Ledger) -> None:
    authorization = authorize()
    old = await reserved(ledger, authorization)
    await moved(ledger.release(old, reason="taken for dead", now=101))
    new = await ledger.reserve(authorization, REQUEST, 102, lease_seconds=LEASE)
    assert isinstance(new, Reserved)
    assert await ledger.serve(old, result=b"late", now=103) == Stale(new.row)
    assert await ledger.start_settlement(old, now=103, result=b"late") == Stale(new.row)
    assert await ledger.release(old, reason="late", now=103) == Stale(new.row)
    assert isinstance(await ledger.serve(new.row, result=b"answer", now=104), Moved)


async def test_a_row_whose_id_now_belongs_to_another_payment_moves_nothing(ledger: Ledger) -> None:
    """A database that lost its last moments may give an id away again."""
    mine, lost = await reserved(ledger), authorize()
    forgotten = replace(mine, authorization=lost)
    assert await ledger.start_settlement(forgotten, now=103) == Stale(None)
    assert await ledger.find(mine.authorization.key) == mine


# Transitions


Call = Callable[[Ledger, Row], Awaitable[Moved | Stale]]
SETTLING_OR_UNKNOWN = {State.SETTLING, State.UNKNOWN}
STEPS: dict[str, tuple[set[State], Call]] = {
    "serve": ({State.RESERVED}, lambda ledger, row: ledger.serve(row, result=b"x", now=1)),
    "release": ({State.RESERVED}, lambda ledger, row: ledger.release(row, reason="x", now=1)),
    "start_settlement": ({State.SERVED, State.RESERVED}, lambda ledger, row: ledger.start_settlement(row, now=1)),
    "settled": (
        SETTLING_OR_UNKNOWN | {State.REJECTED},
        lambda ledger, row: ledger.settled(row, transaction="0x", now=1),
    ),
    "rejected": (SETTLING_OR_UNKNOWN, lambda ledger, row: ledger.rejected(row, reason="x", now=1)),
    "unknown": ({State.SETTLING}, lambda ledger, row: ledger.unknown(row, reason="x", now=1)),
    "resume": (SETTLING_OR_UNKNOWN, lambda ledger, row: ledger.resume(row, now=1)),
    "replace_result": ({State.SETTLED}, lambda ledger, row: ledger.replace_result(row, result=b"x", now=1)),
}


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("step", list(STEPS))
async def test_each_step_leaves_only_the_states_it_may_leave(ledger: Ledger, state: State, step: str) -> None:
    allowed, call = STEPS[step]
    row = await in_state(ledger, state)
    if state in allowed:
        after = await moved(call(ledger, row))
        assert await ledger.find(row.authorization.key) == after
        assert await call(ledger, row) == Stale(after), "the second of two equal steps must find the row gone"
    else:
        with pytest.raises(ValueError, match=f"from {state}"):
            await call(ledger, row)
        assert await ledger.find(row.authorization.key) == row


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("step", ["renew", "take_over"])
async def test_only_unfinished_payments_have_a_lease(ledger: Ledger, state: State, step: str) -> None:
    row = await in_state(ledger, state)
    change = getattr(ledger, step)(row, now=104, lease_seconds=1_000)
    if state in UNFINISHED:
        after = await moved(change)
        assert (after.state, after.lease_until, after.result) == (state, 1_104, row.result)
        assert await ledger.find(row.authorization.key) == after
    else:
        with pytest.raises(ValueError, match=f"from {state}"):
            await change


async def test_a_buffered_answer_is_stored_and_its_settlement_started_in_one_step(ledger: Ledger) -> None:
    row = await moved(ledger.start_settlement(await reserved(ledger), now=101, result=b"answer", receipt_id="r9"))
    assert (row.state, row.result, row.receipt_id) == (State.SETTLING, b"answer", "r9")
    assert await ledger.find(row.authorization.key) == row


async def test_a_streamed_answer_follows_its_payment(ledger: Ledger) -> None:
    row = await moved(ledger.start_settlement(await reserved(ledger), now=101))
    assert (row.state, row.result) == (State.SETTLING, None)
    row = await moved(ledger.settled(row, transaction=TRANSACTION, now=102))
    first = await moved(ledger.replace_result(row, result=b"streamed", receipt_id="r", now=103, receipt=RECEIPT))
    assert (first.state, first.result, first.transaction) == (State.SETTLED, b"streamed", TRANSACTION)
    assert await ledger.replace_result(row, result=b"twice", now=104) == Stale(first)
    assert await ledger.receipt("rcpt-1") == RECEIPT.receipt_json


async def test_the_answer_of_a_served_payment_is_not_exchanged_when_it_is_settled(ledger: Ledger) -> None:
    row = await in_state(ledger, State.SERVED)
    with pytest.raises(ValueError, match="has its answer already"):
        await ledger.start_settlement(row, now=102, result=b"another")


async def test_a_rejected_payment_keeps_its_reason_and_loses_its_answer(ledger: Ledger) -> None:
    row = await in_state(ledger, State.REJECTED)
    assert (row.reason, row.result) == ("broke", None)


async def test_an_unknown_payment_keeps_its_answer_until_the_chain_has_spoken(ledger: Ledger) -> None:
    row = await in_state(ledger, State.UNKNOWN)
    assert (row.result, row.transaction, row.reason) == (b"answer", "0xu", "timeout")
    resumed = await moved(ledger.resume(row, now=200))
    assert (resumed.state, resumed.result, resumed.transaction, resumed.reason) == (State.SERVED, b"answer", None, None)


async def test_an_owed_answer_is_replaced_once(ledger: Ledger) -> None:
    row = await in_state(ledger, State.SETTLED)
    new = await moved(ledger.replace_result(row, result=b"again", receipt_id="r2", now=200))
    assert (new.state, new.result, new.receipt_id, new.transaction) == (State.SETTLED, b"again", "r2", TRANSACTION)
    assert await ledger.replace_result(row, result=b"twice", now=201) == Stale(new)


# A settlement that broke off before its answer was made


async def test_what_the_chain_calls_unspent_is_answered_again_under_a_new_reservation(ledger: Ledger) -> None:
    before = await in_state(ledger, State.UNKNOWN, answered=False)
    row = await moved(ledger.reclaim(before, now=200, lease_seconds=50))
    assert (row.state, row.reservation, row.lease_until) == (State.RESERVED, before.reservation + 1, 250)
    assert await ledger.find(row.authorization.key) == row
    assert await ledger.settled(before, transaction="0x", now=201) == Stale(row), "who reclaims decides alone"


async def test_what_may_have_a_transaction_under_way_is_never_released(ledger: Ledger) -> None:
    row = await reclaimed(ledger)
    after = await moved(ledger.release(row, reason="model failed", now=201))
    assert (after.state, after.reason) == (State.UNKNOWN, "model failed")
    assert isinstance(await ledger.reserve(row.authorization, OTHER_REQUEST, 300, lease_seconds=LEASE), Conflict)
    again = await moved(ledger.reclaim(after, now=300, lease_seconds=LEASE))
    assert (await moved(ledger.release(again, reason="again", now=301))).state is State.UNKNOWN


async def test_a_reclaimed_payment_is_served_and_settled_like_any_other(ledger: Ledger) -> None:
    row = await moved(ledger.start_settlement(await reclaimed(ledger), now=201, result=b"answer"))
    row = await moved(ledger.settled(row, transaction=TRANSACTION, now=202))
    assert (row.state, row.result) == (State.SETTLED, b"answer")


async def test_with_an_answer_a_payment_goes_back_to_served_and_without_one_to_reserved(ledger: Ledger) -> None:
    for state in SETTLING_OR_UNKNOWN:
        with pytest.raises(ValueError, match="is not reclaimed"):
            await ledger.reclaim(await in_state(ledger, state), now=200, lease_seconds=LEASE)
        with pytest.raises(ValueError, match="cannot go back to SERVED"):
            await ledger.resume(await in_state(ledger, state, answered=False), now=200)


# Races


async def test_of_64_equal_reservations_at_once_one_wins(ledger: Ledger, other: Ledger) -> None:
    authorization = authorize()
    both = [
        replica.reserve(authorization, REQUEST, 100, lease_seconds=LEASE)
        for _ in range(32)
        for replica in (ledger, other)
    ]
    results = await asyncio.gather(*both)
    winners = [result.row for result in results if isinstance(result, Reserved)]
    assert len(winners) == 1
    assert [result for result in results if not isinstance(result, Reserved)] == [Existing(winners[0])] * 63


async def test_of_64_released_payments_reserved_again_at_once_one_wins(ledger: Ledger, other: Ledger) -> None:
    row = await in_state(ledger, State.RELEASED)
    both = [
        replica.reserve(row.authorization, f"request-{number}", 100, lease_seconds=LEASE)
        for number, replica in enumerate([ledger, other] * 32)
    ]
    results = await asyncio.gather(*both)
    assert sum(isinstance(result, Reserved) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == 63


@pytest.mark.parametrize("state", [State.SERVED, State.RESERVED])
async def test_of_64_that_would_settle_at_once_one_may(ledger: Ledger, other: Ledger, state: State) -> None:
    row = await in_state(ledger, state)
    both = [replica.start_settlement(row, now=200) for _ in range(32) for replica in (ledger, other)]
    results = await asyncio.gather(*both)
    assert sum(isinstance(result, Moved) for result in results) == 1


async def test_many_payments_in_many_orders_do_not_stop_each_other(ledger: Ledger, other: Ledger) -> None:
    payments = [authorize() for _ in range(40)]
    both = [
        replica.reserve(payment, REQUEST, 100, lease_seconds=LEASE)
        for replica, order in ((ledger, payments), (other, payments[::-1]))
        for payment in order
    ]
    results = await asyncio.gather(*both)
    assert sum(isinstance(result, Reserved) for result in results) == 40
    rows = [result.row for result in results if isinstance(result, Reserved)]
    moves = [
        replica.start_settlement(row, now=101, result=b"x")
        for replica, order in ((ledger, rows), (other, rows[::-1]))
        for row in order
    ]
    assert sum(isinstance(result, Moved) for result in await asyncio.gather(*moves)) == 40


async def test_one_call_that_the_database_refuses_takes_no_other_one_along(ledger: Ledger) -> None:
    good = [await reserved(ledger) for _ in range(20)]
    bad = await reserved(ledger)
    too_late = 2**70  # no column holds it
    steps = [ledger.serve(row, result=b"x", now=101) for row in good]
    steps.insert(10, ledger.serve(bad, result=b"x", now=too_late))
    results = await asyncio.gather(*steps, return_exceptions=True)
    assert isinstance(results.pop(10), LedgerUnavailableError)
    assert all(isinstance(result, Moved) for result in results)
    assert await ledger.find(bad.authorization.key) == bad


async def test_a_caller_who_gives_up_leaves_a_whole_row(ledger: Ledger) -> None:
    row = await reserved(ledger)
    tasks = [asyncio.create_task(ledger.serve(row, result=b"answer", now=101)) for _ in range(2)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await ledger.put_receipt(NewReceipt("after", "c", "{}"), now=1)
    found = await ledger.find(row.authorization.key)
    assert found is not None
    assert (found.state, found.result) in ((State.RESERVED, None), (State.SERVED, b"answer"))


async def test_work_that_was_asked_for_is_finished_before_closing(url: str) -> None:
    ledger = await Ledger.open(url, owner=OWNER)
    payments = [authorize() for _ in range(30)]
    waiting = [asyncio.create_task(ledger.reserve(payment, REQUEST, 100, lease_seconds=LEASE)) for payment in payments]
    await asyncio.sleep(0)
    await ledger.close()
    assert all(isinstance(result, Reserved) for result in await asyncio.gather(*waiting))
    with pytest.raises(LedgerUnavailableError, match="closed"):
        await ledger.find(payments[0].key)


# Leases


async def test_a_replica_sees_its_own_leftovers_at_boot_and_those_of_others_when_their_lease_is_over(
    ledger: Ledger, other: Ledger
) -> None:
    mine = [await in_state(ledger, state) for state in UNFINISHED[:3]]
    theirs = [await in_state(other, state) for state in UNFINISHED[:3]]
    assert await unfinished(ledger, owner=OWNER, now=100 + LEASE - 1) == mine
    assert await unfinished(ledger, now=100 + LEASE - 1) == []
    assert await unfinished(ledger, owner=OWNER, now=100 + LEASE) == mine + theirs
    assert await unfinished(ledger, now=100 + LEASE) == mine + theirs


async def test_a_renewed_row_is_left_alone_for_longer(ledger: Ledger) -> None:
    row = await in_state(ledger, State.SETTLING)
    renewed = await moved(ledger.renew(row, now=150, lease_seconds=100))
    assert await unfinished(ledger, now=249) == []
    assert await unfinished(ledger, now=250) == [renewed]
    assert isinstance(await ledger.renew(row, now=160, lease_seconds=200), Moved), "an older copy of it will do"


async def test_nobody_else_renews_a_row(ledger: Ledger, other: Ledger) -> None:
    row = await in_state(ledger, State.SETTLING)
    assert await other.renew(row, now=150, lease_seconds=100) == Stale(row)


async def test_of_many_replicas_that_take_a_row_over_one_gets_it(ledger: Ledger, other: Ledger) -> None:
    row = await in_state(ledger, State.SETTLING)
    takers = [replica.take_over(row, now=500, lease_seconds=100) for _ in range(8) for replica in (other, ledger)]
    results = await asyncio.gather(*takers)
    taken = [result.row for result in results if isinstance(result, Moved)]
    assert len(taken) == 1
    assert taken[0].lease_until == 600


async def test_who_lost_his_lease_still_cannot_settle_twice(ledger: Ledger, other: Ledger) -> None:
    row = await in_state(ledger, State.SERVED)
    taken = await moved(other.take_over(row, now=500, lease_seconds=100))
    assert isinstance(await other.start_settlement(taken, now=501), Moved)
    assert isinstance(await ledger.start_settlement(row, now=501), Stale)


async def test_a_payment_in_doubt_is_nobodys_until_it_is_taken_up_again(ledger: Ledger, other: Ledger) -> None:
    row = await in_state(ledger, State.UNKNOWN)
    assert await unfinished(other, now=103) == [row]
    resumed = await moved(other.resume(row, now=110))
    assert resumed.owner == "other"
    assert await unfinished(ledger, now=110) == []


async def test_a_row_of_a_version_without_leases_is_left_alone_for_a_while(ledger: Ledger, past: Past) -> None:
    row = await reserved(ledger)
    past("UPDATE payments SET owner = NULL, lease_until = NULL")
    assert await unfinished(ledger, owner=OWNER, now=100 + LEGACY_LEASE_SECONDS - 1) == []
    found = await unfinished(ledger, now=100 + LEGACY_LEASE_SECONDS)
    assert found == [replace(row, owner=None, lease_until=None)]
    assert isinstance(await ledger.take_over(found[0], now=2_000, lease_seconds=1), Moved)


async def test_unfinished_payments_come_oldest_first_and_page_by_page(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.payment.ledger.UNFINISHED_PAGE", 3)
    rows = [await in_state(ledger, state) for state in [*State, *State]]
    expected = [row for row in rows if row.state in UNFINISHED]
    found: list[Row] = []
    after: int | None = 0
    while after is not None:
        page = await ledger.unfinished(owner=OWNER, now=0, after=after)
        assert len(page.rows) <= 3
        found += page.rows
        after = page.last_id
    assert found == expected


async def test_a_damaged_row_is_named_and_hides_no_other(ledger: Ledger, past: Past) -> None:
    damaged, sound = await reserved(ledger), await reserved(ledger)
    past("UPDATE payments SET payment = '{}' WHERE id = (SELECT min(id) FROM payments)")
    page = await ledger.unfinished(owner=OWNER, now=0)
    assert page.rows == (sound,)
    assert [f"row {damaged.id} " in sentence for sentence in page.damaged] == [True]


async def test_payments_are_counted_by_state(ledger: Ledger) -> None:
    assert await ledger.counts() == dict.fromkeys(State, 0)
    for number, state in enumerate(State):
        for _ in range(number):
            await in_state(ledger, state)
    assert await ledger.counts() == {state: number for number, state in enumerate(State)}


# Receipts and retention


async def test_everything_is_still_there_after_closing_and_opening(url: str) -> None:
    first = await Ledger.open(url, owner=OWNER)
    rows = [await in_state(first, state) for state in State]
    await first.put_receipt(NewReceipt("r1", "c1", "{}"), now=1)
    await first.close()
    second = await Ledger.open(url, owner=OWNER)
    assert [await second.find(row.authorization.key) for row in rows] == rows
    assert await second.receipt("c1") == "{}"
    await second.close()


async def test_a_receipt_is_kept_with_its_settlement(ledger: Ledger) -> None:
    row = await in_state(ledger, State.SETTLING)
    await moved(ledger.settled(row, transaction=TRANSACTION, now=103, receipt=RECEIPT))
    assert await ledger.receipt("rcpt-1") == await ledger.receipt("chat-1") == RECEIPT.receipt_json


@pytest.mark.parametrize("state", [State.REJECTED, State.UNKNOWN, State.SETTLED])
async def test_no_receipt_is_kept_for_a_settlement_that_was_not_recorded(ledger: Ledger, state: State) -> None:
    row = await in_state(ledger, State.SETTLING)
    steps: dict[State, Awaitable[Any]] = {
        State.REJECTED: ledger.rejected(row, reason="no", now=103),
        State.UNKNOWN: ledger.unknown(row, reason="?", now=103, transaction=TRANSACTION),
        State.SETTLED: ledger.settled(row, transaction="0x" + "dd" * 32, now=103),
    }
    await moved(steps.pop(state))
    for unused in steps.values():
        unused.close()  # type: ignore[attr-defined]
    late = await ledger.settled(row, transaction=TRANSACTION, now=103, receipt=RECEIPT)
    assert isinstance(late, Stale)
    assert await ledger.receipt("rcpt-1") is None


async def test_receipts_are_found_by_both_ids_and_never_change(ledger: Ledger) -> None:
    await ledger.put_receipt(NewReceipt("r1", "c1", '{"n":1}'), now=1)
    await ledger.put_receipt(NewReceipt("r1", "c1", '{"n":2}'), now=2)
    await ledger.put_receipt(NewReceipt("r2", "c1", '{"n":3}'), now=3)
    assert await ledger.receipt("r1") == '{"n":1}'
    assert await ledger.receipt("c1") == '{"n":3}'
    assert await ledger.receipt("r3") is None


async def test_a_chat_id_that_looks_like_a_receipt_id_cannot_hide_that_receipt(ledger: Ledger) -> None:
    await ledger.put_receipt(NewReceipt("r1", "c1", '{"n":1}'), now=1)
    await ledger.put_receipt(NewReceipt("r2", "r1", '{"n":2}'), now=2)
    assert await ledger.receipt("r1") == '{"n":1}'


async def pruned(url: str, now: int, **limits: int) -> Pruned:
    ledger = await Ledger.open(url, owner="pruner", retention=Retention(**limits))
    result = await ledger.prune(now=now)
    await ledger.close()
    return result


async def test_the_newest_receipts_are_kept(ledger: Ledger, url: str) -> None:
    for number in range(10):
        await ledger.put_receipt(NewReceipt(f"r{number}", f"c{number}", "{}"), now=number)
    assert await pruned(url, 100, max_receipts=3) == Pruned(receipts=7, payments=0)
    assert [await ledger.receipt(f"r{number}") is not None for number in range(10)] == [False] * 7 + [True] * 3


async def test_pruning_removes_what_is_old_and_finished_and_nothing_else(ledger: Ledger, url: str) -> None:
    ages = {"receipt_max_age_seconds": 50, "payment_max_age_seconds": 50}
    old = [await in_state(ledger, state) for state in State]
    await ledger.put_receipt(NewReceipt("old", "c", "{}"), now=100)
    await ledger.put_receipt(NewReceipt("new", "c", "{}"), now=101)
    assert await pruned(url, 150, **ages) == Pruned(receipts=1, payments=0)
    assert await pruned(url, 160, **ages) == Pruned(receipts=1, payments=3)
    kept = {row.state for row in old if await ledger.find(row.authorization.key) is not None}
    assert kept == set(UNFINISHED)


async def test_more_than_one_transaction_removes_is_removed(
    ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.payment.ledger_prune.AT_ONCE", 2)
    for _ in range(7):
        await in_state(ledger, State.RELEASED)
    assert (await pruned(url, 1_000, payment_max_age_seconds=1)).payments == 7


async def test_the_oldest_settled_answers_are_dropped_and_their_payments_stay(ledger: Ledger, url: str) -> None:
    rows = []
    for number in range(5):
        row = await moved(ledger.start_settlement(await reserved(ledger), now=1, result=bytes(100)))
        rows.append(await moved(ledger.settled(row, transaction=TRANSACTION, now=200 + number)))
    served, unknown = await in_state(ledger, State.SERVED), await in_state(ledger, State.UNKNOWN)
    assert await pruned(url, 300, max_answer_bytes=250) == Pruned(receipts=0, payments=0, answers=3)
    found = [await ledger.find(row.authorization.key) for row in rows]
    assert [row is not None and row.result is not None for row in found] == [False] * 3 + [True] * 2
    assert found[0] == replace(rows[0], result=None), "it is owed, and nothing else about it has changed"
    assert await ledger.find(served.authorization.key) == served
    assert await ledger.find(unknown.authorization.key) == unknown
    assert isinstance(await ledger.replace_result(replace(rows[0], result=None), result=b"new", now=400), Moved)


# Errors


async def test_an_error_of_the_database_shows_no_signature_and_ends_when_its_reason_does(
    ledger: Ledger, past: Past
) -> None:
    authorization = authorize()
    row = await reserved(ledger)
    past("ALTER TABLE payments RENAME TO elsewhere")
    for step in (
        ledger.reserve(authorization, REQUEST, 1, lease_seconds=LEASE),
        ledger.find(authorization.key),
        ledger.start_settlement(row, now=101),
        ledger.counts(),
    ):
        with pytest.raises(LedgerUnavailableError) as failure:
            await step
        assert authorization.signature[2:] not in traceback_of(failure.value)
    past("ALTER TABLE elsewhere RENAME TO payments")
    assert isinstance(await ledger.reserve(authorization, REQUEST, 1, lease_seconds=LEASE), Reserved)
    assert isinstance(await ledger.start_settlement(row, now=102), Moved)


# Names of purchases


async def test_a_name_stands_for_one_purchase_of_one_payer(ledger: Ledger) -> None:
    row = await reserved(ledger)
    paid = row.authorization
    for _ in range(2):
        assert await ledger.bind_identifier(paid.payer, "purchase-0000001", REQUEST, paid.key, 100)
    other = (await reserved(ledger)).authorization
    assert not await ledger.bind_identifier(paid.payer, "purchase-0000001", REQUEST, other.key, 100)
    assert not await ledger.bind_identifier(paid.payer, "purchase-0000001", OTHER_REQUEST, paid.key, 100)
    assert await ledger.bind_identifier(paid.payer, "purchase-0000002", REQUEST, other.key, 100)
    assert await ledger.bind_identifier("0x" + "99" * 20, "purchase-0000001", REQUEST, other.key, 100)


@pytest.mark.parametrize("ended", [State.RELEASED, State.REJECTED])
async def test_a_name_is_free_again_when_its_payment_bought_nothing(ledger: Ledger, ended: State) -> None:
    row = await in_state(ledger, ended)
    paid = row.authorization
    assert await ledger.bind_identifier(paid.payer, "purchase-0000001", REQUEST, paid.key, 100)
    other = (await reserved(ledger)).authorization
    assert await ledger.bind_identifier(paid.payer, "purchase-0000001", OTHER_REQUEST, other.key, 101)
    assert not await ledger.bind_identifier(paid.payer, "purchase-0000001", REQUEST, paid.key, 102)


async def test_of_many_that_give_one_name_to_different_purchases_one_gets_it(ledger: Ledger) -> None:
    rows = [await reserved(ledger) for _ in range(16)]
    payer = rows[0].authorization.payer
    bound = await asyncio.gather(
        *(ledger.bind_identifier(payer, "purchase-0000001", REQUEST, row.authorization.key, 100) for row in rows)
    )
    assert bound.count(True) == 1


async def test_old_names_are_forgotten_with_their_payments(ledger: Ledger) -> None:
    row = await in_state(ledger, State.SETTLED)
    paid = row.authorization
    assert await ledger.bind_identifier(paid.payer, "purchase-0000001", REQUEST, paid.key, 103)
    await ledger.prune(now=103 + Retention().payment_max_age_seconds)
    other = (await reserved(ledger)).authorization
    assert await ledger.bind_identifier(paid.payer, "purchase-0000001", OTHER_REQUEST, other.key, 104)


# Answers of several replicas


async def test_each_replica_keeps_its_own_answer_to_a_payment(ledger: Ledger, url: str) -> None:
    row = await in_state(ledger, State.SETTLED)
    other = await Ledger.open(url, owner="other")
    try:
        seen = await other.find(row.authorization.key)
        assert seen is not None
        assert await other.stored(seen) is None, "what the first one stored is sealed with its own keys"
        kept = await other.keep(seen, result=b"by the other", now=104, receipt=NewReceipt("r-other", "c", "{}"))
        assert (await ledger.stored(row), await other.stored(kept)) == (row.result, b"by the other")
        await other.keep(seen, result=b"after its restart", now=105, receipt=NewReceipt("r-later", "c", "{}"))
        assert await other.stored(seen) == b"after its restart"
        assert await ledger.find(row.authorization.key) == row, "the payment itself is as it was"
        assert await ledger.receipt("r-other") == await ledger.receipt("r-later") == "{}"
        await other.prune(now=105 + Retention().payment_max_age_seconds)
        assert await other.stored(seen) is None
    finally:
        await other.close()


async def test_copies_are_bounded_by_size_and_the_newest_stay(ledger: Ledger, url: str) -> None:
    rows = [await in_state(ledger, State.SETTLED) for _ in range(3)]
    other = await Ledger.open(url, owner="other", retention=Retention(max_answer_bytes=250))
    try:
        for now, row in enumerate(rows, 200):
            await other.keep(row, result=b"x" * 100, now=now, receipt=NewReceipt(f"r{now}", "c", "{}"))
        await other.prune(now=300)
        assert [await other.stored(row) is None for row in rows] == [True, False, False]
    finally:
        await other.close()


async def test_a_refusal_that_the_chain_refutes_is_taken_back(ledger: Ledger) -> None:
    row = await in_state(ledger, State.REJECTED)
    settled = await moved(ledger.settled(row, transaction=TRANSACTION, now=110))
    assert (settled.state, settled.transaction, settled.reason) == (State.SETTLED, TRANSACTION, None)
    assert settled.result is None, "its answer is owed"
