{#-
  Apple has stretches of stages and no nights: what one device saw is one sleep until two hours pass without a
  stretch. The longest sleep of a waking day is the main one, if it is a night's or has three hours.
-#}
{%- set asleep = "('asleep', 'light', 'deep', 'rem')" -%}
with segments as (
    -- The same stretch twice, or at no length, says nothing.
    select distinct on (raw_object_id, device, recorded_at, ended_at, stage) *
    from {{ ref('stg_apple_health__sleep_segments') }}
    where ended_at is not null
    order by raw_object_id, device, recorded_at, ended_at, stage, line
),

begun as (
    select
        *,
        recorded_at > max(ended_at) over (
            partition by raw_object_id, device order by recorded_at, ended_at, stage
            rows between unbounded preceding and 1 preceding
        ) + interval '2 hours' as is_new
    from segments
),

numbered as (
    select
        begun.*,
        count(*) filter (where is_new) over (
            partition by raw_object_id, device order by recorded_at, ended_at, stage
        ) as number,
        tstzrange(recorded_at, ended_at) as span
    from begun
),

sessions as (
    select
        user_id,
        source,
        raw_object_id,
        received_at,
        home_time_zone,
        device,
        min(recorded_at) as started_at,
        max(ended_at) as ended_at,
        (array_agg(utc_offset_source order by recorded_at, stage))[1] as utc_offset_source,
        (array_agg(utc_offset_minutes order by recorded_at, stage))[1] as utc_offset_minutes,
        (array_agg(utc_offset_source order by ended_at desc, stage))[1] as end_utc_offset_source,
        (array_agg(end_utc_offset_minutes order by ended_at desc, stage))[1] as end_utc_offset_minutes,
        nullif({{ seconds_of('range_agg(span) filter (where stage in ' ~ asleep ~ ')') }}, 0) as sleep_seconds,
        {{ seconds_of("range_agg(span) filter (where stage = 'deep')") }} as deep_sleep_seconds,
        {{ seconds_of("range_agg(span) filter (where stage = 'light')") }} as light_sleep_seconds,
        {{ seconds_of("range_agg(span) filter (where stage = 'rem')") }} as rem_sleep_seconds,
        nullif({{ seconds_of("range_agg(span) filter (where stage = 'awake')") }}, 0) as awake_seconds,
        bool_or(stage in ('light', 'deep', 'rem')) as has_stages,
        min(recorded_at) filter (where stage in {{ asleep }}) - min(recorded_at) filter (where stage = 'in_bed')
            as latency,
        jsonb_agg(
            jsonb_build_object('stage', stage, 'span', span) order by recorded_at, stage
        ) filter (where stage <> 'in_bed') as spans
    from numbered
    group by user_id, source, raw_object_id, received_at, home_time_zone, device, number
),

placed as (
    select
        sessions.*,
        {{ apple_health_offset('sessions', 'away', 'sessions.started_at') }}::smallint as offset_minutes,
        case
            when sessions.end_utc_offset_source = 'record' then sessions.end_utc_offset_minutes
            when waking.time_zone is not null then {{ zone_offset_minutes('sessions.ended_at', 'waking.time_zone') }}
            when sessions.end_utc_offset_source = 'export' and sessions.home_time_zone is not null
                then {{ zone_offset_minutes('sessions.ended_at', 'sessions.home_time_zone') }}
            else sessions.end_utc_offset_minutes
        end::smallint as end_offset_minutes
    from sessions
    {{ join_away('sessions', 'away', 'sessions.started_at') }}
    {{ join_away('sessions', 'waking', 'sessions.ended_at') }}
),

dated as (
    select
        *,
        {{ local_day('ended_at', 'end_offset_minutes') }} as local_date,
        extract(hour from (started_at at time zone 'UTC') + make_interval(mins => offset_minutes)) as local_hour,
        coalesce(sleep_seconds, 0) as asleep
    from placed
),

ranked as (
    select
        *,
        row_number() over (
            partition by raw_object_id, device, local_date
            order by asleep desc, ended_at - started_at desc, started_at
        ) = 1
        and (
            asleep >= 10800
            or ended_at - started_at >= interval '3 hours'
            or local_hour >= 20
            or local_hour < 6
        ) as is_main_sleep
    from dated
)

select
    user_id,
    source,
    device || ' ' || {{ utc_text('started_at') }} as source_record_id,
    started_at,
    ended_at,
    offset_minutes as utc_offset_minutes,
    end_offset_minutes as end_utc_offset_minutes,
    local_date,
    case when asleep = 0 then 'in_bed' when is_main_sleep then 'sleep' else 'nap' end as sleep_type,
    is_main_sleep,
    extract(epoch from ended_at - started_at)::integer as time_in_bed_seconds,
    sleep_seconds::integer as sleep_seconds,
    case when has_stages then coalesce(deep_sleep_seconds, 0) end::integer as deep_sleep_seconds,
    case when has_stages then coalesce(light_sleep_seconds, 0) end::integer as light_sleep_seconds,
    case when has_stages then coalesce(rem_sleep_seconds, 0) end::integer as rem_sleep_seconds,
    case when has_stages then coalesce(awake_seconds, 0) else awake_seconds end::integer as awake_seconds,
    case when latency >= interval '0' then extract(epoch from latency) end::integer as latency_seconds,
    (100 * sleep_seconds / nullif(extract(epoch from ended_at - started_at), 0))::double precision as efficiency_percent,
    null::double precision as average_hrv_ms,
    null::double precision as lowest_heart_rate_bpm,
    null::double precision as average_heart_rate_bpm,
    null::double precision as average_breath_per_minute,
    (
        select
            jsonb_agg(
                jsonb_build_object(
                    'stage', part ->> 'stage',
                    'start', extract(epoch from lower((part ->> 'span')::tstzrange) - started_at)::integer,
                    'seconds', extract(epoch from upper((part ->> 'span')::tstzrange) - lower((part ->> 'span')::tstzrange))::integer
                )
                order by place
            )
        from jsonb_array_elements(spans) with ordinality as parts (part, place)
    ) as stages,
    false as is_deleted,
    raw_object_id,
    received_at
from ranked
