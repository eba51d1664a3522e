{{ config(
    materialized='upsert_table',
    applies_objects=true,
    unique_key=['raw_object_id', 'quarantine_id'],
    scope='int_objects_pending',
    scope_columns=['raw_object_id']
) }}

-- depends_on: {{ ref('int_objects_pending') }}
{%- set validated = ref('int_glucose_validated') -%}
{%- set present = validated if applies_objects() else none %}
{%- set sessions = {
    'sleep_sessions': of_pending('int_sleep_sessions_unioned'),
    'workouts': of_pending('int_workouts_unioned'),
} %}
with refused as (
    {% for provider in pending_among(var('glucose_providers') + var('metric_providers'), present) %}
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
    {% if pending_among(var('glucose_providers'), present) %}
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
    from {{ validated }}
    where quarantine_reason is not null
    union all
    {% endif %}
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
    from {{ of_pending('int_metrics_validated') }} as validated
    where quarantine_reason is not null
    {% for name, of_name in sessions.items() %}
    union all
    select
        user_id,
        source,
        '{{ name }}' as entity,
        null as metric_type,
        quarantine_reason as reason,
        'document ' || source_record_id as location,
        jsonb_build_object(
            'started_at', {{ utc_text('started_at') }}, 'ended_at', {{ utc_text('ended_at') }}
        ) as original,
        raw_object_id,
        received_at
    from {{ of_name }} as {{ name }}
    where quarantine_reason is not null
    {% endfor %}
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
