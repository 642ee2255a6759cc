"""Every statement that the ledger makes, in SQLAlchemy Core, compiled once for each kind of database.

What is compiled is text and an order of parameters, so that running it costs what the driver costs.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    ClauseElement,
    ColumnElement,
    Dialect,
    Table,
    bindparam,
    case,
    delete,
    func,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

from service.payment.ledger_schema import FINISHED, UNFINISHED, State, among, copies, payments, purchases, receipts

LEGACY_LEASE_SECONDS: Final = 900
"""How long after its last change a row without a lease, made by a version that had none, counts as being worked on."""

KEY_COLUMNS: Final = ("network", "asset", "payer", "nonce")

ROW: Final = (
    "id",
    "reservation",
    "state",
    "request_digest",
    "payment",
    "result",
    "receipt_id",
    "transaction_hash",
    "reason",
    "owner",
    "lease_until",
    "reclaimed",
    "created",
    "updated",
)
"""What is read of a payment, in this order."""

PURCHASE: Final = ("request_digest", "network", "asset", "nonce")
"""What the name of a purchase stands for."""

MOVED: Final = ("receipt_id", "transaction_hash", "reason", "owner", "lease_until")
"""What a transition returns, in this order: whatever its caller's copy of the row could have wrong."""

_ONE: Final[ColumnElement[int]] = literal_column("1")

Params = tuple[Any, ...]


class Statement:
    """Text for a driver, and the order of its parameters."""

    __slots__ = ("_constants", "_order", "sql")

    def __init__(self, clause: ClauseElement, dialect: Dialect) -> None:
        compiled = clause.compile(dialect=dialect)
        self.sql = str(compiled)
        self._order: tuple[str, ...] = tuple(getattr(compiled, "positiontup", None) or ())
        given = {name for name in self._order if name.startswith(("new_", "given_"))}
        self._constants = {name: value for name, value in (compiled.params or {}).items() if name not in given}

    def bind(self, params: Mapping[str, Any]) -> Params:
        """The parameters in the text's order."""
        if self._constants:
            params = {**params, **self._constants}
        return tuple([params[name] for name in self._order])


def _new(table: Table, name: str) -> BindParameter[Any]:
    """The value to be stored in a column."""
    return bindparam(f"new_{name}", type_=table.c[name].type)


def _given(name: str, column: ColumnElement[Any] | None = None) -> BindParameter[Any]:
    return bindparam(f"given_{name}", type_=(payments.c[name] if column is None else column).type)


def _words(value: str) -> ColumnElement[str]:
    return literal_column(f"'{value}'")


_GUARDS: Final[Mapping[str, ColumnElement[bool]]] = {
    "same_result": payments.c.result.is_not_distinct_from(_given("result")),
    "same_lease": payments.c.lease_until.is_not_distinct_from(_given("lease_until")),
    "own": payments.c.owner == _given("owner"),
}

_IS_ROW: Final = (payments.c.id == _given("id"), payments.c.nonce == _given("nonce"))
"""An id alone would not do: a database that lost its last moments may give it to another payment."""


