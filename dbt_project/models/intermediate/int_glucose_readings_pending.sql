-- The glucose records with an id of their own that this run's objects speak of: what they do not say any more
-- is gone.
select distinct
    said.user_id,
    said.source,
    said.source_record_id
from {{ ref('int_glucose_unioned') }} as said
inner join {{ ref('int_objects_pending') }} as objects using (raw_object_id)
where objects.standing <> 'context'
    and said.source_record_id is not null
