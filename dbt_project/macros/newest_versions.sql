{#
  Of all that a run's objects say of a key, the newest value, dated by the receipt that brought it.

  A value that was sent again is not a change: the row keeps the receipt that first brought it, as it would
  had each receipt been applied by a run of its own. The relation (a CTE that is `not materialized`) needs
  `received_at`, `raw_object_id`, `source_record_id` and `is_deleted`. Of a document (a record with an id of
  its own) only what its newest version says is kept, and nothing if that version is a deletion.

  Adds `first_seen_at` and `updated_at`. All windows share one sort, by the key and the order of receipt.
#}
{% macro newest_versions(relation, key, compare) %}
{%- set by_key = 'partition by ' ~ key | join(', ') -%}
select
    numbered.*,
    numbered.received_at as updated_at
from (
    select
        versions.*,
        max(versions.version) filter (where versions.is_change) over ({{ by_key }}) as newest_version
    from (
        select
            said.*,
            row_number() over in_order as version,
            min(said.received_at) over ({{ by_key }}) as first_seen_at,
            max(said.received_at) over ({{ by_key }}) as last_received_at,
            (
                lag(said.raw_object_id) over in_order is null
                {% for column in compare -%}
                or lag(said.{{ column }}) over in_order is distinct from said.{{ column }}
                {% endfor -%}
            ) as is_change
        from (
            select
                samples.*,
                null::timestamptz as document_received_at
            from {{ relation }} as samples
            where samples.source_record_id is null
            union all
            select
                documents.*,
                max(documents.received_at) over (
                    partition by documents.user_id, documents.source, documents.source_record_id
                ) as document_received_at
            from {{ relation }} as documents
            where documents.source_record_id is not null
        ) as said
        window in_order as ({{ by_key }} order by said.received_at, said.raw_object_id)
    ) as versions
) as numbered
where
    numbered.version = numbered.newest_version
    and not numbered.is_deleted
    and (
        numbered.source_record_id is null
        or numbered.last_received_at = numbered.document_received_at
    )
{% endmacro %}
