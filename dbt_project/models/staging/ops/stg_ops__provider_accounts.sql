select
    account_id,
    user_id,
    provider,
    status,
    last_sync_at,
    last_error,
    created_at
from {{ source('ops', 'provider_accounts') }}
