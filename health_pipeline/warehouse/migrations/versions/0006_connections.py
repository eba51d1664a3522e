"""Connecting people: states of authorisations, identities, keys of the vault, a ledger that cannot be rewritten."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# Merging two users moves entries to another user, and erasing a user takes them along; nothing else changes them.
_APPEND_ONLY = """
create function ops.keep_consent() returns trigger
language plpgsql as $$
begin
    if tg_op = 'UPDATE' then
        if (to_jsonb(new) - 'user_id') is distinct from (to_jsonb(old) - 'user_id') then
            raise exception 'the consent ledger is append-only';
        end if;
        return new;
    end if;
    if exists (select from ops.users where user_id = old.user_id) then
        raise exception 'the consent ledger is append-only';
    end if;
    return old;
end
$$;
create trigger connector_consent_ledger_append_only
before update or delete on ops.connector_consent_ledger
for each row execute function ops.keep_consent();
"""

_KNOWN_KEYS = """
insert into ops.vault_keys (key_id, active)
select key_id, row_number() over (order by max(updated_at) desc, key_id) = 1
from ops.connector_tokens group by key_id
"""

_KNOWN_IDENTITIES = """
insert into ops.identities (system, external_id, user_id)
select
    case when metadata ->> 'environment' = 'sandbox' then 'sandbox:' else '' end || provider,
    provider_user_id,
    user_id
from ops.provider_accounts
where provider_user_id is not null
order by status = 'active' desc, account_id
on conflict do nothing
"""


def upgrade() -> None:
    op.add_column("connector_consent_ledger", sa.Column("text", sa.Text()), schema="ops")
    op.create_index(
        op.f("ix_connector_consent_ledger_user_id_provider_entry_id"),
        "connector_consent_ledger",
        ["user_id", "provider", "entry_id"],
        schema="ops",
    )
    op.execute(_APPEND_ONLY)
    op.create_table(
        "oauth_states",
        sa.Column("state_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("redirect_uri", sa.Text(), nullable=False),
        sa.Column("key_id", sa.Text()),
        sa.Column("code_verifier", sa.LargeBinary()),
        sa.Column("consent_version", sa.Text(), nullable=False),
        sa.Column("consent_text", sa.Text(), nullable=False),
        sa.Column("consent_expires_at", sa.DateTime(timezone=True)),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True)),
        sa.ForeignKeyConstraint(
            ["user_id"], ["ops.users.user_id"], name=op.f("fk_oauth_states_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("state_sha256", name=op.f("pk_oauth_states")),
        schema="ops",
    )
    op.create_table(
        "identities",
        sa.Column("system", sa.Text(), nullable=False),
        sa.Column("external_id", sa.Text(), nullable=False),
        sa.Column("user_id", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["ops.users.user_id"], name=op.f("fk_identities_user_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("system", "external_id", name=op.f("pk_identities")),
        schema="ops",
    )
    op.create_index(op.f("ix_identities_user_id"), "identities", ["user_id"], schema="ops")
    op.execute(_KNOWN_IDENTITIES)
    op.create_table(
        "vault_keys",
        sa.Column("key_id", sa.Text(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("retired_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("key_id", name=op.f("pk_vault_keys")),
        schema="ops",
    )
    op.create_index(
        "uq_vault_keys_active",
        "vault_keys",
        ["active"],
        unique=True,
        schema="ops",
        postgresql_where=sa.text("active"),
    )
    op.execute(_KNOWN_KEYS)


def downgrade() -> None:
    for table in ("vault_keys", "identities", "oauth_states"):
        op.drop_table(table, schema="ops")
    op.execute("drop trigger connector_consent_ledger_append_only on ops.connector_consent_ledger")
    op.execute("drop function ops.keep_consent()")
    op.drop_index(
        op.f("ix_connector_consent_ledger_user_id_provider_entry_id"),
        "connector_consent_ledger",
        schema="ops",
    )
    op.drop_column("connector_consent_ledger", "text", schema="ops")
