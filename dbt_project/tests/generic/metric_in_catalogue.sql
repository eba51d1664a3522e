{# Every metric of the table is one of the catalogue; `where` names the rows of this run, where the table grows. #}
{% test metric_in_catalogue(model, column_name) %}
with facts as (
    select * from {{ model }}
)

select distinct facts.{{ column_name }}
from facts
left join {{ ref('metric_types') }} as catalogue on catalogue.metric_type = facts.{{ column_name }}
where catalogue.metric_type is null
{% endtest %}
