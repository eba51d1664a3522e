{#
  Which staged objects this run applies, and which it has applied.

  `health._applied_objects` has one row a staged object that went into every canonical table.
  `health._pending_objects` is the work of the present run: the staged objects that are not applied, and,
  where one of them was received before an applied object of the same series and days, those later ones
  again, so that what came later wins in whatever order it was loaded.
  `health._changed_metrics` and `health._changed_daily` are queues: the (user, day, metric) keys whose rows
  changed, for daily_metrics and for the engine.
#}

{% macro refresh_pending_objects() %}
{% if execute and flags.WHICH in ('run', 'build', 'test', 'seed') %}
{% set providers = [] %}
{% for source in graph.sources.values() if source.name == 'staged_objects' %}
    {% do providers.append(source.schema) %}
{% endfor %}

create schema if not exists health;
create schema if not exists health_internal;

create table if not exists health._applied_objects (
    provider text not null,
    raw_object_id bigint not null,
    load_id bigint not null,
    primary key (raw_object_id, load_id)
);
create table if not exists health._pending_objects (
    provider text not null,
    raw_object_id bigint not null,
    load_id bigint not null,
    user_id integer not null,
    entity text not null,
    received_at timestamptz not null,
    home_time_zone text,
    primary key (raw_object_id)
);
create table if not exists health._changed_metrics (
    change_id bigint generated always as identity primary key,
    user_id integer not null,
    local_date date not null,
    metric_type text not null,
    applied boolean not null default false
);
create table if not exists health._changed_daily (
    change_id bigint generated always as identity primary key,
    user_id integer not null,
    local_date date not null,
    metric_type text not null
);

delete from health._changed_metrics where applied;
truncate health._pending_objects;

{% if providers %}
{% set everything = flags.FULL_REFRESH or missing_canonical_tables() %}
insert into health._pending_objects
with staged as (
    {% for schema in providers %}
    select raw_object_id, max(load_id) as load_id
    from {{ schema }}.staged_objects
    {% if not everything %}
    where not exists (
        select from health._applied_objects as applied
        where applied.raw_object_id = staged_objects.raw_object_id
            and applied.load_id = staged_objects.load_id
    )
    {% endif %}
    group by raw_object_id
    {% if not loop.last %}union all{% endif %}
    {% endfor %}
),

pending as (
    select
        raw.provider,
        raw.raw_object_id,
        staged.load_id,
        subjects.user_id,
        raw.entity,
        raw.received_at,
        raw.subject_id,
        coalesce(raw.data_start_date, raw.partition_start) as first_day,
        coalesce(raw.data_end_date, raw.partition_end) as last_day
    from staged
    inner join ops.raw_objects as raw using (raw_object_id)
    inner join ops.subjects as subjects using (subject_id)
),

overtaken as (
    select distinct
        raw.provider,
        raw.raw_object_id,
        applied.load_id,
        pending.user_id,
        raw.entity,
        raw.received_at
    from pending
    inner join ops.raw_objects as raw
        on raw.subject_id = pending.subject_id
        and raw.provider = pending.provider
        and raw.entity = pending.entity
        and raw.received_at > pending.received_at
        and coalesce(raw.data_start_date, raw.partition_start) <= pending.last_day
        and coalesce(raw.data_end_date, raw.partition_end) >= pending.first_day
    inner join health._applied_objects as applied on applied.raw_object_id = raw.raw_object_id
)

select
    objects.provider,
    objects.raw_object_id,
    max(objects.load_id) as load_id,
    objects.user_id,
    objects.entity,
    objects.received_at,
    users.time_zone as home_time_zone
from (
    select provider, raw_object_id, load_id, user_id, entity, received_at from pending
    union all
    select provider, raw_object_id, load_id, user_id, entity, received_at from overtaken
) as objects
inner join ops.users as users on users.user_id = objects.user_id
group by
    objects.provider, objects.raw_object_id, objects.user_id, objects.entity, objects.received_at,
    users.time_zone;
analyze health._pending_objects;
{% endif %}
{% endif %}
{% endmacro %}


{# A canonical table that is not there has to be filled with everything, not with what is new. #}
{% macro missing_canonical_tables() %}
    {% for node in graph.nodes.values() if node.config.materialized == 'upsert_table' and node.config.applies_objects %}
        {% if not adapter.get_relation(target.database, node.schema, node.alias) %}
            {% do return(true) %}
        {% endif %}
    {% endfor %}
    {% do return(false) %}
{% endmacro %}


{# Only a run that built every canonical table has applied its objects. #}
{% macro mark_objects_applied(results) %}
{% if execute and flags.WHICH in ('run', 'build') %}
    {% set built = [] %}
    {% for result in results if result.status == 'success' %}
        {% do built.append(result.node.unique_id) %}
    {% endfor %}
    {% set state = namespace(complete=true) %}
    {% for node in graph.nodes.values() if node.config.materialized == 'upsert_table' and node.config.applies_objects %}
        {% if node.unique_id not in built %}{% set state.complete = false %}{% endif %}
    {% endfor %}
    {% if state.complete %}
insert into health._applied_objects (provider, raw_object_id, load_id)
select provider, raw_object_id, load_id from health._pending_objects
on conflict do nothing;
    {% else %}
select 1;
    {% endif %}
{% endif %}
{% endmacro %}


{# The rows of a staging table that belong to this run's objects, with whose they are and when they came. #}
{% macro pending_rows(provider, table) %}
    select
        staged.*,
        objects.user_id,
        objects.received_at,
        objects.home_time_zone
    from {{ source('staging_' ~ provider, table) }} as staged
    inner join health._pending_objects as objects
        on objects.provider = '{{ provider }}'
        and objects.raw_object_id = staged._raw_object_id
        and objects.load_id = staged._load_id
    {# Loads are appended in order: this bound lets the block-range index skip all earlier ones. #}
    where staged._load_id >= (
        select min(load_id) from health._pending_objects
        where provider = '{{ provider }}'
    )
{% endmacro %}
