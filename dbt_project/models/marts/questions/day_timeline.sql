{{ config(meta={'rights': 'reader'}) }}

{%- set measurements = "('" ~ var('timeline_measurements') | join("', '") ~ "')" -%}
with sleeps as (
    select
        user_id,
        local_date,
        case when is_main_sleep is false then 'nap' else 'sleep' end as kind,
        source,
        started_at as starts_at,
        ended_at as ends_at,
        {{ local_time('started_at', 'utc_offset_minutes') }} as local_start,
        {{ local_time('ended_at', 'coalesce(end_utc_offset_minutes, utc_offset_minutes)') }} as local_end,
        concat_ws(
            ', ',
            case when is_main_sleep is false then 'Nap' else 'Night' end,
            {{ duration_text('sleep_seconds') }} || ' asleep'
        ) as title,
        jsonb_strip_nulls(jsonb_build_object(
            'sleep_seconds', sleep_seconds,
            'time_in_bed_seconds', time_in_bed_seconds,
            'deep_sleep_seconds', deep_sleep_seconds,
            'light_sleep_seconds', light_sleep_seconds,
            'rem_sleep_seconds', rem_sleep_seconds,
            'awake_seconds', awake_seconds,
            'efficiency_percent', efficiency_percent,
            'average_hrv_ms', average_hrv_ms,
            'lowest_heart_rate_bpm', lowest_heart_rate_bpm,
            'source_record_id', source_record_id
        )) as details,
        source_record_id as event_key
    from {{ ref('sleep_sessions') }}
),

exercises as (
    select
        user_id,
        local_date,
        'workout' as kind,
        source,
        started_at as starts_at,
        ended_at as ends_at,
        {{ local_time('started_at', 'utc_offset_minutes') }} as local_start,
        {{ local_time('ended_at', 'utc_offset_minutes') }} as local_end,
        concat_ws(
            ', ',
            initcap(replace(coalesce(activity, 'workout'), '_', ' ')),
            {{ duration_text('duration_seconds') }},
            trim_scale(round((distance_m / 1000)::numeric, 2)) || ' km'
        ) as title,
        jsonb_strip_nulls(jsonb_build_object(
            'activity', activity,
            'intensity', intensity,
            'duration_seconds', duration_seconds,
            'distance_m', distance_m,
            'calories_kcal', calories_kcal,
            'average_heart_rate_bpm', average_heart_rate_bpm,
            'source_record_id', source_record_id
        )) as details,
        source_record_id as event_key
    from {{ ref('workouts') }}
),

-- Readings out of range, and how long after the one before on the same side.
glucose_outside as (
    select
        user_id,
        local_date,
        source,
        case when glucose_mg_dl < 70 then 'glucose_low' else 'glucose_high' end as kind,
        recorded_at,
        utc_offset_minutes,
        glucose_mg_dl,
        recorded_at - lag(recorded_at) over (
            partition by user_id, local_date, source, glucose_mg_dl < 70
            order by recorded_at, reading_type, source_device
        ) as since_last,
        reading_type,
        source_device
    from {{ ref('glucose_readings') }}
    where (glucose_mg_dl < 70 or glucose_mg_dl > 180) and reading_type <> 'calibration'
),

glucose_numbered as (
    select
        *,
        count(*) filter (
            where since_last is null
                or since_last > make_interval(mins => {{ var('glucose_episode_gap_minutes') }})
        ) over (
            partition by user_id, local_date, source, kind
            order by recorded_at, reading_type, source_device
        ) as episode
    from glucose_outside
),

glucose_episodes as (
    select
        user_id,
        local_date,
        kind,
        source,
        min(recorded_at) as starts_at,
        max(recorded_at) as ends_at,
        (array_agg({{ local_time('recorded_at', 'utc_offset_minutes') }} order by recorded_at))[1] as local_start,
        (array_agg({{ local_time('recorded_at', 'utc_offset_minutes') }} order by recorded_at desc))[1] as local_end,
        case kind
            when 'glucose_low' then 'Low glucose, down to ' || trim_scale(round(min(glucose_mg_dl)::numeric, 0))
            else 'High glucose, up to ' || trim_scale(round(max(glucose_mg_dl)::numeric, 0))
        end || ' mg/dL' as title,
        jsonb_build_object(
            'readings', count(*),
            'minutes', round(extract(epoch from max(recorded_at) - min(recorded_at)) / 60),
            'lowest_mg_dl', min(glucose_mg_dl),
            'highest_mg_dl', max(glucose_mg_dl)
        ) as details,
        episode::text as event_key
    from glucose_numbered
    group by user_id, local_date, source, kind, episode
),

-- The instants behind the daily values of what people measure: a look into the key of health_metrics for each.
measured as (
    select
        days.user_id,
        days.local_date,
        'measurement' as kind,
        metrics.source,
        metrics.recorded_at as starts_at,
        metrics.recorded_at as ends_at,
        min({{ local_time('metrics.recorded_at', 'metrics.utc_offset_minutes') }}) as local_start,
        min({{ local_time('metrics.recorded_at', 'metrics.utc_offset_minutes') }}) as local_end,
        string_agg(
            replace(days.metric_type, '_', ' ') || ' ' || {{ value_text('metrics.metric_value', 'days.metric_unit') }},
            ', ' order by days.metric_type
        ) as title,
        jsonb_object_agg(
            days.metric_type,
            jsonb_build_object('value', metrics.metric_value, 'unit', days.metric_unit)
        ) as details,
        '' as event_key
    from {{ ref('daily_metrics') }} as days
    cross join lateral (
        select
            instants.source,
            instants.recorded_at,
            instants.utc_offset_minutes,
            instants.metric_value
        from {{ ref('health_metrics') }} as instants
        where instants.user_id = days.user_id
            and instants.metric_type = days.metric_type
            and instants.recorded_at >= days.local_date::timestamp at time zone 'UTC' - interval '2 days'
            and instants.recorded_at < days.local_date::timestamp at time zone 'UTC' + interval '3 days'
            and instants.local_date = days.local_date
        offset 0
    ) as metrics
    where days.metric_type in {{ measurements }}
    group by days.user_id, days.local_date, metrics.source, metrics.recorded_at
),

daily_values as (
    select
        user_id,
        local_date,
        'daily_value' as kind,
        source,
        null::timestamptz as starts_at,
        null::timestamptz as ends_at,
        null::text as local_start,
        null::text as local_end,
        replace(metric_type, '_', ' ') || ' ' || {{ value_text('metric_value', 'metric_unit') }} as title,
        jsonb_build_object(
            'metric_type', metric_type,
            'value', metric_value,
            'unit', metric_unit,
            'sources_seen', sources_seen
        ) as details,
        metric_type as event_key
    from {{ ref('daily_metrics') }}
    where metric_type not in {{ measurements }}
),

events as (
    {% for kind in ['sleeps', 'exercises', 'glucose_episodes', 'measured', 'daily_values'] -%}
    select user_id, local_date, kind, source, starts_at, ends_at, local_start, local_end, title, details, event_key
    from {{ kind }}
    {% if not loop.last %}union all{% endif %}
    {% endfor %}
)

select
    user_id,
    local_date,
    -- Values of the day have no instant and come at its end.
    (row_number() over (
        partition by user_id, local_date
        order by starts_at nulls last, ends_at, kind, source, event_key
    ))::integer as position,
    kind,
    source,
    starts_at,
    ends_at,
    case when local_start = local_end then local_start else local_start || '-' || local_end end as local_time,
    title,
    details
from events
