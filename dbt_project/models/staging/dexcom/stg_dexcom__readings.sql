{#-
  Dexcom's glucose in the shape of all glucose readings: sensor values, calibrations, and finger sticks entered
  as events. An event that is deleted, or is no finger stick (any more), gives a row marked as deleted, so that
  the reading an earlier version gave goes.
-#}
with said as (
    select
        user_id,
        source,
        record_id,
        'cgm' as reading_type,
        -- What older devices smooth after the fact is the better value; the vendor puts it into `value`, too.
        coalesce(value, smoothed_value, realtime_value) as value,
        unit,
        status,
        trend,
        trend_rate,
        system_time,
        utc_offset_minutes,
        transmitter_generation,
        display_device,
        false as is_retracted,
        home_time_zone,
        raw_object_id,
        received_at
    from {{ ref('stg_dexcom__egvs') }}
    union all
    select
        user_id,
        source,
        record_id,
        'calibration' as reading_type,
        value,
        unit,
        null::text as status,
        null::text as trend,
        null::double precision as trend_rate,
        system_time,
        utc_offset_minutes,
        transmitter_generation,
        display_device,
        false as is_retracted,
        home_time_zone,
        raw_object_id,
        received_at
    from {{ ref('stg_dexcom__calibrations') }}
    union all
    select
        user_id,
        source,
        record_id,
        'strip' as reading_type,
        case when value_text ~ '^\d+(\.\d+)?$' then value_text::double precision end as value,
        unit,
        null::text as status,
        null::text as trend,
        null::double precision as trend_rate,
        system_time,
        utc_offset_minutes,
        transmitter_generation,
        display_device,
        event_type <> 'bloodGlucose' or event_status is not distinct from 'deleted' as is_retracted,
        home_time_zone,
        raw_object_id,
        received_at
    from {{ ref('stg_dexcom__events') }}
),

measured as (
    select
        *,
        -- Every account is answered in mg/dL, whatever its app shows.
        coalesce(unit, 'mg/dL') as known_unit,
        value * case when unit = 'mmol/L' then 18.0156 else 1 end as mg_dl
    from said
)

select
    user_id,
    source,
    concat_ws(' ', transmitter_generation, display_device) as source_device,
    record_id as source_record_id,
    -- A sensor value without a number or a word says nothing.
    is_retracted or (reading_type = 'cgm' and value is null and status is distinct from 'low'
        and status is distinct from 'high') as is_deleted,
    reading_type,
    value as source_value,
    known_unit as source_unit,
    coalesce(value::text, status) as value_text,
    -- 39 and 401 stand for what is beyond the sensor's range.
    case
        when reading_type <> 'cgm' then null
        when mg_dl < 40 or (mg_dl is null and status = 'low') then 'low'
        when mg_dl > 400 or (mg_dl is null and status = 'high') then 'high'
    end as censored,
    trend,
    trend_rate as source_trend_rate,
    system_time as recorded_at,
    utc_offset_minutes,
    case when utc_offset_minutes is not null then 'record' end as utc_offset_source,
    false as ambiguous_time,
    'record ' || record_id as location,
    home_time_zone,
    raw_object_id,
    received_at
from measured
