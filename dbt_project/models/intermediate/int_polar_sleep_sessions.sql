select
    user_id,
    source,
    date::text as source_record_id,
    started_at,
    ended_at,
    utc_offset_minutes,
    end_utc_offset_minutes,
    date as local_date,
    null::text as sleep_type,
    -- Polar keeps one sleep a date.
    true as is_main_sleep,
    extract(epoch from ended_at - started_at)::integer as time_in_bed_seconds,
    (
        coalesce(light_sleep_seconds, 0) + coalesce(deep_sleep_seconds, 0) + coalesce(rem_sleep_seconds, 0)
        + coalesce(unrecognized_sleep_stage_seconds, 0)
    )::integer as sleep_seconds,
    deep_sleep_seconds::integer as deep_sleep_seconds,
    light_sleep_seconds::integer as light_sleep_seconds,
    rem_sleep_seconds::integer as rem_sleep_seconds,
    total_interruption_duration_seconds::integer as awake_seconds,
    null::integer as latency_seconds,
    null::double precision as efficiency_percent,
    null::double precision as average_hrv_ms,
    lowest_heart_rate_bpm,
    null::double precision as average_heart_rate_bpm,
    null::double precision as average_breath_per_minute,
    stages::jsonb as stages,
    false as is_deleted,
    raw_object_id,
    received_at
from {{ ref('stg_polar__sleep') }}
