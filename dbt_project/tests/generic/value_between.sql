{# Rows whose value lies outside low to high, both included. #}
{% test value_between(model, column_name, low, high) %}
select * from {{ model }} where not {{ column_name }} between {{ low }} and {{ high }}
{% endtest %}
