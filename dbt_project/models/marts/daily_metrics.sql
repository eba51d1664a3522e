{{ config(
    materialized='upsert_table',
    unique_key=['user_id', 'metric_type', 'local_date'],
    indexes=[{'columns': ['local_date']}],
    scope='int_days_changed',
    scope_columns=['user_id', 'local_date', 'metric_type'],
    changes='_changed_daily',
    nested=true,
    post_hook="update health._changed_metrics set applied = true
        where not applied and change_id <= (select max(change_id) from {{ ref('int_days_changed') }})"
) }}

-- depends_on: {{ ref('int_days_changed') }}
with changed as (
    select distinct
        days.user_id,
        days.local_date,
        days.metric_type,
        catalogue.unit,
        catalogue.daily_aggregation
    from {{ ref('int_days_changed') }} as days
    inner join {{ ref('metric_types') }} as catalogue on catalogue.metric_type = days.metric_type
),

-- The bounds on recorded_at let the primary key and the months' partitions find a day's rows; a record may
-- start a day before its local day (a night) and zones reach from UTC-12 to UTC+14.
rows_of_days as (
    select
        metrics.user_id,
        metrics.local_date,
        metrics.metric_type,
        metrics.source,
        metrics.recorded_at,
        metrics.metric_value,
        -- A value without a duration counts as a second.
        coalesce(greatest(extract(epoch from metrics.ended_at - metrics.recorded_at), 1), 1)::double precision as weight,
        changed.unit,
        changed.daily_aggregation
    from changed
    inner join {{ ref('health_metrics') }} as metrics
        on metrics.user_id = changed.user_id
        and metrics.metric_type = changed.metric_type
        and metrics.recorded_at >= changed.local_date::timestamp at time zone 'UTC' - interval '2 days'
        and metrics.recorded_at < changed.local_date::timestamp at time zone 'UTC' + interval '3 days'
        and metrics.local_date = changed.local_date
),

by_source as (
    select
        rows_of_days.user_id,
        rows_of_days.local_date,
        rows_of_days.metric_type,
        rows_of_days.unit as metric_unit,
        rows_of_days.source,
        count(*)::integer as sample_count,
        case rows_of_days.daily_aggregation
            when 'sum' then sum(rows_of_days.metric_value order by rows_of_days.recorded_at)
            when 'mean' then avg(rows_of_days.metric_value order by rows_of_days.recorded_at)
            when 'duration_weighted' then
                sum(rows_of_days.metric_value * rows_of_days.weight order by rows_of_days.recorded_at)
                / sum(rows_of_days.weight order by rows_of_days.recorded_at)
            when 'min' then min(rows_of_days.metric_value)
            when 'max' then max(rows_of_days.metric_value)
            when 'last' then (array_agg(rows_of_days.metric_value order by rows_of_days.recorded_at desc))[1]
        end as metric_value
    from rows_of_days
    group by
        rows_of_days.user_id, rows_of_days.local_date, rows_of_days.metric_type, rows_of_days.unit,
        rows_of_days.daily_aggregation, rows_of_days.source
),

ranked as (
    select
        by_source.*,
        row_number() over (
            partition by by_source.user_id, by_source.local_date, by_source.metric_type
            order by
                coalesce(of_metric.priority, of_any.priority, 1000),
                by_source.sample_count desc,
                by_source.source
        ) as source_rank
    from by_source
    left join {{ ref('source_priorities') }} as of_metric
        on of_metric.metric_type = by_source.metric_type
        and of_metric.source = by_source.source
    left join {{ ref('source_priorities') }} as of_any
        on of_any.metric_type = '*'
        and of_any.source = by_source.source
)

select
    user_id,
    local_date,
    metric_type,
    max(metric_value) filter (where source_rank = 1) as metric_value,
    metric_unit,
    max(source) filter (where source_rank = 1) as source,
    array_agg(source order by source_rank) as sources_seen,
    (max(sample_count) filter (where source_rank = 1))::integer as sample_count
from ranked
group by user_id, local_date, metric_type, metric_unit
