{{ config(
    materialized='upsert_table',
    applies_objects=true,
    unique_key=['user_id', 'metric_type', 'recorded_at', 'source'],
    partition_by='recorded_at',
    scope='int_documents_pending',
    scope_columns=['user_id', 'source', 'source_record_id'],
    changes='_changed_metrics',
    indexes=[{'columns': ['source_record_id'], 'where': 'source_record_id is not null'}]
) }}

-- depends_on: {{ ref('int_documents_pending') }}
with metrics as not materialized (
    select * from {{ ref('int_metrics_validated') }}
    where quarantine_reason is null
),

newest as (
    {{ newest_versions(
        'metrics',
        key=['user_id', 'metric_type', 'recorded_at', 'source'],
        compare=['metric_value', 'ended_at', 'local_date', 'utc_offset_minutes', 'is_deleted']
    ) }}
)

select
    user_id,
    metric_type,
    metric_value,
    metric_unit,
    source,
    source_device,
    recorded_at,
    ended_at,
    utc_offset_minutes,
    utc_offset_source,
    local_date,
    source_record_id,
    metadata,
    raw_object_id,
    first_seen_at,
    updated_at
from newest
