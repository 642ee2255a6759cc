"""The ledger's tables as this program knows them, and its errors.

A change of the tables needs a migration in `service.payment.migrations` and a new `SCHEMA_VERSION`; a test compares the
two. A database of a newer version is refused, never guessed at.
"""

from enum import StrEnum
from typing import Final

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

SCHEMA_VERSION: Final = 2


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


UNFINISHED: Final = (State.RESERVED, State.SERVED, State.SETTLING, State.UNKNOWN)
FINISHED: Final = (State.SETTLED, State.REJECTED, State.RELEASED)


def among(states: tuple[State, ...]) -> str:
    """SQL that is true of these states. An index over some rows is used only where these very words stand."""
    return "state IN (" + ", ".join(f"'{state}'" for state in states) + ")"


metadata: Final = MetaData()

_id_type: Final = BigInteger().with_variant(Integer(), "sqlite")

schema_version: Final = Table(
    "tollseal_schema",
    metadata,
    Column("version", Integer, nullable=False),
)

payments: Final = Table(
    "payments",
    metadata,
    Column("id", _id_type, primary_key=True),
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
    Column("owner", String(64)),
    Column("lease_until", BigInteger),
    Column("reclaimed", BigInteger),
    UniqueConstraint("network", "asset", "payer", "nonce", name="one_row_per_payment"),
    CheckConstraint(among(tuple(State)), name="known_state"),
    CheckConstraint("state <> 'SERVED' OR result IS NOT NULL", name="served_has_result"),
    Index(
        "unfinished_payments",
        "id",
        sqlite_where=text(among(UNFINISHED)),
        postgresql_where=text(among(UNFINISHED)),
    ),
    Index(
        "finished_payments",
        "state",
        "updated",
        sqlite_where=text(among(FINISHED)),
        postgresql_where=text(among(FINISHED)),
    ),
)

receipts: Final = Table(
    "receipts",
    metadata,
    Column("id", _id_type, primary_key=True),
    Column("receipt_id", Text, nullable=False, unique=True),
    Column("chat_id", Text, nullable=False),
    Column("receipt", Text, nullable=False),
    Column("created", BigInteger, nullable=False),
    Index("receipts_by_chat", "chat_id"),
    Index("receipts_by_age", "created"),
    sqlite_autoincrement=True,  # ids are never used again, so a larger one is always newer
)

purchases: Final = Table(
    "purchases",
    metadata,
    Column("payer", String(64), primary_key=True),
    Column("identifier", String(128), primary_key=True),
    Column("request_digest", Text, nullable=False),
    Column("network", String(64), nullable=False),
    Column("asset", String(64), nullable=False),
    Column("nonce", String(66), nullable=False),
    Column("created", BigInteger, nullable=False),
    Index("purchases_by_age", "created"),
)
"""Names that buyers have given to their purchases (`service.payment.identifier`)."""

copies: Final = Table(
    "copies",
    metadata,
    Column("payment_id", _id_type, primary_key=True, autoincrement=False),
    Column("owner", String(64), primary_key=True),
    Column("nonce", String(66), nullable=False),
    Column("result", LargeBinary, nullable=False),
    Column("created", BigInteger, nullable=False),
    Index("copies_by_age", "created"),
)
"""Answers that another replica than a payment's own has made, because it cannot open what the other has stored."""
