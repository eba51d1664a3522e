{#-
  Records and their metrics: (metric, unit, staging column). A record that does not say a value (any more)
  still gives a row, marked as deleted, so that an earlier version's value goes.

  Of steps, distance and energy the day's totals count: the samples within a day are cumulative, and makers
  give them or not. Means are taken only from records that hold no samples of the same.
-#}
{%- set records = {
    'daily': [
        ('steps', '{steps}', 'steps'),
        ('distance', 'm', 'distance_m'),
        ('floors', '{floors}', 'floors_climbed'),
        ('elevation_gain', 'm', 'elevation_gain_m'),
        ('calories_burned', 'kcal', 'net_activity_kcal'),
        ('total_calories', 'kcal', 'total_burned_kcal'),
        ('basal_calories', 'kcal', 'basal_kcal'),
        (
            'active_minutes', 's',
            'coalesce(moderate_intensity_seconds + vigorous_intensity_seconds, moderate_intensity_seconds, '
            ~ 'vigorous_intensity_seconds)'
        ),
        ('average_heart_rate', '/min', 'average_heart_rate_bpm'),
        ('max_heart_rate', '/min', 'max_heart_rate_bpm'),
        ('resting_heart_rate', '/min', 'resting_heart_rate_bpm'),
        ('heart_rate_variability_sdnn', 'ms', 'case when hrv_sdnn_samples = 0 then average_hrv_sdnn_ms end'),
        ('spo2', '%', 'case when spo2_samples = 0 then average_spo2_percent end'),
        ('vo2_max', 'mL/(kg.min)', 'case when vo2_max_samples = 0 then vo2_max end'),
        ('stress_score', '{score}', 'average_stress_level'),
        ('stress_high_time', 's', 'high_stress_seconds'),
        ('activity_score', '{score}', 'activity_score'),
        ('recovery_score', '{score}', 'recovery_score'),
        ('sleep_score', '{score}', 'sleep_score'),
        ('strain_score', '{score}', 'strain_level'),
    ],
    'body': [
        ('vo2_max', 'mL/(kg.min)', 'case when vo2_max_samples = 0 then vo2_max end'),
        ('hydration', 'mL', 'water_ml'),
    ],
} -%}
{%- set nightly = [
    ('sleep_duration', 's', 'asleep_seconds'),
    ('time_in_bed', 's', 'coalesce(in_bed_seconds, extract(epoch from nights.ended_at - nights.recorded_at))'),
    ('deep_sleep', 's', 'deep_sleep_seconds'),
    ('light_sleep', 's', 'light_sleep_seconds'),
    ('rem_sleep', 's', 'rem_sleep_seconds'),
    ('awake_time', 's', 'awake_seconds'),
    ('sleep_latency', 's', 'latency_seconds'),
    ('sleep_efficiency', '%', 'efficiency_percent'),
    ('resting_heart_rate', '/min', 'resting_heart_rate_bpm'),
    ('heart_rate_variability', 'ms', 'average_hrv_rmssd_ms'),
    ('heart_rate_variability_sdnn', 'ms', 'case when hrv_sdnn_samples = 0 then average_hrv_sdnn_ms end'),
    ('respiratory_rate', '/min', 'average_breaths_per_minute'),
    ('spo2', '%', 'case when spo2_samples = 0 then average_spo2_percent end'),
    ('body_temperature_deviation', 'Cel', 'temperature_deviation_celsius'),
    ('sleep_score', '{score}', 'sleep_score'),
    ('readiness_score', '{score}', 'readiness_score'),
] -%}
{#-
  Samples by kind: (metric, unit). What is measured now and then goes with the record that held it. Days, nights
  and workouts hold parts of the same series: those have no record of their own.
-#}
{%- set measured = {
    'weight_kg': ('weight', 'kg'),
    'height_cm': ('height', 'cm'),
    'body_fat_percent': ('body_fat', '%'),
    'bmi': ('bmi', 'kg/m2'),
    'bone_mass_g': ('bone_mass', 'g'),
    'muscle_mass_g': ('muscle_mass', 'g'),
    'lean_mass_g': ('lean_mass', 'g'),
    'visceral_fat_level': ('visceral_fat', '{score}'),
    'blood_pressure_systolic': ('blood_pressure_systolic', 'mm[Hg]'),
    'blood_pressure_diastolic': ('blood_pressure_diastolic', 'mm[Hg]'),
    'body_temperature': ('body_temperature', 'Cel'),
    'skin_temperature': ('skin_temperature', 'Cel'),
} -%}
{%- set series = {
    'heart_rate': ('heart_rate', '/min'),
    'hrv_rmssd': ('heart_rate_variability_sample', 'ms'),
    'hrv_sdnn': ('heart_rate_variability_sdnn', 'ms'),
    'spo2': ('spo2', '%'),
    'vo2_max': ('vo2_max', 'mL/(kg.min)'),
    'body_battery': ('energy_score', '{score}'),
} -%}

{% for table, metrics in records.items() %}
select
    documents.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    documents.source,
    documents.device as source_device,
    documents.recorded_at,
    documents.ended_at,
    documents.utc_offset_minutes,
    'record' as utc_offset_source,
    documents.day as local_date,
    documents.id as source_record_id,
    null::jsonb as metadata,
    said.source_value is null
    {%- if table == 'daily' %} or documents.upload_type is not distinct from 4{% endif %} as is_deleted,
    documents.home_time_zone,
    'record ' || documents.id as location,
    documents.raw_object_id,
    documents.received_at
from {{ ref('stg_terra__' ~ table) }} as documents
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
    nights.device as source_device,
    nights.recorded_at,
    nights.ended_at,
    nights.utc_offset_minutes,
    'record' as utc_offset_source,
    -- The day the person woke up, where they woke up.
    {{ local_day('nights.ended_at', 'coalesce(nights.end_utc_offset_minutes, '
        ~ zone_offset_minutes('nights.ended_at', 'nights.home_time_zone') ~ ', 0)') }} as local_date,
    nights.id as source_record_id,
    null::jsonb as metadata,
    coalesce(nights.is_nap, false) or said.source_value is null as is_deleted,
    nights.home_time_zone,
    'record ' || nights.id as location,
    nights.raw_object_id,
    nights.received_at
from {{ ref('stg_terra__sleep') }} as nights
cross join lateral (
    values
    {% for metric, unit, column in nightly -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
union all
select
    samples.user_id,
    kinds.metric_type,
    samples.value as source_value,
    kinds.source_unit,
    samples.source,
    samples.device as source_device,
    samples.recorded_at,
    null::timestamptz as ended_at,
    samples.utc_offset_minutes,
    'record' as utc_offset_source,
    null::date as local_date,
    case when kinds.is_of_record then samples.document_id end as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    samples.home_time_zone,
    'record ' || samples.document_id || ', sample at ' || {{ utc_text('samples.recorded_at') }} as location,
    samples.raw_object_id,
    samples.received_at
from {{ ref('stg_terra__sample') }} as samples
inner join (
    values
    {% for kind, (metric, unit) in measured.items() -%}
    ('{{ kind }}', '{{ metric }}', '{{ unit }}', true),
    {% endfor -%}
    {% for kind, (metric, unit) in series.items() -%}
    ('{{ kind }}', '{{ metric }}', '{{ unit }}', false){{ ',' if not loop.last }}
    {% endfor -%}
) as kinds (kind, metric_type, source_unit, is_of_record)
    on kinds.kind = samples.kind
