{#-
  Days' sums are the vendor's own, which join the watch's minutes with what was typed in; the minutes of
  steps, distance and energy stay in staging, or days would count double.
-#}
{#- Measures by the vendor's number of their type. -#}
{%- set measures = {
    1: ('weight', 'kg'),
    4: ('height', 'm'),
    5: ('lean_mass', 'kg'),
    6: ('body_fat', '%'),
    8: ('fat_mass', 'kg'),
    9: ('blood_pressure_diastolic', 'mm[Hg]'),
    10: ('blood_pressure_systolic', 'mm[Hg]'),
    11: ('heart_rate', '/min'),
    12: ('body_temperature', 'Cel'),
    54: ('spo2', '%'),
    71: ('body_temperature', 'Cel'),
    73: ('skin_temperature', 'Cel'),
    76: ('muscle_mass', 'kg'),
    77: ('body_water', 'kg'),
    88: ('bone_mass', 'kg'),
    91: ('pulse_wave_velocity', 'm/s'),
    123: ('vo2_max', 'mL/(kg.min)'),
    155: ('vascular_age', 'a'),
    170: ('visceral_fat', '{score}'),
} -%}
{%- set daily = [
    ('steps', '{steps}', 'steps'),
    ('distance', 'm', 'distance_m'),
    ('floors', '{floors}', 'floors'),
    ('calories_burned', 'kcal', 'active_calories_kcal'),
    ('total_calories', 'kcal', 'total_calories_kcal'),
    ('active_minutes', 's', 'active_seconds'),
    ('average_heart_rate', '/min', 'hr_average_bpm'),
    ('max_heart_rate', '/min', 'hr_max_bpm'),
] -%}
{%- set nightly = [
    ('sleep_duration', 's', 'sleep_seconds'),
    ('time_in_bed', 's', 'total_timeinbed_seconds'),
    ('deep_sleep', 's', 'deepsleepduration_seconds'),
    ('light_sleep', 's', 'lightsleepduration_seconds'),
    ('rem_sleep', 's', 'remsleepduration_seconds'),
    ('awake_time', 's', 'wakeupduration_seconds'),
    ('sleep_latency', 's', 'sleep_latency_seconds'),
    ('sleep_efficiency', '1', 'sleep_efficiency_ratio'),
    ('sleep_score', '{score}', 'sleep_score'),
    ('resting_heart_rate', '/min', 'hr_min_bpm'),
    ('heart_rate_variability', 'ms', 'rmssd_average_ms'),
    ('respiratory_rate', '/min', 'rr_average_per_minute'),
] -%}
{%- set intraday = [
    ('heart_rate', '/min', 'heart_rate_bpm'),
    ('spo2', '%', 'spo2_percent'),
    ('heart_rate_variability_sample', 'ms', 'rmssd_ms'),
    ('heart_rate_variability_sdnn', 'ms', 'sdnn_ms'),
    ('body_temperature', 'Cel', 'core_body_temperature_celsius'),
] -%}
{%- set asleep = [
    ('heart_rate', '/min', 'heart_rate'),
    ('heart_rate_variability_sample', 'ms', 'rmssd'),
    ('heart_rate_variability_sdnn', 'ms', 'sdnn'),
] -%}

select
    measures.user_id,
    said.metric_type,
    (measures.value::numeric * 10::numeric ^ measures.unit::numeric)::double precision as source_value,
    said.source_unit,
    measures.source,
    measures.model as source_device,
    measures.measured_at as recorded_at,
    null::timestamptz as ended_at,
    measures.utc_offset_minutes,
    case when measures.utc_offset_minutes is not null then 'record' end as utc_offset_source,
    null::date as local_date,
    'measure ' || measures.group_id as source_record_id,
    null::jsonb as metadata,
    -- 1: taken by a device that other people use too, and perhaps not this person's.
    measures.attrib is not distinct from 1 as is_deleted,
    measures.home_time_zone,
    'measure group ' || measures.group_id as location,
    measures.raw_object_id,
    measures.received_at
from {{ ref('stg_withings__measure') }} as measures
inner join (
    values
    {% for number, (metric, unit) in measures.items() -%}
    ({{ number }}, '{{ metric }}', '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (measure_type, metric_type, source_unit) on said.measure_type = measures.measure_type
-- 2 is a goal. A value of a part of the body is not the body's.
where measures.category is distinct from 2
    and (measures.position = -1 or measures.measure_type in (9, 10, 11, 54, 71, 73))
union all
select
    days.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    days.source,
    days.model as source_device,
    coalesce(
        days.started_at, days.date::timestamp at time zone coalesce(days.home_time_zone, 'UTC')
    ) as recorded_at,
    coalesce(
        days.ended_at, (days.date + 1)::timestamp at time zone coalesce(days.home_time_zone, 'UTC')
    ) as ended_at,
    days.utc_offset_minutes,
    case when days.utc_offset_minutes is not null then 'record' end as utc_offset_source,
    days.date as local_date,
    'day ' || days.date as source_record_id,
    null::jsonb as metadata,
    said.source_value is null as is_deleted,
    days.home_time_zone,
    'day ' || days.date as location,
    days.raw_object_id,
    days.received_at
from (
    -- Where a day came of two devices, the vendor's own says it, not the echo of another service (brand 18).
    select distinct on (user_id, date, raw_object_id) *
    from {{ ref('stg_withings__activity') }}
    order by
        user_id asc, date asc, raw_object_id asc, is_tracker desc nulls last, brand asc nulls last,
        modified_at desc nulls last, device_id asc
) as days
cross join lateral (
    values
    {% for metric, unit, column in daily -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
union all
select
    nights.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    nights.source,
    null::text as source_device,
    nights.started_at as recorded_at,
    nights.ended_at,
    nights.utc_offset_minutes,
    case when nights.utc_offset_minutes is not null then 'record' end as utc_offset_source,
    nights.date as local_date,
    'sleep ' || nights.id as source_record_id,
    null::jsonb as metadata,
    nights.is_deleted or not nights.is_main_sleep or said.source_value is null as is_deleted,
    nights.home_time_zone,
    'sleep ' || nights.id as location,
    nights.raw_object_id,
    nights.received_at
from {{ ref('int_withings_sleeps') }} as nights
cross join lateral (
    values
    {% for metric, unit, column in nightly -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
union all
select
    samples.user_id,
    said.metric_type,
    samples.value as source_value,
    said.source_unit,
    samples.source,
    null::text as source_device,
    samples.recorded_at,
    null::timestamptz as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    null::date as local_date,
    'samples of sleep ' || samples.sleep_id as source_record_id,
    null::jsonb as metadata,
    -- What a device says when it found none.
    samples.value = 0 as is_deleted,
    samples.home_time_zone,
    'sleep ' || samples.sleep_id || ', sample at ' || {{ utc_text('samples.recorded_at') }} as location,
    samples.raw_object_id,
    samples.received_at
from {{ ref('stg_withings__sleep_sample') }} as samples
inner join (
    values
    {% for metric, unit, kind in asleep -%}
    ('{{ kind }}', '{{ metric }}', '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (kind, metric_type, source_unit) on said.kind = samples.kind
union all
select
    samples.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    samples.source,
    samples.model as source_device,
    samples.recorded_at,
    null::timestamptz as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    samples.home_time_zone,
    'sample at ' || {{ utc_text('samples.recorded_at') }} as location,
    samples.raw_object_id,
    samples.received_at
from {{ ref('stg_withings__intraday_activity') }} as samples
cross join lateral (
    values
    {% for metric, unit, column in intraday -%}
    ('{{ metric }}', {{ column }}, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
where said.source_value > 0
