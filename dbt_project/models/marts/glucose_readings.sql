{{ config(
    materialized='upsert_table',
    applies_objects=true,
    versioned=true,
    unique_key=['user_id', 'recorded_at', 'source', 'reading_type', 'source_device'],
    scope='int_glucose_readings_pending',
    scope_columns=['user_id', 'source', 'source_record_id'],
    indexes=[
        {'columns': ['source_record_id'], 'where': 'source_record_id is not null'},
        {'columns': ['user_id', 'local_date']},
    ]
) }}

-- depends_on: {{ ref('int_glucose_readings_pending') }}
{%- set measured = [
    'glucose_mg_dl', 'censored', 'trend', 'trend_mg_dl_per_minute', 'source_value', 'source_unit',
    'utc_offset_minutes', 'utc_offset_source', 'ambiguous_time', 'local_date',
    'source_record_id',
] %}
with readings as not materialized (
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
        source_record_id,
        -- What a record says now and cannot be true replaces what it said before by nothing.
        case when quarantine_reason is null then is_deleted else true end as is_deleted,
        raw_object_id,
        received_at
    from {{ ref('int_glucose_validated') }}
),

newest as (
    {{ newest_versions(
        'readings',
        key=['user_id', 'recorded_at', 'source', 'reading_type', 'source_device'],
        measured=measured
    ) }}
)

select * from newest
