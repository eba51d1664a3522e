select
    user_id,
    source,
    device as source_device,
    null::text as source_record_id,
    false as is_deleted,
    case when is_sensor then 'cgm' else 'strip' end as reading_type,
    value as source_value,
    unit as source_unit,
    value::text as value_text,
    null::text as censored,
    null::text as trend,
    null::double precision as source_trend_rate,
    recorded_at,
    utc_offset_minutes,
    utc_offset_source,
    false as ambiguous_time,
    'line ' || line as location,
    home_time_zone,
    raw_object_id,
    received_at
from {{ ref('stg_apple_health__records') }}
where metric_type = 'blood_glucose'
