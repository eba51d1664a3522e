-- Events with the user they belong to; null while nobody is known by the provider's id.
select
    events.event_id,
    events.provider,
    accounts.user_id,
    events.received_at,
    events.state,
    events.attempts
from {{ ref('stg_ops__webhook_events') }} as events
left join {{ ref('stg_ops__provider_accounts') }} as accounts on accounts.account_id = events.account_id
