with sessions as (
    select
        *,
        -- A session says its offset; one that does not happened at home.
        case
            when utc_offset_minutes is null
                then started_at_local at time zone coalesce(home_time_zone, 'UTC')
            else (started_at_local - make_interval(mins => utc_offset_minutes)) at time zone 'UTC'
        end as started_at
    from {{ ref('stg_polar__exercise') }}
)

select
    user_id,
    source,
    id as source_record_id,
    started_at,
    started_at + make_interval(secs => duration_seconds) as ended_at,
    (extract(epoch from started_at_local - (started_at at time zone 'UTC')) / 60)::smallint as utc_offset_minutes,
    started_at_local::date as local_date,
    lower(coalesce(nullif(detailed_sport_info, ''), sport, 'other')) as activity,
    null::text as intensity,
    duration_seconds::integer as duration_seconds,
    calories_kcal,
    distance_m,
    average_heart_rate_bpm,
    max_heart_rate_bpm,
    null::double precision as elevation_gain_m,
    perceived_exertion,
    false as is_deleted,
    raw_object_id,
    received_at
from sessions
