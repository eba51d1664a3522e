{{ config(
    materialized='upsert_table',
    unique_key=['user_id', 'metric_type', 'local_date'],
    indexes=[{'columns': ['local_date']}, {'columns': ['user_id', 'local_date']}],
    scope='int_days_changed',
    scope_columns=['user_id', 'local_date', 'metric_type'],
    changes='_changed_daily',
    nested=true,
    pre_hook="{{ queue_days_ranked_anew() }}",
    post_hook="update health._changed_metrics set applied = true
        where not applied and change_id <= (select max(change_id) from {{ ref('int_days_changed') }})"
) }}

-- depends_on: {{ ref('int_days_changed') }}
with changed as (
    select distinct
        days.user_id,
        days.local_date,
        days.metric_type,
        catalogue.unit as metric_unit,
        catalogue.category,
        catalogue.daily_aggregation
    from {{ ref('int_days_changed') }} as days
    inner join {{ ref('metric_types') }} as catalogue on catalogue.metric_type = days.metric_type
),

-- One lookup a row instead of four joins: most days have one source, and nothing to rank.
ranks as materialized (
    select
        coalesce(
            jsonb_object_agg(coalesce(user_id::text, '*') || ' ' || metric_type || ' ' || source, priority), '{}'
        ) as priority_of
    from {{ ref('int_source_priorities') }}
),

-- Days that follow each other are read as one: each alone would read those around it, too.
stretches as (
    select
        user_id,
        metric_type,
        metric_unit,
        category,
        daily_aggregation,
        min(local_date) as first_day,
        max(local_date) as last_day
    from (
        select
            changed.*,
            changed.local_date
            - row_number() over (partition by changed.user_id, changed.metric_type order by changed.local_date)::integer
                as stretch
        from changed
    ) as numbered
    group by user_id, metric_type, metric_unit, category, daily_aggregation, stretch
),

rows_of_days as (
    select
        metrics.source,
        metrics.source_device,
        metrics.recorded_at,
        metrics.ended_at,
        metrics.metric_value,
        metrics.local_date,
        extract(epoch from metrics.ended_at - metrics.recorded_at)::double precision as seconds,
        stretches.user_id,
        stretches.metric_type,
        stretches.metric_unit,
        stretches.category,
        stretches.daily_aggregation
    from stretches
    inner join {{ ref('health_metrics') }} as metrics
        on {{ of_days('metrics', 'stretches', 'stretches.first_day', 'stretches.last_day') }}
),

by_source as (
    select
        user_id,
        local_date,
        metric_type,
        metric_unit,
        category,
        daily_aggregation,
        source,
        count(*)::integer as sample_count,
        -- Filters spare what a metric has no use for; of a group all rows are of one metric.
        case daily_aggregation
            when 'sum' then sum(metric_value order by recorded_at) filter (where daily_aggregation = 'sum')
            when 'mean' then avg(metric_value order by recorded_at) filter (where daily_aggregation = 'mean')
            when 'duration_weighted' then
                -- A value without a duration counts as a second.
                sum(metric_value * greatest(coalesce(seconds, 1), 1) order by recorded_at)
                    filter (where daily_aggregation = 'duration_weighted')
                / sum(greatest(coalesce(seconds, 1), 1) order by recorded_at)
                    filter (where daily_aggregation = 'duration_weighted')
            when 'min' then min(metric_value) filter (where daily_aggregation = 'min')
            when 'max' then max(metric_value) filter (where daily_aggregation = 'max')
            when 'last' then (array_agg(metric_value order by recorded_at desc) filter (where daily_aggregation = 'last'))[1]
        end as metric_value,
        -- The share of the day that rows with a duration span, else the share of its hours that have a row.
        least(
            1,
            case
                when count(seconds) > 0 then sum(seconds order by recorded_at) / 86400
                else bit_count(bit_or(1 << (extract(epoch from recorded_at)::bigint / 3600 % 24)::integer)::bit(24)) / 24.0
            end
        )::double precision as coverage,
        -- Only what has a duration, and one of less than half a day, says when it was.
        coalesce(bool_and(seconds > 0 and seconds < 43200), false) and count(seconds) = count(*) as is_timed,
        min(source_device) is distinct from max(source_device) as has_devices
    from rows_of_days
    -- In the order of health_metrics' key, in which they come: there is nearly nothing to sort.
    group by user_id, metric_type, local_date, metric_unit, category, daily_aggregation, source
),

ranked as (
    select
        by_source.*,
        row_number() over (
            partition by by_source.user_id, by_source.local_date, by_source.metric_type
            order by
                coalesce(
                    ranks.priority_of -> (by_source.user_id || ' ' || by_source.metric_type || ' ' || by_source.source),
                    ranks.priority_of -> (by_source.user_id || ' * ' || by_source.source),
                    ranks.priority_of -> ('* ' || by_source.metric_type || ' ' || by_source.source),
                    ranks.priority_of -> ('* * ' || by_source.source),
                    '1000'::jsonb
                )::integer,
                by_source.coverage desc,
                by_source.sample_count desc,
                by_source.source
        ) as place
    from by_source
    cross join ranks
),

days as (
    select
        user_id,
        local_date,
        metric_type,
        metric_unit,
        category,
        max(metric_value) filter (where place = 1) as metric_value,
        max(sample_count) filter (where place = 1) as sample_count,
        max(coverage) filter (where place = 1) as coverage,
        array_agg(source order by place) as sources_seen,
        array_agg(metric_value order by place) as source_values,
        array_agg(sample_count order by place) as source_counts,
        array_agg(coverage order by place) as source_coverages,
        array_agg(source order by place) filter (where is_timed) as timed_sources,
        daily_aggregation = 'sum'
        and bool_or(is_timed and place = 1)
        and (bool_or(is_timed and place > 1) or bool_or(is_timed and has_devices)) as is_merged
    from ranked
    group by user_id, local_date, metric_type, metric_unit, category, daily_aggregation
)

select
    days.user_id,
    days.local_date,
    days.metric_type,
    coalesce(merged.metric_value, days.metric_value) as metric_value,
    days.metric_unit,
    days.sources_seen[1] as source,
    days.sources_seen,
    coalesce(merged.sample_count, days.sample_count) as sample_count,
    coalesce(merged.coverage, days.coverage) as coverage,
    case when cardinality(days.sources_seen) > 1 then (
        select
            jsonb_agg(
                jsonb_build_object(
                    'source', days.sources_seen[place],
                    'value', days.source_values[place],
                    'counted', case
                        when days.is_merged then coalesce((merged.counted ->> days.sources_seen[place])::double precision, 0)
                        when place = 1 then days.metric_value
                        else 0
                    end,
                    'samples', days.source_counts[place],
                    'coverage', round(days.source_coverages[place]::numeric, 4)
                )
                order by place
            )
        from generate_subscripts(days.sources_seen, 1) as place
    ) end as contributions
from days
left join lateral (
    {{ merged_by_segment('days') }}
) as merged on true
