select
    user_id,
    source,
    id as source_record_id,
    recorded_at as started_at,
    ended_at,
    utc_offset_minutes,
    {{ local_day('recorded_at', 'coalesce(utc_offset_minutes, '
        ~ zone_offset_minutes('recorded_at', 'home_time_zone') ~ ', 0)') }} as local_date,
    activity,
    null::text as intensity,
    extract(epoch from ended_at - recorded_at)::integer as duration_seconds,
    coalesce(net_activity_kcal, total_burned_kcal) as calories_kcal,
    distance_m,
    average_heart_rate_bpm,
    max_heart_rate_bpm,
    elevation_gain_m,
    null::double precision as perceived_exertion,
    upload_type is not distinct from 4 as is_deleted,
    raw_object_id,
    received_at
from {{ ref('stg_terra__activity') }}
