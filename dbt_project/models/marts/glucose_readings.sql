{{ config(
    materialized='upsert_table',
    applies_objects=true,
    versioned=true,
    unique_key=['user_id', 'recorded_at', 'source', 'reading_type', 'source_device']
) }}

{%- set measured = [
    'glucose_mg_dl', 'censored', 'trend', 'trend_mg_dl_per_minute', 'source_value', 'source_unit',
    'offset_minutes', 'offset_source', 'ambiguous_time', 'local_date',
] %}
with readings as not materialized (
    select
        *,
        -- Ids of a file's records are not ids of documents: two files may number their rows alike.
        null::text as source_record_id,
        false as is_deleted
    from {{ ref('int_glucose_validated') }}
    where quarantine_reason is null
),

newest as (
    {{ newest_versions(
        'readings',
        key=['user_id', 'recorded_at', 'source', 'reading_type', 'source_device'],
        measured=measured
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
    updated_at,
    _merge
from newest
