"""Who a session reads as is sealed: a person's own statement cannot make them somebody else."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

# The setting `health.user_id` may be set by anybody; only what ops.seal_subject() made for this very session counts.
_SEAL = """
create table ops.session_seal (secret bytea not null);
insert into ops.session_seal
select sha256(convert_to(string_agg(gen_random_uuid()::text, ''), 'UTF8')) from generate_series(1, 4);

create function ops.subject_seal(user_id integer) returns text
language sql stable security definer set search_path = pg_catalog as $$
    select encode(
        sha256(secret || sha256(secret || convert_to(user_id || ':' || pg_backend_pid(), 'UTF8'))), 'hex'
    )
    from ops.session_seal
$$;
revoke execute on function ops.subject_seal(integer) from public;

create function ops.seal_subject(user_id integer) returns text
language sql stable set search_path = pg_catalog as $$
    select user_id || ':' || ops.subject_seal(user_id)
$$;
revoke execute on function ops.seal_subject(integer) from public;

create function ops.subject_id() returns integer
language plpgsql stable security definer set search_path = pg_catalog as $$
declare
    said text := current_setting('health.user_id', true);
    id integer;
begin
    if said is null or said !~ '^[0-9]{1,9}:[0-9a-f]{64}$' then
        return null;
    end if;
    id := split_part(said, ':', 1)::integer;
    return case when split_part(said, ':', 2) = ops.subject_seal(id) then id end;
end
$$;
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
        -- In a subquery, so that it is asked once a statement and not once a row.
        execute format(
            'create policy subject_reads_own on %s for select to health_subject '
            'using (user_id = (select ops.subject_id()))', target);
    end if;
end
$$
"""

_ALTER_POLICIES = """
do $$
declare
    secured regclass;
begin
    for secured in select polrelid from pg_policy where polname = 'subject_reads_own' loop
        execute format('alter policy subject_reads_own on %s using (user_id = (select ops.subject_id()))', secured);
    end loop;
end
$$
"""


def upgrade() -> None:
    op.execute(_SEAL)
    op.execute(_SECURE_TABLE)
    op.execute(_ALTER_POLICIES)


def downgrade() -> None:
    raise NotImplementedError("the tables' policies go by the seal; drop schema health before going back")
