"""Tokens that people read their data with; the object that an upload job is of."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql as pg

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    now = sa.func.now()
    op.create_table(
        "api_tokens",
        sa.Column("token_id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("secret_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("scopes", pg.ARRAY(sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=now, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("token_id", name=op.f("pk_api_tokens")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["ops.users.user_id"], name=op.f("fk_api_tokens_user_id"), ondelete="CASCADE"
        ),
        schema="ops",
    )
    op.create_index(op.f("ix_api_tokens_user_id"), "api_tokens", ["user_id"], schema="ops")
    op.add_column("ingestion_jobs", sa.Column("raw_object_id", sa.BigInteger(), nullable=True), schema="ops")
    op.create_foreign_key(
        op.f("fk_ingestion_jobs_raw_object_id"),
        "ingestion_jobs",
        "raw_objects",
        ["raw_object_id"],
        ["raw_object_id"],
        source_schema="ops",
        referent_schema="ops",
        ondelete="SET NULL",
    )
    op.create_index(
        op.f("ix_ingestion_jobs_raw_object_id"), "ingestion_jobs", ["raw_object_id"], schema="ops"
    )


def downgrade() -> None:
    op.drop_column("ingestion_jobs", "raw_object_id", schema="ops")
    op.drop_table("api_tokens", schema="ops")
