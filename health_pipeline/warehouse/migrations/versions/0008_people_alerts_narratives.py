"""What people say of themselves, what became of alerts, and what was asked of a language model, with its limit."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Counted under the user's lock, so that calls at the same time cannot pass the limit together.
_LIMIT = """
create function ops.limit_ai_calls() returns trigger
language plpgsql as $$
declare
    allowed integer;
    made integer;
begin
    select ai_daily_limit into allowed from ops.users where user_id = new.user_id for update;
    select count(*) into made from ops.ai_audit_log
    where user_id = new.user_id
        and (recorded_at at time zone 'UTC')::date = (new.recorded_at at time zone 'UTC')::date;
    if made >= allowed then
        raise exception 'the daily limit of % calls to a language model is reached', allowed
            using errcode = 'check_violation', constraint = 'ai_daily_limit';
    end if;
    return new;
end
$$;
create trigger ai_audit_log_limit
before insert on ops.ai_audit_log
for each row execute function ops.limit_ai_calls();
"""


def upgrade() -> None:
    for column in (
        sa.Column("sex", sa.Text()),
        sa.Column("birth_year", sa.SmallInteger()),
        sa.Column("max_heart_rate", sa.SmallInteger()),
        sa.Column("ai_daily_limit", sa.SmallInteger(), server_default="10", nullable=False),
    ):
        op.add_column("users", column, schema="ops")
    for name, condition in (
        ("sex", "sex in ('female', 'male')"),
        ("birth_year", "birth_year between 1900 and 2100"),
        ("max_heart_rate", "max_heart_rate between 100 and 240"),
        ("ai_daily_limit", "ai_daily_limit >= 0"),
    ):
        op.create_check_constraint(op.f(f"ck_users_{name}"), "users", condition, schema="ops")
    op.create_table(
        "alert_states",
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("local_date", sa.Date(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("episode", sa.Integer(), nullable=False),
        sa.Column("acknowledged_at", sa.DateTime(timezone=True)),
        sa.Column("sent_at", sa.DateTime(timezone=True)),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("next_attempt_at", sa.DateTime(timezone=True)),
        sa.Column("last_error", sa.Text()),
        sa.ForeignKeyConstraint(
            ["user_id"], ["ops.users.user_id"], name=op.f("fk_alert_states_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "local_date", "kind", "episode", name=op.f("pk_alert_states")),
        schema="ops",
    )
    op.create_table(
        "ai_audit_log",
        sa.Column("entry_id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("local_date", sa.Date(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("prompt_sha256", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text()),
        sa.Column("prompt_tokens", sa.Integer()),
        sa.Column("completion_tokens", sa.Integer()),
        sa.Column("decision", sa.Text(), server_default="asked", nullable=False),
        sa.Column("reason", sa.Text()),
        sa.CheckConstraint(
            "decision in ('asked', 'accepted', 'rejected', 'failed')", name=op.f("ck_ai_audit_log_decision")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["ops.users.user_id"], name=op.f("fk_ai_audit_log_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("entry_id", name=op.f("pk_ai_audit_log")),
        schema="ops",
    )
    op.create_index(
        op.f("ix_ai_audit_log_user_id_recorded_at"), "ai_audit_log", ["user_id", "recorded_at"], schema="ops"
    )
    op.execute(_LIMIT)


def downgrade() -> None:
    op.execute("drop trigger ai_audit_log_limit on ops.ai_audit_log")
    op.execute("drop function ops.limit_ai_calls()")
    for table in ("ai_audit_log", "alert_states"):
        op.drop_table(table, schema="ops")
    for name in ("ai_daily_limit", "max_heart_rate", "birth_year", "sex"):
        op.drop_column("users", name, schema="ops")
