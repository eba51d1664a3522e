{# Every metric of the table is one of the catalogue. #}
{% test metric_in_catalogue(model, column_name) %}
select distinct facts.{{ column_name }}
from {{ model }} as facts
left join {{ ref('metric_types') }} as catalogue on catalogue.metric_type = facts.{{ column_name }}
where catalogue.metric_type is null
{% endtest %}
