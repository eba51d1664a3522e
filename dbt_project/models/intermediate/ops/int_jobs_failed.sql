-- Jobs that ended in failure, and when.
select
    job_id,
    provider,
    user_id,
    updated_at as failed_at
from {{ ref('stg_ops__ingestion_jobs') }}
where status = 'failed'
