{# A staging model: the rows of a staging table that this run applies, with the house's provenance columns. #}
{% macro pending_model(provider, table) %}
with staged as (
    {{ pending_rows(provider, table) }}
)

select
    *,
    '{{ provider }}' as source,
    _raw_object_id as raw_object_id
from staged
{% endmacro %}
