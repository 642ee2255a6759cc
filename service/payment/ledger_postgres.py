"""The ledger in PostgreSQL: a few connections, each with its own transactions.

What has to be on disk before money moves goes through connections of its own with `synchronous_commit` on; the others
have it off, so that they wait for no disk: a crash of the server may take back their last commits, in order, and never
a part of one. The server must keep a session's settings and prepared statements, so a pooler in between must pool
sessions, not transactions.
"""

import select
from collections.abc import Sequence
from typing import Any, Final

import psycopg
from psycopg import errors
from sqlalchemy import URL

from service.payment.ledger_lanes import Call, CallRefusedError, Lane, Rows, Step, ThreadLane
from service.payment.ledger_schema import LedgerUnavailableError

CONNECT_TIMEOUT_SECONDS: Final = 5

STATEMENT_TIMEOUT_MS: Final = 10_000
"""How long a statement may take, waiting for other transactions included."""

WRITERS: Final = 2
"""Connections for each kind of transition. While one commits the other collects; more would make smaller batches."""


class PostgresSession:
    """One connection.

    After a lost connection, and where the server gave a transaction up in favour of another, it is tried once more:
    every statement names the state that it leaves, so what did happen the first time is not done twice. Its caller then
    learns that the row has moved, and may do nothing.

    Args:
        arguments: of `psycopg.connect`, without options.
        durable: wait for the disk at every commit.
    """

    def __init__(self, arguments: dict[str, Any], *, durable: bool) -> None:
        settings = {
            "synchronous_commit": "on" if durable else "off",
            "statement_timeout": STATEMENT_TIMEOUT_MS,
            "default_transaction_isolation": "read\\ committed",
        }
        own = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._arguments = {**arguments, "options": f"{arguments.get('options', '')} {own}".strip()}
        self._connection: psycopg.Connection | None = None

    def run(self, calls: Sequence[Call[Any]]) -> list[tuple[Rows, Rows]]:
        order = sorted(range(len(calls)), key=lambda index: calls[index].order)
        try:
            try:
                made = self._transact([calls[index] for index in order])
            except (errors.SerializationFailure, errors.DeadlockDetected):
                made = self._transact([calls[index] for index in order])
            except psycopg.OperationalError:
                if not self._lost():
                    raise
                made = self._transact([calls[index] for index in order])
        except (psycopg.IntegrityError, psycopg.DataError) as error:
            raise CallRefusedError(f"the ledger refused: {self._words(error)}") from None
        except psycopg.Error as error:
            self.close()
            # Not the error itself: the server's details may quote a row, and with it a signature.
            raise LedgerUnavailableError(f"the ledger did not answer: {self._words(error)}") from None
        found: list[tuple[Rows, Rows]] = [([], [])] * len(calls)
        for index, rows in zip(order, made, strict=True):
            found[index] = rows
        return found

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _transact(self, calls: list[Call[Any]]) -> list[tuple[Rows, Rows]]:
        connection = self._connected()
        firsts = self._pipeline(connection, [step for call in calls for step in call.steps])
        made, position = [], 0
        for call in calls:
            made.append(firsts[position])
            position += len(call.steps)
        # Under READ COMMITTED a later statement sees what the first one ran into.
        missed = [call.otherwise for call, rows in zip(calls, made, strict=True) if not rows and call.otherwise]
        others = iter(self._pipeline(connection, missed))
        return [
            (rows, next(others) if not rows and call.otherwise else []) for call, rows in zip(calls, made, strict=True)
        ]

    def _pipeline(self, connection: psycopg.Connection, steps: Sequence[Step]) -> list[Rows]:
        """Run statements in one transaction: outside of pipelines each one is, and a pipeline is as a whole."""
        if not steps:
            return []
        if len(steps) == 1:
            return [_rows(connection.execute(steps[0][0].sql.encode(), steps[0][1], prepare=True))]
        with connection.pipeline():
            cursors = [connection.execute(made.sql.encode(), params, prepare=True) for made, params in steps]
        return [_rows(cursor) for cursor in cursors]

    def _connected(self) -> psycopg.Connection:
        if self._connection is not None and self._lost():
            self.close()
        if self._connection is None:
            try:
                self._connection = psycopg.connect(
                    **self._arguments, autocommit=True, connect_timeout=CONNECT_TIMEOUT_SECONDS
                )
            except psycopg.Error as error:
                raise LedgerUnavailableError(f"the ledger cannot be reached: {self._words(error)}") from None
        return self._connection

    def _lost(self) -> bool:
        """Whether the server has hung up: nothing else is there to be read between two transactions."""
        connection = self._connection
        if connection is None or connection.closed:
            return True
        waiting = select.poll()
        waiting.register(connection.fileno(), select.POLLIN)
        return bool(waiting.poll(0))

    def _words(self, error: psycopg.Error) -> str:
        words = error.diag.message_primary or str(error).partition("\n")[0]
        password = self._arguments.get("password")
        return words.replace(password, "***") if password else words


def _rows(cursor: "psycopg.Cursor[tuple[Any, ...]]") -> Rows:
    return cursor.fetchall() if cursor.description is not None else []


def postgres_lanes(url: URL) -> dict[str, Lane]:
    """Six connections, made when they are needed."""
    arguments = dict(url.get_dialect()().create_connect_args(url)[1])

    def sessions(number: int, *, durable: bool = False) -> list[PostgresSession]:
        return [PostgresSession(arguments, durable=durable) for _ in range(number)]

    return {
        "quick": ThreadLane("writer", sessions(WRITERS)),
        "durable": ThreadLane("settler", sessions(WRITERS, durable=True)),
        "read": ThreadLane("reader", sessions(1)),
        "scan": ThreadLane("scanner", sessions(1)),
    }
