"""The ledger's tables, version by version, and how a database is brought to the newest one.

A migration only ever adds: columns that may be empty, tables, indexes, wider checks. So a replica of the version before
keeps running while the ledger is upgraded under it. It cannot be started again: a program refuses a ledger that is
newer than itself.

The whole upgrade is one transaction under a lock (an advisory lock on PostgreSQL, the write lock of SQLite), so
replicas that start together upgrade once, and a process that is killed meanwhile leaves the database as it was.
"""

from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, NullPool, create_engine, event, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from service.payment.ledger_schema import (
    SCHEMA_VERSION,
    LedgerSchemaError,
    LedgerUnavailableError,
    schema_version,
)

_LOCK: Final = 0x746F6C6C7365616C
"""Of the upgrade, among PostgreSQL's advisory locks: "tollseal" in ASCII."""

LOCK_TIMEOUT_SECONDS: Final = 30
"""How long an upgrade waits for another one, or for transactions on the tables that it changes."""

_FIRST: Final = "0001"
"""The revision of a ledger that was made before migrations were kept."""


def migrate(url: URL) -> None:
    """Bring the database at `url` to this program's version; an empty one gets the ledger's tables.

    Raises:
        LedgerSchemaError: the database holds something else, or a ledger of a newer version.
        LedgerUnavailableError: the database cannot be opened or written.
    """
    engine = create_engine(url, poolclass=NullPool, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
            _upgrade(connection)
    except SQLAlchemyError as error:
        # Not the error itself: a server's details, and an address with a password in it, may be among its words.
        why = getattr(error, "orig", None) or error
        raise LedgerUnavailableError(f"the ledger cannot be opened: {_first_line(why, url)}") from None
    finally:
        engine.dispose()


def _upgrade(connection: Connection) -> None:
    version = _version(connection)
    if version == SCHEMA_VERSION:
        return
    if version is not None and version > SCHEMA_VERSION:
        raise LedgerSchemaError(
            f"the ledger has schema version {version}; this program knows versions up to {SCHEMA_VERSION}"
        )
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    context = MigrationContext.configure(connection)
    if version == 1 and context.get_current_revision() is None:
        context.stamp(ScriptDirectory.from_config(config), _FIRST)
    command.upgrade(config, "head")


def _version(connection: Connection) -> int | None:
    """The version of the ledger in the database, None when it is empty."""
    tables = set(inspect(connection).get_table_names())
    if not tables:
        return None
    if schema_version.name not in tables:
        raise LedgerSchemaError(f"the database is not a ledger: it has tables, but no {schema_version.name}")
    version: int | None = connection.execute(select(schema_version.c.version)).scalar_one_or_none()
    if version is None or version < 1:
        raise LedgerSchemaError(f"the ledger has schema version {version}, which there never was")
    return version


def _first_line(error: BaseException, url: URL) -> str:
    words = str(error).strip().partition("\n")[0]
    return words.replace(str(url.password), "***") if url.password else words
