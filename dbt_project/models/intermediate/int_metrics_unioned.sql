{%- set columns = [
    'user_id', 'metric_type', 'source_value', 'source_unit', 'source', 'source_device', 'recorded_at',
    'ended_at', 'utc_offset_minutes', 'utc_offset_source', 'local_date', 'source_record_id', 'metadata',
    'is_deleted', 'home_time_zone', 'location', 'raw_object_id', 'received_at',
] -%}
{{ union_of(['int_glucose_metrics']) }}
union all
{{ union_without_deleted(var('metric_providers'), 'metrics', columns) }}
