{# All glucose files have one staging shape (see health_pipeline/providers/_glucose.py), hence one renaming. #}
{% macro glucose_readings_of(provider) %}
with readings as (
    {{ pending_rows(provider, 'readings') }}
)

select
    user_id,
    '{{ provider }}' as source,
    coalesce(device, '') as source_device,
    -- Ids of a file's records are not ids of documents: two files may number their rows alike.
    null::text as source_record_id,
    false as is_deleted,
    reading_type,
    value as source_value,
    unit as source_unit,
    value_text,
    censored,
    trend,
    trend_rate as source_trend_rate,
    recorded_at,
    utc_offset_minutes,
    utc_offset_source,
    ambiguous_time,
    'line ' || line as location,
    home_time_zone,
    _raw_object_id as raw_object_id,
    received_at
from readings
{% endmacro %}
