-- Whose word counts: the house's ranks (user_id null), and those a user has chosen.
select
    null::integer as user_id,
    metric_type,
    source,
    priority
from {{ ref('source_priorities') }}
union all
select
    user_id,
    metric_type,
    source,
    priority
from ops.source_priorities
