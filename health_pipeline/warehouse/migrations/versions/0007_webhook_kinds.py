"""What a webhook event speaks of; objects of people who are not connected; jobs that a sensor starts."""

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
    op.add_column("webhook_events", sa.Column("run_id", sa.Text(), nullable=True), schema="ops")
    _allow_job_states("requested", "queued", "running", "done", "failed", "cancelled")


def downgrade() -> None:
    op.execute("update ops.ingestion_jobs set status = 'cancelled' where status = 'requested'")
    _allow_job_states("queued", "running", "done", "failed", "cancelled")
    op.drop_column("webhook_events", "run_id", schema="ops")
    op.drop_column("webhook_events", "entity", schema="ops")
    op.drop_column("webhook_events", "kind", schema="ops")
    op.alter_column("subjects", "user_id", nullable=False, schema="ops")


def _allow_job_states(*states: str) -> None:
    name = op.f("ck_ingestion_jobs_status")
    op.drop_constraint(name, "ingestion_jobs", schema="ops", type_="check")
    listed = ", ".join(f"'{state}'" for state in states)
    op.create_check_constraint(name, "ingestion_jobs", f"status in ({listed})", schema="ops")
