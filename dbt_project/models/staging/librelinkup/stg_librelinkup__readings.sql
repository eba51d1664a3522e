{#-
  LibreLinkUp's measurements in the shape of all glucose readings: the history as sensor readings, the logbook as
  scans. The present value of the graph is left out: the history has it a quarter of an hour later.
-#}
with said as (
    select
        *,
        'cgm' as reading_type
    from {{ ref('stg_librelinkup__graph') }}
    where measurement_type = 0
    union all
    select
        *,
        'scan' as reading_type
    from {{ ref('stg_librelinkup__logbook') }}
)

select
    user_id,
    source,
    -- Neither the model of the sensor nor that of the phone is told.
    '' as source_device,
    -- No ids: the instant is all that tells one measurement from another.
    null::text as source_record_id,
    false as is_deleted,
    reading_type,
    value_mg_dl as source_value,
    'mg/dL' as source_unit,
    value_mg_dl::text as value_text,
    -- The flags are of the sensor's range; the number beside them is its end.
    case
        when value_mg_dl < 40 or (is_low and value_mg_dl <= 40) then 'low'
        when value_mg_dl > 500 or (is_high and value_mg_dl >= 400) then 'high'
    end as censored,
    case trend_arrow
        when 1 then 'falling fast'
        when 2 then 'falling'
        when 3 then 'flat'
        when 4 then 'rising'
        when 5 then 'rising fast'
    end as trend,
    null::double precision as source_trend_rate,
    factory_time as recorded_at,
    utc_offset_minutes,
    case when utc_offset_minutes is not null then 'record' end as utc_offset_source,
    false as ambiguous_time,
    'measurement at ' || {{ utc_text('factory_time') }} as location,
    home_time_zone,
    raw_object_id,
    received_at
from said
