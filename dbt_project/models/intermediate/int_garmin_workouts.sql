with activities as (
    select
        *,
        coalesce(utc_offset_minutes, {{ zone_offset_minutes('recorded_at', 'home_time_zone') }}, 0)::smallint as offset_minutes
    from {{ ref('stg_garmin__activities') }}
)

select
    user_id,
    source,
    coalesce(activity_id, summary_id) as source_record_id,
    recorded_at as started_at,
    recorded_at + make_interval(secs => duration_seconds) as ended_at,
    offset_minutes as utc_offset_minutes,
    {{ local_day('recorded_at', 'offset_minutes') }} as local_date,
    coalesce(lower(activity_type), 'unknown') as activity,
    null::text as intensity,
    duration_seconds,
    active_energy_kcal as calories_kcal,
    distance_m,
    average_heart_rate_bpm,
    max_heart_rate_bpm,
    elevation_gain_m,
    null::double precision as perceived_exertion,
    -- A part of a multisport activity is in the whole, which comes with it.
    parent_summary_id is not null as is_deleted,
    raw_object_id,
    received_at
from activities
