"""Counts that runs add to and the receiver's metrics tell; accounts by the provider's id of the person."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "counters",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("bucket", sa.Text(), server_default="", nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "provider", "bucket", name=op.f("pk_counters")),
        schema="ops",
    )
    # Whose a webhook is, is asked for each call.
    op.create_index(
        op.f("ix_provider_accounts_provider_provider_user_id"),
        "provider_accounts",
        ["provider", "provider_user_id"],
        schema="ops",
    )


def downgrade() -> None:
    op.drop_index(op.f("ix_provider_accounts_provider_provider_user_id"), "provider_accounts", schema="ops")
    op.drop_table("counters", schema="ops")
