{#
  The rows this run changed are in the catalogue, in its unit and within its range. Rows of earlier runs were
  tested when they changed.
#}
{% test values_within_catalogue(model) %}
select metrics.*
from (select distinct user_id, local_date, metric_type from health._changed_metrics) as changed
cross join lateral (
    select *
    from {{ model }} as facts
    where facts.user_id = changed.user_id
        and facts.metric_type = changed.metric_type
        and facts.recorded_at >= changed.local_date::timestamp at time zone 'UTC' - interval '2 days'
        and facts.recorded_at < changed.local_date::timestamp at time zone 'UTC' + interval '3 days'
    -- Keeps the planner to one look into the index a key, however large the table is.
    offset 0
) as metrics
left join {{ ref('metric_types') }} as catalogue on catalogue.metric_type = metrics.metric_type
where catalogue.metric_type is null
    or metrics.metric_unit <> catalogue.unit
    or metrics.metric_value not between catalogue.valid_min and catalogue.valid_max
{% endtest %}
