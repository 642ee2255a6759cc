"""What a buyer has signed and spent: one SQLite file of his own, shared by all his processes.

A payment is entered before it leaves the process, in the same transaction in which the limits are checked, so that two
processes together cannot overspend, and no request is ever signed for twice. The entry keeps the signed payment until
its answer has been delivered, because that is what buys the answer: after a crash, or in another process, the same
payment is sent again.

| state | meaning | counts as spent |
|---|---|---|
| SIGNED | the answer is still to come: the same request sends this payment again, whatever the price is by now | yes |
| ANSWERED | the answer was delivered; the same request is a new purchase | yes |
| GIVEN_UP | it bought no answer, is never sent again, and it is not known whether it was taken | yes |
| TAKEN | as GIVEN_UP, and the chain says that it was taken | yes |
| UNUSED | the chain says that it ended unused | no |

A signed payment that has not been used counts as spent until the chain says that it ended unused: nobody else can know.

The file is for its owner alone (mode 0600). Somebody who reads it learns what was bought where, but not the documents.
Who takes a signed payment from it can have it executed before it ends: it pays the payee that it names and nobody else,
and the answer that it buys is given to whoever sends the same request with it.
"""

import enum
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Self

from attestation.digest import digest, jcs_digest
from attestation.errors import SpendingError
from attestation.purchase import Payment
from attestation.spending import Outgoing

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x746F6C6C
"""Marks the file as ours ("toll"), so that no other program's database is taken for one."""
LOCK_SECONDS: Final = 30
"""How long one process waits for another's transaction; they take milliseconds."""

_SCHEMA: Final = """
CREATE TABLE payments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    state TEXT NOT NULL,
    service TEXT NOT NULL,
    resource TEXT NOT NULL,
    request_digest TEXT NOT NULL,
    agent TEXT NOT NULL,
    payer TEXT NOT NULL,
    network TEXT NOT NULL,
    asset TEXT NOT NULL,
    decimals INTEGER NOT NULL,
    pay_to TEXT NOT NULL,
    amount TEXT NOT NULL,
    nonce TEXT NOT NULL,
    valid_before INTEGER NOT NULL,
    signed_at INTEGER NOT NULL,
    header TEXT,
    terms TEXT,
    ended_at INTEGER,
    transaction_hash TEXT,
    receipt_id TEXT,
    bundle TEXT,
    verdict TEXT,
    note TEXT,
    UNIQUE (network, asset, payer, nonce)
);
CREATE UNIQUE INDEX one_signature_per_request ON payments (payer, service, request_digest) WHERE state = 'SIGNED';
"""


class State(enum.Enum):
    """What became of a payment; see the module's docstring."""

    SIGNED = "SIGNED"
    ANSWERED = "ANSWERED"
    GIVEN_UP = "GIVEN_UP"
    TAKEN = "TAKEN"
    UNUSED = "UNUSED"


@dataclass(frozen=True, slots=True)
class PaidRequest:
    """What a payment is for: one request to one service, by one payer."""

    service: str
    """Origin."""
    resource: str
    """URL."""
    request_digest: str
    payer: str
    """Address in lower case."""

    @classmethod
    def of(cls, *, service: str, method: str, url: str, body: bytes, payer: str) -> Self:
        """Two requests are the same when method, URL and body are."""
        request_digest = jcs_digest({"method": method, "url": url, "body": digest(body)})
        return cls(service=service, resource=url, request_digest=request_digest, payer=payer.lower())


@dataclass(frozen=True, slots=True)
class Signed:
    """A payment that has just been signed."""

    header: str
    """Value of the PAYMENT-SIGNATURE header."""
    payment: Payment
    decimals: int
    """Of the asset."""
    agent: str
    """Who is paid, as the attested keyset names it."""
    terms: str
    """The 402 that was accepted, as the client wants it back."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One payment, as it stands."""

    id: int
    state: State
    service: str
    resource: str
    request_digest: str
    agent: str
    payer: str
    network: str
    asset: str
    decimals: int
    pay_to: str
    amount: int
    """Atomic units."""
    nonce: str
    valid_before: int
    """Unix seconds."""
    signed_at: int
    """Unix seconds."""
    header: str | None
    """The signed payment, until the entry has ended."""
    terms: str | None
    ended_at: int | None
    """Unix seconds."""
    transaction_hash: str | None
    receipt_id: str | None
    bundle: str | None
    """Where the buyer keeps the proof."""
    verdict: str | None
    note: str | None
    """Why it is not answered."""

    @property
    def counts(self) -> bool:
        """Whether it counts as spent."""
        return self.state is not State.UNUSED

    def to_json(self) -> dict[str, Any]:
        """Everything but the signed payment; amounts in atomic units, as decimal text."""
        hidden = {"header", "terms", "request_digest"}
        shown = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in hidden}
        return {**shown, "state": self.state.value, "amount": str(self.amount)}


