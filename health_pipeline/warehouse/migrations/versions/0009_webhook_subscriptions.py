"""Where providers were told to call us, and what they sign those calls with."""

import datetime as dt

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "webhook_targets",
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        _now("created_at"),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("provider", "environment", name=op.f("pk_webhook_targets")),
        schema="ops",
    )
    op.create_table(
        "webhook_subscriptions",
        sa.Column("subscription_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("environment", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Integer(), nullable=True),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("provider_subscription_id", sa.Text(), nullable=False),
        sa.Column("address_sha256", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("secret", sa.LargeBinary(), nullable=True),
        _now("created_at"),
        _now("updated_at"),
        sa.CheckConstraint(
            "(secret is null) = (key_id is null)", name=op.f("ck_webhook_subscriptions_secret")
        ),
        sa.ForeignKeyConstraint(
            ["provider", "environment"],
            ["ops.webhook_targets.provider", "ops.webhook_targets.environment"],
            name=op.f("fk_webhook_subscriptions_provider_environment"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["ops.provider_accounts.account_id"],
            name=op.f("fk_webhook_subscriptions_account_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("subscription_id", name=op.f("pk_webhook_subscriptions")),
        sa.UniqueConstraint(
            "provider",
            "environment",
            "account_id",
            "kind",
            "address_sha256",
            name=op.f("uq_webhook_subscriptions_key"),
            postgresql_nulls_not_distinct=True,
        ),
        schema="ops",
    )
    op.create_index(
        op.f("ix_webhook_subscriptions_account_id"), "webhook_subscriptions", ["account_id"], schema="ops"
    )


def downgrade() -> None:
    op.drop_table("webhook_subscriptions", schema="ops")
    op.drop_table("webhook_targets", schema="ops")


def _now(name: str) -> sa.Column[dt.datetime]:
    return sa.Column(name, sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False)
