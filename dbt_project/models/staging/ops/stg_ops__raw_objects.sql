select
    raw_object_id,
    provider as source,
    subject_id,
    received_at,
    data_start_date,
    data_end_date
from {{ source('ops', 'raw_objects') }}
