{{ config(
    materialized='upsert_table',
    applies_objects=true,
    unique_key=['raw_object_id', 'quarantine_id'],
    scope='int_objects_pending',
    scope_columns=['raw_object_id']
) }}

-- depends_on: {{ ref('int_objects_pending') }}
with refused as (
    {% for provider in var('glucose_providers') + var('metric_providers') %}
    -- What the parser could not read.
    select
        user_id,
        '{{ provider }}' as source,
        entity,
        field as metric_type,
        reason,
        location,
        original::jsonb as original,
        _raw_object_id as raw_object_id,
        received_at
    from ({{ pending_rows(provider, 'quarantine') }}) as parsed_{{ loop.index }}
    union all
    {% endfor %}
    -- What was read and cannot be true.
    select
        user_id,
        source,
        'glucose_readings' as entity,
        'glucose' as metric_type,
        quarantine_reason as reason,
        location,
        jsonb_build_object(
            'value', source_value, 'unit', source_unit, 'text', value_text,
            'recorded_at', {{ utc_text('recorded_at') }}
        ) as original,
        raw_object_id,
        received_at
    from {{ ref('int_glucose_validated') }}
    where quarantine_reason is not null
    union all
    select
        user_id,
        source,
        'health_metrics' as entity,
        metric_type,
        quarantine_reason as reason,
        location,
        jsonb_build_object(
            'value', source_value, 'unit', source_unit, 'recorded_at', {{ utc_text('recorded_at') }}
        ) as original,
        raw_object_id,
        received_at
    from {{ ref('int_metrics_validated') }}
    where quarantine_reason is not null
)

select distinct on (raw_object_id, quarantine_id)
    raw_object_id,
    md5(concat_ws('|', entity, coalesce(metric_type, ''), reason, location))::uuid as quarantine_id,
    user_id,
    source,
    entity,
    metric_type as field,
    reason,
    location,
    original,
    received_at as quarantined_at
from refused
order by raw_object_id asc, quarantine_id asc, original asc
