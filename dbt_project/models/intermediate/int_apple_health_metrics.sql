{#-
  Records that begin in the same second are told apart by microseconds, in the order of their devices, ends and
  values: the key of health_metrics has one row an instant, and neither the phone's steps nor the watch's may go.
  What is there twice with everything equal is one row.
-#}
{%- set nightly = [
    ('sleep_duration', 's', 'sleep_seconds'),
    ('time_in_bed', 's', 'time_in_bed_seconds'),
    ('deep_sleep', 's', 'deep_sleep_seconds'),
    ('light_sleep', 's', 'light_sleep_seconds'),
    ('rem_sleep', 's', 'rem_sleep_seconds'),
    ('awake_time', 's', 'awake_seconds'),
    ('sleep_latency', 's', 'latency_seconds'),
    ('sleep_efficiency', '%', 'efficiency_percent'),
] -%}
select
    records.user_id,
    records.metric_type,
    records.value as source_value,
    records.unit as source_unit,
    records.source,
    records.device as source_device,
    records.recorded_at + interval '1 microsecond' * (records.place - 1) as recorded_at,
    records.ended_at,
    records.offset_minutes as utc_offset_minutes,
    records.offset_source as utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    case when records.is_user_entered then '{"user_entered": true}'::jsonb end as metadata,
    false as is_deleted,
    records.home_time_zone,
    'line ' || records.line as location,
    records.raw_object_id,
    records.received_at
-- Constants stay outside: who asks for records with an id of their own knows then that there are none here.
from (
    select
        records.*,
        {{ apple_health_offset('records', 'away', 'records.recorded_at') }} as offset_minutes,
        {{ apple_health_offset_source('records', 'away') }} as offset_source,
        dense_rank() over (
            -- The instant first: what it does not tell apart is little.
            partition by records.recorded_at, records.metric_type collate "C", records.raw_object_id
            order by records.device collate "C", records.ended_at, records.value, records.unit collate "C"
        ) as place
    from {{ ref('stg_apple_health__records') }} as records
    {{ join_away('records', 'away', 'records.recorded_at') }}
    where not records.is_sensor
) as records
union all
select
    nights.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    nights.source,
    left(nights.source_record_id, -28) as source_device,
    nights.started_at as recorded_at,
    nights.ended_at,
    nights.utc_offset_minutes,
    'record' as utc_offset_source,
    nights.local_date,
    nights.source_record_id,
    null::jsonb as metadata,
    not nights.is_main_sleep or said.source_value is null as is_deleted,
    null::text as home_time_zone,
    'sleep ' || nights.source_record_id as location,
    nights.raw_object_id,
    nights.received_at
from {{ ref('int_apple_health_sleep_sessions') }} as nights
cross join lateral (
    values
    {% for metric, unit, column in nightly -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
