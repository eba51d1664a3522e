{{ config(
    materialized='upsert_table',
    applies_objects=true,
    versioned=true,
    unique_key=['user_id', 'metric_type', 'recorded_at', 'source'],
    partition_by='recorded_at',
    scope='int_documents_pending',
    scope_columns=['user_id', 'source', 'source_record_id'],
    changes='_changed_metrics',
    revised='metric_value',
    revisions='metric_revisions',
    indexes=[{'columns': ['source_record_id'], 'where': 'source_record_id is not null'}]
) }}

-- depends_on: {{ ref('int_documents_pending') }}
-- depends_on: {{ ref('metric_revisions') }}
{%- set measured = [
    'metric_value', 'metric_unit', 'source_device', 'ended_at', 'utc_offset_minutes', 'utc_offset_source',
    'local_date', 'source_record_id', 'metadata',
] %}
with metrics as not materialized (
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
        -- What a document says now and cannot be true replaces what it said before by nothing. (`case`, because
        -- the planner takes any test of an expression for null to be true of few rows.)
        case when quarantine_reason is null then is_deleted else true end as is_deleted,
        raw_object_id,
        received_at
    from {{ of_pending('int_metrics_validated') }} as validated
),

newest as (
    {{ newest_versions(
        'metrics',
        key=['user_id', 'metric_type', 'recorded_at', 'source'],
        measured=measured,
        revised='metric_value',
        along="user_id::bigint << 44
            | ((hashtext(metric_type) & 1023)::bigint << 34)
            | (date_part('epoch', recorded_at)::bigint & ((1::bigint << 34) - 1))"
    ) }}
)

select * from newest
