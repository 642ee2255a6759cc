"""One payment buys one answer: the ledger's states, races, retention and refusals."""

import asyncio
import sqlite3
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from service.payment.authorization import Authorization
from service.payment.ledger import (
    Conflict,
    Existing,
    Ledger,
    LedgerCorruptError,
    LedgerSchemaError,
    LedgerUnavailableError,
    Moved,
    Pruned,
    Reserved,
    Retention,
    Row,
    Stale,
    State,
)
from tests.payments import authorize

REQUEST = "sha256:" + "aa" * 32
OTHER_REQUEST = "sha256:" + "bb" * 32


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/ledger.db"


@pytest.fixture
async def ledger(url: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(url)
    yield opened
    await opened.close()


async def reserved(ledger: Ledger, authorization: Authorization | None = None) -> Row:
    result = await ledger.reserve(authorization or authorize(), REQUEST, 100)
    assert isinstance(result, Reserved)
    return result.row


async def moved(step: Awaitable[Moved | Stale]) -> Row:
    result = await step
    assert isinstance(result, Moved)
    return result.row


async def in_state(ledger: Ledger, state: State, authorization: Authorization | None = None) -> Row:
    row = await reserved(ledger, authorization)
    if state is State.RESERVED:
        return row
    if state is State.RELEASED:
        return await moved(ledger.release(row, reason="model failed", now=101))
    row = await moved(ledger.serve(row, result=b"answer", receipt_id="r1", now=101))
    if state is State.SERVED:
        return row
    row = await moved(ledger.start_settlement(row, now=102))
    if state is State.SETTLED:
        return await moved(ledger.settled(row, transaction="0xt", now=103))
    if state is State.REJECTED:
        return await moved(ledger.rejected(row, reason="broke", now=103))
    if state is State.UNKNOWN:
        return await moved(ledger.unknown(row, reason="timeout", transaction="0xu", now=103))
    return row


async def test_a_paid_call_leaves_a_complete_row(ledger: Ledger) -> None:
    authorization = authorize(valid_before=2**256 - 1)
    row = await in_state(ledger, State.SETTLED, authorization)
    assert row == await ledger.find(authorization.key)
    assert row.authorization == authorization
    assert (row.request_digest, row.result, row.receipt_id, row.transaction) == (REQUEST, b"answer", "r1", "0xt")
    assert (row.created, row.updated, row.reason) == (100, 103, None)


async def test_a_payment_that_was_never_seen_is_not_found(ledger: Ledger) -> None:
    assert await ledger.find(authorize().key) is None


@pytest.mark.parametrize("state", [state for state in State if state is not State.RELEASED])
async def test_the_same_payment_for_the_same_request_finds_its_row_and_for_another_conflicts(
    ledger: Ledger, state: State
) -> None:
    authorization = authorize()
    row = await in_state(ledger, state, authorization)
    assert await ledger.reserve(authorization, REQUEST, 200) == Existing(row)
    assert await ledger.reserve(authorization, OTHER_REQUEST, 200) == Conflict(row)
    assert await ledger.find(authorization.key) == row


async def test_another_signature_over_the_same_nonce_conflicts(ledger: Ledger) -> None:
    nonce = "0x" + "cd" * 32
    await reserved(ledger, authorize(nonce=nonce, valid_before=5_000))
    again = await ledger.reserve(authorize(nonce=nonce, valid_before=6_000), REQUEST, 200)
    assert isinstance(again, Conflict)


async def test_a_released_payment_is_free_for_any_request(ledger: Ledger) -> None:
    authorization = authorize()
    released = await in_state(ledger, State.RELEASED, authorization)
    assert released.reason == "model failed"
    again = await ledger.reserve(authorization, OTHER_REQUEST, 200)
    assert isinstance(again, Reserved)
    assert (again.row.id, again.row.reservation) == (released.id, released.reservation + 1)
    assert (again.row.request_digest, again.row.reason, again.row.created) == (OTHER_REQUEST, None, 200)


async def test_the_holder_of_an_older_reservation_can_move_nothing(ledger: Ledger) -> None:
    authorization = authorize()
    old = await reserved(ledger, authorization)
    await moved(ledger.release(old, reason="taken for dead", now=101))
    new = await ledger.reserve(authorization, REQUEST, 102)
    assert isinstance(new, Reserved)
    assert await ledger.serve(old, result=b"late", now=103) == Stale(new.row)
    assert await ledger.release(old, reason="late", now=103) == Stale(new.row)
    assert isinstance(await ledger.serve(new.row, result=b"answer", now=104), Moved)


async def test_of_many_equal_reservations_at_once_one_wins(ledger: Ledger) -> None:
    authorization = authorize()
    results = await asyncio.gather(*(ledger.reserve(authorization, REQUEST, 100) for _ in range(64)))
    assert sum(isinstance(result, Reserved) for result in results) == 1
    assert sum(isinstance(result, Existing) for result in results) == 63


async def test_of_many_that_would_settle_at_once_one_may(ledger: Ledger) -> None:
    row = await in_state(ledger, State.SERVED)
    results = await asyncio.gather(*(ledger.start_settlement(row, now=200) for _ in range(64)))
    assert sum(isinstance(result, Moved) for result in results) == 1


async def test_two_ledgers_on_one_file_keep_the_promise_together(url: str) -> None:
    first, second = await Ledger.open(url), await Ledger.open(url)
    authorization = authorize()
    both = [ledger.reserve(authorization, REQUEST, 100) for _ in range(10) for ledger in (first, second)]
    assert sum(isinstance(result, Reserved) for result in await asyncio.gather(*both)) == 1
    await first.close()
    await second.close()


STEPS: dict[str, tuple[set[State], Callable[[Ledger, Row], Awaitable[Moved | Stale]]]] = {
    "serve": ({State.RESERVED}, lambda ledger, row: ledger.serve(row, result=b"x", now=1)),
    "release": ({State.RESERVED}, lambda ledger, row: ledger.release(row, reason="x", now=1)),
    "start_settlement": ({State.SERVED}, lambda ledger, row: ledger.start_settlement(row, now=1)),
    "settled": ({State.SETTLING, State.UNKNOWN}, lambda ledger, row: ledger.settled(row, transaction="0x", now=1)),
    "rejected": ({State.SETTLING, State.UNKNOWN}, lambda ledger, row: ledger.rejected(row, reason="x", now=1)),
    "unknown": ({State.SETTLING}, lambda ledger, row: ledger.unknown(row, reason="x", now=1)),
    "resume": ({State.SETTLING, State.UNKNOWN}, lambda ledger, row: ledger.resume(row, now=1)),
    "replace_result": ({State.SETTLED}, lambda ledger, row: ledger.replace_result(row, result=b"x", now=1)),
}


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("step", list(STEPS))
async def test_each_step_leaves_only_the_states_it_may_leave(ledger: Ledger, state: State, step: str) -> None:
    allowed, call = STEPS[step]
    row = await in_state(ledger, state)
    if state in allowed:
        assert isinstance(await call(ledger, row), Moved)
        assert isinstance(await call(ledger, row), Stale), "the second of two equal steps must find the row gone"
    else:
        with pytest.raises(ValueError, match=f"from {state}"):
            await call(ledger, row)
        assert await ledger.find(row.authorization.key) == row


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
    assert (new.state, new.result, new.receipt_id, new.transaction) == (State.SETTLED, b"again", "r2", "0xt")
    assert await ledger.replace_result(row, result=b"twice", now=201) == Stale(new)


async def test_unfinished_payments_are_listed_oldest_first(ledger: Ledger) -> None:
    rows = [await in_state(ledger, state) for state in State]
    unfinished = [row for row in rows if row.state not in (State.SETTLED, State.REJECTED, State.RELEASED)]
    assert await ledger.unfinished() == unfinished
    assert await ledger.unfinished(untouched_since=100) == [row for row in unfinished if row.updated <= 100]


async def test_everything_is_still_there_after_closing_and_opening(url: str) -> None:
    first = await Ledger.open(url)
    rows = [await in_state(first, state) for state in State]
    await first.put_receipt(receipt_id="r1", chat_id="c1", receipt="{}", now=1)
    await first.close()
    second = await Ledger.open(url)
    assert [await second.find(row.authorization.key) for row in rows] == rows
    assert await second.receipt("c1") == "{}"
    await second.close()


async def test_receipts_are_found_by_both_ids_and_never_change(ledger: Ledger) -> None:
    await ledger.put_receipt(receipt_id="r1", chat_id="c1", receipt='{"n":1}', now=1)
    await ledger.put_receipt(receipt_id="r1", chat_id="c1", receipt='{"n":2}', now=2)
    await ledger.put_receipt(receipt_id="r2", chat_id="c1", receipt='{"n":3}', now=3)
    assert await ledger.receipt("r1") == '{"n":1}'
    assert await ledger.receipt("c1") == '{"n":3}'
    assert await ledger.receipt("r3") is None


async def test_a_chat_id_that_looks_like_a_receipt_id_cannot_hide_that_receipt(ledger: Ledger) -> None:
    await ledger.put_receipt(receipt_id="r1", chat_id="c1", receipt='{"n":1}', now=1)
    await ledger.put_receipt(receipt_id="r2", chat_id="r1", receipt='{"n":2}', now=2)
    assert await ledger.receipt("r1") == '{"n":1}'


async def test_no_more_receipts_are_kept_than_the_retention_allows(url: str) -> None:
    ledger = await Ledger.open(url, retention=Retention(max_receipts=3))
    for number in range(10):
        await ledger.put_receipt(receipt_id=f"r{number}", chat_id=f"c{number}", receipt="{}", now=number)
    assert [await ledger.receipt(f"r{number}") is not None for number in range(10)] == [False] * 7 + [True] * 3
    await ledger.close()


async def test_pruning_removes_what_is_old_and_finished_and_nothing_else(url: str) -> None:
    ledger = await Ledger.open(url, retention=Retention(receipt_max_age_seconds=50, payment_max_age_seconds=50))
    old = [await in_state(ledger, state) for state in State]
    await ledger.put_receipt(receipt_id="old", chat_id="c", receipt="{}", now=100)
    await ledger.put_receipt(receipt_id="new", chat_id="c", receipt="{}", now=101)
    assert await ledger.prune(now=150) == Pruned(receipts=1, payments=0)
    assert await ledger.prune(now=160) == Pruned(receipts=1, payments=3)
    kept = {row.state for row in old if await ledger.find(row.authorization.key) is not None}
    assert kept == {State.RESERVED, State.SERVED, State.SETTLING, State.UNKNOWN}
    await ledger.close()


async def test_the_database_is_set_up_to_survive_a_power_cut(ledger: Ledger) -> None:
    with ledger._engine.connect() as connection:

        def pragma(name: str) -> object:
            return connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()

        assert (pragma("journal_mode"), pragma("synchronous"), pragma("foreign_keys")) == ("wal", 2, 1)
        assert pragma("busy_timeout") == 5_000


async def test_only_the_owner_may_read_the_file(ledger: Ledger, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "ledger.db").stat().st_mode) == 0o600


