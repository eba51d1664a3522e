select
    user_id,
    source,
    id as source_record_id,
    start_datetime as started_at,
    end_datetime as ended_at,
    utc_offset_minutes,
    {{ local_day('start_datetime', 'utc_offset_minutes') }} as local_date,
    activity,
    intensity,
    extract(epoch from end_datetime - start_datetime)::integer as duration_seconds,
    calories_kcal,
    distance_m,
    null::double precision as average_heart_rate_bpm,
    false as is_deleted,
    raw_object_id,
    received_at
from {{ ref('stg_oura__workout') }}
