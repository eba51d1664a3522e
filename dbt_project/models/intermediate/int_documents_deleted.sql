-- The documents that were ever said to be gone, by what was applied and what this run applies, and since when.
with objects as (
    select raw_object_id, load_id, user_id, received_at from health._applied_objects
    union
    select raw_object_id, load_id, user_id, received_at from health._pending_objects
)

{% for provider in var('deleting_providers') -%}
select
    objects.user_id,
    '{{ provider }}' as source,
    {{ deleted_document(provider, 'deletions.entity', 'deletions.record_id') }} as source_record_id,
    min(objects.received_at) as deleted_at
from {{ source('staging_' ~ provider, 'deletion') }} as deletions
inner join objects
    on objects.raw_object_id = deletions._raw_object_id
    and objects.load_id = deletions._load_id
group by 1, 3
{% if not loop.last %}union all{% endif %}
{% endfor %}
