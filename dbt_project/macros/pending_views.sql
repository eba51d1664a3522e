{#
  Views over all providers, and the same over those alone that a run has objects of.

  The view is for people, for tests and for the lineage. A run reads `of_pending(view)`: to plan a query over the views
  of thirty providers takes Postgres half a second, and nearly all of them have nothing.

  Each macro gives one view's SQL. `beside` is none in the model itself; a run gives any relation of the same schema,
  by which the others are named: the lineage goes through the view (`depends_on`), not around it.
#}

{% macro metrics_unioned(beside=none) %}
{%- set columns = [
    'user_id', 'metric_type', 'source_value', 'source_unit', 'source', 'source_device', 'recorded_at',
    'ended_at', 'utc_offset_minutes', 'utc_offset_source', 'local_date', 'source_record_id', 'metadata',
    'is_deleted', 'home_time_zone', 'location', 'raw_object_id', 'received_at',
] -%}
{% if pending_among(var('glucose_providers'), beside) -%}
select * from {{ relation_named('int_glucose_metrics', beside) }}
union all
{% endif -%}
{{ union_without_deleted(var('metric_providers'), 'metrics', columns, beside) }}
{% endmacro %}


{% macro sleep_sessions_unioned(beside=none) %}
{%- set columns = [
    'user_id', 'source', 'source_record_id', 'started_at', 'ended_at', 'utc_offset_minutes',
    'end_utc_offset_minutes', 'local_date', 'sleep_type', 'is_main_sleep', 'time_in_bed_seconds',
    'sleep_seconds', 'deep_sleep_seconds', 'light_sleep_seconds', 'rem_sleep_seconds', 'awake_seconds',
    'latency_seconds', 'efficiency_percent', 'average_hrv_ms', 'lowest_heart_rate_bpm',
    'average_heart_rate_bpm', 'average_breath_per_minute', 'stages', 'is_deleted', 'raw_object_id',
    'received_at',
] -%}
{{ with_reason(union_without_deleted(var('sleep_providers'), 'sleep_sessions', columns, beside)) }}
{% endmacro %}


{% macro workouts_unioned(beside=none) %}
{%- set columns = [
    'user_id', 'source', 'source_record_id', 'started_at', 'ended_at', 'utc_offset_minutes', 'local_date',
    'activity', 'intensity', 'duration_seconds', 'calories_kcal', 'distance_m', 'average_heart_rate_bpm',
    'max_heart_rate_bpm', 'elevation_gain_m', 'perceived_exertion', 'is_deleted', 'raw_object_id', 'received_at',
] -%}
{{ with_reason(union_without_deleted(var('workout_providers'), 'workouts', columns, beside)) }}
{% endmacro %}


{# Nights or workouts, with the reason for quarantine where there is one: when they were cannot be true. #}
{% macro with_reason(sessions) %}
select
    sessions.*,
    case
        when is_deleted then null
        when started_at > received_at + interval '24 hours' then 'in_the_future'
        when started_at < timestamptz '1900-01-01 00:00:00+00' then 'before_1900'
        when ended_at < started_at then 'ends_before_it_begins'
    end as quarantine_reason
from (
    {{ sessions }}
) as sessions
{% endmacro %}


{# The nights, or the workouts, of a run. What a document says now and cannot be true replaces what it said by nothing. #}
{% macro accepted_sessions(view, measured) %}
    select
        user_id,
        source,
        source_record_id,
        {{ measured | join(',\n        ') }},
        is_deleted or quarantine_reason is not null as is_deleted,
        raw_object_id,
        received_at
    from {{ of_pending(view) }} as unioned
{% endmacro %}


{% macro metrics_validated(beside=none) %}
with metrics as (
    select * from {{ view_of('int_metrics_unioned', beside) }} as unioned
),

units as (
    select * from {{ relation_named('int_metric_units', beside) }}
),

converted as (
    select
        metrics.user_id,
        metrics.metric_type,
        metrics.source_value * units.factor + units.shift as metric_value,
        units.metric_unit,
        units.valid_min,
        units.valid_max,
        metrics.source_value,
        metrics.source_unit,
        metrics.source,
        metrics.source_device,
        metrics.recorded_at,
        metrics.ended_at,
        coalesce(
            metrics.utc_offset_minutes,
            {{ zone_offset_minutes('metrics.recorded_at', 'metrics.home_time_zone') }},
            0
        )::smallint as utc_offset_minutes,
        case
            when metrics.utc_offset_minutes is not null then metrics.utc_offset_source
            when metrics.home_time_zone is not null then {{ zone_source('metrics.raw_object_id') }}
            else 'assumed_utc'
        end as utc_offset_source,
        metrics.utc_offset_minutes as said_offset_minutes,
        coalesce(metrics.home_time_zone, 'UTC') as time_zone,
        metrics.local_date as said_date,
        metrics.source_record_id,
        metrics.metadata,
        metrics.is_deleted,
        metrics.location,
        metrics.raw_object_id,
        metrics.received_at
    from metrics
    left join units
        on units.metric_type = metrics.metric_type
        and units.source_unit = metrics.source_unit
)

select
    user_id,
    metric_type,
    metric_value,
    metric_unit,
    source_value,
    source_unit,
    source,
    source_device,
    recorded_at,
    ended_at,
    utc_offset_minutes,
    utc_offset_source,
    -- By the zone where the offset comes from it: the same day, and the offset need not be found twice.
    coalesce(
        said_date,
        case
            when said_offset_minutes is null then (recorded_at at time zone time_zone)::date
            else {{ local_day('recorded_at', 'said_offset_minutes') }}
        end
    ) as local_date,
    source_record_id,
    metadata,
    is_deleted,
    location,
    raw_object_id,
    received_at,
    case
        when is_deleted then null
        when metric_unit is null then 'unknown_unit'
        when metric_value is null or metric_value = 'nan' then 'missing_value'
        when metric_value < valid_min or metric_value > valid_max then 'out_of_range'
        when recorded_at > received_at + interval '24 hours' then 'in_the_future'
        when recorded_at < timestamptz '1900-01-01 00:00:00+00' then 'before_1900'
        -- daily_metrics looks for a day's rows within these bounds.
        when
            recorded_at < said_date::timestamp at time zone 'UTC' - interval '2 days'
            or recorded_at >= said_date::timestamp at time zone 'UTC' + interval '3 days'
            then 'far_from_its_day'
        when ended_at < recorded_at then 'ends_before_it_begins'
    end as quarantine_reason
from converted
{% endmacro %}


{#
  The provider's documents that this run's objects speak of, and the receipt at which they do so first: what
  they do not say any more is gone.
#}
{% macro documents_pending(beside=none) %}
select
    said.user_id,
    said.source,
    said.source_record_id,
    min(objects.receipt) as first_receipt
from {{ view_of('int_metrics_unioned', beside) }} as said
inner join {{ relation_named('int_objects_pending', beside) }} as objects using (raw_object_id)
where
    objects.standing <> 'context'
    and said.source_record_id is not null
group by said.user_id, said.source, said.source_record_id
{% endmacro %}


{# The nights, or the workouts, that this run's objects speak of. #}
{% macro sessions_pending(unioned, beside) %}
select distinct
    said.user_id,
    said.source,
    said.source_record_id
from {{ view_of(unioned, beside) }} as said
inner join {{ relation_named('int_objects_pending', beside) }} as objects using (raw_object_id)
where objects.standing <> 'context'
{% endmacro %}


{% macro sleep_sessions_pending(beside=none) %}{{ sessions_pending('int_sleep_sessions_unioned', beside) }}{% endmacro %}


{% macro workouts_pending(beside=none) %}{{ sessions_pending('int_workouts_unioned', beside) }}{% endmacro %}


{# The rows of one of these views that a run applies: of those providers only that have any. #}
{% macro of_pending(view) %}
    {%- set everything = ref(view) -%}
    {{ view_of(view, everything if applies_objects() else none) }}
{%- endmacro %}


{# A view, or, `beside` another, its SQL in its place. #}
{% macro view_of(view, beside=none) %}
    {%- set sql = {
        'int_metrics_unioned': metrics_unioned,
        'int_metrics_validated': metrics_validated,
        'int_documents_pending': documents_pending,
        'int_sleep_sessions_unioned': sleep_sessions_unioned,
        'int_sleep_sessions_pending': sleep_sessions_pending,
        'int_workouts_unioned': workouts_unioned,
        'int_workouts_pending': workouts_pending,
    }.get(view) -%}
    {%- if beside is none or not sql -%}{{ ref(view) }}{%- else -%}({{ sql(beside) }}){%- endif -%}
{%- endmacro %}


{# Whether this is a model of a run, which has objects to apply: not a test, not documentation. #}
{% macro applies_objects() %}
    {% do return(execute and flags.WHICH in ('run', 'build') and model.resource_type == 'model') %}
{% endmacro %}


{# Those of the providers that this run applies objects of; in the view itself, all. #}
{% macro pending_among(providers, beside=none) %}
    {% if beside is none %}
        {% do return(providers) %}
    {% endif %}
    {% set pending = run_query('select distinct provider from health._pending_objects').columns[0].values() %}
    {% do return(providers | select('in', pending) | list) %}
{% endmacro %}


{% macro relation_named(name, beside=none) %}
    {% do return(ref(name) if beside is none else beside.incorporate(path={'identifier': name}, type='view')) %}
{% endmacro %}