async def test_a_ledger_of_an_unknown_version_is_refused(url: str, tmp_path: Path) -> None:
    await (await Ledger.open(url)).close()
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("UPDATE tollseal_schema SET version = 99")
    connection.close()
    with pytest.raises(LedgerSchemaError, match="schema version 99; this program knows only 1"):
        await Ledger.open(url)


async def test_a_database_of_something_else_is_refused(url: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "ledger.db") as connection:
        connection.execute("CREATE TABLE cats (name TEXT)")
    connection.close()
    with pytest.raises(LedgerSchemaError, match="not a ledger"):
        await Ledger.open(url)


async def test_a_file_that_is_no_database_and_a_missing_directory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello " * 1000)
    for url in (f"sqlite:///{tmp_path}/text", f"sqlite:///{tmp_path}/no/such/ledger.db", "nonsense"):
        with pytest.raises(LedgerUnavailableError, match="cannot be opened"):
            await Ledger.open(url)


async def test_an_error_of_the_database_shows_no_signature(ledger: Ledger) -> None:
    authorization = authorize()
    with ledger._engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE payments")
    with pytest.raises(LedgerUnavailableError) as failure:
        await ledger.reserve(authorization, REQUEST, 1)
    assert authorization.signature[2:] not in str(failure.value)


async def test_a_damaged_row_is_an_error_and_not_another_payment(ledger: Ledger) -> None:
    row = await reserved(ledger)
    with ledger._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE payments SET payment = '{}'")
    with pytest.raises(LedgerCorruptError, match=f"row {row.id}"):
        await ledger.unfinished()


async def test_the_event_loop_runs_while_the_database_is_busy(url: str, tmp_path: Path) -> None:
    ledger = await Ledger.open(url)
    blocker = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(ledger.reserve(authorize(), REQUEST, 1))
    for _ in range(100):
        await asyncio.sleep(0)
    assert not waiting.done()
    blocker.execute("COMMIT")
    blocker.close()
    assert isinstance(await waiting, Reserved)
    await ledger.close()
