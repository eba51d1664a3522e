{#
  Of all that a run's objects say of a key, the newest value, dated by the receipt that brought it.

  A value that was sent again is not a change: the row keeps the receipt that first brought it, as it would
  had each receipt been applied by a run of its own. The relation needs `received_at`, `raw_object_id`,
  `source_record_id` and `is_deleted`. Of a document (a record with an id of its own) only what its newest
  version says is kept, and nothing if that version is a deletion.

  Adds `first_seen_at` and `updated_at`.
#}
{% macro newest_versions(relation, key, compare) %}
select
    latest.*,
    latest.received_at as updated_at
from (
    select distinct on ({{ key | join(', ') }}) versions.*
    from (
        select
            said.*,
            min(said.received_at) over (partition by {{ key | join(', ') }}) as first_seen_at,
            max(said.received_at) over (partition by {{ key | join(', ') }}) as last_received_at,
            (
                lag(said.raw_object_id) over by_key is null
                {% for column in compare -%}
                or lag(said.{{ column }}) over by_key is distinct from said.{{ column }}
                {% endfor -%}
            ) as is_change
        from {{ relation }} as said
        window by_key as (partition by {{ key | join(', ') }} order by said.received_at, said.raw_object_id)
    ) as versions
    where versions.is_change
    order by {{ key | join(', ') }}, versions.received_at desc, versions.raw_object_id desc
) as latest
left join (
    select user_id, source, source_record_id, max(received_at) as document_received_at
    from {{ relation }}
    where source_record_id is not null
    group by user_id, source, source_record_id
) as documents using (user_id, source, source_record_id)
where
    not latest.is_deleted
    and (
        latest.source_record_id is null
        or latest.last_received_at = documents.document_received_at
    )
{% endmacro %}
