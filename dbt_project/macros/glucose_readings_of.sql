{# All glucose files have one staging shape (see health_pipeline/providers/_glucose.py), hence one renaming. #}
{% macro glucose_readings_of(provider) %}
with readings as (
    {{ pending_rows(provider, 'readings') }}
)

select
    user_id,
    '{{ provider }}' as source,
    coalesce(device, '') as source_device,
    record_id,
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
    line,
    home_time_zone,
    _raw_object_id as raw_object_id,
    received_at
from readings
{% endmacro %}
