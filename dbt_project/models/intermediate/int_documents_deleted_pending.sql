-- The documents that notices of this run's objects say are gone.
{% for provider in var('deleting_providers') -%}
select
    user_id,
    source,
    {{ deleted_document(provider, 'entity', 'record_id') }} as source_record_id,
    raw_object_id,
    received_at
from {{ ref('stg_' ~ provider ~ '__deletion') }}
{% if not loop.last %}union all{% endif %}
{% endfor %}
