select
    job_id,
    provider,
    user_id,
    status,
    updated_at
from {{ source('ops', 'ingestion_jobs') }}
