"""Ledgers of earlier versions, of later ones, and databases that are none."""

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine, make_url

from service.payment.authorization import Authorization, authorization_to_json
from service.payment.ledger import Ledger, LedgerSchemaError, LedgerUnavailableError, Moved, State
from service.payment.ledger_schema import SCHEMA_VERSION, metadata
from service.payment.ledger_statements import LEGACY_LEASE_SECONDS
from service.payment.migrations import migrate
from tests.ledgers import LEASE, OWNER, REQUEST, in_state
from tests.payments import authorize

VERSION_1 = """
CREATE TABLE tollseal_schema (version INTEGER NOT NULL);
CREATE TABLE payments (
    id INTEGER NOT NULL, network VARCHAR(64) NOT NULL, asset VARCHAR(64) NOT NULL, payer VARCHAR(64) NOT NULL,
    nonce VARCHAR(66) NOT NULL, reservation INTEGER NOT NULL, state VARCHAR(16) NOT NULL, request_digest TEXT NOT NULL,
    scheme VARCHAR(32) NOT NULL, pay_to VARCHAR(64) NOT NULL, amount VARCHAR(78) NOT NULL,
    valid_after VARCHAR(78) NOT NULL, valid_before VARCHAR(78) NOT NULL, payment TEXT NOT NULL, result BLOB,
    receipt_id TEXT, transaction_hash VARCHAR(66), reason TEXT, created BIGINT NOT NULL, updated BIGINT NOT NULL,
    PRIMARY KEY (id),
    CONSTRAINT one_row_per_payment UNIQUE (network, asset, payer, nonce),
    CONSTRAINT known_state CHECK (
        state IN ('RESERVED', 'SERVED', 'SETTLING', 'SETTLED', 'REJECTED', 'UNKNOWN', 'RELEASED')),
    CONSTRAINT served_has_result CHECK (state NOT IN ('SERVED', 'SETTLING') OR result IS NOT NULL)
);
CREATE INDEX payments_by_state ON payments (state, updated);
CREATE TABLE receipts (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, receipt_id TEXT NOT NULL, chat_id TEXT NOT NULL,
    receipt TEXT NOT NULL, created BIGINT NOT NULL, UNIQUE (receipt_id)
);
CREATE INDEX receipts_by_chat ON receipts (chat_id);
INSERT INTO tollseal_schema (version) VALUES (1);
INSERT INTO receipts (receipt_id, chat_id, receipt, created) VALUES ('r7', 'c7', '{}', 5);
"""
"""What the first version made."""

INSERT = f"""
INSERT INTO payments (network, asset, payer, nonce, reservation, state, request_digest, scheme, pay_to, amount,
    valid_after, valid_before, payment, result, receipt_id, transaction_hash, reason, created, updated)
VALUES (?, ?, ?, ?, 3, ?, '{REQUEST}', 'exact', ?, '10000', '0', '1', ?, ?, 'r7', '0xt', 'why', 100, 200)
"""  # noqa: S608


def insert(file: Path, state: State, authorization: Authorization) -> None:
    """A row as the first version wrote it."""
    answered = state in (State.SERVED, State.SETTLING, State.SETTLED, State.UNKNOWN)
    values = (*authorization.key, state, authorization.pay_to, authorization_to_json(authorization))
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(INSERT, (*values, b"sealed" if answered else None))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
    return path


async def opened(file: Path) -> Ledger:
    return await Ledger.open(f"sqlite:///{file}", owner=OWNER)


async def test_a_ledger_of_the_first_version_keeps_every_row(file: Path) -> None:
    payments = {state: authorize() for state in State}
    for state, authorization in payments.items():
        insert(file, state, authorization)
    for _ in range(2):
        ledger = await opened(file)
        for number, (state, authorization) in enumerate(payments.items(), 1):
            row = await ledger.find(authorization.key)
            assert row is not None
            assert (row.id, row.reservation, row.state, row.request_digest) == (number, 3, state, REQUEST)
            assert (row.authorization, row.receipt_id, row.transaction) == (authorization, "r7", "0xt")
            assert (row.reason, row.created, row.updated) == ("why", 100, 200)
            assert (row.owner, row.lease_until, row.reclaimed) == (None, None, None)
            assert (row.result is not None) is (state in (State.SERVED, State.SETTLING, State.SETTLED, State.UNKNOWN))
        assert await ledger.receipt("c7") == "{}"
        await ledger.close()


