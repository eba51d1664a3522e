select
    event_id,
    provider,
    account_id,
    received_at,
    state,
    attempts
from {{ source('ops', 'webhook_events') }}
