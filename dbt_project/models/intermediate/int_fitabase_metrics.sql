{#-
  Resources and their metrics. What a file says of a day is one document a resource, by the hour or as a total:
  the file that came last takes the other's place, so that nothing counts twice. An hour without a step does not
  say that the tracker was worn, and is no row.
-#}
{%- set resources = {
    'steps': ('steps', '{steps}'),
    'distance': ('distance', 'km'),
    'calories': ('total_calories', 'kcal'),
    'active_minutes': ('active_minutes', 'min'),
    'asleep_minutes': ('sleep_duration', 'min'),
    'in_bed_minutes': ('time_in_bed', 'min'),
    'weight': ('weight', 'kg'),
    'fat_percent': ('body_fat', '%'),
    'body_mass_index': ('bmi', 'kg/m2'),
    'heart_rate': ('heart_rate', '/min'),
} -%}
with named as (
    select
        *,
        case when resource in ('very_active_minutes', 'fairly_active_minutes') then 'active_minutes' else resource end
            as what
    from {{ ref('stg_fitabase__measurement') }}
),

measured as (
    select
        user_id,
        source,
        home_time_zone,
        raw_object_id,
        received_at,
        what,
        date,
        started_at,
        ended_at,
        utc_offset_minutes,
        min(line) as line,
        -- Very and fairly active minutes are two columns of a day; of two rows about one time the last counts.
        case
            when what = 'active_minutes' then sum(value)
            else (array_agg(value order by line desc))[1]
        end as value
    from named
    group by
        user_id, source, home_time_zone, raw_object_id, received_at, what, date, started_at, ended_at,
        utc_offset_minutes
)

select
    user_id,
    case what
        {% for resource, (metric, unit) in resources.items() -%}
        when '{{ resource }}' then '{{ metric }}'
        {% endfor -%}
    end as metric_type,
    value as source_value,
    case what
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
    case when ended_at is not null then what || ' of ' || date end as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'line ' || line as location,
    raw_object_id,
    received_at
from measured
where what in ({% for resource in resources %}'{{ resource }}'{{ ', ' if not loop.last }}{% endfor %})
    and not (value = 0 and what = 'steps' and ended_at - started_at < interval '2 hours')
