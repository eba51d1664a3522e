select
    user_id,
    source,
    id as source_record_id,
    recorded_at as started_at,
    ended_at,
    {{ google_health_offset('recorded_at', 'utc_offset_minutes', 'home_time_zone') }} as utc_offset_minutes,
    {{ google_health_local_day('recorded_at', 'utc_offset_minutes', 'home_time_zone') }} as local_date,
    case exercise_type
        when 'BIKING' then 'cycling'
        when 'SWIMMING_POOL' then 'swimming'
        else lower(exercise_type)
    end as activity,
    null::text as intensity,
    coalesce(active_duration_seconds, extract(epoch from ended_at - recorded_at))::integer as duration_seconds,
    calories_kcal,
    distance_mm / 1000 as distance_m,
    average_heart_rate_bpm::double precision as average_heart_rate_bpm,
    null::double precision as max_heart_rate_bpm,
    elevation_gain_mm / 1000 as elevation_gain_m,
    null::double precision as perceived_exertion,
    false as is_deleted,
    raw_object_id,
    received_at
from {{ ref('stg_google_health__exercise') }}
