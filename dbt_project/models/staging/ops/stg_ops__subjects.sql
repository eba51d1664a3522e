select
    subject_id,
    user_id
from {{ source('ops', 'subjects') }}
