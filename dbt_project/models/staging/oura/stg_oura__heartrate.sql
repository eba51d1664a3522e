with staged as (
    {{ pending_rows('oura', 'heartrate') }}
)

select
    user_id,
    'oura' as source,
    -- What the ring was doing: awake, rest, sleep, workout, live, session.
    source as context,
    timestamp,
    utc_offset_minutes,
    bpm,
    home_time_zone,
    _raw_object_id as raw_object_id,
    received_at
from staged
