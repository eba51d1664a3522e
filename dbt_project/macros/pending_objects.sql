{#
  Which staged objects this run applies, and which it has applied.

  `health._applied_objects` has one row a staged object and load that went into every canonical table, and
  `health._applied_zones` the home zones they were applied with. `health._begun_objects` are those of runs that
  did not come to their end: some tables may have them.

  `health._pending_objects` is the work of the present run, one row an object. `receipt` is their order, and
  `standing` what is known of the table's rows of an object's keys:

    new        they come from objects received before this one, so this one's word is the newer
    late       some may come from objects received later; they are made anew from `late` and `context` objects
    replayed   some come from an earlier reading of the object itself; they are made anew, and what it does not
               say any more is removed
    context    applied before; what it says counts only for keys that a late or replayed object speaks of

  `health._changed_metrics` and `health._changed_daily` are queues: the (user, day, metric) keys whose rows
  changed, for daily_metrics and for the engine.
#}

{% macro refresh_pending_objects() %}
{% if execute and flags.WHICH in ('run', 'build', 'test', 'seed') %}
create schema if not exists health;
create schema if not exists health_internal;

create table if not exists health_internal._loaded_seeds (
    name text primary key,
    file text not null,
    content text not null
);
create table if not exists health._applied_objects (
    provider text not null,
    raw_object_id bigint not null,
    load_id bigint not null,
    user_id integer not null,
    entity text not null,
    received_at timestamptz not null,
    primary key (raw_object_id, load_id)
);
create index if not exists _applied_objects_load on health._applied_objects (provider, load_id);
create index if not exists _applied_objects_series
    on health._applied_objects (user_id, provider, entity, received_at, raw_object_id);
create table if not exists health._begun_objects (like health._applied_objects including all);
create table if not exists health._applied_zones (
    user_id integer primary key,
    home_time_zone text
);
create table if not exists health._applied_priorities (
    user_id integer,
    metric_type text not null,
    source text not null,
    priority integer not null
);
create table if not exists health._pending_objects (
    provider text not null,
    raw_object_id bigint not null,
    load_id bigint not null,
    user_id integer not null,
    entity text not null,
    received_at timestamptz not null,
    home_time_zone text,
    has_profile_zone boolean not null default false,
    receipt integer not null,
    standing text not null,
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
{{ find_pending_objects(flags.FULL_REFRESH or missing_canonical_tables()) }}
analyze health._pending_objects;
{% if flags.WHICH in ('run', 'build') %}
insert into health._begun_objects
select provider, raw_object_id, load_id, user_id, entity, received_at from health._pending_objects
where standing <> 'context'
on conflict do nothing;
{% endif %}
{{ queue_all_days_of_a_lost_table() }}
{% endif %}
{% endmacro %}


{#
  A late object is applied together with those of its series (user, provider, entity) on the days around it, so
  that all versions of what it speaks of are there. A revision may move a document to other days; by more than
  this many it never does.
#}
{% macro find_pending_objects(everything) %}
{%- set days_around = 14 -%}
{%- set series = "other.user_id = objects.user_id and other.provider = objects.provider and other.entity = objects.entity" -%}
insert into health._pending_objects
with staged as (
    select null::bigint as raw_object_id, null::bigint as load_id where false
    {% for source in graph.sources.values() if source.name == 'staged_objects' %}
    union all
    select raw_object_id, max(load_id) as load_id
    from {{ source.schema }}.staged_objects
    {% if not everything %}
    {# A provider's loads end in the order of their ids, and a run applies all there are: none is below this. #}
    where load_id > coalesce((
        select max(load_id) from health._applied_objects
        where provider = '{{ source.schema | replace("staging_", "", 1) }}'
    ), 0)
    {% endif %}
    group by raw_object_id
    {% endfor %}
    {% if not everything %}
    union all
    {# Of a user whose home zone is another now, everything: local days may be others. #}
    select applied.raw_object_id, applied.load_id
    from health._applied_objects as applied
    inner join health._applied_zones as zones using (user_id)
    inner join ops.users as users using (user_id)
    where zones.home_time_zone is distinct from users.time_zone
    {% endif %}
),

newest as (
    select raw_object_id, max(load_id) as load_id from staged group by raw_object_id
),

objects as (
    select
        raw.provider,
        raw.raw_object_id,
        newest.load_id,
        subjects.user_id,
        raw.entity,
        raw.received_at,
        coalesce(raw.data_start_date, raw.partition_start) as first_day,
        coalesce(raw.data_end_date, raw.partition_end) as last_day,
        (
            exists (select from health._applied_objects as other where other.raw_object_id = newest.raw_object_id)
            or exists (
                select from health._begun_objects as other
                where other.raw_object_id = newest.raw_object_id and other.load_id <> newest.load_id
            )
        ) as is_replayed,
        exists (
            select from health._begun_objects as other
            where other.raw_object_id = newest.raw_object_id and other.load_id = newest.load_id
        ) as is_begun
    from newest
    inner join ops.raw_objects as raw using (raw_object_id)
    inner join ops.subjects as subjects using (subject_id)
),

placed as (
    select
        objects.*,
        {{ 'true' if everything else 'bool_or(objects.is_replayed) over of_series' }} as is_remade,
        (
            exists (
                select from health._applied_objects as other
                where {{ series }}
                    and (other.received_at, other.raw_object_id) > (objects.received_at, objects.raw_object_id)
            )
            or not objects.is_begun and exists (
                select from health._begun_objects as other
                where {{ series }}
                    and (other.received_at, other.raw_object_id) > (objects.received_at, objects.raw_object_id)
            )
        ) as is_late
    from objects
    window of_series as (partition by objects.user_id, objects.provider, objects.entity)
),

remade as (
    select
        user_id,
        provider,
        entity,
        bool_or(is_remade) as is_whole,
        min(first_day) - {{ days_around }} as first_day,
        max(last_day) + {{ days_around }} as last_day
    from placed
    where is_remade or is_late
    group by user_id, provider, entity
),

around as (
    select
        other.provider,
        other.raw_object_id,
        max(other.load_id) as load_id,
        other.user_id,
        other.entity,
        other.received_at,
        case when objects.is_whole then 'replayed' else 'context' end as standing
    from remade as objects
    inner join health._applied_objects as other on {{ series }}
    inner join ops.raw_objects as raw on raw.raw_object_id = other.raw_object_id
    where
        (
            objects.is_whole
            or coalesce(raw.data_start_date, raw.partition_start) <= objects.last_day
            and coalesce(raw.data_end_date, raw.partition_end) >= objects.first_day
        )
        and not exists (select from newest where newest.raw_object_id = other.raw_object_id)
    group by
        other.provider, other.raw_object_id, other.user_id, other.entity, other.received_at, objects.is_whole
)

select
    found.provider,
    found.raw_object_id,
    found.load_id,
    found.user_id,
    found.entity,
    found.received_at,
    case when raw.context ->> 'zone_source' = 'profile' then raw.time_zone else users.time_zone end as home_time_zone,
    coalesce(raw.context ->> 'zone_source' = 'profile', false) as has_profile_zone,
    row_number() over (order by found.received_at, found.raw_object_id) as receipt,
    found.standing
from (
    select
        provider,
        raw_object_id,
        load_id,
        user_id,
        entity,
        received_at,
        case when is_remade then 'replayed' when is_late then 'late' else 'new' end as standing
    from placed
    union all
    select provider, raw_object_id, load_id, user_id, entity, received_at, standing from around
) as found
inner join ops.raw_objects as raw using (raw_object_id)
inner join ops.users as users using (user_id);
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


{# daily_metrics follows the queue of changes: made anew, it needs every day there is. #}
{% macro queue_all_days_of_a_lost_table() %}
{%- set metrics = adapter.get_relation(target.database, 'health', 'health_metrics') -%}
{%- set daily = adapter.get_relation(target.database, 'health', 'daily_metrics') -%}
{%- if metrics and (not daily or flags.FULL_REFRESH and flags.WHICH in ('run', 'build')) %}
insert into health._changed_metrics (user_id, local_date, metric_type)
select distinct user_id, local_date, metric_type from {{ metrics }};
{%- endif %}
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
insert into health._applied_objects (provider, raw_object_id, load_id, user_id, entity, received_at)
select provider, raw_object_id, load_id, user_id, entity, received_at from health._pending_objects
on conflict do nothing;
insert into health._applied_zones (user_id, home_time_zone)
select user_id, time_zone from ops.users where user_id in (select user_id from health._pending_objects)
on conflict (user_id) do update set home_time_zone = excluded.home_time_zone
where _applied_zones.home_time_zone is distinct from excluded.home_time_zone;
truncate health._begun_objects;
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
    {# The block-range index finds the loads; all others are skipped. #}
    where staged._load_id = any(array(
        select distinct load_id from health._pending_objects
        where provider = '{{ provider }}'
    ))
{% endmacro %}
