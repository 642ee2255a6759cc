"""The ledger in an SQLite file, in WAL mode: one connection writes, others read what was committed last.

A commit survives the death of the process at once: it is in the file, whether or not the disk has it. With
`synchronous=NORMAL` a power cut may take back the last commits, in order, and never a part of one; a batch with a
durable call is committed with `FULL`, which waits for the disk, and takes everything before it along.
"""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from sqlalchemy import URL

from service.payment.ledger_lanes import Call, CallRefusedError, InlineLane, Lane, Rows, ThreadLane
from service.payment.ledger_schema import LedgerUnavailableError

BUSY_TIMEOUT_SECONDS: Final = 5
"""How long a statement waits for another process that writes to the same file."""

INLINE_TIMEOUT_SECONDS: Final = 0.05
"""The same for what runs on the event loop, where everybody waits."""

CHECKPOINT_PAGES: Final = 4_000
"""Pages in the write-ahead log before they are copied into the file: 16 MB."""


class SqliteSession:
    """One connection to the file.

    Args:
        writes: whether this is the one that writes.
        timeout_seconds: how long a statement waits for a lock.
    """

    def __init__(self, path: Path, *, writes: bool, timeout_seconds: float = BUSY_TIMEOUT_SECONDS) -> None:
        self._path = path
        self._timeout = timeout_seconds
        self._writes = writes
        self._connection: sqlite3.Connection | None = None
        self._full: bool | None = None

    def run(self, calls: Sequence[Call[Any]]) -> list[tuple[Rows, Rows]]:
        try:
            connection = self._connection or self._connect()
            if not self._writes:
                return [_made(connection, call) for call in calls]
            return self._transact(connection, calls)
        except sqlite3.Error as error:
            self.close()  # a connection that failed may go on failing when the reason has gone
            raise LedgerUnavailableError(f"the ledger did not answer: {error}") from error

    def close(self) -> None:
        connection, self._connection, self._full = self._connection, None, None
        if connection is not None:
            connection.close()

    def _connect(self) -> sqlite3.Connection:
        # Never create it: a ledger that has vanished is not an empty one.
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, timeout=self._timeout
        )
        connection.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")
        if not self._writes:
            connection.execute("PRAGMA query_only=ON")
        self._connection = connection
        return connection

    def _transact(self, connection: sqlite3.Connection, calls: Sequence[Call[Any]]) -> list[tuple[Rows, Rows]]:
        full = any(call.durable for call in calls)
        if full is not self._full:
            connection.execute(f"PRAGMA synchronous={'FULL' if full else 'NORMAL'}")
            self._full = full
        connection.execute("BEGIN IMMEDIATE")
        try:
            made = [_made(connection, call) for call in calls]
            connection.execute("COMMIT")
        except (sqlite3.IntegrityError, sqlite3.DataError, OverflowError) as error:
            connection.execute("ROLLBACK")
            raise CallRefusedError(f"the ledger refused: {error}") from error
        return made


def _made(connection: sqlite3.Connection, call: Call[Any]) -> tuple[Rows, Rows]:
    (statement, params), *more = call.steps
    first = connection.execute(statement.sql, params).fetchall()
    for further, its_params in more:
        connection.execute(further.sql, its_params)
    if first or call.otherwise is None:
        return first, []
    instead, its_params = call.otherwise
    return first, connection.execute(instead.sql, its_params).fetchall()


def prepare_file(url: URL) -> Path:
    """The file of an SQLite URL, made when there is none, in WAL mode and readable by nobody else.

    Raises:
        LedgerUnavailableError: it cannot be made, is no database, or lies where WAL does not work.
    """
    if url.database in (None, "", ":memory:"):
        raise LedgerUnavailableError("the ledger cannot be opened: it needs a file, as in sqlite:///ledger.db")
    path = Path(str(url.database))
    try:
        # Payments are spendable: nobody but the service may read them.
        path.touch(mode=0o600)
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS)
        try:
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        finally:
            connection.close()
    except (OSError, sqlite3.Error) as error:
        raise LedgerUnavailableError(f"the ledger cannot be opened: {error}") from error
    if mode != "wal":
        raise LedgerUnavailableError(f"the ledger's file system does not support SQLite's WAL mode (it offers {mode})")
    return path


def sqlite_lanes(path: Path) -> dict[str, Lane]:
    """One connection that writes, one that finds payments, one for what takes longer.

    A payment is found by one indexed read, of pages that are nearly always in memory: a few microseconds, where waking
    a thread and being woken by it takes many times that. In WAL mode it waits for no writer.
    """
    writer = ThreadLane("writer", [SqliteSession(path, writes=True)])
    return {
        "quick": writer,
        "durable": writer,
        "read": InlineLane(SqliteSession(path, writes=False, timeout_seconds=INLINE_TIMEOUT_SECONDS)),
        "scan": ThreadLane("scanner", [SqliteSession(path, writes=False)]),
    }
