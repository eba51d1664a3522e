{# The id by which canonical tables know a document, from what the vendor's notice of its deletion names. #}
{% macro deleted_document(provider, entity, record_id) -%}
    {%- if provider == 'whoop' -%}
        case when {{ entity }} = 'recovery' then 'recovery:' else '' end || {{ record_id }}
    {%- else -%}
        {{ record_id }}
    {%- endif -%}
{%- endmacro %}

{#
  The rows of several models of one shape, `int_<provider>_<kind>`, without what came of a document after its
  vendor said that it was gone, and with a row marked as deleted for each that this run's objects say is gone.
  `columns` are all columns of that shape, in their order.
#}
{% macro union_without_deleted(providers, kind, columns) %}
    {% for provider in providers %}
select {{ columns | join(', ') }}
from {{ ref('int_' ~ provider ~ '_' ~ kind) }}{% if provider in var('deleting_providers') %} as said
where
    said.source_record_id is null
    or not exists (
        select from {{ ref('int_documents_deleted') }} as gone
        where
            gone.user_id = said.user_id
            and gone.source = '{{ provider }}'
            and gone.source_record_id = said.source_record_id
            and gone.deleted_at <= said.received_at
    )
    {% endif %}
union all
    {% endfor %}
select
    {% for column in columns -%}
    {% if column == 'is_deleted' %}true as is_deleted
    {%- elif column in ('user_id', 'source', 'source_record_id', 'raw_object_id', 'received_at') %}{{ column }}
    {%- else %}null as {{ column }}
    {%- endif %}{{ ',' if not loop.last }}
    {% endfor -%}
from {{ ref('int_documents_deleted_pending') }}
{% endmacro %}
