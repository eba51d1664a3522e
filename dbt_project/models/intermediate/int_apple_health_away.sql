{#-
  Where the person was when not in the zone of the upload. A zone that a record names holds from then until a
  record names another, and for 36 hours at most (a watch that is worn at night names one every night). One that
  was not named before holds from six hours before already: who goes to bed in New York has not just come.
  One row a UTC day of such a span, to be joined by it.
-#}
with named as (
    select
        raw_object_id,
        recorded_at,
        time_zone,
        is_home,
        case
            when lag(time_zone) over in_order is distinct from time_zone
                then greatest(recorded_at - interval '6 hours', lag(recorded_at) over in_order)
            else recorded_at
        end as holds_from
    from {{ ref('stg_apple_health__time_zones') }}
    window in_order as (partition by raw_object_id order by recorded_at, time_zone)
),

followed as (
    select
        *,
        lead(holds_from) over (partition by raw_object_id order by recorded_at, time_zone) as next_from
    from named
),

spans as (
    select
        raw_object_id,
        time_zone,
        holds_from as started_at,
        least(recorded_at + interval '36 hours', next_from) as ended_at
    from followed
    where not is_home
)

select
    spans.raw_object_id,
    spans.time_zone,
    spans.started_at,
    spans.ended_at,
    day::date as utc_date
from spans
cross join
    generate_series(
        date_trunc('day', spans.started_at at time zone 'UTC'),
        spans.ended_at at time zone 'UTC',
        interval '1 day'
    ) as day
where spans.ended_at > spans.started_at
