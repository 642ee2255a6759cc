"""Who works on a payment and until when; settlement before the answer; names of purchases; copies of
answers; smaller indexes.

Expands only. A replica of version 1 that is still running leaves the new columns empty, and rows with an empty lease
count as being worked on for a while after their last change (`LEGACY_LEASE_SECONDS`).
"""

import sqlalchemy as sa
from alembic import op

from service.payment.migrations.versions import v0001_payments

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.drop_index("payments_by_state", "payments")
    # SQLite cannot change a check: there the table is copied, in the order of its ids and with every column as it was.
    before = sa.Table("payments", sa.MetaData(), *v0001_payments.payments())
    with op.batch_alter_table("payments", copy_from=before, recreate="auto") as payments:
        payments.add_column(sa.Column("owner", sa.String(64)))
        payments.add_column(sa.Column("lease_until", sa.BigInteger))
        payments.add_column(sa.Column("reclaimed", sa.BigInteger))
        payments.drop_constraint("served_has_result", type_="check")
        payments.create_check_constraint("served_has_result", "state <> 'SERVED' OR result IS NOT NULL")
    for name, columns, states in (
        ("unfinished_payments", ["id"], "'RESERVED', 'SERVED', 'SETTLING', 'UNKNOWN'"),
        ("finished_payments", ["state", "updated"], "'SETTLED', 'REJECTED', 'RELEASED'"),
    ):
        where = sa.text(f"state IN ({states})")
        op.create_index(name, "payments", columns, sqlite_where=where, postgresql_where=where)
    op.create_index("receipts_by_age", "receipts", ["created"])
    op.create_table(
        "purchases",
        sa.Column("payer", sa.String(64), primary_key=True),
        sa.Column("identifier", sa.String(128), primary_key=True),
        sa.Column("request_digest", sa.Text, nullable=False),
        sa.Column("network", sa.String(64), nullable=False),
        sa.Column("asset", sa.String(64), nullable=False),
        sa.Column("nonce", sa.String(66), nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_index("purchases_by_age", "purchases", ["created"])
    op.create_table(
        "copies",
        sa.Column("payment_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("owner", sa.String(64), primary_key=True),
        sa.Column("nonce", sa.String(66), nullable=False),
        sa.Column("result", sa.LargeBinary, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
    )
    op.create_index("copies_by_age", "copies", ["created"])
    op.execute("UPDATE tollseal_schema SET version = 2")
