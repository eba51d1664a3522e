-- The provider's documents that this run's objects speak of, and the receipt at which they do so first: what
-- they do not say any more is gone.
select
    said.user_id,
    said.source,
    said.source_record_id,
    min(objects.receipt) as first_receipt
from {{ ref('int_metrics_unioned') }} as said
inner join {{ ref('int_objects_pending') }} as objects using (raw_object_id)
where
    objects.standing <> 'context'
    and said.source_record_id is not null
group by said.user_id, said.source, said.source_record_id
