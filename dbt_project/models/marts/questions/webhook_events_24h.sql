{{ config(meta={'rights': 'owner'}) }}

select
    provider,
    state,
    count(*) as event_count,
    min(received_at) as oldest_received_at,
    max(received_at) as newest_received_at,
    sum(attempts) as attempts,
    max(attempts) as most_attempts
from {{ ref('int_webhook_events_attributed') }}
where received_at > {{ present_instant() }} - interval '24 hours'
    and {{ visible_to_reader('user_id') }}
group by provider, state
