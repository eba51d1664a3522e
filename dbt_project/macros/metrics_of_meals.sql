{#
  Carbohydrates in the exports of glucose sensors' apps (see health_pipeline/providers/_glucose.py), in the shape of
  health_metrics. Entries of one instant are told apart by microseconds; what a file has twice is one.
#}
{% macro metrics_of_meals(provider) %}
select
    user_id,
    'carbohydrates' as metric_type,
    carbohydrates_g as source_value,
    'g' as source_unit,
    '{{ provider }}' as source,
    coalesce(device, '') as source_device,
    recorded_at + interval '1 microsecond' * (
        dense_rank() over (
            partition by _raw_object_id, recorded_at
            order by device collate "C", device_serial collate "C", carbohydrates_g
        ) - 1
    ) as recorded_at,
    null::timestamptz as ended_at,
    utc_offset_minutes,
    utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    home_time_zone,
    'line ' || line as location,
    _raw_object_id as raw_object_id,
    received_at
from {{ ref('stg_' ~ provider ~ '__meals') }}
{% endmacro %}
