"""Which source a user trusts."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "source_priorities",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("metric_type", sa.Text(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["ops.users.user_id"],
            name=op.f("fk_source_priorities_user_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("user_id", "metric_type", "source", name=op.f("pk_source_priorities")),
        schema="ops",
    )


def downgrade() -> None:
    op.drop_table("source_priorities", schema="ops")
