{{ config(
    materialized='upsert_table',
    applies_objects=true,
    versioned=true,
    unique_key=['user_id', 'source', 'source_record_id'],
    scope='int_workouts_pending',
    scope_columns=['user_id', 'source', 'source_record_id'],
    changes='_changed_daily',
    change_metric="'workout'",
    indexes=[{'columns': ['user_id', 'local_date']}]
) }}

-- depends_on: {{ ref('int_workouts_pending') }}
{%- set measured = [
    'started_at', 'ended_at', 'utc_offset_minutes', 'local_date', 'activity', 'intensity', 'duration_seconds',
    'calories_kcal', 'distance_m', 'average_heart_rate_bpm', 'max_heart_rate_bpm',
    'elevation_gain_m', 'perceived_exertion',
] %}
with workouts as not materialized (
    {{ accepted_sessions('int_workouts_unioned', measured) }}
),

newest as (
    {{ newest_versions(
        'workouts',
        key=['user_id', 'source', 'source_record_id'],
        measured=measured
    ) }}
)

select * from newest
