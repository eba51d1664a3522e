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
    source_record_id,
    case when censored is not null then jsonb_build_object('censored', censored) end as metadata,
    -- What a record says now and cannot be true replaces what it said before by nothing.
    is_deleted or quarantine_reason is not null as is_deleted,
    home_time_zone,
    location,
    raw_object_id,
    received_at
from {{ ref('int_glucose_validated') }}
where reading_type = 'cgm'
    and (quarantine_reason is null or source_record_id is not null)
