with stages as (
    select
        stages.raw_object_id,
        stages.sleep_id,
        jsonb_agg(
            jsonb_build_object(
                'stage', case stages.stage
                    when 'DEEP' then 'deep'
                    when 'LIGHT' then 'light'
                    when 'REM' then 'rem'
                    when 'ASLEEP' then 'asleep'
                    else 'awake'
                end,
                'start', extract(epoch from stages.started_at - sleeps.recorded_at)::integer,
                'seconds', extract(epoch from stages.ended_at - stages.started_at)::integer
            )
            order by stages.started_at
        ) as stages
    from {{ ref('stg_google_health__sleep_stage') }} as stages
    inner join {{ ref('stg_google_health__sleep') }} as sleeps
        on sleeps.raw_object_id = stages.raw_object_id
        and sleeps.id = stages.sleep_id
    where stages.stage in ('DEEP', 'LIGHT', 'REM', 'ASLEEP', 'AWAKE', 'RESTLESS')
    group by stages.raw_object_id, stages.sleep_id
)

select
    sleeps.user_id,
    sleeps.source,
    sleeps.id as source_record_id,
    sleeps.recorded_at as started_at,
    sleeps.ended_at,
    {{ google_health_offset('sleeps.recorded_at', 'sleeps.utc_offset_minutes', 'sleeps.home_time_zone') }}
        as utc_offset_minutes,
    {{ google_health_offset('sleeps.ended_at', 'sleeps.end_utc_offset_minutes', 'sleeps.home_time_zone') }}
        as end_utc_offset_minutes,
    {{ google_health_local_day('sleeps.ended_at', 'sleeps.end_utc_offset_minutes', 'sleeps.home_time_zone') }}
        as local_date,
    case when sleeps.nap then 'nap' else lower(sleeps.type) end as sleep_type,
    sleeps.main_sleep is true as is_main_sleep,
    60 * sleeps.sleep_period_minutes as time_in_bed_seconds,
    60 * sleeps.asleep_minutes as sleep_seconds,
    case when sleeps.type = 'STAGES' then 60 * sleeps.deep_minutes end as deep_sleep_seconds,
    case when sleeps.type = 'STAGES' then 60 * sleeps.light_minutes end as light_sleep_seconds,
    case when sleeps.type = 'STAGES' then 60 * sleeps.rem_minutes end as rem_sleep_seconds,
    60 * sleeps.awake_minutes as awake_seconds,
    60 * sleeps.to_fall_asleep_minutes as latency_seconds,
    100.0::double precision * sleeps.asleep_minutes / nullif(sleeps.sleep_period_minutes, 0) as efficiency_percent,
    null::double precision as average_hrv_ms,
    null::double precision as lowest_heart_rate_bpm,
    null::double precision as average_heart_rate_bpm,
    null::double precision as average_breath_per_minute,
    stages.stages,
    false as is_deleted,
    sleeps.raw_object_id,
    sleeps.received_at
from {{ ref('stg_google_health__sleep') }} as sleeps
left join stages
    on stages.raw_object_id = sleeps.raw_object_id
    and stages.sleep_id = sleeps.id
