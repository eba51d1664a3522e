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
    select
        user_id,
        source,
        source_record_id,
        {{ measured | join(',\n        ') }},
        -- What a document says now and cannot be true replaces what it said before by nothing.
        is_deleted or quarantine_reason is not null as is_deleted,
        raw_object_id,
        received_at
    from {{ of_pending('int_workouts_unioned') }} as unioned
),

newest as (
    {{ newest_versions(
        'workouts',
        key=['user_id', 'source', 'source_record_id'],
        measured=measured
    ) }}
)

select * from newest
