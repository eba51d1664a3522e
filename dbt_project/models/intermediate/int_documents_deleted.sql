-- The documents that were ever said to be gone, by what was applied and what this run applies, and since when.
-- Each notice looks its object up (`offset 0`): there are few of them, and as many objects as there were ever.
{% for provider in var('deleting_providers') -%}
select
    objects.user_id,
    '{{ provider }}' as source,
    {{ deleted_document(provider, 'deletions.entity', 'deletions.record_id') }} as source_record_id,
    min(objects.received_at) as deleted_at
from {{ source('staging_' ~ provider, 'deletion') }} as deletions
cross join lateral (
    select
        user_id,
        received_at
    from health._applied_objects
    where raw_object_id = deletions._raw_object_id and load_id = deletions._load_id
    union all
    select
        user_id,
        received_at
    from health._pending_objects
    where raw_object_id = deletions._raw_object_id and load_id = deletions._load_id
    offset 0
) as objects
group by 1, 3
{% if not loop.last %}union all{% endif %}
{% endfor %}
