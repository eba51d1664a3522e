{%- set columns = [
    'user_id', 'source', 'source_record_id', 'started_at', 'ended_at', 'utc_offset_minutes',
    'end_utc_offset_minutes', 'local_date', 'sleep_type', 'is_main_sleep', 'time_in_bed_seconds',
    'sleep_seconds', 'deep_sleep_seconds', 'light_sleep_seconds', 'rem_sleep_seconds', 'awake_seconds',
    'latency_seconds', 'efficiency_percent', 'average_hrv_ms', 'lowest_heart_rate_bpm',
    'average_heart_rate_bpm', 'average_breath_per_minute', 'stages', 'is_deleted', 'raw_object_id',
    'received_at',
] -%}
{{ union_without_deleted(var('sleep_providers'), 'sleep_sessions', columns) }}
