"""Ingestion jobs with their progress, windows already fetched, webhook events; raw objects by receipt and by data."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ingestion_jobs",
        sa.Column("job_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=True),
        sa.Column("entity", sa.Text(), nullable=True),
        sa.Column("window_start", sa.Date(), nullable=True),
        sa.Column("window_end", sa.Date(), nullable=True),
        sa.Column("status", sa.Text(), server_default="queued", nullable=False),
        sa.Column("requests_done", sa.Integer(), server_default="0", nullable=False),
        sa.Column("windows_done", sa.Integer(), server_default="0", nullable=False),
        sa.Column("windows_total", sa.Integer(), nullable=True),
        sa.Column("objects_new", sa.Integer(), server_default="0", nullable=False),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.Column("run_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "kind in ('sync', 'backfill', 'reconcile', 'upload', 'webhook')",
            name=op.f("ck_ingestion_jobs_kind"),
        ),
        sa.CheckConstraint(
            "status in ('queued', 'running', 'done', 'failed', 'cancelled')",
            name=op.f("ck_ingestion_jobs_status"),
        ),
        sa.CheckConstraint("window_start <= window_end", name=op.f("ck_ingestion_jobs_window")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["ops.users.user_id"], name=op.f("fk_ingestion_jobs_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_ingestion_jobs")),
        schema="ops",
    )
    op.create_index(
        op.f("ix_ingestion_jobs_provider_status"), "ingestion_jobs", ["provider", "status"], schema="ops"
    )
    op.create_index(
        op.f("ix_ingestion_jobs_user_id_created_at"),
        "ingestion_jobs",
        ["user_id", "created_at"],
        schema="ops",
    )
    op.create_table(
        "fetched_windows",
        sa.Column("account_id", sa.Integer(), nullable=False),
        sa.Column("entity", sa.Text(), nullable=False),
        sa.Column("window_start", sa.Date(), nullable=False),
        sa.Column("window_end", sa.Date(), nullable=False),
        sa.Column("fetched_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("window_start <= window_end", name=op.f("ck_fetched_windows_window")),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["ops.provider_accounts.account_id"],
            name=op.f("fk_fetched_windows_account_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint(
            "account_id", "entity", "window_start", "window_end", name=op.f("pk_fetched_windows")
        ),
        schema="ops",
    )
    op.create_table(
        "webhook_events",
        sa.Column("event_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("provider_event_id", sa.Text(), nullable=False),
        sa.Column("event_type", sa.Text(), nullable=False),
        sa.Column("provider_user_id", sa.Text(), nullable=True),
        sa.Column("account_id", sa.Integer(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("state", sa.Text(), server_default="pending", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("raw_object_id", sa.BigInteger(), nullable=True),
        sa.Column("trace_id", sa.Text(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "state in ('pending', 'processing', 'processed', 'dead')", name=op.f("ck_webhook_events_state")
        ),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["ops.provider_accounts.account_id"],
            name=op.f("fk_webhook_events_account_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["raw_object_id"],
            ["ops.raw_objects.raw_object_id"],
            name=op.f("fk_webhook_events_raw_object_id"),
            ondelete="SET NULL",
        ),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_webhook_events")),
        sa.UniqueConstraint(
            "provider", "provider_event_id", name=op.f("uq_webhook_events_provider_provider_event_id")
        ),
        schema="ops",
    )
    op.create_index(
        op.f("ix_webhook_events_state_next_try_at"), "webhook_events", ["state", "next_try_at"], schema="ops"
    )
    for column in ("received_at", "account_id", "raw_object_id"):
        op.create_index(op.f(f"ix_webhook_events_{column}"), "webhook_events", [column], schema="ops")
    for column in ("received_at", "data_end_date"):
        op.create_index(
            op.f(f"ix_raw_objects_provider_{column}"), "raw_objects", ["provider", column], schema="ops"
        )


def downgrade() -> None:
    for column in ("data_end_date", "received_at"):
        op.drop_index(op.f(f"ix_raw_objects_provider_{column}"), table_name="raw_objects", schema="ops")
    op.drop_table("webhook_events", schema="ops")
    op.drop_table("fetched_windows", schema="ops")
    op.drop_table("ingestion_jobs", schema="ops")
