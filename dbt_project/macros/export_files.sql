{#
  Of the kinds of files that have one staging shape (see health_pipeline/providers/_export_records.py): canonical
  rows of their values, nights, workouts and glucose.
#}

{#
  Values that several devices have of the same instant are told apart by microseconds, in the order of their
  devices and ends: the key of health_metrics has one row an instant. A night's values are of the main sleep.
#}
{% macro export_metrics(provider) %}
{%- set nightly = [
    ('sleep_duration', 's', 'sleep_seconds'),
    ('time_in_bed', 's', 'time_in_bed_seconds'),
    ('deep_sleep', 's', 'deep_sleep_seconds'),
    ('light_sleep', 's', 'light_sleep_seconds'),
    ('rem_sleep', 's', 'rem_sleep_seconds'),
    ('awake_time', 's', 'awake_seconds'),
    ('sleep_latency', 's', 'latency_seconds'),
    ('sleep_efficiency', '%', 'efficiency_percent'),
    ('sleep_score', '{score}', 'sleep_score'),
    ('spo2', '%', 'average_spo2_percent'),
    ('respiratory_rate', '/min', 'average_breath_per_minute'),
] -%}
select
    user_id,
    metric_type,
    value as source_value,
    unit as source_unit,
    source,
    device as source_device,
    case
        when record_id is not null then recorded_at
        else recorded_at + interval '1 microsecond' * (
            dense_rank() over (
                partition by raw_object_id, record_id is null, metric_type collate "C", recorded_at
                order by device collate "C", ended_at
            ) - 1
        )
    end as recorded_at,
    ended_at,
    utc_offset_minutes,
    utc_offset_source,
    local_date,
    record_id as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    location,
    raw_object_id,
    received_at
from {{ ref('stg_' ~ provider ~ '__records') }}
-- A sensor's glucose comes by the readings.
where metric_type <> 'glucose'
union all
select
    nights.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    nights.source,
    nights.device as source_device,
    nights.started_at as recorded_at,
    nights.ended_at,
    nights.utc_offset_minutes,
    'record' as utc_offset_source,
    coalesce(
        nights.local_date,
        {{ local_day(
            'nights.ended_at',
            'coalesce(nights.end_utc_offset_minutes, ' ~ zone_offset_minutes('nights.ended_at', 'nights.home_time_zone') ~ ', 0)'
        ) }}
    ) as local_date,
    'sleep ' || nights.sleep_id as source_record_id,
    null::jsonb as metadata,
    said.source_value is null or not nights.is_main_sleep as is_deleted,
    nights.home_time_zone,
    nights.location,
    nights.raw_object_id,
    nights.received_at
from {{ ref('stg_' ~ provider ~ '__sleep_sessions') }} as nights
cross join lateral (
    values
    {% for metric, unit, column in nightly -%}
    ('{{ metric }}', nights.{{ column }}::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
{% endmacro %}


{% macro export_sleep_sessions(provider) %}
with sleeps as (
    select
        *,
        coalesce(utc_offset_minutes, {{ zone_offset_minutes('started_at', 'home_time_zone') }}, 0)::smallint as begin_offset,
        coalesce(end_utc_offset_minutes, {{ zone_offset_minutes('ended_at', 'home_time_zone') }}, 0)::smallint as end_offset
    from {{ ref('stg_' ~ provider ~ '__sleep_sessions') }}
)

select
    user_id,
    source,
    sleep_id as source_record_id,
    started_at,
    ended_at,
    begin_offset as utc_offset_minutes,
    end_offset as end_utc_offset_minutes,
    coalesce(local_date, {{ local_day('ended_at', 'end_offset') }}) as local_date,
    sleep_type,
    is_main_sleep,
    time_in_bed_seconds,
    sleep_seconds,
    deep_sleep_seconds,
    light_sleep_seconds,
    rem_sleep_seconds,
    awake_seconds,
    latency_seconds,
    efficiency_percent,
    null::double precision as average_hrv_ms,
    null::double precision as lowest_heart_rate_bpm,
    null::double precision as average_heart_rate_bpm,
    average_breath_per_minute,
    stages::jsonb as stages,
    false as is_deleted,
    raw_object_id,
    received_at
from sleeps
{% endmacro %}


{% macro export_workouts(provider) %}
with workouts as (
    select
        *,
        coalesce(utc_offset_minutes, {{ zone_offset_minutes('started_at', 'home_time_zone') }}, 0)::smallint as begin_offset
    from {{ ref('stg_' ~ provider ~ '__workouts') }}
)

select
    user_id,
    source,
    workout_id as source_record_id,
    started_at,
    ended_at,
    begin_offset as utc_offset_minutes,
    {{ local_day('started_at', 'begin_offset') }} as local_date,
    activity,
    null::text as intensity,
    duration_seconds::integer as duration_seconds,
    calories_kcal,
    distance_m,
    average_heart_rate_bpm,
    max_heart_rate_bpm,
    elevation_gain_m,
    null::double precision as perceived_exertion,
    false as is_deleted,
    raw_object_id,
    received_at
from workouts
{% endmacro %}


{% macro export_readings(provider) %}
select
    user_id,
    source,
    device as source_device,
    null::text as source_record_id,
    false as is_deleted,
    case metric_type when 'glucose' then 'cgm' else 'strip' end as reading_type,
    value as source_value,
    unit as source_unit,
    value::text as value_text,
    null::text as censored,
    null::text as trend,
    null::double precision as source_trend_rate,
    recorded_at,
    utc_offset_minutes,
    utc_offset_source,
    false as ambiguous_time,
    location,
    home_time_zone,
    raw_object_id,
    received_at
from {{ ref('stg_' ~ provider ~ '__records') }}
where metric_type in ('glucose', 'blood_glucose')
{% endmacro %}
