-- The nights that this run's objects speak of.
select distinct
    user_id,
    source,
    source_record_id
from {{ ref('int_sleep_sessions_unioned') }}
