"""The ledger: one row per payment, so that a payment buys one answer and is charged once.

    RESERVED -> SERVED -> SETTLING -> SETTLED | REJECTED | UNKNOWN
    RESERVED -> RELEASED            inference failed; the nonce was never spent, so the payment may be reserved again
    UNKNOWN  -> SETTLED | REJECTED  once the chain has been asked
    SETTLING | UNKNOWN -> SERVED    the chain says that nothing was transferred; settlement may be tried again

Every transition is one atomic statement that names the state and the reservation it leaves, and says whether it moved
the row. Whoever lost a race learns it from the result and must not act. A process that is killed leaves each row in the
last state it reached; `unfinished` lists the rows that `service.payment.reconcile` has to look at.

Results are opaque bytes here: the caller encrypts them with a key of the enclave that no disk ever sees. After a
restart the result of a SETTLED row cannot be read any more; the answer is owed, and `replace_result` stores it anew
at no charge.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Self, TypeVar

from sqlalchemy import ColumnElement, Connection, Engine, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from service.payment.authorization import (
    Authorization,
    PaymentKey,
    authorization_to_json,
)
from service.payment.ledger_schema import (
    LedgerCorruptError,
    LedgerError,
    LedgerSchemaError,
    LedgerUnavailableError,
    State,
    open_engine,
    payments,
    receipts,
)
from service.payment.records import Conflict, Existing, Moved, Pruned, Reserved, Retention, Row, Stale, row_from

__all__ = [
    "Conflict",
    "Existing",
    "Ledger",
    "LedgerCorruptError",
    "LedgerError",
    "LedgerSchemaError",
    "LedgerUnavailableError",
    "Moved",
    "Pruned",
    "Reserved",
    "Retention",
    "Row",
    "Stale",
    "State",
]

T = TypeVar("T")

_UNFINISHED: Final = (State.RESERVED, State.SERVED, State.SETTLING, State.UNKNOWN)
_KEY_COLUMNS: Final = ("network", "asset", "payer", "nonce")


class Ledger:
    """The ledger in a database; SQLite now, in a shape that fits PostgreSQL.

    All database work runs in one thread of its own, so the event loop never waits for a disk. A cancelled call may
    still have changed the row; read it again before acting.

    Methods raise:
        LedgerUnavailableError: the database failed; what the row is now is known only after reading it again.
        LedgerCorruptError: a row cannot be understood.
    """

    def __init__(self, engine: Engine, executor: ThreadPoolExecutor, retention: Retention) -> None:
        self._engine = engine
        self._executor = executor
        self._retention = retention

    @classmethod
    async def open(cls, url: str, *, retention: Retention | None = None) -> Self:
        """Open the ledger at an SQLAlchemy URL (`sqlite:////var/lib/tollseal/ledger.db`), creating it when it is empty.

        Raises:
            LedgerSchemaError: the database holds something else, or a ledger of an unknown version.
            LedgerUnavailableError: the database cannot be opened or written.
        """
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        try:
            engine = await asyncio.get_running_loop().run_in_executor(executor, open_engine, url)
        except BaseException:
            executor.shutdown(wait=False)
            raise
        return cls(engine, executor, retention or Retention())

    async def close(self) -> None:
        """Finish what is running, then close the database."""
        await asyncio.get_running_loop().run_in_executor(self._executor, self._engine.dispose)
        self._executor.shutdown()

    async def reserve(
        self, authorization: Authorization, request_digest: str, now: int
    ) -> Reserved | Existing | Conflict:
        """Bind a payment to a request, if nobody has. A RELEASED payment is free again, for any request."""

        def work(connection: Connection) -> Reserved | Existing | Conflict:
            values = {
                **_key_values(authorization.key),
                "scheme": authorization.scheme,
                "pay_to": authorization.pay_to,
                "amount": str(authorization.amount),
                "valid_after": str(authorization.valid_after),
                "valid_before": str(authorization.valid_before),
                "payment": authorization_to_json(authorization),
                "request_digest": request_digest,
                "state": State.RESERVED,
                "created": now,
                "updated": now,
            }
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            statement = dialect.insert(payments).values(**values, reservation=1)
            again = {**values, "reservation": payments.c.reservation + 1}
            cleared = dict.fromkeys(("result", "receipt_id", "transaction_hash", "reason"))
            statement = statement.on_conflict_do_update(
                index_elements=_KEY_COLUMNS,
                set_={**again, **cleared},
                where=payments.c.state == State.RELEASED,
            )
            fresh = connection.execute(statement.returning(*payments.c)).mappings().one_or_none()
            if fresh is not None:
                return Reserved(row_from(fresh))
            row = row_from(connection.execute(select(payments).where(*_is(authorization.key))).mappings().one())
            same = row.request_digest == request_digest and row.authorization == authorization
            return Existing(row) if same else Conflict(row)

        return await self._run(work)

    async def find(self, key: PaymentKey) -> Row | None:
        """The row of this payment, if there is one; `payment_key` reads the key from a payload."""

        def work(connection: Connection) -> Row | None:
            found = connection.execute(select(payments).where(*_is(key))).mappings().one_or_none()
            return None if found is None else row_from(found)

        return await self._run(work)

    async def serve(self, row: Row, *, result: bytes, now: int, receipt_id: str | None = None) -> Moved | Stale:
        """RESERVED -> SERVED: the answer exists and is stored; it is not released yet."""
        return await self._move(row, {State.RESERVED}, State.SERVED, now, result=result, receipt_id=receipt_id)

    async def release(self, row: Row, *, reason: str, now: int) -> Moved | Stale:
        """RESERVED -> RELEASED: inference failed; nothing is charged."""
        return await self._move(row, {State.RESERVED}, State.RELEASED, now, reason=reason)

    async def start_settlement(self, row: Row, *, now: int) -> Moved | Stale:
        """SERVED -> SETTLING: from here on the transfer may happen. Only who gets `Moved` may ask for settlement."""
        return await self._move(row, {State.SERVED}, State.SETTLING, now, reason=None)

    async def settled(self, row: Row, *, transaction: str | None, now: int) -> Moved | Stale:
        """SETTLING | UNKNOWN -> SETTLED: the transfer happened."""
        states = {State.SETTLING, State.UNKNOWN}
        return await self._move(row, states, State.SETTLED, now, transaction_hash=transaction, reason=None)

    async def rejected(self, row: Row, *, reason: str, now: int) -> Moved | Stale:
        """SETTLING | UNKNOWN -> REJECTED: the transfer did not happen and cannot. The answer is dropped."""
        states = {State.SETTLING, State.UNKNOWN}
        return await self._move(row, states, State.REJECTED, now, reason=reason, result=None)

    async def unknown(self, row: Row, *, reason: str, now: int, transaction: str | None = None) -> Moved | Stale:
        """SETTLING -> UNKNOWN: the transfer may have happened; the chain has to be asked."""
        values = {"reason": reason, "transaction_hash": transaction}
        return await self._move(row, {State.SETTLING}, State.UNKNOWN, now, **values)

    async def resume(self, row: Row, *, now: int) -> Moved | Stale:
        """SETTLING | UNKNOWN -> SERVED: the chain says the nonce is unspent, so settlement may be tried again."""
        values = {"reason": None, "transaction_hash": None}
        return await self._move(row, {State.SETTLING, State.UNKNOWN}, State.SERVED, now, **values)

    async def replace_result(
        self, row: Row, *, result: bytes, now: int, receipt_id: str | None = None
    ) -> Moved | Stale:
        """SETTLED -> SETTLED with a new answer: what was owed has been produced again. Charges nothing.

        Replaces exactly the result in `row`: of two that produce the answer again only one is kept, and the other gets
        `Stale` with the row that holds the kept one.
        """
        values = {"result": result, "receipt_id": receipt_id}
        return await self._move(
            row, {State.SETTLED}, State.SETTLED, now, payments.c.result.is_not_distinct_from(row.result), **values
        )

    async def unfinished(self, *, untouched_since: int | None = None) -> list[Row]:
        """Rows that somebody has to finish: RESERVED, SERVED, SETTLING, UNKNOWN; oldest first.

        Args:
            untouched_since: unix seconds; only rows whose last change is not later. None means all, for boot; on a
                timer it must lie further back than the longest inference and settlement, or live requests are hurt.
        """
        query = select(payments).where(payments.c.state.in_(_UNFINISHED)).order_by(payments.c.id)
        if untouched_since is not None:
            query = query.where(payments.c.updated <= untouched_since)

        def work(connection: Connection) -> list[Row]:
            return [row_from(found) for found in connection.execute(query).mappings()]

        return await self._run(work)

    async def put_receipt(self, *, receipt_id: str, chat_id: str, receipt: str, now: int) -> None:
        """Keep a receipt's JSON. A receipt never changes: a second one under the same id is ignored."""

        def work(connection: Connection) -> None:
            dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
            row = {"receipt_id": receipt_id, "chat_id": chat_id, "receipt": receipt, "created": now}
            connection.execute(
                dialect.insert(receipts).values(row).on_conflict_do_nothing(index_elements=["receipt_id"])
            )
            newest = select(func.max(receipts.c.id)).scalar_subquery()
            connection.execute(delete(receipts).where(receipts.c.id <= newest - self._retention.max_receipts))

        await self._run(work)

    async def receipt(self, identifier: str) -> str | None:
        """The JSON of the receipt with this receipt id, or of the newest one with this chat id."""
        query = select(receipts.c.receipt).where(
            (receipts.c.receipt_id == identifier) | (receipts.c.chat_id == identifier)
        )
        query = query.order_by((receipts.c.receipt_id == identifier).desc(), receipts.c.id.desc()).limit(1)
        return await self._run(lambda connection: connection.execute(query).scalar_one_or_none())

    async def prune(self, *, now: int) -> Pruned:
        """Remove what is older than the retention allows. Payments that are not finished are never removed."""
        finished = [State.SETTLED, State.REJECTED, State.RELEASED]
        old_receipts = delete(receipts).where(receipts.c.created <= now - self._retention.receipt_max_age_seconds)
        old_payments = delete(payments).where(
            payments.c.state.in_(finished), payments.c.updated <= now - self._retention.payment_max_age_seconds
        )

        def work(connection: Connection) -> Pruned:
            return Pruned(connection.execute(old_receipts).rowcount, connection.execute(old_payments).rowcount)

        return await self._run(work)

    async def _move(
        self, row: Row, leaving: set[State], to: State, now: int, *conditions: ColumnElement[bool], **values: Any
    ) -> Moved | Stale:
        if row.state not in leaving:
            raise ValueError(f"a payment cannot go from {row.state} to {to} here")
        statement = (
            update(payments)
            .where(payments.c.id == row.id, payments.c.state == row.state, payments.c.reservation == row.reservation)
            .where(*conditions)
            .values(state=to, updated=now, **values)
            .returning(*payments.c)
        )

        def work(connection: Connection) -> Moved | Stale:
            moved = connection.execute(statement).mappings().one_or_none()
            if moved is not None:
                return Moved(row_from(moved))
            current = connection.execute(select(payments).where(payments.c.id == row.id)).mappings().one_or_none()
            return Stale(None if current is None else row_from(current))

        return await self._run(work)

    async def _run(self, work: Callable[[Connection], T]) -> T:
        def call() -> T:
            try:
                with self._engine.begin() as connection:
                    return work(connection)
            except SQLAlchemyError as error:
                raise LedgerUnavailableError(f"the ledger did not answer: {error}") from error

        return await asyncio.get_running_loop().run_in_executor(self._executor, call)


def _key_values(key: PaymentKey) -> dict[str, str]:
    return dict(zip(_KEY_COLUMNS, key, strict=True))


def _is(key: PaymentKey) -> list[Any]:
    return [payments.c[name] == value for name, value in _key_values(key).items()]
