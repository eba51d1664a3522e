-- Sensor readings as metrics. Scans and finger sticks stay in glucose_readings: a scan is taken when the
-- person looks, so the mean of scans is not the mean of glucose.
select
    user_id,
    'glucose' as metric_type,
    glucose_mg_dl as source_value,
    'mg/dL' as source_unit,
    source,
    nullif(source_device, '') as source_device,
    recorded_at,
    null::timestamptz as ended_at,
    utc_offset_minutes,
    utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    case when censored is not null then jsonb_build_object('censored', censored) end as metadata,
    false as is_deleted,
    home_time_zone,
    'line ' || line as location,
    raw_object_id,
    received_at
from {{ ref('int_glucose_validated') }}
where reading_type = 'cgm' and quarantine_reason is null
