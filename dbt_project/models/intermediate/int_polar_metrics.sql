{#-
  Documents and their metrics: (metric, unit, staging column). A document that does not say a value (any more)
  still gives a row, marked as deleted, so that an earlier version's value goes.

  Steps are those of the samples, which make up the whole day; the total of the daily activity is the same
  movement once more.
-#}
{%- set daily = {
    'activity': [
        ('distance', 'm', 'distance_from_steps_m'),
        ('calories_burned', 'kcal', 'active_calories_kcal'),
        ('total_calories', 'kcal', 'calories_kcal'),
    ],
    'nightly_recharge': [
        ('heart_rate_variability', 'ms', 'heart_rate_variability_avg_ms'),
        ('respiratory_rate', '/min', 'breathing_rate_avg_per_minute'),
    ],
    'skin_temperature': [
        ('skin_temperature', 'Cel', 'skin_temperature_celsius'),
        ('body_temperature_deviation', 'Cel', 'deviation_from_baseline_celsius'),
    ],
} -%}
{#- Polar's own resting heart rate is a setting; the night's lowest is measured. -#}
{%- set nightly = [
    ('sleep_duration', 's', 'light_sleep_seconds + deep_sleep_seconds + rem_sleep_seconds
        + coalesce(unrecognized_sleep_stage_seconds, 0)'),
    ('time_in_bed', 's', 'extract(epoch from ended_at - started_at)'),
    ('deep_sleep', 's', 'deep_sleep_seconds'),
    ('light_sleep', 's', 'light_sleep_seconds'),
    ('rem_sleep', 's', 'rem_sleep_seconds'),
    ('awake_time', 's', 'total_interruption_duration_seconds'),
    ('sleep_score', '{score}', 'sleep_score'),
    ('resting_heart_rate', '/min', 'lowest_heart_rate_bpm'),
] -%}
{%- set states = [
    ('weight', 'kg', "case when weight_source is distinct from 'SOURCE_DEFAULT' then weight_kg end"),
    ('height', 'cm', 'height_cm'),
    ('vo2_max', 'mL/(kg.min)', 'vo2_max_ml_per_kg_min'),
] -%}
{#- Samples by local clock are placed in the person's home. -#}
{%- set local_samples = {
    'continuous_heart_rate': ('heart_rate', '/min', 'heart_rate_bpm', 'true', 'null::text'),
    'recharge_sample': (
        'heart_rate_variability_sample', 'ms', 'value', "kind = 'hrv'", "'samples of night ' || date"
    ),
} -%}

{#- Seconds that a repeated number of steps is believed: longer, and it is the clock that was set. -#}
{%- set longest_repeat = 3600 -%}
with step_samples as (
    select
        samples.*,
        days.interval_ms * interval '1 millisecond' as length,
        days.total_steps,
        coalesce(
            samples.started_at_local < max(samples.started_at_local) over (
                partition by samples.raw_object_id, samples.date
                order by samples.sequence
                rows between unbounded preceding and 1 preceding
            ),
            false
        ) as is_set_back
    from {{ ref('stg_polar__step_sample') }} as samples
    inner join {{ ref('stg_polar__activity_samples') }} as days
        on days.raw_object_id = samples.raw_object_id and days.date = samples.date
),

placed_steps as (
    select
        *,
        {{ local_instant('started_at_local', "coalesce(home_time_zone, 'UTC')", 'is_set_back') }} as recorded_at
    from step_samples
),

-- A number of steps that repeats is written once: until the next sample it counts for each interval.
repeated_steps as (
    select
        *,
        extract(epoch from lead(recorded_at) over (
            partition by raw_object_id, date order by sequence
        ) - recorded_at) as seconds_to_next,
        extract(epoch from length) as seconds
    from placed_steps
),

counted_steps as (
    select
        *,
        case
            when seconds_to_next between seconds and {{ longest_repeat }}
                then round(seconds_to_next / seconds)
            else 1
        end as intervals
    from repeated_steps
),

-- Of the day's last number nothing shows how often it repeats but the day's total.
ended_steps as (
    select
        counted_steps.*,
        total_steps - sum(steps * intervals) over (partition by raw_object_id, date) as lacking,
        floor(extract(epoch from (date + 1)::timestamp - started_at_local) / seconds) - 1 as intervals_left
    from counted_steps
),

completed_steps as (
    select
        user_id,
        source,
        home_time_zone,
        raw_object_id,
        received_at,
        date,
        sequence,
        started_at_local,
        recorded_at,
        length,
        steps,
        total_steps,
        intervals + case
            when
                seconds_to_next is null
                and steps > 0
                and lacking > 0
                and lacking::numeric % steps = 0
                and lacking / steps <= intervals_left
                then lacking / steps
            else 0
        end as intervals
    from ended_steps
),

-- Where the day's total is without them, the gaps were no repetitions.
summed_steps as (
    select
        *,
        abs(sum(steps * intervals) over of_day - total_steps) > abs(sum(steps) over of_day - total_steps) as are_gaps
    from completed_steps
    window of_day as (partition by raw_object_id, date)
),

-- Intervals that begin at one instant are those of a clock that was set back, on a journey; none is lost.
step_intervals as (
    select
        user_id,
        source,
        home_time_zone,
        raw_object_id,
        received_at,
        date,
        recorded_at,
        min(started_at_local)::date as local_date,
        max(recorded_at + case when are_gaps then 1 else intervals end * length) as ended_at,
        sum(steps * case when are_gaps then 1 else intervals end)::double precision as steps
    from summed_steps
    where steps > 0
    group by user_id, source, home_time_zone, raw_object_id, received_at, date, recorded_at
)

{% for table, metrics in daily.items() %}
select
    documents.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    documents.source,
    null::text as source_device,
    documents.date::timestamp at time zone coalesce(documents.home_time_zone, 'UTC') as recorded_at,
    (documents.date + 1)::timestamp at time zone coalesce(documents.home_time_zone, 'UTC') as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    documents.date as local_date,
    '{{ table }} ' || documents.date as source_record_id,
    null::jsonb as metadata,
    said.source_value is null as is_deleted,
    documents.home_time_zone,
    '{{ table }} ' || documents.date as location,
    documents.raw_object_id,
    documents.received_at
from {{ ref('stg_polar__' ~ table) }} as documents
cross join lateral (
    values
    {% for metric, unit, column in metrics -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
union all
{% endfor %}
select
    user_id,
    'steps' as metric_type,
    steps as source_value,
    '{steps}' as source_unit,
    source,
    null::text as source_device,
    recorded_at,
    ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    local_date,
    'steps of ' || date as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'steps of ' || date || ', sample at ' || {{ utc_text('recorded_at') }} as location,
    raw_object_id,
    received_at
from step_intervals
union all
-- A day without samples that say a step is its total.
select
    days.user_id,
    'steps' as metric_type,
    days.total_steps::double precision as source_value,
    '{steps}' as source_unit,
    days.source,
    null::text as source_device,
    days.date::timestamp at time zone coalesce(days.home_time_zone, 'UTC') as recorded_at,
    (days.date + 1)::timestamp at time zone coalesce(days.home_time_zone, 'UTC') as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    days.date as local_date,
    'steps of ' || days.date as source_record_id,
    null::jsonb as metadata,
    days.total_steps is null as is_deleted,
    days.home_time_zone,
    'steps of ' || days.date as location,
    days.raw_object_id,
    days.received_at
from {{ ref('stg_polar__activity_samples') }} as days
where not exists (
    select from step_intervals
    where step_intervals.raw_object_id = days.raw_object_id and step_intervals.date = days.date
)
union all
select
    nights.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    nights.source,
    nights.device_id as source_device,
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
from {{ ref('stg_polar__sleep') }} as nights
cross join lateral (
    values
    {% for metric, unit, column in nightly -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
union all
select
    user_id,
    'heart_rate' as metric_type,
    heart_rate_bpm as source_value,
    '/min' as source_unit,
    source,
    null::text as source_device,
    recorded_at,
    null::timestamptz as ended_at,
    utc_offset_minutes,
    'record' as utc_offset_source,
    null::date as local_date,
    'pulse of night ' || date as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'night ' || date || ', sample at ' || {{ utc_text('recorded_at') }} as location,
    raw_object_id,
    received_at
from {{ ref('stg_polar__sleep_sample') }}
union all
{% for table, (metric, unit, column, condition, document) in local_samples.items() %}
select
    user_id,
    '{{ metric }}' as metric_type,
    {{ column }} as source_value,
    '{{ unit }}' as source_unit,
    source,
    null::text as source_device,
    recorded_at_local at time zone coalesce(home_time_zone, 'UTC') as recorded_at,
    null::timestamptz as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    recorded_at_local::date as local_date,
    {{ document }} as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'sample at ' || recorded_at_local || ' local' as location,
    raw_object_id,
    received_at
from {{ ref('stg_polar__' ~ table) }}
where {{ condition }}
union all
{% endfor %}
select
    states.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    states.source,
    null::text as source_device,
    states.modified_at as recorded_at,
    null::timestamptz as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    states.home_time_zone,
    'physical info of ' || {{ utc_text('states.modified_at') }} as location,
    states.raw_object_id,
    states.received_at
from {{ ref('stg_polar__physical_info') }} as states
cross join lateral (
    values
    {% for metric, unit, column in states -%}
    ('{{ metric }}', ({{ column }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
where said.source_value is not null
union all
select
    user_id,
    'spo2' as metric_type,
    blood_oxygen_percent as source_value,
    '%' as source_unit,
    source,
    device_id as source_device,
    recorded_at,
    null::timestamptz as ended_at,
    utc_offset_minutes,
    case when utc_offset_minutes is not null then 'record' end as utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'test at ' || {{ utc_text('recorded_at') }} as location,
    raw_object_id,
    received_at
from {{ ref('stg_polar__spo2') }}
where blood_oxygen_percent is not null and test_status is not distinct from 'SPO2_TEST_PASSED'
union all
select
    user_id,
    case
        when measurement_type = 'TM_SKIN_TEMPERATURE' then 'skin_temperature'
        else 'body_temperature'
    end as metric_type,
    temperature_celsius as source_value,
    'Cel' as source_unit,
    source,
    device_id as source_device,
    started_at + recording_time_delta_milliseconds * interval '1 millisecond' as recorded_at,
    null::timestamptz as ended_at,
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'sample at ' || {{ utc_text('started_at') }} as location,
    raw_object_id,
    received_at
from {{ ref('stg_polar__body_temperature') }}
where measurement_type in ('TM_SKIN_TEMPERATURE', 'TM_CORE_TEMPERATURE')
