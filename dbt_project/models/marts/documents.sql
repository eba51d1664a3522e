{{ config(
    materialized='upsert_table',
    applies_objects=true,
    versioned=true,
    unique_key=['user_id', 'source', 'source_record_id'],
    scope='int_clinical_documents_pending',
    scope_columns=['user_id', 'source', 'source_record_id'],
    indexes=[{'columns': ['user_id', 'document_date']}]
) }}

-- depends_on: {{ ref('int_clinical_documents_pending') }}
{%- set measured = [
    'document_kind', 'status', 'category', 'title', 'loinc_codes', 'document_at', 'document_date',
    'document_precision', 'issued_at', 'summary', 'content_type', 'attachments', 'size_bytes', 'results',
] %}
with documents as not materialized (
    select * from {{ ref('int_clinical_documents_unioned') }}
),

newest as (
    {{ newest_versions(
        'documents',
        key=['user_id', 'source', 'source_record_id'],
        measured=measured
    ) }}
)

select * from newest
