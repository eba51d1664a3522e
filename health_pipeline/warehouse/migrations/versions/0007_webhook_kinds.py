"""What a webhook event speaks of; objects of people who are not connected."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.alter_column("subjects", "user_id", nullable=True, schema="ops")
    op.add_column(
        "webhook_events", sa.Column("kind", sa.Text(), server_default="other", nullable=False), schema="ops"
    )
    op.add_column("webhook_events", sa.Column("entity", sa.Text(), nullable=True), schema="ops")


def downgrade() -> None:
    op.drop_column("webhook_events", "entity", schema="ops")
    op.drop_column("webhook_events", "kind", schema="ops")
    op.alter_column("subjects", "user_id", nullable=False, schema="ops")
