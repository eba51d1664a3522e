{#-
  Documents and their metrics: (metric, unit, staging column). A document that does not say a value (any more),
  or is not scored (yet), still gives a row, marked as deleted, so that an earlier version's value goes.

  The day is the one the person woke up on. A cycle begins with falling asleep and does not say when that sleep
  ended: whoever falls asleep after 18:00 wakes up the day after.
-#}
{%- set documents = {
    'cycle': [
        ('strain_score', '{score}', 'strain'),
        ('total_calories', 'kJ', 'kilojoule'),
        ('average_heart_rate', '/min', 'average_heart_rate_bpm'),
        ('max_heart_rate', '/min', 'max_heart_rate_bpm'),
    ],
    'recovery': [
        ('recovery_score', '{score}', 'recovery_score_percent'),
        ('resting_heart_rate', '/min', 'resting_heart_rate_bpm'),
        ('heart_rate_variability', 'ms', 'hrv_rmssd_ms'),
        ('spo2', '%', 'spo2_percent'),
        ('skin_temperature', 'Cel', 'skin_temperature_celsius'),
    ],
    'sleep': [
        (
            'sleep_duration', 's',
            '(total_light_sleep_time_milli + total_slow_wave_sleep_time_milli + total_rem_sleep_time_milli) / 1000.0',
        ),
        ('time_in_bed', 's', 'total_in_bed_time_milli / 1000.0'),
        ('deep_sleep', 's', 'total_slow_wave_sleep_time_milli / 1000.0'),
        ('light_sleep', 's', 'total_light_sleep_time_milli / 1000.0'),
        ('rem_sleep', 's', 'total_rem_sleep_time_milli / 1000.0'),
        ('awake_time', 's', 'total_awake_time_milli / 1000.0'),
        ('sleep_efficiency', '%', 'sleep_efficiency_percent'),
        ('respiratory_rate', '/min', 'respiratory_rate_per_minute'),
        ('sleep_score', '{score}', 'sleep_performance_percent'),
    ],
} -%}
{%- set day_ends = {
    'cycle': "(documents.started_at + interval '6 hours')",
    'recovery': 'documents.ended_at',
    'sleep': 'documents.ended_at',
} -%}

{% for table, metrics in documents.items() %}
{%- set document_id = "'recovery:' || documents.sleep_id" if table == 'recovery' else 'documents.id' %}
select
    documents.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    documents.source,
    null::text as source_device,
    {% if table == 'recovery' -%}
    -- One whose sleep is not known is of the time it was made, in the morning.
    coalesce(documents.started_at, documents.created_at) as recorded_at,
    {%- else -%}
    documents.started_at as recorded_at,
    {%- endif %}
    documents.ended_at,
    documents.utc_offset_minutes,
    case when documents.utc_offset_minutes is not null then 'record' end as utc_offset_source,
    {{ local_day(day_ends[table], 'documents.utc_offset_minutes') }} as local_date,
    {{ document_id }} as source_record_id,
    {% if table == 'recovery' -%}
    case when documents.user_calibrating then jsonb_build_object('user_calibrating', true) end as metadata,
    {%- else -%}
    null::jsonb as metadata,
    {%- endif %}
    (
        documents.score_state <> 'SCORED'
        {%- if table == 'sleep' %}
        or documents.nap
        {%- endif %}
        or said.source_value is null
    ) as is_deleted,
    documents.home_time_zone,
    '{{ table }} ' || {{ document_id if table != 'recovery' else 'documents.sleep_id' }} as location,
    documents.raw_object_id,
    documents.received_at
from {{ ref('stg_whoop__' ~ table) }} as documents
cross join lateral (
    values
    {% for metric, unit, column in metrics -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
union all
{% endfor %}
-- The profile's height and weight have no time of their own: they count from when they were first seen.
select
    bodies.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    bodies.source,
    null::text as source_device,
    bodies.seen_at as recorded_at,
    null::timestamptz as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    bodies.home_time_zone,
    'body measurement' as location,
    bodies.raw_object_id,
    bodies.received_at
from {{ ref('stg_whoop__body_measurement') }} as bodies
cross join lateral (
    values
    ('height', bodies.height_m, 'm'),
    ('weight', bodies.weight_kg, 'kg')
) as said (metric_type, source_value, source_unit)
where said.source_value is not null
