{#-
  Where the person was when not in the zone of the upload: a zone that a record names holds until a record
  names another, and for 36 hours at most (a phone that sleeps beside its owner names one every night).
  One row a UTC day of such a span, to be joined by it.
-#}
with named as (
    select
        raw_object_id,
        recorded_at,
        time_zone,
        is_home,
        lead(recorded_at) over (partition by raw_object_id order by recorded_at, time_zone) as next_at
    from {{ ref('stg_apple_health__time_zones') }}
),

spans as (
    select
        raw_object_id,
        time_zone,
        recorded_at as started_at,
        least(recorded_at + interval '36 hours', next_at) as ended_at
    from named
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
