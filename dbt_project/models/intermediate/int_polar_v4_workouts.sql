with sessions as (
    select
        *,
        coalesce(utc_offset_minutes, printed_utc_offset_minutes) as offset_minutes,
        -- A time that is printed with an offset is of that one; another was in force where the session says one.
        coalesce(printed_utc_offset_minutes, utc_offset_minutes) as start_offset_minutes
    from {{ ref('stg_polar_v4__training_session') }}
),

placed as (
    select
        *,
        -- A session without either happened at home.
        case
            when start_offset_minutes is null then started_at_local at time zone coalesce(home_time_zone, 'UTC')
            else (started_at_local - make_interval(mins => start_offset_minutes)) at time zone 'UTC'
        end as started_at
    from sessions
),

told as (
    select
        *,
        coalesce(
            offset_minutes::double precision,
            extract(epoch from started_at_local - (started_at at time zone 'UTC')) / 60
        )::smallint as utc_offset
    from placed
)

select
    user_id,
    source,
    id as source_record_id,
    started_at,
    started_at + duration_milliseconds * interval '1 millisecond' as ended_at,
    utc_offset as utc_offset_minutes,
    {{ local_day('started_at', 'utc_offset') }} as local_date,
    lower(coalesce(sport, 'sport ' || sport_id, 'other')) as activity,
    null::text as intensity,
    (duration_milliseconds / 1000)::integer as duration_seconds,
    calories_kcal,
    distance_m,
    average_heart_rate_bpm,
    max_heart_rate_bpm,
    null::double precision as elevation_gain_m,
    null::double precision as perceived_exertion,
    false as is_deleted,
    raw_object_id,
    received_at
from told
