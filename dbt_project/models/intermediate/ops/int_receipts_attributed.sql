-- Raw objects with the user they belong to.
select
    objects.raw_object_id,
    objects.source,
    subjects.user_id,
    objects.received_at,
    objects.data_start_date,
    objects.data_end_date
from {{ ref('stg_ops__raw_objects') }} as objects
inner join {{ ref('stg_ops__subjects') }} as subjects on subjects.subject_id = objects.subject_id
