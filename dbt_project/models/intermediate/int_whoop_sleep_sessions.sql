select
    user_id,
    source,
    id as source_record_id,
    started_at,
    ended_at,
    utc_offset_minutes,
    utc_offset_minutes as end_utc_offset_minutes,
    {{ local_day('ended_at', 'utc_offset_minutes') }} as local_date,
    case when nap then 'nap' else 'sleep' end as sleep_type,
    not nap as is_main_sleep,
    round(total_in_bed_time_milli / 1000.0)::integer as time_in_bed_seconds,
    round(
        (total_light_sleep_time_milli + total_slow_wave_sleep_time_milli + total_rem_sleep_time_milli) / 1000.0
    )::integer as sleep_seconds,
    round(total_slow_wave_sleep_time_milli / 1000.0)::integer as deep_sleep_seconds,
    round(total_light_sleep_time_milli / 1000.0)::integer as light_sleep_seconds,
    round(total_rem_sleep_time_milli / 1000.0)::integer as rem_sleep_seconds,
    round(total_awake_time_milli / 1000.0)::integer as awake_seconds,
    null::integer as latency_seconds,
    sleep_efficiency_percent as efficiency_percent,
    -- Heart rate and HRV are in the recovery, a document of its own.
    null::double precision as average_hrv_ms,
    null::double precision as lowest_heart_rate_bpm,
    null::double precision as average_heart_rate_bpm,
    respiratory_rate_per_minute as average_breath_per_minute,
    null::jsonb as stages,
    false as is_deleted,
    raw_object_id,
    received_at
from {{ ref('stg_whoop__sleep') }}
