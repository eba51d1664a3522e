select
    account_id,
    expires_at,
    refresh_token is not null as is_refreshable
from {{ source('ops', 'connector_tokens') }}
