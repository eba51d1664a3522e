{#-
  Carbohydrates entered in Dexcom's app. An event that is deleted, or is no meal (any more), takes the value of an
  earlier version away.
-#}
select
    user_id,
    'carbohydrates' as metric_type,
    case when value_text ~ '^\d+(\.\d+)?$' then value_text::double precision end as source_value,
    case when unit = 'grams' then 'g' else unit end as source_unit,
    source,
    concat_ws(' ', transmitter_generation, display_device) as source_device,
    system_time as recorded_at,
    null::timestamptz as ended_at,
    utc_offset_minutes,
    case when utc_offset_minutes is not null then 'record' end as utc_offset_source,
    null::date as local_date,
    record_id as source_record_id,
    null::jsonb as metadata,
    event_type <> 'carbs' or event_status is not distinct from 'deleted' as is_deleted,
    home_time_zone,
    'record ' || record_id as location,
    raw_object_id,
    received_at
from {{ ref('stg_dexcom__events') }}
