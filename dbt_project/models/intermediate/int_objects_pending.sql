-- The raw objects that this run applies (see macros/pending_objects.sql).
select
    provider,
    raw_object_id,
    load_id,
    user_id,
    entity,
    received_at,
    home_time_zone,
    receipt,
    standing
from health._pending_objects
