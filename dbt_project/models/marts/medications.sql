{{ config(
    materialized='upsert_table',
    applies_objects=true,
    versioned=true,
    unique_key=['user_id', 'source', 'source_record_id'],
    scope='int_medications_pending',
    scope_columns=['user_id', 'source', 'source_record_id'],
    indexes=[{'columns': ['user_id', 'authored_date']}]
) }}

-- depends_on: {{ ref('int_medications_pending') }}
{%- set measured = [
    'status', 'intent', 'medication', 'rxnorm_codes', 'is_reported', 'authored_at', 'authored_date',
    'authored_precision', 'dosage_text', 'dose_value', 'dose_unit', 'quantity_value', 'quantity_unit',
    'refills_allowed', 'reason',
] %}
with medications as not materialized (
    select * from {{ ref('int_medications_unioned') }}
),

newest as (
    {{ newest_versions(
        'medications',
        key=['user_id', 'source', 'source_record_id'],
        measured=measured
    ) }}
)

select * from newest
