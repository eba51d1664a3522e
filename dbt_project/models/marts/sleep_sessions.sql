{{ config(
    materialized='upsert_table',
    applies_objects=true,
    versioned=true,
    unique_key=['user_id', 'source', 'source_record_id'],
    scope='int_sleep_sessions_pending',
    scope_columns=['user_id', 'source', 'source_record_id'],
    indexes=[{'columns': ['user_id', 'local_date']}]
) }}

-- depends_on: {{ ref('int_sleep_sessions_pending') }}
{%- set measured = [
    'started_at', 'ended_at', 'utc_offset_minutes', 'end_utc_offset_minutes', 'local_date', 'sleep_type',
    'is_main_sleep', 'time_in_bed_seconds', 'sleep_seconds', 'deep_sleep_seconds', 'light_sleep_seconds',
    'rem_sleep_seconds', 'awake_seconds', 'latency_seconds', 'efficiency_percent', 'average_hrv_ms',
    'lowest_heart_rate_bpm', 'average_heart_rate_bpm', 'average_breath_per_minute', 'stages',
] %}
with sessions as not materialized (
    {{ accepted_sessions('int_sleep_sessions_unioned', measured) }}
),

newest as (
    {{ newest_versions(
        'sessions',
        key=['user_id', 'source', 'source_record_id'],
        measured=measured
    ) }}
)

select * from newest
