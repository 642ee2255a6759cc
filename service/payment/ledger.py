"""The ledger: one row per payment, so that a payment buys one answer and is charged once.

    RESERVED -> SERVED -> SETTLING -> SETTLED | REJECTED | UNKNOWN
    RESERVED -> SETTLING            the answer is stored in the same step, or follows the payment
    RESERVED -> RELEASED            inference failed; the nonce was never spent, so the payment may be reserved again
    UNKNOWN  -> SETTLED | REJECTED  once the chain has been asked
    REJECTED -> SETTLED             a facilitator said no, and executed the payment all the same
    SETTLING | UNKNOWN -> SERVED    the chain says that nothing was transferred; settlement may be tried again
    SETTLING | UNKNOWN -> RESERVED  the same, where there is no answer yet: it is made again first (`reclaim`)
    RESERVED -> UNKNOWN             inference failed after that: a transaction may still be on its way

Every transition is one atomic statement that names the state and the reservation it leaves, and says whether it moved
the row. Whoever lost a race learns it from the result and must not act. A process that is killed leaves each row in the
last state it reached; `unfinished` lists the rows that `service.payment.reconcile` has to look at.

Replicas share a ledger. Each row names the one that works on it and until when (its lease), and the others leave it
alone for so long. The lease spares work; what keeps a payment from being charged twice are the transitions.

What a crash can take back. The death of this process: nothing that was reported. A power cut, or the death of the
database server: the last transitions, from some point on, but never one up to `start_settlement` or `rejected`, which
are on disk when they return. That loses no money. Before `start_settlement` nothing was sent to anybody. After it the
row stays SETTLING, and the chain knows the rest: `settled`, `unknown` and `resume` are found out again by asking it.
`rejected` is not: its buyer was told to pay anew, so the payment must never be tried again.

Results are opaque bytes here: the caller encrypts them with a key of the enclave that no disk ever sees. After a
restart the result of a SETTLED row cannot be read any more; the answer is owed, and `replace_result` stores it anew
at no charge.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from service.payment.authorization import Authorization, PaymentKey, authorization_to_json
from service.payment.ledger_lanes import Call, Lane, Rows, Step
from service.payment.ledger_postgres import postgres_lanes
from service.payment.ledger_prune import prune
from service.payment.ledger_register import Register, receipt_values
from service.payment.ledger_schema import (
    LedgerCorruptError,
    LedgerError,
    LedgerSchemaError,
    LedgerUnavailableError,
    State,
)
from service.payment.ledger_sqlite import prepare_file, sqlite_lanes
from service.payment.ledger_statements import Statements
from service.payment.migrations import migrate
from service.payment.records import (
    Conflict,
    Existing,
    Moved,
    NewReceipt,
    Pruned,
    Reserved,
    Retention,
    Row,
    Stale,
    Unfinished,
    row_from,
)

__all__ = [
    "Conflict",
    "Existing",
    "Ledger",
    "LedgerCorruptError",
    "LedgerError",
    "LedgerSchemaError",
    "LedgerUnavailableError",
    "Moved",
    "NewReceipt",
    "Pruned",
    "Reserved",
    "Retention",
    "Row",
    "Stale",
    "State",
    "Unfinished",
]

T = TypeVar("T")

MAX_OWNER_CHARACTERS: Final = 64

SETTLEMENT_LEASE_SECONDS: Final = 120
"""How long a row that goes back to SERVED is left to whoever took it there, to settle it."""

UNFINISHED_PAGE: Final = 500
"""Rows of one `unfinished`: each may carry an answer."""

_OPEN: Final = frozenset({State.SETTLING, State.UNKNOWN})


class Ledger(Register):
    """The ledger in SQLite or PostgreSQL.

    All database work runs in threads of its own, so the event loop never waits for a disk. Everything that waits at a
    time shares a transaction. A cancelled call may still have changed the row; read it again before acting.

    Methods raise:
        LedgerUnavailableError: the database failed; what the row is now is known only after reading it again.
        LedgerCorruptError: a row cannot be understood.
        ValueError: a transition that is never allowed from the state in `row`.
    """

    def __init__(self, lanes: Mapping[str, Lane], statements: Statements, owner: str, retention: Retention) -> None:
        super().__init__(lanes, statements, owner)
        self._retention = retention

    @classmethod
    async def open(cls, url: str, *, owner: str, retention: Retention | None = None) -> Self:
        """Open the ledger at an SQLAlchemy URL, creating it when it is empty and upgrading it when it is older.

        Args:
            url: `sqlite:////var/lib/tollseal/ledger.db` or `postgresql+psycopg://user:password@host/database`.
            owner: the replica that this process is, the same after a restart; at most 64 characters.

        Raises:
            LedgerSchemaError: the database holds something else, or a ledger of a newer version.
            LedgerUnavailableError: the database cannot be opened or written.
        """
        if not 0 < len(owner) <= MAX_OWNER_CHARACTERS:
            raise ValueError(f"owner must have 1 to {MAX_OWNER_CHARACTERS} characters")
        parsed = _parsed(url)
        file = await asyncio.to_thread(_prepare, parsed)
        lanes = postgres_lanes(parsed) if file is None else sqlite_lanes(file)
        return cls(lanes, Statements(parsed.get_backend_name()), owner, retention or Retention())

    @property
    def owner(self) -> str:
        """The replica that this ledger works for."""
        return self._owner

    async def close(self) -> None:
        """Finish what is running, then close the database."""
        for lane in {id(lane): lane for lane in self._lanes.values()}.values():
            await lane.close()

    async def find(self, key: PaymentKey) -> Row | None:
        """The row of this payment, if there is one; `payment_key` reads the key from a payload. Waits for no write."""
        step = (self._statements.find, key)
        return await self._lanes["read"].submit(Call((step,), _row_or_none))

    async def reserve(
        self, authorization: Authorization, request_digest: str, now: int, *, lease_seconds: int
    ) -> Reserved | Existing | Conflict:
        """Bind a payment to a request, if nobody has. A RELEASED payment is free again, for any request.

        Args:
            now: unix seconds.
            lease_seconds: how long the other replicas leave it to us; longer than inference and settlement take.
        """
        text = authorization_to_json(authorization)
        statement = self._statements.reserve
        params = statement.bind(
            {
                "new_network": authorization.network,
                "new_asset": authorization.asset,
                "new_payer": authorization.payer,
                "new_nonce": authorization.nonce,
                "new_scheme": authorization.scheme,
                "new_pay_to": authorization.pay_to,
                "new_amount": str(authorization.amount),
                "new_valid_after": str(authorization.valid_after),
                "new_valid_before": str(authorization.valid_before),
                "new_payment": text,
                "new_request_digest": request_digest,
                "new_state": State.RESERVED.value,
                "new_created": now,
                "new_updated": now,
                "new_owner": self._owner,
                "new_lease_until": now + lease_seconds,
            }
        )

        def read(made: Rows, found: Rows) -> Reserved | Existing | Conflict:
            if made:
                id_, reservation = made[0]
                return Reserved(
                    Row(
                        id=id_,
                        reservation=reservation,
                        state=State.RESERVED,
                        request_digest=request_digest,
                        authorization=authorization,
                        result=None,
                        receipt_id=None,
                        transaction=None,
                        reason=None,
                        owner=self._owner,
                        lease_until=now + lease_seconds,
                        reclaimed=None,
                        created=now,
                        updated=now,
                    )
                )
            if not found:
                raise LedgerUnavailableError("the payment's record was removed just now; ask again")
            row = row_from(found[0], (text, authorization))
            same = row.request_digest == request_digest and row.authorization == authorization
            return Existing(row) if same else Conflict(row)

        otherwise = (self._statements.find, authorization.key)
        call = Call(((statement, params),), read, otherwise=otherwise, order=authorization.nonce)
        return await self._lanes["quick"].submit(call)

    async def renew(self, row: Row, *, now: int, lease_seconds: int) -> Moved | Stale:
        """Keep a row that this replica works on, for longer. `Stale` when it has moved, or is another's."""
        self._require(row, {State.RESERVED, State.SERVED, *_OPEN}, row.state)
        values = {"lease_until": now + lease_seconds}
        return await self._move(row, row.state, now, values, guard="own")

    async def take_over(self, row: Row, *, now: int, lease_seconds: int) -> Moved | Stale:
        """Become the owner of an unfinished row whose lease is over. Of several that try, one gets `Moved`."""
        self._require(row, {State.RESERVED, State.SERVED, *_OPEN}, row.state)
        values = {"owner": self._owner, "lease_until": now + lease_seconds}
        return await self._move(row, row.state, now, values, guard="same_lease")

    async def serve(self, row: Row, *, result: bytes, now: int, receipt_id: str | None = None) -> Moved | Stale:
        """RESERVED -> SERVED: the answer exists and is stored; it is not released yet."""
        self._require(row, {State.RESERVED}, State.SERVED)
        return await self._move(row, State.SERVED, now, {"result": result, "receipt_id": receipt_id})

    async def release(self, row: Row, *, reason: str, now: int) -> Moved | Stale:
        """RESERVED -> RELEASED: inference failed; nothing is charged.

        A row that was reclaimed from a settlement becomes UNKNOWN instead, and its buyer must not be told that nothing
        was charged: an earlier transaction may still be executed.
        """
        self._require(row, {State.RESERVED}, State.RELEASED)
        to = State.RELEASED if row.reclaimed is None else State.UNKNOWN
        return await self._move(row, to, now, {"reason": reason, "lease_until": now})

    async def start_settlement(
        self, row: Row, *, now: int, result: bytes | None = None, receipt_id: str | None = None
    ) -> Moved | Stale:
        """SERVED | RESERVED -> SETTLING: from here on the transfer may happen.

        It is on disk when this returns. Only who gets `Moved` may ask for settlement.

        Args:
            result: the answer of a RESERVED row, stored in the same step; None where it follows the payment.
        """
        self._require(row, {State.SERVED, State.RESERVED}, State.SETTLING)
        values: dict[str, Any] = {"reason": None}
        if row.state is State.RESERVED:
            values |= {"result": result, "receipt_id": receipt_id}
        elif result is not None or receipt_id is not None:
            raise ValueError("a payment that is SERVED has its answer already")
        return await self._move(row, State.SETTLING, now, values, durable=True)

    async def settled(
        self, row: Row, *, transaction: str | None, now: int, receipt: NewReceipt | None = None
    ) -> Moved | Stale:
        """SETTLING | UNKNOWN | REJECTED -> SETTLED: the transfer happened. Its receipt is kept exactly when the row has
        moved.

        REJECTED is left when the chain refutes whoever said that nothing would be transferred; the answer is then owed.
        """
        self._require(row, _OPEN | {State.REJECTED}, State.SETTLED)
        values = {"transaction_hash": transaction, "reason": None}
        return await self._move(row, State.SETTLED, now, values, receipt=receipt)

    async def rejected(self, row: Row, *, reason: str, now: int) -> Moved | Stale:
        """SETTLING | UNKNOWN -> REJECTED: the transfer did not happen and cannot. The answer is dropped.

        It is on disk when this returns.
        """
        self._require(row, _OPEN, State.REJECTED)
        return await self._move(row, State.REJECTED, now, {"reason": reason, "result": None}, durable=True)

    async def unknown(self, row: Row, *, reason: str, now: int, transaction: str | None = None) -> Moved | Stale:
        """SETTLING -> UNKNOWN: the transfer may have happened; the chain has to be asked. Ends the lease."""
        self._require(row, {State.SETTLING}, State.UNKNOWN)
        values = {"reason": reason, "transaction_hash": transaction, "lease_until": now}
        return await self._move(row, State.UNKNOWN, now, values)

    async def resume(self, row: Row, *, now: int) -> Moved | Stale:
        """SETTLING | UNKNOWN, with a result -> SERVED: the chain says the nonce is unspent; settle again."""
        self._require(row, _OPEN, State.SERVED)
        if row.result is None:
            raise ValueError("a payment without an answer cannot go back to SERVED; it is reclaimed")
        return await self._move(row, State.SERVED, now, self._mine(now + SETTLEMENT_LEASE_SECONDS))

    async def reclaim(self, row: Row, *, now: int, lease_seconds: int) -> Moved | Stale:
        """SETTLING | UNKNOWN, without a result -> RESERVED: the chain says the nonce is unspent; answer again."""
        self._require(row, _OPEN, State.RESERVED)
        if row.result is not None:
            raise ValueError("a payment with an answer is not reclaimed; it goes back to SERVED")
        values = {**self._mine(now + lease_seconds), "reservation": row.reservation + 1, "reclaimed": now}
        return await self._move(row, State.RESERVED, now, values)

    async def replace_result(
        self,
        row: Row,
        *,
        result: bytes,
        now: int,
        receipt_id: str | None = None,
        receipt: NewReceipt | None = None,
    ) -> Moved | Stale:
        """SETTLED -> SETTLED with a new answer: what was owed, or was sent as a stream, has been made. Charges nothing.

        Replaces exactly the result in `row`: of two that produce the answer again only one is kept, and the other gets
        `Stale` with the row that holds the kept one.
        """
        self._require(row, {State.SETTLED}, State.SETTLED)
        values = {"result": result, "receipt_id": receipt_id}
        return await self._move(row, State.SETTLED, now, values, guard="same_result", receipt=receipt)

    async def unfinished(self, *, owner: str | None = None, now: int, after: int = 0) -> Unfinished:
        """Payments that somebody has to finish: RESERVED, SERVED, SETTLING, UNKNOWN; oldest first, a page at a time.

        Args:
            owner: also those that an earlier life of this replica left; for boot, when none of them is being worked on.
            now: unix seconds; without an owner, only rows whose lease is over by then.
            after: `last_id` of the page before.
        """
        statement = self._statements.unfinished
        values = {"id": after, "owner": owner or "", "now": now, "limit": UNFINISHED_PAGE}
        step = (statement, statement.bind({f"given_{name}": value for name, value in values.items()}))
        return await self._lanes["scan"].submit(Call((step,), _unfinished))

    async def counts(self) -> dict[State, int]:
        """How many payments are in each state."""

        def read(found: Rows, _: Rows) -> dict[State, int]:
            return {**dict.fromkeys(State, 0), **{State(state): number for state, number in found}}

        return await self._lanes["scan"].submit(Call(((self._statements.counts, ()),), read))

    async def stored(self, row: Row) -> bytes | None:
        """The answer to a payment that this replica has stored, or an earlier life of it; None when there is none.

        A payment's own answer is the one of the replica that settled it. Others, who cannot open that, keep their own
        beside it, so that everybody gives the same answer each time.
        """
        if row.owner == self._owner:
            return row.result
        return await self._copy(row)

    async def keep(self, row: Row, *, result: bytes, now: int, receipt: NewReceipt) -> Row:
        """Store the answer to a SETTLED payment that has been made now, and its receipt; `stored` finds it.

        Returns:
            The row afterwards. When somebody has stored another answer meanwhile, that one counts.
        """
        if row.owner == self._owner:
            kept = await self.replace_result(
                row, result=result, now=now, receipt_id=receipt.receipt_id, receipt=receipt
            )
            if isinstance(kept, Stale):
                await self.put_receipt(receipt, now=now)
            return kept.row or row
        await self._put_copy(row, result, receipt, now)
        return row

    async def prune(self, *, now: int) -> Pruned:
        """Remove what is more than the retention allows, a little at a time, between payments."""
        return await prune(self._lanes, self._statements, self._retention, now=now)

    def _mine(self, lease_until: int) -> dict[str, Any]:
        return {"owner": self._owner, "lease_until": lease_until, "reason": None, "transaction_hash": None}

    def _require(self, row: Row, leaving: "set[State] | frozenset[State]", to: State) -> None:
        if row.state not in leaving:
            raise ValueError(f"a payment cannot go from {row.state} to {to} here")

    async def _move(
        self,
        row: Row,
        to: State,
        now: int,
        values: dict[str, Any],
        *,
        guard: str | None = None,
        receipt: NewReceipt | None = None,
        durable: bool = False,
    ) -> Moved | Stale:
        authorization = row.authorization
        params = {
            **{f"new_{name}": value for name, value in values.items()},
            "new_state": to.value,
            "new_updated": now,
            "given_id": row.id,
            "given_nonce": authorization.nonce,
            "given_state": row.state.value,
            "given_reservation": row.reservation,
            "given_result": row.result,
            "given_lease_until": row.lease_until,
            "given_owner": self._owner,
        }
        statement = self._statements.move(tuple(values), guard)
        steps: tuple[Step, ...] = ((statement, statement.bind(params)),)
        if receipt is not None:
            params |= {
                "given_transaction_hash": values.get("transaction_hash", row.transaction),
                **receipt_values(receipt, now),
            }
            kept = self._statements.put_settled_receipt
            steps = (*steps, (kept, kept.bind(params)))

        def read(moved: Rows, found: Rows) -> Moved | Stale:
            if not moved:
                return Stale(row_from(found[0]) if found else None)
            receipt_id, transaction, reason, owner, lease_until = moved[0]
            return Moved(
                Row(
                    id=row.id,
                    reservation=values.get("reservation", row.reservation),
                    state=to,
                    request_digest=row.request_digest,
                    authorization=authorization,
                    result=values.get("result", row.result),
                    receipt_id=receipt_id,
                    transaction=transaction,
                    reason=reason,
                    owner=owner,
                    lease_until=lease_until,
                    reclaimed=values.get("reclaimed", row.reclaimed),
                    created=row.created,
                    updated=now,
                )
            )

        otherwise = (self._statements.again, (row.id, authorization.nonce))
        call = Call(steps, read, otherwise=otherwise, order=authorization.nonce, durable=durable)
        return await self._lanes["durable" if durable else "quick"].submit(call)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except ArgumentError:
        # Without the URL: a password may be in it.
        raise LedgerUnavailableError("the ledger cannot be opened: its URL cannot be read") from None
    if backend not in ("sqlite", "postgresql"):
        raise LedgerUnavailableError(f"the ledger cannot be opened: {backend} is neither sqlite nor postgresql")
    return parsed.set(drivername="postgresql+psycopg") if backend == "postgresql" else parsed


def _prepare(url: URL) -> Path | None:
    """A database of this version; the file that it is in, if it is."""
    file = prepare_file(url) if url.get_backend_name() == "sqlite" else None
    migrate(url)
    return file


def _row_or_none(found: Rows, _: Rows) -> Row | None:
    return row_from(found[0]) if found else None


def _unfinished(found: Rows, _: Rows) -> Unfinished:
    rows, damaged = [], []
    for each in found:
        try:
            rows.append(row_from(each))
        except LedgerCorruptError as error:
            damaged.append(str(error))
    last_id = found[-1][0] if len(found) == UNFINISHED_PAGE else None
    return Unfinished(tuple(rows), tuple(damaged), last_id)