class Statements:
    """The statements for one kind of database.

    Args:
        backend: `sqlite` or `postgresql`.
    """

    def __init__(self, backend: str) -> None:
        self._dialect: Dialect
        self._insert: Any
        if backend == "postgresql":
            self._dialect, self._insert = PGDialect_psycopg(paramstyle="format"), postgresql.insert  # type: ignore[no-untyped-call]
        else:
            self._dialect, self._insert = sqlite.dialect(), sqlite.insert
        row = [payments.c[name] for name in ROW]
        self.find = self._made(select(*row).where(*(payments.c[name] == _given(name) for name in KEY_COLUMNS)))
        self.again = self._made(select(*row).where(*_IS_ROW))
        self.reserve = self._made(self._reserve())
        self.put_receipt = self._made(self._put_receipt())
        self.put_settled_receipt = self._made(self._put_settled_receipt())
        self.receipt = self._made(self._receipt())
        self.unfinished = self._made(
            select(*row)
            .where(
                text(among(UNFINISHED)),
                payments.c.id > _given("id"),
                or_(
                    payments.c.owner == _given("owner"),
                    func.coalesce(
                        payments.c.lease_until, payments.c.updated + literal_column(str(LEGACY_LEASE_SECONDS))
                    )
                    <= _given("now", payments.c.updated),
                ),
            )
            .order_by(payments.c.id)
            .limit(_given("limit", payments.c.id))
        )
        self.counts = self._made(
            union_all(
                *(
                    select(payments.c.state, func.count()).where(text(among(states))).group_by(payments.c.state)
                    for states in (UNFINISHED, FINISHED)
                )
            )
        )
        self.stored_answers = self._made(
            select(payments.c.id, func.length(payments.c.result))
            .where(text(among(FINISHED)), payments.c.state == _words(State.SETTLED), payments.c.result.is_not(None))
            .order_by(payments.c.updated.desc(), payments.c.id.desc())
        )
        self.drop_answer = self._made(
            update(payments)
            .values(result=None)
            .where(payments.c.id == _given("id"), payments.c.state == _words(State.SETTLED))
            .returning(payments.c.id)
        )
        old = select(payments.c.id).where(
            text(among(FINISHED)), payments.c.updated <= _given("before", payments.c.updated)
        )
        self.drop_payments = self._made(
            delete(payments)
            .where(payments.c.id.in_(old.limit(_given("limit", payments.c.id))))
            .returning(payments.c.id)
        )
        self.first_surplus_receipt = self._made(
            select(receipts.c.id).order_by(receipts.c.id.desc()).limit(_ONE).offset(_given("kept", receipts.c.id))
        )
        aged = select(receipts.c.id).where(
            or_(
                receipts.c.created <= _given("before", receipts.c.created),
                receipts.c.id <= _given("last", receipts.c.id),
            )
        )
        self.drop_receipts = self._made(
            delete(receipts)
            .where(receipts.c.id.in_(aged.limit(_given("limit", receipts.c.id))))
            .returning(receipts.c.id)
        )
        self.bind_identifier = self._made(self._bind_identifier())
        self.identifier = self._made(
            select(*(purchases.c[name] for name in PURCHASE)).where(
                purchases.c.payer == _new(purchases, "payer"), purchases.c.identifier == _new(purchases, "identifier")
            )
        )
        named = select(purchases.c.payer, purchases.c.identifier).where(
            purchases.c.created <= _given("before", purchases.c.created)
        )
        self.drop_identifiers = self._made(
            delete(purchases)
            .where(
                tuple_(purchases.c.payer, purchases.c.identifier).in_(named.limit(_given("limit", purchases.c.created)))
            )
            .returning(purchases.c.created)
        )
        self.copy = self._made(
            select(copies.c.result).where(
                copies.c.payment_id == _given("payment_id", copies.c.payment_id),
                copies.c.owner == _given("owner", copies.c.owner),
                copies.c.nonce == _given("nonce", copies.c.nonce),
            )
        )
        self.put_copy = self._made(self._put_copy())
        self.drop_copies = self._made(
            delete(copies)
            .where(
                tuple_(copies.c.payment_id, copies.c.owner).in_(
                    select(copies.c.payment_id, copies.c.owner)
                    .where(copies.c.created <= _given("before", copies.c.created))
                    .limit(_given("limit", copies.c.created))
                )
            )
            .returning(copies.c.created)
        )
        self.stored_copies = self._made(
            select(copies.c.created, func.length(copies.c.result)).order_by(copies.c.created.desc())
        )
        self.move = cache(self._move)

    def _move(self, columns: tuple[str, ...], guard: str | None) -> Statement:
        """The transition that stores these columns besides state and time; `guard` is a further condition."""
        conditions = [
            *_IS_ROW,
            payments.c.state == _given("state"),
            payments.c.reservation == _given("reservation"),
            *([] if guard is None else [_GUARDS[guard]]),
        ]
        return self._made(
            update(payments)
            .where(*conditions)
            .values({name: _new(payments, name) for name in ("state", "updated", *columns)})
            .returning(*(payments.c[name] for name in MOVED))
        )

    def _reserve(self) -> Any:
        names = (
            *KEY_COLUMNS,
            *("scheme", "pay_to", "amount", "valid_after", "valid_before", "payment", "request_digest"),
            *("state", "created", "updated", "owner", "lease_until"),
        )
        values = {name: _new(payments, name) for name in names}
        made = self._insert(payments).values(**values, reservation=_ONE)
        cleared: dict[str, ColumnElement[Any]] = dict.fromkeys(
            ("result", "receipt_id", "transaction_hash", "reason", "reclaimed"), literal_column("NULL")
        )
        return made.on_conflict_do_update(
            index_elements=KEY_COLUMNS,
            set_={
                **{name: made.excluded[name] for name in names if name not in KEY_COLUMNS},
                **cleared,
                "reservation": payments.c.reservation + _ONE,
            },
            where=payments.c.state == _words(State.RELEASED),
        ).returning(payments.c.id, payments.c.reservation)

    def _bind_identifier(self) -> Any:
        names = ("payer", "identifier", *PURCHASE, "created")
        values = {name: _new(purchases, name) for name in names}
        bound = self._insert(purchases).values(**values)
        # A name that stands for a payment that bought nothing, and never will, is free.
        keys = (payments.c[name] == purchases.c[name] for name in KEY_COLUMNS)
        ended = payments.c.state.in_([_words(State.RELEASED), _words(State.REJECTED)])
        lives = select(_ONE).where(*keys, ~ended).correlate(purchases).exists()
        return bound.on_conflict_do_update(
            index_elements=["payer", "identifier"],
            set_={name: bound.excluded[name] for name in (*PURCHASE, "created")},
            where=~lives,
        ).returning(purchases.c.created)

    def _put_copy(self) -> Any:
        names = ("payment_id", "owner", "nonce", "result", "created")
        kept = self._insert(copies).values(**{name: _new(copies, name) for name in names})
        changed = {name: kept.excluded[name] for name in ("nonce", "result", "created")}
        return kept.on_conflict_do_update(index_elements=["payment_id", "owner"], set_=changed)

    def _put_receipt(self) -> Any:
        values = {name: _new(receipts, name) for name in ("receipt_id", "chat_id", "receipt", "created")}
        return self._insert(receipts).values(**values).on_conflict_do_nothing(index_elements=["receipt_id"])

    def _put_settled_receipt(self) -> Any:
        """A receipt for a payment that was settled just now, and no receipt for any other."""
        names = ("receipt_id", "chat_id", "receipt", "created")
        source = select(*(_new(receipts, name) for name in names)).where(
            *_IS_ROW,
            payments.c.state == _words(State.SETTLED),
            payments.c.reservation == _given("reservation"),
            payments.c.updated == _new(payments, "updated"),
            payments.c.transaction_hash.is_not_distinct_from(_given("transaction_hash")),
        )
        inserted = self._insert(receipts).from_select(names, source)
        return inserted.on_conflict_do_nothing(index_elements=["receipt_id"])

    def _receipt(self) -> Any:
        wanted = bindparam("given_id", type_=receipts.c.receipt_id.type)
        exact = case((receipts.c.receipt_id == wanted, literal_column("0")), else_=_ONE)
        return (
            select(receipts.c.receipt)
            .where((receipts.c.receipt_id == wanted) | (receipts.c.chat_id == wanted))
            .order_by(exact, receipts.c.id.desc())
            .limit(_ONE)
        )

    def _made(self, clause: Any) -> Statement:
        return Statement(clause, self._dialect)
