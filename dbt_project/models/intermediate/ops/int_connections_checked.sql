-- Accounts with what their tokens are worth.
select
    accounts.user_id,
    accounts.provider,
    accounts.status,
    case
        when tokens.account_id is null then 'none'
        when tokens.expires_at <= {{ present_instant() }} then 'expired'
        when tokens.expires_at <= {{ present_instant() }} + interval '1 day' then 'expiring'
        else 'valid'
    end as token_validity,
    tokens.expires_at as token_expires_at,
    tokens.is_refreshable as token_refreshable,
    accounts.created_at as connected_at,
    accounts.last_sync_at,
    extract(epoch from {{ present_instant() }} - accounts.last_sync_at)::double precision / 3600
        as hours_since_last_sync,
    accounts.last_error
from {{ ref('stg_ops__provider_accounts') }} as accounts
left join {{ ref('stg_ops__connector_tokens') }} as tokens on tokens.account_id = accounts.account_id
