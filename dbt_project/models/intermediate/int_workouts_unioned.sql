{%- set columns = [
    'user_id', 'source', 'source_record_id', 'started_at', 'ended_at', 'utc_offset_minutes', 'local_date',
    'activity', 'intensity', 'duration_seconds', 'calories_kcal', 'distance_m', 'average_heart_rate_bpm',
    'max_heart_rate_bpm', 'elevation_gain_m', 'perceived_exertion', 'is_deleted', 'raw_object_id', 'received_at',
] -%}
{{ union_without_deleted(var('workout_providers'), 'workouts', columns) }}
