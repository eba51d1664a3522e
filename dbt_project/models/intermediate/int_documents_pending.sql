-- The provider's documents that this run's objects speak of: what they do not say any more is gone.
select distinct
    user_id,
    source,
    source_record_id
from {{ ref('int_metrics_unioned') }}
where source_record_id is not null
