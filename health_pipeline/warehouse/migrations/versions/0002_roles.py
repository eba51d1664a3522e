"""Reading roles and row-level security; ids of staging loads."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ROLES = """
do $$
declare
    role_name text;
begin
    foreach role_name in array array['health_analyst', 'health_subject'] loop
        begin
            if not exists (select from pg_roles where rolname = role_name) then
                begin
                    execute format('create role %I nologin', role_name);
                exception when duplicate_object or unique_violation then
                    null; -- made meanwhile by the migration of another database of this server
                end;
            end if;
            -- The role that runs the pipeline reads as them (health-pipeline query --as-user).
            if not pg_has_role(current_user, role_name, 'member') then
                execute format('grant %I to current_user', role_name);
            end if;
        exception when insufficient_privilege then
            raise warning 'role % is missing and user % may not create it; ask an administrator for: '
                'create role % nologin; grant % to %', role_name, current_user, role_name, role_name, current_user;
        end;
    end loop;
end
$$
"""

_SECURE_TABLE = """
create or replace function ops.secure_table(relation text) returns void
language plpgsql as $$
declare
    target regclass := to_regclass(relation);
    schema_name text;
    table_name text;
begin
    if target is null then
        return;
    end if;
    -- Two tables secured at once would both change the schema's grants.
    perform pg_advisory_xact_lock(7104114825);
    select n.nspname, c.relname into schema_name, table_name
    from pg_class c join pg_namespace n on n.oid = c.relnamespace where c.oid = target;
    if exists (select from pg_roles where rolname = 'health_analyst')
        and not has_table_privilege('health_analyst', target, 'select') then
        if not has_schema_privilege('health_analyst', schema_name, 'usage') then
            execute format('grant usage on schema %I to health_analyst, health_subject', schema_name);
        end if;
        execute format('grant select on %s to health_analyst, health_subject', target);
    end if;
    if not exists (select from pg_attribute where attrelid = target and attname = 'user_id' and not attisdropped)
        or exists (select from pg_policy where polrelid = target and polname = 'subject_reads_own') then
        return;
    end if;
    execute format('alter table %s enable row level security', target);
    execute format('alter table %s force row level security', target);
    execute format('create policy pipeline_writes on %s for all to %I using (true) with check (true)',
        target, current_user);
    if exists (select from pg_roles where rolname = 'health_analyst') then
        execute format('create policy analyst_reads on %s for select to health_analyst using (true)', target);
        execute format(
            'create policy subject_reads_own on %s for select to health_subject '
            'using (user_id = nullif(current_setting(''health.user_id'', true), '''')::integer)', target);
    end if;
end
$$
"""


def upgrade() -> None:
    op.execute(_ROLES)
    op.execute(_SECURE_TABLE)
    # Never used twice, so that staging can be dropped and an old load is not taken for a new one.
    op.execute("create sequence ops.load_id_seq as bigint")


def downgrade() -> None:
    op.execute("drop sequence ops.load_id_seq")
    op.execute("drop function ops.secure_table(text)")
