with staged as (
    {{ pending_rows('oura', 'workout') }}
)

select
    user_id,
    'oura' as source,
    id,
    day,
    start_datetime,
    end_datetime,
    utc_offset_minutes,
    end_utc_offset_minutes,
    activity,
    intensity,
    -- How Oura came to know of it: manual, autodetected, confirmed, workout_heart_rate.
    source as detected_by,
    label,
    calories_kcal,
    distance_m,
    home_time_zone,
    _raw_object_id as raw_object_id,
    received_at
from staged