class SpendLedger:
    """The payments of one buyer. Use `open` or `in_memory`; methods may be called from any thread.

    Every method raises SpendingError when the file cannot be read or written.
    """

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._db = connection
        self._name = name
        self._lock = threading.RLock()
        weakref.finalize(self, connection.close)

    @classmethod
    def open(cls, path: Path) -> Self:
        """The ledger in a file, which is made when there is none.

        Raises:
            SpendingError: the file cannot be used, or is something else.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            # Made before SQLite sees it: its journal takes over the file's mode.
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            path.chmod(0o600)
            return cls._prepared(str(path))
        except (OSError, sqlite3.Error) as error:
            raise SpendingError(f"the record of your spending, {path}, cannot be used: {error}") from error

    @classmethod
    def in_memory(cls) -> Self:
        """A ledger that ends with the process: nothing is resumed after a crash, and limits hold for this process."""
        return cls._prepared(":memory:")

    @classmethod
    def _prepared(cls, name: str) -> Self:
        connection = sqlite3.connect(name, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False)
        connection.row_factory = sqlite3.Row
        ledger = cls(connection, name)
        try:
            # A signature that was entered is sent next, so the entry must survive a power cut.
            connection.execute("PRAGMA synchronous=EXTRA")
            ledger._create()
        except BaseException:
            connection.close()
            raise
        return ledger

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def unfinished(self, request: PaidRequest) -> Entry | None:
        """The payment that was signed for a request and has bought no answer yet."""
        with self._reading() as db:
            return _unfinished(db, request)

    def pay(
        self,
        request: PaidRequest,
        *,
        check: Callable[[Sequence[Outgoing]], None],
        sign: Callable[[], Signed],
        now: int,
    ) -> Entry:
        """Sign for a request, unless that has been done and it has bought no answer yet.

        Checking the limits, signing and entering are one transaction, which no other process can come between.

        Args:
            request: what is paid for.
            check: raises when the payment would be too much on top of what counts as spent.
            sign: makes the payment; not called when there is one already.
            now: unix seconds.

        Returns:
            The entry, new or not: it is what is to be sent.
        """
        with self._writing() as db:
            if (entry := _unfinished(db, request)) is not None:
                return entry
            check(_outgoings(db))
            signed = sign()
            paid = signed.payment
            if paid.payer != request.payer:
                raise SpendingError(f"the payment is from {paid.payer}, not from {request.payer}; it was not sent")
            entered = db.execute(
                "INSERT INTO payments (state, service, resource, request_digest, agent, payer, network, asset,"
                " decimals, pay_to, amount, nonce, valid_before, signed_at, header, terms)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(State.SIGNED.value, request.service, request.resource, request.request_digest, signed.agent),
                    *(paid.payer, paid.network, paid.asset, signed.decimals, paid.pay_to, str(paid.amount)),
                    *(paid.nonce, paid.valid_before, now, signed.header, signed.terms),
                ),
            )
            return _entry(db.execute("SELECT * FROM payments WHERE id = ?", (entered.lastrowid,)).fetchone())

    def answered(
        self, entry_id: int, *, transaction: str, receipt_id: str, verdict: str, bundle: str | None, now: int
    ) -> None:
        """The answer was delivered. When another process was faster, its record stands."""
        with self._writing() as db:
            db.execute(
                "UPDATE payments SET state = ?, transaction_hash = ?, receipt_id = ?, verdict = ?, bundle = ?,"
                " ended_at = ?, header = NULL, terms = NULL, note = NULL WHERE id = ? AND state = ?",
                (State.ANSWERED.value, transaction, receipt_id, verdict, bundle, now, entry_id, State.SIGNED.value),
            )

    def note(self, entry_id: int, note: str, *, verdict: str | None = None) -> None:
        """Why there is no answer so far. The payment will be sent again."""
        with self._writing() as db:
            db.execute(
                "UPDATE payments SET note = ?, verdict = coalesce(?, verdict) WHERE id = ? AND state = ?",
                (note, verdict, entry_id, State.SIGNED.value),
            )

    def give_up(self, entry_id: int, note: str, *, now: int) -> bool:
        """Never send a payment again. It still counts as spent. False when it was not waiting for an answer."""
        with self._writing() as db:
            done = db.execute(
                "UPDATE payments SET state = ?, note = ?, ended_at = ?, header = NULL, terms = NULL"
                " WHERE id = ? AND state = ?",
                (State.GIVEN_UP.value, note, now, entry_id, State.SIGNED.value),
            )
            return done.rowcount == 1

    def unused(self, entry_id: int, *, now: int) -> None:
        """The chain says that a payment ended unused: it no longer counts."""
        with self._writing() as db:
            db.execute(
                "UPDATE payments SET state = ?, ended_at = coalesce(ended_at, ?), header = NULL, terms = NULL"
                " WHERE id = ? AND state IN (?, ?)",
                (State.UNUSED.value, now, entry_id, State.SIGNED.value, State.GIVEN_UP.value),
            )

    def taken(self, entry_id: int) -> None:
        """The chain says that a payment that was given up has been executed, or was cancelled by its payer."""
        with self._writing() as db:
            db.execute(
                "UPDATE payments SET state = ? WHERE id = ? AND state = ?",
                (State.TAKEN.value, entry_id, State.GIVEN_UP.value),
            )

    def ended_unanswered(self, *, now: int, limit: int = 100) -> tuple[Entry, ...]:
        """Payments that are no longer valid, bought no answer, and may or may not have been taken; the newest first."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT * FROM payments WHERE state IN (?, ?) AND valid_before <= ? ORDER BY id DESC LIMIT ?",
                (State.SIGNED.value, State.GIVEN_UP.value, now, limit),
            )
            return tuple(_entry(row) for row in rows)

    def entries(self, *, since: int | None = None, service: str | None = None) -> tuple[Entry, ...]:
        """Payments in the order in which they were signed; `since` is in unix seconds, `service` an origin."""
        with self._reading() as db:
            rows = db.execute(
                "SELECT * FROM payments"
                " WHERE signed_at >= coalesce(?, 0) AND service = coalesce(?, service) ORDER BY id",
                (since, service),
            )
            return tuple(_entry(row) for row in rows)

    def entry(self, entry_id: int) -> Entry | None:
        with self._reading() as db:
            row = db.execute("SELECT * FROM payments WHERE id = ?", (entry_id,)).fetchone()
            return None if row is None else _entry(row)

    def outgoings(self) -> tuple[Outgoing, ...]:
        """Everything that counts as spent."""
        with self._reading() as db:
            return _outgoings(db)

    def _create(self) -> None:
        with self._writing() as db:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            application = db.execute("PRAGMA application_id").fetchone()[0]
            empty = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            if empty and version == application == 0:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            elif application != APPLICATION_ID:
                raise SpendingError(f"{self._name} is not a record of spending; nothing in it was changed")
            elif version != SCHEMA_VERSION:
                raise SpendingError(f"{self._name} was written by another version of Tollseal (format {version})")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            yield self._db

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise SpendingError(f"the record of your spending, {self._name}, cannot be used: {error}") from error


def _unfinished(db: sqlite3.Connection, request: PaidRequest) -> Entry | None:
    row = db.execute(
        "SELECT * FROM payments WHERE payer = ? AND service = ? AND request_digest = ? AND state = ?",
        (request.payer, request.service, request.request_digest, State.SIGNED.value),
    ).fetchone()
    return None if row is None else _entry(row)


def _outgoings(db: sqlite3.Connection) -> tuple[Outgoing, ...]:
    rows = db.execute("SELECT amount, decimals, signed_at FROM payments WHERE state <> ?", (State.UNUSED.value,))
    return tuple(Outgoing(int(amount), decimals, at) for amount, decimals, at in rows)


def _entry(row: sqlite3.Row) -> Entry:
    return Entry(**{**dict(row), "state": State(row["state"]), "amount": int(row["amount"])})


def utc_text(at: int) -> str:
    """A time in unix seconds as people read it."""
    return f"{datetime.fromtimestamp(at, tz=UTC):%Y-%m-%d %H:%M:%S} UTC"
