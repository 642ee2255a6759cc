"""One row per payment, and the receipts."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_STATES = "'RESERVED', 'SERVED', 'SETTLING', 'SETTLED', 'REJECTED', 'UNKNOWN', 'RELEASED'"

# Only SQLite counts in any integer; and only there is a key column that is not called INTEGER no alias of the row's id.
_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def payments() -> list[sa.schema.SchemaItem]:
    """What the table is made of."""
    return [
        sa.Column("id", _ID, primary_key=True),
        sa.Column("network", sa.String(64), nullable=False),
        sa.Column("asset", sa.String(64), nullable=False),
        sa.Column("payer", sa.String(64), nullable=False),
        sa.Column("nonce", sa.String(66), nullable=False),
        sa.Column("reservation", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("request_digest", sa.Text, nullable=False),
        sa.Column("scheme", sa.String(32), nullable=False),
        sa.Column("pay_to", sa.String(64), nullable=False),
        sa.Column("amount", sa.String(78), nullable=False),
        sa.Column("valid_after", sa.String(78), nullable=False),
        sa.Column("valid_before", sa.String(78), nullable=False),
        sa.Column("payment", sa.Text, nullable=False),
        sa.Column("result", sa.LargeBinary),
        sa.Column("receipt_id", sa.Text),
        sa.Column("transaction_hash", sa.String(66)),
        sa.Column("reason", sa.Text),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("updated", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("network", "asset", "payer", "nonce", name="one_row_per_payment"),
        sa.CheckConstraint(f"state IN ({_STATES})", name="known_state"),
        sa.CheckConstraint("state NOT IN ('SERVED', 'SETTLING') OR result IS NOT NULL", name="served_has_result"),
    ]


def upgrade() -> None:
    op.create_table("tollseal_schema", sa.Column("version", sa.Integer, nullable=False))
    op.create_table("payments", *payments())
    op.create_index("payments_by_state", "payments", ["state", "updated"])
    op.create_table(
        "receipts",
        sa.Column("id", _ID, primary_key=True),
        sa.Column("receipt_id", sa.Text, nullable=False, unique=True),
        sa.Column("chat_id", sa.Text, nullable=False),
        sa.Column("receipt", sa.Text, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("receipts_by_chat", "receipts", ["chat_id"])
    op.execute("INSERT INTO tollseal_schema (version) VALUES (1)")
