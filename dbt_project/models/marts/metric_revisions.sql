{{ config(
    materialized='upsert_table',
    applies_objects=true,
    unique_key=['user_id', 'metric_type', 'recorded_at', 'source', 'revised_at', 'raw_object_id'],
    indexes=[{'columns': ['raw_object_id']}, {'columns': ['user_id', 'revised_at']}]
) }}

-- The table only: its rows are written together with those of health_metrics (macros/metric_revisions.sql).
select
    null::integer as user_id,
    null::text as metric_type,
    null::timestamptz as recorded_at,
    null::text as source,
    null::timestamptz as revised_at,
    null::bigint as raw_object_id,
    null::double precision as old_value,
    null::double precision as new_value
where false
