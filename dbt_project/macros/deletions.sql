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
  `columns` are all columns of that shape, in their order; `beside` as in pending_views.sql.
#}
{% macro union_without_deleted(providers, kind, columns, beside=none) %}
    {# One at least: columns of nothing but nulls would have no types. #}
    {% for provider in pending_among(providers, beside) or providers[:1] %}
select {{ columns | join(', ') }}
from {{ relation_named('int_' ~ provider ~ '_' ~ kind, beside) }}{% if provider in var('deleting_providers') %} as said
where
    said.source_record_id is null
    or not exists (
        select from {{ relation_named('int_documents_deleted', beside) }} as gone
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
from {{ relation_named('int_documents_deleted_pending', beside) }}
{% endmacro %}
