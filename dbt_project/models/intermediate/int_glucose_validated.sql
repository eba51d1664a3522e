with readings as (
    select * from {{ ref('int_glucose_unioned') }}
),

units as (
    select * from {{ ref('int_metric_units') }} where metric_type = 'glucose'
),

located as (
    select
        readings.*,
        units.factor,
        -- "Low" and "High" stand for the ends of what the sensor measures, 40 and 400 mg/dL.
        case readings.censored
            when 'low' then coalesce(readings.source_value * units.factor, 39)
            when 'high' then coalesce(readings.source_value * units.factor, 401)
            else readings.source_value * units.factor
        end as glucose_mg_dl,
        readings.source_trend_rate * units.factor as trend_mg_dl_per_minute,
        coalesce(
            readings.utc_offset_minutes,
            {{ zone_offset_minutes('readings.recorded_at', 'readings.home_time_zone') }},
            0
        )::smallint as offset_minutes,
        case
            when readings.utc_offset_minutes is not null then readings.utc_offset_source
            when readings.home_time_zone is not null then {{ zone_source('readings.raw_object_id') }}
            else 'assumed_utc'
        end as offset_source
    from readings
    left join units on units.source_unit = readings.source_unit
)

select
    *,
    {{ local_day('recorded_at', 'offset_minutes') }} as local_date,
    case
        when is_deleted then null
        when factor is null and censored is null then 'unknown_unit'
        when glucose_mg_dl is null or glucose_mg_dl = 'nan' then 'missing_value'
        when glucose_mg_dl < 20 or glucose_mg_dl > 600 then 'out_of_range'
        when recorded_at > received_at + interval '24 hours' then 'in_the_future'
        when recorded_at < timestamptz '1900-01-01 00:00:00+00' then 'before_1900'
    end as quarantine_reason
from located
