{#
  The newest of the versions a run's objects give of each key, dated as if each receipt had a run of its own.

  A version that says what the one before said is no change: the row keeps the receipt that first brought it.
  What a document (a record with an id of its own, unique within its source) said before and does not say in
  its newest version is gone; when it says it again, that is a new row. Samples (without such an id) stay.

  relation   a CTE (`not materialized`) or model with the key, `measured`, `source_record_id` (null for
             samples), `is_deleted`, `raw_object_id` and `received_at`
  key        the table's natural key
  measured   all its other columns but raw_object_id, first_seen_at and updated_at
  along      SQL for a number that is one for rows of one key, and by which those of a series follow each other in
             time: to sort by it first takes a third of the time that the columns of the key take. Rows that come
             as providers send them, person by person, should be in its order.

  Adds `first_seen_at`, `updated_at` and `_merge`, which tells `upsert_table` what the row is to the one that
  is there: `keep` (the same row, if it says the same), `revise` (the same row, changed within this run),
  `replace` (complete in itself) or `remove`.

  With `revised`, one of the measured columns, it adds what metric_revisions.sql follows that column by:
  `_is_remade` (all versions of the key are here), `_first_value` and `_first_value_receipt` (of the oldest of
  them), and `_revisions`: a JSON array of {receipt, old, new}, one for each time the value changed or, with a
  null for `new`, went.

  Most keys have one version. Those of several are not `_is_alone`, and upsert_table folds them, once the batch
  is in a table: one statement for both would write all versions twice. Unit tests see them folded.
#}
{% macro newest_versions(relation, key, measured, revised=none, along=none) %}
{% if model.resource_type == 'unit_test' %}
with versions as (
    {{ versions_of(relation, key, measured, revised, along) }}
)

select {{ batch_columns(key, measured, revised) | join(', ') }} from versions where _is_alone
union all
{{ folded_versions('versions', key, measured, revised) }}
{% else %}
{{ versions_of(relation, key, measured, revised, along) }}
{% endif %}
{% endmacro %}


{# What upsert_table needs of a row, whether it is of one version or of several. #}
{% macro batch_columns(key, measured, revised) %}
    {% do return(
        (key + measured) | unique | list + ['raw_object_id', 'first_seen_at', 'updated_at', '_merge']
        + (['_is_remade', '_first_value', '_first_value_receipt', '_revisions'] if revised else [])
    ) %}
{% endmacro %}


{#
  The versions of each key, one an object, in the order of key and receipt. Adds to `batch_columns` what
  `folded_versions` needs: `_receipt`, that by which the document was told first and, after this one, next,
  `_speaks_late` and `_is_context`.
#}
{% macro versions_of(relation, key, measured, revised, along) %}
{%- set placed = (['_place'] if along else []) + key -%}
{#- Its first column is not the key's: else samples, most of all rows, might be sorted by documents, too. -#}
{%- set by_document = 'partition by said.source_record_id, said.user_id, said.source' -%}
select
    {{ (key + measured) | unique | join(', ') }},
    raw_object_id,
    received_at as first_seen_at,
    received_at as updated_at,
    case when _speaks_late or _receipt > _first_receipt then 'replace' else 'keep' end as _merge,
    {% if revised -%}
    _speaks_late as _is_remade,
    {{ revised }} as _first_value,
    _receipt as _first_value_receipt,
    null::jsonb as _revisions,
    {%- endif %}
    _receipt,
    _first_receipt,
    _next_receipt,
    _speaks_late,
    _is_context,
    _is_alone
from (
    select
        events.*,
        -- Nothing else is said of the key: most rows, which need no comparison.
        (
            lag(events._receipt) over in_order is null
            and lead(events._receipt) over in_order is null
            and events._next_receipt is null
        ) as _is_alone
    from (
        -- One version a key and object, whatever the order of rows within the object.
        select distinct on ({{ placed | join(', ') }}, _receipt) *{{ ', ' ~ along ~ ' as _place' if along }}
        from (
            select
                said.*,
                objects.receipt as _receipt,
                objects.standing = 'context' as _is_context,
                objects.standing in ('late', 'replayed') as _speaks_late,
                objects.receipt as _first_receipt,
                null::integer as _next_receipt
            from {{ relation }} as said
            inner join {{ ref('int_objects_pending') }} as objects using (raw_object_id)
            where said.source_record_id is null
            union all
            select
                said.*,
                objects.receipt as _receipt,
                objects.standing = 'context' as _is_context,
                bool_or(objects.standing in ('late', 'replayed')) over ({{ by_document }}) as _speaks_late,
                min(objects.receipt) filter (where objects.standing <> 'context')
                    over ({{ by_document }}) as _first_receipt,
                -- When the document was received next.
                first_value(objects.receipt) over (
                    {{ by_document }} order by objects.receipt
                    groups between 1 following and 1 following
                ) as _next_receipt
            from {{ relation }} as said
            inner join {{ ref('int_objects_pending') }} as objects using (raw_object_id)
            where said.source_record_id is not null
        ) as told
        where not told.is_deleted
        order by {{ (placed + ['_receipt', 'source_record_id'] + measured) | unique | join(', ') }}
    ) as events
    window in_order as (partition by {{ placed | join(', ') }} order by _receipt)
) as versions
where not _is_alone or _speaks_late or not _is_context
{% endmacro %}


{# One row a key of several versions, as `batch_columns`. #}
{% macro folded_versions(versions, key, measured, revised) %}
{%- set by_key = 'partition by ' ~ key | join(', ') ~ ' order by _receipt' -%}
{%- set whole = by_key ~ ' rows between unbounded preceding and unbounded following' -%}
select
    {% for column in (key + measured) | unique -%}
    folded.{{ column }},
    {% endfor -%}
    folded.raw_object_id,
    folded._started_at as first_seen_at,
    folded.updated_at,
    case
        when folded._closed_at is not null then 'remove'
        when folded._is_made_anew or folded._last_start > 1 or folded._starts_after_document then 'replace'
        when folded._last_change > 1 then 'revise'
        else 'keep'
    end as _merge
    {%- if revised %},
    folded._is_made_anew as _is_remade,
    folded._oldest_value as _first_value,
    folded._oldest_receipt as _first_value_receipt,
    nullif(
        coalesce(folded._changes, '[]') || case
            when folded._closed_at is null then '[]'
            else jsonb_build_array(
                jsonb_build_object('receipt', folded._closed_at, 'old', folded._last_value, 'new', null)
            )
        end,
        '[]'
    ) as _revisions
    {%- endif %}
from (
    select
        compared.*,
        max(compared._version) filter (where compared._is_start or compared._is_change) over whole as _last_change,
        max(compared._version) filter (where compared._is_start) over whole as _last_start,
        max(compared.updated_at) filter (where compared._is_start) over whole as _started_at,
        last_value(compared._next_receipt) over whole as _closed_at,
        first_value(compared._receipt > compared._first_receipt) over whole as _starts_after_document
        {%- if revised %},
        first_value(compared.{{ revised }}) over whole as _oldest_value,
        last_value(compared.{{ revised }}) over whole as _last_value,
        first_value(compared._receipt) over whole as _oldest_receipt,
        jsonb_agg(compared._change) filter (where compared._change is not null) over whole as _changes
        {%- endif %}
    from (
        select
            versions.*,
            row_number() over in_order as _version,
            -- The row begins here: nothing was there, or its document had left it out meanwhile.
            (
                lag(versions._receipt) over in_order is null
                or lag(versions.source_record_id) over in_order is distinct from versions.source_record_id
                or coalesce(lag(versions._next_receipt) over in_order < versions._receipt, false)
            ) as _is_start,
            (
                {% for column in measured -%}
                {{ 'or ' if not loop.first }}lag(versions.{{ column }}) over in_order is distinct from versions.{{ column }}
                {% endfor -%}
            ) as _is_change
            {%- if revised %},
            case
                when lag(versions._receipt) over in_order is null then null
                when lag(versions._next_receipt) over in_order < versions._receipt
                    then jsonb_build_object(
                        'receipt', lag(versions._next_receipt) over in_order,
                        'old', lag(versions.{{ revised }}) over in_order,
                        'new', null
                    )
                when lag(versions.{{ revised }}) over in_order is distinct from versions.{{ revised }}
                    then jsonb_build_object(
                        'receipt', versions._receipt,
                        'old', lag(versions.{{ revised }}) over in_order,
                        'new', versions.{{ revised }}
                    )
            end as _change
            {%- endif %}
        from (
            select
                versions.*,
                bool_or(versions._speaks_late) over whole as _is_made_anew
            from {{ versions }} as versions
            where not versions._is_alone
            window whole as ({{ whole }})
        ) as versions
        where versions._is_made_anew or not versions._is_context
        window in_order as ({{ by_key }})
    ) as compared
    window whole as ({{ whole }})
) as folded
where folded._version = folded._last_change
{% endmacro %}