async def test_payments_of_the_first_version_go_on_in_the_second(file: Path) -> None:
    authorization = authorize()
    insert(file, State.SERVED, authorization)
    ledger = await opened(file)
    row = await ledger.find(authorization.key)
    assert row is not None
    started = await ledger.start_settlement(row, now=300)
    assert isinstance(started, Moved)
    assert isinstance(await ledger.settled(started.row, transaction="0x", now=301), Moved)
    new = await in_state(ledger, State.SETTLING, answered=False)
    assert new.result is None, "which the first version did not know"
    await ledger.close()


async def test_a_process_of_the_first_version_works_on_in_an_upgraded_ledger(file: Path) -> None:
    ledger = await opened(file)
    authorization = authorize()
    insert(file, State.RESERVED, authorization)
    assert (await ledger.unfinished(owner=OWNER, now=200 + LEGACY_LEASE_SECONDS - 1)).rows == ()
    assert len((await ledger.unfinished(now=200 + LEGACY_LEASE_SECONDS)).rows) == 1
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("UPDATE payments SET state = 'SERVED', result = x'00', updated = 300")
    row = await ledger.find(authorization.key)
    assert row is not None
    assert row.state is State.SERVED
    await ledger.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/new.db"
    made: str = request.getfixturevalue("postgres_url")
    return made


Run = Callable[[str], None]


@pytest.fixture
def past(url: str) -> Run:
    """Executes a statement past the product."""

    def execute(statement: str) -> None:
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql(statement)
        engine.dispose()

    return execute


def test_the_tables_that_the_migrations_make_are_those_that_the_program_knows(url: str) -> None:
    migrate(make_url(url))
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


async def test_replicas_that_start_together_upgrade_once(url: str) -> None:
    ledgers = await asyncio.gather(*(Ledger.open(url, owner=f"replica-{number}") for number in range(4)))
    authorization = authorize()
    await asyncio.gather(*(ledger.reserve(authorization, REQUEST, 1, lease_seconds=LEASE) for ledger in ledgers))
    assert (await ledgers[0].counts())[State.RESERVED] == 1
    for ledger in ledgers:
        await ledger.close()


async def test_an_upgrade_that_breaks_off_leaves_the_ledger_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorization = authorize()
    insert(file, State.SETTLED, authorization)
    before = dump(file)
    with monkeypatch.context() as patched:
        patched.setattr("alembic.op.create_index", broken)
        with pytest.raises(RuntimeError, match="the power went"):
            await opened(file)
    assert dump(file) == before
    ledger = await opened(file)
    assert await ledger.find(authorization.key) is not None
    await ledger.close()


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("the power went")


def dump(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        return list(connection.iterdump())


async def test_a_ledger_of_a_newer_version_is_refused(url: str, past: Run) -> None:
    await (await Ledger.open(url, owner=OWNER)).close()
    past("UPDATE tollseal_schema SET version = 99")
    known = f"schema version 99; this program knows versions up to {SCHEMA_VERSION}"
    with pytest.raises(LedgerSchemaError, match=known):
        await Ledger.open(url, owner=OWNER)


@pytest.mark.parametrize("statement", ["DELETE FROM tollseal_schema", "UPDATE tollseal_schema SET version = 0"])
async def test_a_version_that_there_never_was_is_refused(url: str, past: Run, statement: str) -> None:
    await (await Ledger.open(url, owner=OWNER)).close()
    past(statement)
    with pytest.raises(LedgerSchemaError, match="which there never was"):
        await Ledger.open(url, owner=OWNER)


async def test_a_database_of_something_else_is_refused(url: str, past: Run) -> None:
    past("CREATE TABLE cats (name TEXT)")
    with pytest.raises(LedgerSchemaError, match="not a ledger"):
        await Ledger.open(url, owner=OWNER)


async def test_a_server_that_is_not_there_is_told_in_a_sentence() -> None:
    with pytest.raises(LedgerUnavailableError, match="the ledger cannot be opened"):
        await Ledger.open("postgresql+psycopg://tollseal:hunter2@127.0.0.1:1/ledger", owner=OWNER)
