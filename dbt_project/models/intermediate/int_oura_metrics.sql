{#-
  Documents and their metrics: (metric, unit, staging column). A document that does not say a value (any
  more) still gives a row, marked as deleted, so that an earlier version's value goes.
-#}
{%- set daily = {
    'daily_activity': [
        ('steps', '{steps}', 'steps'),
        ('distance', 'm', 'equivalent_walking_distance_m'),
        ('calories_burned', 'kcal', 'active_calories_kcal'),
        ('total_calories', 'kcal', 'total_calories_kcal'),
        ('active_minutes', 's', 'high_activity_time_seconds + medium_activity_time_seconds'),
        ('sedentary_time', 's', 'sedentary_time_seconds'),
        ('activity_score', '{score}', 'score'),
    ],
    'daily_readiness': [
        ('readiness_score', '{score}', 'score'),
        ('body_temperature_deviation', 'Cel', 'temperature_deviation_celsius'),
    ],
    'daily_sleep': [('sleep_score', '{score}', 'score')],
    'daily_spo2': [('spo2', '%', 'spo2_percentage_average')],
    'daily_stress': [
        ('stress_high_time', 's', 'stress_high_seconds'),
        ('recovery_high_time', 's', 'recovery_high_seconds'),
    ],
    'daily_cardiovascular_age': [
        ('vascular_age', 'a', 'vascular_age_years'),
        ('pulse_wave_velocity', 'm/s', 'pulse_wave_velocity_m_per_s'),
    ],
    'vo2_max': [('vo2_max', 'mL/(kg.min)', 'vo2_max_ml_per_kg_min')],
} -%}
{%- set stamped = ['daily_activity', 'daily_readiness', 'daily_sleep', 'vo2_max'] -%}
{%- set nightly = [
    ('sleep_duration', 's', 'total_sleep_duration_seconds'),
    ('time_in_bed', 's', 'time_in_bed_seconds'),
    ('deep_sleep', 's', 'deep_sleep_duration_seconds'),
    ('light_sleep', 's', 'light_sleep_duration_seconds'),
    ('rem_sleep', 's', 'rem_sleep_duration_seconds'),
    ('awake_time', 's', 'awake_time_seconds'),
    ('sleep_latency', 's', 'latency_seconds'),
    ('sleep_efficiency', '%', 'efficiency'),
    ('resting_heart_rate', '/min', 'lowest_heart_rate_bpm'),
    ('heart_rate_variability', 'ms', 'average_hrv_ms'),
    ('respiratory_rate', '/min', 'average_breath_per_minute'),
] -%}

{% for table, metrics in daily.items() %}
select
    documents.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    documents.source,
    null::text as source_device,
    {% if table in stamped -%}
    documents.timestamp as recorded_at,
    documents.timestamp + interval '1 day' as ended_at,
    documents.utc_offset_minutes,
    'record' as utc_offset_source,
    {%- else -%}
    -- A day without an instant of its own starts at the midnight of the person's home.
    documents.day::timestamp at time zone coalesce(documents.home_time_zone, 'UTC') as recorded_at,
    (documents.day + 1)::timestamp at time zone coalesce(documents.home_time_zone, 'UTC') as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    {%- endif %}
    documents.day as local_date,
    documents.id as source_record_id,
    null::jsonb as metadata,
    said.source_value is null as is_deleted,
    documents.home_time_zone,
    'document ' || documents.id as location,
    documents.raw_object_id,
    documents.received_at
from {{ ref('stg_oura__' ~ table) }} as documents
cross join lateral (
    values
    {% for metric, unit, column in metrics -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
union all
{% endfor %}
select
    nights.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    nights.source,
    null::text as source_device,
    nights.bedtime_start as recorded_at,
    nights.bedtime_end as ended_at,
    nights.utc_offset_minutes,
    'record' as utc_offset_source,
    -- The day the person woke up, where they woke up.
    {{ local_day('nights.bedtime_end', 'nights.end_utc_offset_minutes') }} as local_date,
    nights.id as source_record_id,
    null::jsonb as metadata,
    nights.type is distinct from 'long_sleep' or said.source_value is null as is_deleted,
    nights.home_time_zone,
    'document ' || nights.id as location,
    nights.raw_object_id,
    nights.received_at
from {{ ref('stg_oura__sleep') }} as nights
cross join lateral (
    values
    {% for metric, unit, column in nightly -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
union all
select
    user_id,
    'heart_rate_variability_sample' as metric_type,
    value as source_value,
    'ms' as source_unit,
    source,
    null::text as source_device,
    recorded_at,
    null::timestamptz as ended_at,
    utc_offset_minutes,
    'record' as utc_offset_source,
    null::date as local_date,
    sleep_id as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'document ' || sleep_id || ', sample at ' || {{ utc_text('recorded_at') }} as location,
    raw_object_id,
    received_at
from {{ ref('stg_oura__sleep_sample') }}
where kind = 'hrv'
union all
select
    user_id,
    'heart_rate' as metric_type,
    bpm::double precision as source_value,
    '/min' as source_unit,
    source,
    null::text as source_device,
    timestamp as recorded_at,
    null::timestamptz as ended_at,
    utc_offset_minutes,
    null::text as utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'sample at ' || {{ utc_text('timestamp') }} as location,
    raw_object_id,
    received_at
from {{ ref('stg_oura__heartrate') }}
