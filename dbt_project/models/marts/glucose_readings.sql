{{ config(
    materialized='upsert_table',
    applies_objects=true,
    unique_key=['user_id', 'recorded_at', 'source', 'reading_type', 'source_device']
) }}

with readings as not materialized (
    select
        *,
        false as is_deleted
    from {{ ref('int_glucose_validated') }}
    where quarantine_reason is null
),

newest as (
    {{ newest_versions(
        'readings',
        key=['user_id', 'recorded_at', 'source', 'reading_type', 'source_device'],
        compare=['glucose_mg_dl', 'source_value', 'source_unit', 'trend', 'censored']
    ) }}
)

select
    user_id,
    recorded_at,
    glucose_mg_dl,
    reading_type,
    censored,
    trend,
    trend_mg_dl_per_minute,
    source,
    source_device,
    source_value,
    source_unit,
    offset_minutes as utc_offset_minutes,
    offset_source as utc_offset_source,
    ambiguous_time,
    local_date,
    raw_object_id,
    first_seen_at,
    updated_at
from newest
