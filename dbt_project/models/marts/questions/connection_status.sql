{{ config(meta={'rights': 'owner'}) }}

select
    user_id,
    provider,
    status,
    token_validity,
    token_expires_at,
    token_refreshable,
    connected_at,
    last_sync_at,
    hours_since_last_sync,
    last_error
from {{ ref('int_connections_checked') }}
where {{ visible_to_reader('user_id') }}
