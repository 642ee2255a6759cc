"""The ledger's tables and how its database is opened.

A change of the tables needs a new `SCHEMA_VERSION`; a database of an unknown version is refused, never guessed at.
"""

from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    insert,
    inspect,
    select,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

SCHEMA_VERSION: Final = 1

BUSY_TIMEOUT_MS: Final = 5_000
"""How long a statement waits for another process that writes to the same SQLite file."""


class LedgerError(Exception):
    """Root of the ledger's errors."""


class LedgerSchemaError(LedgerError):
    """The database is not a ledger, or one of a version that this program does not know."""


class LedgerCorruptError(LedgerError):
    """A row of the ledger cannot be understood."""


class LedgerUnavailableError(LedgerError):
    """The database did not do what was asked: disk full, locked, gone."""


class State(StrEnum):
    """How far a payment got; see the diagram in `service.payment.ledger`."""

    RESERVED = "RESERVED"
    SERVED = "SERVED"
    SETTLING = "SETTLING"
    SETTLED = "SETTLED"
    REJECTED = "REJECTED"
    UNKNOWN = "UNKNOWN"
    RELEASED = "RELEASED"


metadata: Final = MetaData()

schema_version: Final = Table(
    "tollseal_schema",
    metadata,
    Column("version", Integer, nullable=False),
)

payments: Final = Table(
    "payments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("network", String(64), nullable=False),
    Column("asset", String(64), nullable=False),
    Column("payer", String(64), nullable=False),
    Column("nonce", String(66), nullable=False),
    Column("reservation", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("request_digest", Text, nullable=False),
    Column("scheme", String(32), nullable=False),
    Column("pay_to", String(64), nullable=False),
    # uint256 in decimal: no integer type of a database holds them.
    Column("amount", String(78), nullable=False),
    Column("valid_after", String(78), nullable=False),
    Column("valid_before", String(78), nullable=False),
    Column("payment", Text, nullable=False),
    Column("result", LargeBinary),
    Column("receipt_id", Text),
    Column("transaction_hash", String(66)),
    Column("reason", Text),
    Column("created", BigInteger, nullable=False),
    Column("updated", BigInteger, nullable=False),
    UniqueConstraint("network", "asset", "payer", "nonce", name="one_row_per_payment"),
    CheckConstraint("state IN (" + ", ".join(f"'{state}'" for state in State) + ")", name="known_state"),
    CheckConstraint("state NOT IN ('SERVED', 'SETTLING') OR result IS NOT NULL", name="served_has_result"),
    Index("payments_by_state", "state", "updated"),
)

receipts: Final = Table(
    "receipts",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("receipt_id", Text, nullable=False, unique=True),
    Column("chat_id", Text, nullable=False),
    Column("receipt", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Index("receipts_by_chat", "chat_id"),
    sqlite_autoincrement=True,  # ids are never used again, so "the newest N" stays exact
)


def open_engine(url: str) -> Engine:
    """Open the database at an SQLAlchemy URL; an empty one gets the ledger's tables.

    Raises:
        LedgerSchemaError: the database holds something else, or a ledger of an unknown version.
        LedgerUnavailableError: the database cannot be opened or written.
    """
    try:
        parsed = make_url(url)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        if is_sqlite and parsed.database and parsed.database != ":memory:":
            # Payments are spendable: nobody but the service may read them.
            Path(parsed.database).touch(mode=0o600)
        # Statements carry signatures; `hide_parameters` keeps them out of every error and log.
        engine = create_engine(parsed, hide_parameters=True)
    except (ArgumentError, OSError) as error:
        raise LedgerUnavailableError(f"the ledger cannot be opened: {error}") from error
    if is_sqlite:
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    try:
        with engine.begin() as connection:
            _prepare_schema(connection)
    except SQLAlchemyError as error:
        engine.dispose()
        raise LedgerUnavailableError(f"the ledger cannot be opened: {error}") from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def _configure_sqlite(connection: Any, _record: object) -> None:
    # The driver's own transaction handling would commit around DDL; with None we say BEGIN ourselves.
    connection.isolation_level = None
    cursor = connection.cursor()
    mode = cursor.execute("PRAGMA journal_mode=WAL").fetchone()[0]
    if mode not in ("wal", "memory"):
        raise LedgerUnavailableError(f"the ledger's file system does not support SQLite's WAL mode (it offers {mode})")
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "synchronous=FULL",  # a transition that was reported survives a power cut
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _prepare_schema(connection: Connection) -> None:
    tables = set(inspect(connection).get_table_names())
    if not tables:
        metadata.create_all(connection)
        connection.execute(insert(schema_version).values(version=SCHEMA_VERSION))
        return
    if schema_version.name not in tables:
        raise LedgerSchemaError(f"the database is not a ledger: it has tables, but no {schema_version.name}")
    version = connection.execute(select(schema_version.c.version)).scalar_one_or_none()
    if version != SCHEMA_VERSION:
        raise LedgerSchemaError(f"the ledger has schema version {version}; this program knows only {SCHEMA_VERSION}")
