{#-
  Fitbit's resources of days and of parts of days: (metric, unit). What a day holds is one document a resource,
  whichever answer it comes in: its minutes where they come to the day's total (within a hundredth: an activity
  logged by hand is in the total alone), else the total, never both; the newer answer takes the older's place.
  A minute of nothing does not say that the tracker was worn, and is no row.
-#}
{%- set resources = {
    'steps': ('steps', '{steps}'),
    'distance': ('distance', 'km'),
    'calories': ('total_calories', 'kcal'),
    'caloriesBMR': ('basal_calories', 'kcal'),
    'marginalCalories': ('calories_burned', 'kcal'),
    'floors': ('floors', '{floors}'),
    'elevation': ('elevation_gain', 'm'),
    'activeMinutes': ('active_minutes', 'min'),
    'restingHeartRate': ('resting_heart_rate', '/min'),
    'dailyRmssd': ('heart_rate_variability', 'ms'),
    'breathingRate': ('respiratory_rate', '/min'),
    'nightlyRelative': ('body_temperature_deviation', 'Cel'),
    'vo2Max': ('vo2_max', 'mL/(kg.min)'),
} -%}
{#- Only the main sleep of a day; a nap's minutes are in its session. Classic sleeps know no depths. -#}
{%- set nightly = [
    ('sleep_duration', 'min', 'asleep_minutes'),
    ('time_in_bed', 'min', 'in_bed_minutes'),
    ('deep_sleep', 'min', 'deep_minutes'),
    ('light_sleep', 'min', 'light_minutes'),
    ('rem_sleep', 'min', 'rem_minutes'),
    ('awake_time', 'min', 'awake_minutes'),
    ('sleep_latency', 'min', 'to_fall_asleep_minutes'),
    ('sleep_efficiency', '%', 'efficiency_percent'),
] -%}
{%- set logged = [
    ('weight', 'kg', 'weight_kg'),
    ('bmi', 'kg/m2', 'body_mass_index_kg_per_m2'),
    ('body_fat', '%', 'fat_percent'),
] -%}
with totals_of_minutes as (
    select
        raw_object_id,
        resource,
        date,
        sum(value) as value
    from {{ ref('stg_fitbit__intraday_value') }}
    group by raw_object_id, resource, date
),

days_by_minutes as (
    select
        minutes.raw_object_id,
        minutes.resource,
        minutes.date
    from totals_of_minutes as minutes
    left join {{ ref('stg_fitbit__daily_value') }} as days
        on days.raw_object_id = minutes.raw_object_id
        and days.resource = minutes.resource
        and days.date = minutes.date
    where minutes.value > 0
        and abs(minutes.value - coalesce(days.value, minutes.value)) <= 0.01 * minutes.value
),

of_days as (
    select days.*
    from {{ ref('stg_fitbit__daily_value') }} as days
    where not exists (
        select from days_by_minutes as minutes
        where minutes.raw_object_id = days.raw_object_id
            and minutes.resource = days.resource
            and minutes.date = days.date
    )
    union all
    select minutes.*
    from {{ ref('stg_fitbit__intraday_value') }} as minutes
    inner join days_by_minutes as chosen
        on chosen.raw_object_id = minutes.raw_object_id
        and chosen.resource = minutes.resource
        and chosen.date = minutes.date
    where minutes.value > 0 and minutes.resource <> 'heart'
)

select
    user_id,
    case resource
        {% for resource, (metric, unit) in resources.items() -%}
        when '{{ resource }}' then '{{ metric }}'
        {% endfor -%}
    end as metric_type,
    value as source_value,
    case resource
        {% for resource, (metric, unit) in resources.items() -%}
        when '{{ resource }}' then '{{ unit }}'
        {% endfor -%}
    end as source_unit,
    source,
    null::text as source_device,
    started_at as recorded_at,
    ended_at,
    utc_offset_minutes,
    'upload_zone' as utc_offset_source,
    date as local_date,
    resource || ' of ' || date as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    resource || ' of ' || date as location,
    raw_object_id,
    received_at
from of_days
where resource in ({% for resource in resources %}'{{ resource }}'{{ ', ' if not loop.last }}{% endfor %})
union all
select
    user_id,
    'heart_rate' as metric_type,
    value as source_value,
    '/min' as source_unit,
    source,
    null::text as source_device,
    started_at as recorded_at,
    null::timestamptz as ended_at,
    utc_offset_minutes,
    'upload_zone' as utc_offset_source,
    date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'heart rate at ' || {{ utc_text('started_at') }} as location,
    raw_object_id,
    received_at
from {{ ref('stg_fitbit__intraday_value') }}
where resource = 'heart'
union all
select
    logs.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    logs.source,
    null::text as source_device,
    logs.recorded_at,
    null::timestamptz as ended_at,
    logs.utc_offset_minutes,
    'upload_zone' as utc_offset_source,
    null::date as local_date,
    logs.kind || ' log ' || logs.log_id as source_record_id,
    null::jsonb as metadata,
    said.source_value is null as is_deleted,
    logs.home_time_zone,
    logs.kind || ' log ' || logs.log_id as location,
    logs.raw_object_id,
    logs.received_at
from {{ ref('stg_fitbit__body_log') }} as logs
cross join lateral (
    values
    {% for metric, unit, column in logged -%}
    ('{{ metric }}', logs.{{ column }}, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
-- A weighing has the fat only where the scales measured it.
where logs.kind = 'weight' and said.metric_type <> 'body_fat' or said.source_value is not null
union all
select
    nights.user_id,
    said.metric_type,
    said.source_value,
    said.source_unit,
    nights.source,
    null::text as source_device,
    nights.started_at as recorded_at,
    nights.ended_at,
    nights.utc_offset_minutes,
    'upload_zone' as utc_offset_source,
    nights.date as local_date,
    'sleep ' || nights.log_id as source_record_id,
    null::jsonb as metadata,
    said.source_value is null or nights.is_main_sleep is not true as is_deleted,
    nights.home_time_zone,
    'sleep ' || nights.log_id as location,
    nights.raw_object_id,
    nights.received_at
from {{ ref('stg_fitbit__sleep') }} as nights
cross join lateral (
    values
    {% for metric, unit, column in nightly -%}
    ('{{ metric }}', nights.{{ column }}, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as said (metric_type, source_value, source_unit)
