-- The queue of daily_metrics: (user, local day, metric) whose rows in health_metrics changed.
-- depends_on: {{ ref('health_metrics') }}
select
    change_id,
    user_id,
    local_date,
    metric_type
from health._changed_metrics
where not applied
