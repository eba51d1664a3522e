{{ config(meta={'rights': 'reader'}) }}

{%- set enough_days = var('summary_minimum_days') -%}
select
    latest.user_id,
    latest.metric_type,
    latest.metric_unit,
    latest.source,
    latest.last_date,
    latest.last_value,
    history.mean_7d,
    history.mean_30d,
    history.days_30d,
    case when history.days_30d >= {{ enough_days }} then history.slope_30d * 7 end as trend_per_week,
    history.days_365d,
    case when history.days_365d >= {{ enough_days }} then history.percentile_365d end as own_percentile,
    latest.cohort_size,
    latest.cohort_percentile
from {{ ref('latest_metrics') }} as latest
inner join {{ ref('metric_types') }} as catalogue on catalogue.metric_type = latest.metric_type
cross join lateral (
    select
        avg(days.metric_value) filter (where days.local_date > latest.last_date - 7) as mean_7d,
        avg(days.metric_value) filter (where days.local_date > latest.last_date - 30) as mean_30d,
        count(*) filter (where days.local_date > latest.last_date - 30) as days_30d,
        regr_slope(days.metric_value, days.local_date - latest.last_date)
            filter (where days.local_date > latest.last_date - 30) as slope_30d,
        count(*) as days_365d,
        ({{ percentile_of(
            'count(*) filter (where days.metric_value < latest.last_value)',
            'count(*) filter (where days.metric_value = latest.last_value)',
            'count(*)'
        ) }})::double precision as percentile_365d
    from {{ ref('daily_metrics') }} as days
    where days.user_id = latest.user_id
        and days.metric_type = latest.metric_type
        and days.local_date > latest.last_date - 365
        and days.local_date <= latest.last_date
        -- Sums mean the same whoever counted; other values of another device would show as a trend.
        and (catalogue.value_kind = 'interval_sum' or days.source = latest.source)
) as history
