with nights as (
    select
        *,
        recorded_at + make_interval(secs => duration_seconds) as ended_at,
        coalesce(utc_offset_minutes, {{ zone_offset_minutes('recorded_at', 'home_time_zone') }}, 0) as offset_minutes
    from {{ ref('stg_garmin__sleeps') }}
),

naps as (
    select
        *,
        recorded_at + make_interval(secs => duration_seconds) as ended_at,
        coalesce(utc_offset_minutes, {{ zone_offset_minutes('recorded_at', 'home_time_zone') }}, 0) as offset_minutes
    from {{ ref('stg_garmin__nap') }}
),

-- Levels outside their night are a mistake of the summary, and no stage.
stages as (
    select
        nights.raw_object_id,
        nights.summary_id,
        jsonb_agg(
            jsonb_build_object(
                'stage', levels.level,
                'start', extract(epoch from levels.recorded_at - nights.recorded_at)::integer,
                'seconds', extract(epoch from levels.ended_at - levels.recorded_at)::integer
            )
            order by levels.recorded_at, levels.level
        ) as stages
    from nights
    inner join {{ ref('stg_garmin__sleep_level') }} as levels
        on levels.raw_object_id = nights.raw_object_id
        and levels.summary_id = nights.summary_id
        and levels.recorded_at >= nights.recorded_at
        and levels.ended_at <= nights.ended_at
        and levels.ended_at > levels.recorded_at
    where levels.level in ('deep', 'light', 'rem', 'awake')
    group by nights.raw_object_id, nights.summary_id
)

select
    nights.user_id,
    nights.source,
    nights.summary_id as source_record_id,
    nights.recorded_at as started_at,
    nights.ended_at,
    nights.offset_minutes::smallint as utc_offset_minutes,
    nights.offset_minutes::smallint as end_utc_offset_minutes,
    coalesce(nights.day, {{ local_day('nights.ended_at', 'nights.offset_minutes') }}) as local_date,
    lower(nights.validation) as sleep_type,
    true as is_main_sleep,
    nights.duration_seconds as time_in_bed_seconds,
    {{ garmin_sleep_seconds('nights') }} as sleep_seconds,
    nights.deep_sleep_seconds,
    nights.light_sleep_seconds,
    nights.rem_sleep_seconds,
    nights.awake_seconds,
    null::integer as latency_seconds,
    100.0 * {{ garmin_sleep_seconds('nights') }} / nullif(nights.duration_seconds, 0)::double precision as efficiency_percent,
    null::double precision as average_hrv_ms,
    null::double precision as lowest_heart_rate_bpm,
    null::double precision as average_heart_rate_bpm,
    nights.average_breath_per_minute,
    stages.stages,
    {{ garmin_is_no_sleep('nights.validation') }} as is_deleted,
    nights.raw_object_id,
    nights.received_at
from nights
left join stages using (raw_object_id, summary_id)
union all
select
    user_id,
    source,
    summary_id || ' nap ' || {{ utc_text('recorded_at') }} as source_record_id,
    recorded_at as started_at,
    ended_at,
    offset_minutes::smallint as utc_offset_minutes,
    offset_minutes::smallint as end_utc_offset_minutes,
    {{ local_day('ended_at', 'offset_minutes') }} as local_date,
    'nap' as sleep_type,
    false as is_main_sleep,
    duration_seconds as time_in_bed_seconds,
    null::integer as sleep_seconds,
    null::integer as deep_sleep_seconds,
    null::integer as light_sleep_seconds,
    null::integer as rem_sleep_seconds,
    null::integer as awake_seconds,
    null::integer as latency_seconds,
    null::double precision as efficiency_percent,
    null::double precision as average_hrv_ms,
    null::double precision as lowest_heart_rate_bpm,
    null::double precision as average_heart_rate_bpm,
    null::double precision as average_breath_per_minute,
    null::jsonb as stages,
    false as is_deleted,
    raw_object_id,
    received_at
from naps
