-- The documents that were ever said to be gone, and since when.
{% for provider in var('deleting_providers') -%}
select
    subjects.user_id,
    '{{ provider }}' as source,
    {{ deleted_document(provider, 'deletions.entity', 'deletions.record_id') }} as source_record_id,
    min(objects.received_at) as deleted_at
from {{ source('staging_' ~ provider, 'deletion') }} as deletions
inner join {{ source('staging_' ~ provider, 'staged_objects') }} as staged
    on staged.raw_object_id = deletions._raw_object_id and staged.load_id = deletions._load_id
inner join {{ ref('stg_ops__raw_objects') }} as objects on objects.raw_object_id = deletions._raw_object_id
inner join {{ ref('stg_ops__subjects') }} as subjects using (subject_id)
group by 1, 3
{% if not loop.last %}union all{% endif %}
{% endfor %}
