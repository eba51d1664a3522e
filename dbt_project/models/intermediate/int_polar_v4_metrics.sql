{#-
  Nights and their metrics: (metric, unit, expression). A night that does not say a value (any more) still gives a
  row, marked as deleted, so that an earlier version's value goes.
-#}
{%- set nightly = [
    ('sleep_duration', 's', 'asleep_seconds'),
    ('time_in_bed', 's', 'extract(epoch from ended_at - started_at)'),
    ('deep_sleep', 's', 'deep_seconds'),
    ('light_sleep', 's', 'light_seconds'),
    ('rem_sleep', 's', 'rem_seconds'),
    ('awake_time', 's', 'wake_seconds'),
    ('sleep_efficiency', '%', 'efficiency_percent'),
    ('sleep_score', '{score}', 'sleep_score'),
] -%}
{#- An interval between breaths is so many a minute; outside the catalogue's range it is refused, as all else is. -#}
{%- set recovery = [
    ('heart_rate_variability', 'ms', 'nullif(rmssd_ms, 0)'),
    ('respiratory_rate', '/min', '60000 / nullif(respiration_interval_ms, 0)'),
] -%}
with step_intervals as (
    select
        user_id,
        source,
        home_time_zone,
        raw_object_id,
        received_at,
        date,
        device,
        {{ local_instant('started_at_local', "coalesce(home_time_zone, 'UTC')") }}
        + offset_milliseconds * interval '1 millisecond' as recorded_at,
        max(length_milliseconds) * interval '1 millisecond' as length,
        -- Intervals that begin at one instant are those of a clock that was set back, on a journey; none is lost.
        sum(steps)::double precision as steps
    from {{ ref('stg_polar_v4__step_sample') }}
    group by user_id, source, home_time_zone, raw_object_id, received_at, date, device, recorded_at
)

select
    user_id,
    'steps' as metric_type,
    steps as source_value,
    '{steps}' as source_unit,
    source,
    device as source_device,
    recorded_at,
    recorded_at + length as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    date as local_date,
    concat_ws(' ', 'steps of', date, device) as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'steps of ' || date || ', sample at ' || {{ utc_text('recorded_at') }} as location,
    raw_object_id,
    received_at
from step_intervals
union all
-- A day without a step: that there was none, where its samples say so.
select
    days.user_id,
    'steps' as metric_type,
    days.total_steps::double precision as source_value,
    '{steps}' as source_unit,
    days.source,
    days.device as source_device,
    days.date::timestamp at time zone coalesce(days.home_time_zone, 'UTC') as recorded_at,
    (days.date + 1)::timestamp at time zone coalesce(days.home_time_zone, 'UTC') as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    days.date as local_date,
    concat_ws(' ', 'steps of', days.date, days.device) as source_record_id,
    null::jsonb as metadata,
    days.total_steps is null as is_deleted,
    days.home_time_zone,
    'steps of ' || days.date as location,
    days.raw_object_id,
    days.received_at
from {{ ref('stg_polar_v4__activity') }} as days
where coalesce(days.total_steps, 0) = 0
union all
select
    nights.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    nights.source,
    nights.device as source_device,
    nights.started_at as recorded_at,
    nights.ended_at,
    nights.utc_offset_minutes,
    'record' as utc_offset_source,
    nights.date as local_date,
    'night ' || nights.date as source_record_id,
    null::jsonb as metadata,
    said.source_value is null as is_deleted,
    nights.home_time_zone,
    'night ' || nights.date as location,
    nights.raw_object_id,
    nights.received_at
from {{ ref('stg_polar_v4__sleep') }} as nights
cross join lateral (
    values
    {% for metric, unit, value in nightly -%}
    ('{{ metric }}', ({{ value }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
union all
select
    nights.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    nights.source,
    null::text as source_device,
    nights.date::timestamp at time zone coalesce(nights.home_time_zone, 'UTC') as recorded_at,
    (nights.date + 1)::timestamp at time zone coalesce(nights.home_time_zone, 'UTC') as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    nights.date as local_date,
    'recharge ' || nights.date as source_record_id,
    null::jsonb as metadata,
    said.source_value is null as is_deleted,
    nights.home_time_zone,
    'recharge of ' || nights.date as location,
    nights.raw_object_id,
    nights.received_at
from {{ ref('stg_polar_v4__nightly_recharge') }} as nights
cross join lateral (
    values
    {% for metric, unit, value in recovery -%}
    ('{{ metric }}', ({{ value }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
union all
select
    user_id,
    'heart_rate_variability_sample' as metric_type,
    value as source_value,
    'ms' as source_unit,
    source,
    null::text as source_device,
    case
        when utc_offset_minutes is null then started_at_local at time zone coalesce(home_time_zone, 'UTC')
        else (started_at_local - make_interval(mins => utc_offset_minutes)) at time zone 'UTC'
    end + offset_milliseconds * interval '1 millisecond' as recorded_at,
    null::timestamptz as ended_at,
    utc_offset_minutes,
    case when utc_offset_minutes is not null then 'record' end as utc_offset_source,
    (started_at_local + offset_milliseconds * interval '1 millisecond')::date as local_date,
    'samples of night ' || date as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'sample of night ' || date || ', ' || offset_milliseconds || ' ms on' as location,
    raw_object_id,
    received_at
from {{ ref('stg_polar_v4__recharge_sample') }}
where kind = 'hrv' and value > 0
union all
select
    user_id,
    'heart_rate' as metric_type,
    heart_rate_bpm as source_value,
    '/min' as source_unit,
    source,
    device as source_device,
    -- By local clock: placed in the person's home.
    (date + offset_milliseconds * interval '1 millisecond') at time zone coalesce(home_time_zone, 'UTC') as recorded_at,
    null::timestamptz as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    date || ', ' || offset_milliseconds || ' ms after midnight' as location,
    raw_object_id,
    received_at
from {{ ref('stg_polar_v4__continuous_heart_rate') }}
where heart_rate_bpm > 0
