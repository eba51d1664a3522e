-- The reports and documents that this run's objects speak of.
select distinct
    said.user_id,
    said.source,
    said.source_record_id
from {{ ref('int_clinical_documents_unioned') }} as said
inner join {{ ref('int_objects_pending') }} as objects using (raw_object_id)
where objects.standing <> 'context'
