{#-
  Days and their metrics: (metric, unit, staging column). A day that does not say a value (any more) still
  gives a row, marked as deleted, so that an earlier version's value goes. Steps, distance and active energy are
  the merged intervals, whose day sums are the app's; what comes as days only is read from the rollups.
-#}
{%- set daily = {
    'daily_resting_heart_rate': [('resting_heart_rate', '/min', 'bpm')],
    'daily_heart_rate_variability': [('heart_rate_variability', 'ms', 'rmssd_ms')],
    'daily_oxygen_saturation': [('spo2', '%', 'average_percent')],
    'daily_respiratory_rate': [('respiratory_rate', '/min', 'breaths_per_minute')],
    'daily_sleep_temperature_derivations': [
        ('skin_temperature', 'Cel', 'nightly_temperature_celsius'),
        (
            'body_temperature_deviation',
            'Cel',
            'round((nightly_temperature_celsius - baseline_temperature_celsius)::numeric, 4)',
        ),
    ],
    'daily_vo2_max': [('vo2_max', 'mL/(kg.min)', 'vo2_max_ml_per_kg_min')],
    'floors': [('floors', '{floors}', 'floors')],
    'total_calories': [('total_calories', 'kcal', 'energy_kcal')],
    'active_minutes': [('active_minutes', 'min', 'moderate_minutes + vigorous_minutes')],
    'active_zone_minutes': [
        ('active_zone_minutes', '{score}', 'fat_burn_minutes + cardio_minutes + peak_minutes'),
    ],
} -%}
{%- set samples = {
    'heart_rate': ('heart_rate', '/min', 'bpm'),
    'heart_rate_variability': ('heart_rate_variability_sample', 'ms', 'rmssd_ms'),
    'oxygen_saturation': ('spo2_sample', '%', 'percent'),
    'core_body_temperature': ('body_temperature', 'Cel', 'temperature_celsius'),
    'weight': ('weight', 'g', 'weight_g'),
    'body_fat': ('body_fat', '%', 'percent'),
    'height': ('height', 'cm', 'height_mm / 10.0'),
} -%}
{%- set intervals = {
    'steps': ('steps', '{steps}', 'steps'),
    'distance': ('distance', 'm', 'distance_mm / 1000.0'),
    'active_energy_burned': ('calories_burned', 'kcal', 'energy_kcal'),
} -%}
{#- Only the main sleep of a day; a nap's minutes are in its session. CLASSIC sleeps know no depths. -#}
{%- set nightly = [
    ('sleep_duration', 'min', 'asleep_minutes'),
    ('time_in_bed', 'min', 'sleep_period_minutes'),
    ('deep_sleep', 'min', "case when type = 'STAGES' then deep_minutes end"),
    ('light_sleep', 'min', "case when type = 'STAGES' then light_minutes end"),
    ('rem_sleep', 'min', "case when type = 'STAGES' then rem_minutes end"),
    ('awake_time', 'min', 'awake_minutes'),
    ('sleep_latency', 'min', 'to_fall_asleep_minutes'),
    ('sleep_efficiency', '%', '100.0 * asleep_minutes / nullif(sleep_period_minutes, 0)'),
] -%}

{% for table, metrics in daily.items() %}
select
    days.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    days.source,
    {{ 'days.device' if table.startswith('daily_') else 'null::text' }} as source_device,
    days.day::timestamp at time zone coalesce(days.home_time_zone, 'UTC') as recorded_at,
    (days.day + 1)::timestamp at time zone coalesce(days.home_time_zone, 'UTC') as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    days.day as local_date,
    '{{ table | replace('_', '-') }}/' || days.day as source_record_id,
    null::jsonb as metadata,
    said.source_value is null as is_deleted,
    days.home_time_zone,
    '{{ table }} of ' || days.day as location,
    days.raw_object_id,
    days.received_at
from {{ ref('stg_google_health__' ~ table) }} as days
cross join lateral (
    values
    {% for metric, unit, column in metrics -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
union all
{% endfor %}
{% for table, (metric, unit, column) in (samples.items() | list) + (intervals.items() | list) %}
select
    user_id,
    '{{ metric }}' as metric_type,
    ({{ column }})::double precision as source_value,
    '{{ unit }}' as source_unit,
    source,
    {{ 'device' if table in samples else 'null::text' }} as source_device,
    recorded_at,
    {{ 'null::timestamptz' if table in samples else 'ended_at' }} as ended_at,
    utc_offset_minutes,
    'record' as utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    ({{ column }}) is null as is_deleted,
    home_time_zone,
    '{{ table }} at ' || {{ utc_text('recorded_at') }} as location,
    raw_object_id,
    received_at
from {{ ref('stg_google_health__' ~ table) }}
union all
{% endfor %}
select
    nights.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    nights.source,
    null::text as source_device,
    nights.recorded_at,
    nights.ended_at,
    nights.utc_offset_minutes,
    'record' as utc_offset_source,
    -- The day the person woke up, where they woke up.
    {{ google_health_local_day('nights.ended_at', 'nights.end_utc_offset_minutes', 'nights.home_time_zone') }}
        as local_date,
    nights.id as source_record_id,
    null::jsonb as metadata,
    -- The wire leaves out what is false.
    nights.main_sleep is not true or said.source_value is null as is_deleted,
    nights.home_time_zone,
    'sleep ' || nights.id as location,
    nights.raw_object_id,
    nights.received_at
from {{ ref('stg_google_health__sleep') }} as nights
cross join lateral (
    values
    {% for metric, unit, column in nightly -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
