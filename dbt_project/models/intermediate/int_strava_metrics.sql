{#-
  Distance, climb and energy stay with the workouts: Strava knows nothing of the day around an activity, and
  their sum would pass for the day's total wherever no other source has one.
-#}
select
    user_id,
    'heart_rate' as metric_type,
    bpm as source_value,
    '/min' as source_unit,
    source,
    null::text as source_device,
    recorded_at,
    null::timestamptz as ended_at,
    utc_offset_minutes,
    case when utc_offset_minutes is not null then 'record' end as utc_offset_source,
    null::date as local_date,
    activity_id as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'activity ' || activity_id || ', sample at ' || {{ utc_text('recorded_at') }} as location,
    raw_object_id,
    received_at
from {{ ref('stg_strava__heart_rate_stream') }}
union all
-- In force since the profile was changed, as far as it says; 0 is a weight nobody entered.
select
    user_id,
    'weight' as metric_type,
    weight_kg as source_value,
    'kg' as source_unit,
    source,
    null::text as source_device,
    coalesce(updated_at, seen_at) as recorded_at,
    null::timestamptz as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'athlete' as location,
    raw_object_id,
    received_at
from {{ ref('stg_strava__athlete') }}
where weight_kg <> 0
