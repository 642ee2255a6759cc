"""What only a database server can do to the ledger: die, come back, hang up, keep a secret."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import unquote

import psycopg
import pytest
from sqlalchemy import make_url, text

from service.payment.ledger import Ledger, LedgerUnavailableError, Moved, NewReceipt, Reserved, Row, State
from service.payment.ledger_lanes import Call
from service.payment.ledger_statements import Statement
from tests.ledgers import LEASE, OWNER, REQUEST, TRANSACTION, in_state, reserved, traceback_of
from tests.payments import authorize
from tests.postgres import Postgres


@pytest.fixture
async def ledger(postgres_url: str) -> AsyncIterator[Ledger]:
    opened = await Ledger.open(postgres_url, owner=OWNER)
    yield opened
    await opened.close()


async def warm(ledger: Ledger) -> Row:
    """Every kind of connection is open after this."""
    row = await in_state(ledger, State.SETTLED)
    await asyncio.gather(*(reserved(ledger) for _ in range(8)))
    await ledger.counts()
    assert await ledger.find(row.authorization.key) == row
    return row


async def test_while_the_server_is_away_calls_fail_and_when_it_is_back_they_do_not(
    ledger: Ledger, postgres: Postgres
) -> None:
    row, settling = await warm(ledger), await in_state(ledger, State.SETTLING)
    postgres.kill()
    for step in (
        ledger.find(row.authorization.key),
        ledger.reserve(authorize(), REQUEST, 1, lease_seconds=LEASE),
        ledger.start_settlement(replace(settling, state=State.SERVED), now=1),
        ledger.settled(settling, transaction=TRANSACTION, now=1),
        ledger.counts(),
        ledger.prune(now=1),
    ):
        with pytest.raises(LedgerUnavailableError):
            await step
    postgres.start()
    assert await ledger.find(settling.authorization.key) == settling
    assert isinstance(await ledger.settled(settling, transaction=TRANSACTION, now=1), Moved)


async def test_a_server_that_was_restarted_meanwhile_is_not_noticed(ledger: Ledger, postgres: Postgres) -> None:
    row = await in_state(ledger, State.SETTLING)
    await warm(ledger)
    postgres.stop()
    postgres.start()
    results = await asyncio.gather(
        ledger.find(row.authorization.key),
        ledger.settled(row, transaction=TRANSACTION, now=110),
        *(ledger.reserve(authorize(), REQUEST, 1, lease_seconds=LEASE) for _ in range(16)),
        ledger.counts(),
    )
    assert isinstance(results[1], Moved)
    assert all(isinstance(result, Reserved) for result in results[2:-1])


async def test_connections_that_are_cut_under_load_cost_no_payment_and_double_none(
    ledger: Ledger, postgres: Postgres, postgres_url: str
) -> None:
    """Whatever each caller was told, the rows agree with it."""
    stop = asyncio.Event()

    async def cut() -> int:
        cuts = 0
        while not stop.is_set():
            cuts += await asyncio.to_thread(hang_up, postgres, postgres_url)
            await asyncio.sleep(0.01)
        return cuts

    async def buy() -> tuple[Row | None, State | None]:
        authorization, told = authorize(), None
        try:
            result = await ledger.reserve(authorization, REQUEST, 100, lease_seconds=LEASE)
            if isinstance(result, Reserved):
                told = State.RESERVED
                started = await ledger.start_settlement(result.row, now=101, result=b"answer")
                if isinstance(started, Moved):
                    told = State.SETTLING
                    await ledger.settled(started.row, transaction=TRANSACTION, now=102)
        except LedgerUnavailableError:
            pass
        while True:
            try:
                return await ledger.find(authorization.key), told
            except LedgerUnavailableError:
                continue

    cutting = asyncio.create_task(cut())
    found = [each for _ in range(10) for each in await asyncio.gather(*(buy() for _ in range(16)))]
    stop.set()
    assert await cutting > 0
    for row, told in found:
        if told is not None:
            assert row is not None
            assert row.state in (State.RESERVED, State.SETTLING, State.SETTLED)
            assert told is State.RESERVED or row.state is not State.RESERVED
    assert any(row is not None and row.state is State.SETTLED for row, _ in found)


def hang_up(postgres: Postgres, url: str) -> int:
    """Cut every connection to the database but this one; how many that were."""
    with postgres.connect(url) as connection:
        others = "datname = current_database() AND pid <> pg_backend_pid()"
        cut = connection.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")  # noqa: S608
        return len(cut.fetchall())


async def test_only_what_must_be_on_disk_waits_for_it(ledger: Ledger) -> None:
    show = Statement(text("SHOW synchronous_commit"), make_url("postgresql+psycopg://").get_dialect()())
    call = Call(((show, ()),), lambda rows, _: str(rows[0][0]))
    answers = {name: await lane.submit(call) for name, lane in ledger._lanes.items()}
    assert answers == {"quick": "off", "read": "off", "scan": "off", "durable": "on"}


async def test_a_stored_receipt_outlives_the_server(ledger: Ledger, postgres: Postgres) -> None:
    row = await in_state(ledger, State.SETTLING)
    receipt = NewReceipt("rcpt-1", "chat-1", "{}")
    await ledger.settled(row, transaction=TRANSACTION, now=103, receipt=receipt)
    await in_state(ledger, State.REJECTED)  # on disk, and all before it
    postgres.restart()
    assert await ledger.receipt("chat-1") == "{}"


@pytest.mark.parametrize("password", ["hunter2", "p%40ss word"])
async def test_a_wrong_password_is_told_without_showing_it(
    postgres_url: str, postgres: Postgres, password: str
) -> None:
    url = postgres_url.replace(postgres.password, password)
    with pytest.raises(LedgerUnavailableError, match="password authentication failed") as failure:
        await Ledger.open(url, owner=OWNER)
    assert unquote(password) not in traceback_of(failure.value)


async def test_a_server_that_goes_while_it_is_used_never_shows_its_password(ledger: Ledger, postgres: Postgres) -> None:
    await warm(ledger)
    postgres.kill()
    with pytest.raises(LedgerUnavailableError) as failure:
        await ledger.find(authorize().key)
    assert postgres.password not in traceback_of(failure.value)
    postgres.start()


async def test_a_row_that_somebody_else_locks_is_waited_for(
    ledger: Ledger, postgres: Postgres, postgres_url: str
) -> None:
    row = await reserved(ledger)
    with postgres.connect(postgres_url) as holder:
        holder.execute("BEGIN")
        holder.execute("SELECT 1 FROM payments FOR UPDATE")
        waiting = asyncio.create_task(ledger.serve(row, result=b"answer", now=101))
        assert await ledger.find(row.authorization.key) == row, "reads wait for nobody"
        assert not waiting.done()
        holder.execute("COMMIT")
    assert isinstance(await waiting, Moved)


def test_the_server_of_the_tests_dies_when_it_is_told_to(postgres: Postgres, postgres_url: str) -> None:
    connection = postgres.connect(postgres_url)
    postgres.kill()
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    connection.close()
    postgres.start()
