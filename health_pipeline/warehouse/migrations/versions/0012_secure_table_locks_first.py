"""`ops.secure_table` takes its lock on the table before it changes anything of it.

Granting before locking, it held the table's row in `pg_class` while it waited for a lock, and an `analyze` that
held the lock waited for that row: a deadlock.
"""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_SECURE_TABLE = """
create or replace function ops.secure_table(relation text) returns void
language plpgsql as $$
declare
    target regclass := to_regclass(relation);
    schema_name text;
    is_of_people boolean;
begin
    if target is null then
        return;
    end if;
    is_of_people := exists (
            select from pg_attribute where attrelid = target and attname = 'user_id' and not attisdropped
        )
        and not exists (select from pg_policy where polrelid = target and polname = 'subject_reads_own');
    if is_of_people then
        execute format('lock table %s in access exclusive mode', target);
    end if;
    -- Two tables secured at once would both change the schema's grants.
    perform pg_advisory_xact_lock(7104114825);
    select n.nspname into schema_name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = target;
    if exists (select from pg_roles where rolname = 'health_analyst')
        and not has_table_privilege('health_analyst', target, 'select') then
        if not has_schema_privilege('health_analyst', schema_name, 'usage') then
            execute format('grant usage on schema %I to health_analyst, health_subject', schema_name);
        end if;
        execute format('grant select on %s to health_analyst, health_subject', target);
    end if;
    -- Asked again: another may have secured the table while this waited.
    if not is_of_people
        or exists (select from pg_policy where polrelid = target and polname = 'subject_reads_own') then
        return;
    end if;
    execute format('alter table %s enable row level security', target);
    execute format('alter table %s force row level security', target);
    execute format('create policy pipeline_writes on %s for all to %I using (true) with check (true)',
        target, current_user);
    if exists (select from pg_roles where rolname = 'health_analyst') then
        execute format('create policy analyst_reads on %s for select to health_analyst using (true)', target);
        -- In a subquery, so that it is asked once a statement and not once a row.
        execute format(
            'create policy subject_reads_own on %s for select to health_subject '
            'using (user_id = (select ops.subject_id()))', target);
    end if;
end
$$
"""


def upgrade() -> None:
    op.execute(_SECURE_TABLE)


def downgrade() -> None:
    """The function of before does the same, but may deadlock: kept."""
