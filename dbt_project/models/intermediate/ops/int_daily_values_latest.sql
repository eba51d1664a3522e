-- The last daily value of each person and metric: one look into the primary key of daily_metrics each, however
-- many days there are.
select
    people.user_id,
    catalogue.metric_type,
    catalogue.value_kind,
    latest.local_date as last_date,
    latest.metric_value as last_value,
    latest.metric_unit,
    latest.source
from {{ ref('stg_ops__subjects') }} as people
cross join {{ ref('metric_types') }} as catalogue
cross join lateral (
    select
        days.local_date,
        days.metric_value,
        days.metric_unit,
        days.source
    from {{ ref('daily_metrics') }} as days
    where days.user_id = people.user_id and days.metric_type = catalogue.metric_type
    order by days.local_date desc
    limit 1
) as latest
