with metrics as (
    select * from {{ ref('int_metrics_unioned') }}
),

units as (
    select * from {{ ref('int_metric_units') }}
),

converted as (
    select
        metrics.user_id,
        metrics.metric_type,
        metrics.source_value * units.factor + units.shift as metric_value,
        units.metric_unit,
        units.valid_min,
        units.valid_max,
        metrics.source_value,
        metrics.source_unit,
        metrics.source,
        metrics.source_device,
        metrics.recorded_at,
        metrics.ended_at,
        coalesce(
            metrics.utc_offset_minutes,
            {{ zone_offset_minutes('metrics.recorded_at', 'metrics.home_time_zone') }},
            0
        )::smallint as utc_offset_minutes,
        case
            when metrics.utc_offset_minutes is not null then metrics.utc_offset_source
            when metrics.home_time_zone is not null then {{ zone_source('metrics.raw_object_id') }}
            else 'assumed_utc'
        end as utc_offset_source,
        metrics.utc_offset_minutes as said_offset_minutes,
        coalesce(metrics.home_time_zone, 'UTC') as time_zone,
        metrics.local_date as said_date,
        metrics.source_record_id,
        metrics.metadata,
        metrics.is_deleted,
        metrics.location,
        metrics.raw_object_id,
        metrics.received_at
    from metrics
    left join units
        on units.metric_type = metrics.metric_type
        and units.source_unit = metrics.source_unit
)

select
    user_id,
    metric_type,
    metric_value,
    metric_unit,
    source_value,
    source_unit,
    source,
    source_device,
    recorded_at,
    ended_at,
    utc_offset_minutes,
    utc_offset_source,
    -- By the zone where the offset comes from it: the same day, and the offset need not be found twice.
    coalesce(
        said_date,
        case
            when said_offset_minutes is null then (recorded_at at time zone time_zone)::date
            else {{ local_day('recorded_at', 'said_offset_minutes') }}
        end
    ) as local_date,
    source_record_id,
    metadata,
    is_deleted,
    location,
    raw_object_id,
    received_at,
    case
        when is_deleted then null
        when metric_unit is null then 'unknown_unit'
        when metric_value is null or metric_value = 'nan' then 'missing_value'
        when metric_value < valid_min or metric_value > valid_max then 'out_of_range'
        when recorded_at > received_at + interval '24 hours' then 'in_the_future'
        when recorded_at < timestamptz '1900-01-01 00:00:00+00' then 'before_1900'
        -- daily_metrics looks for a day's rows within these bounds.
        when
            recorded_at < said_date::timestamp at time zone 'UTC' - interval '2 days'
            or recorded_at >= said_date::timestamp at time zone 'UTC' + interval '3 days'
            then 'far_from_its_day'
    end as quarantine_reason
from converted
