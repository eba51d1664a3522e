{#
  What a run changes of values that were there: old and new, in a table of their own.

  A change shows in one of three places. Between versions of one run: in the batch's `_revisions`. Between the
  row that is there and the oldest version of the run: found by joining the two. And of a row whose document
  does not say it any more. What is made anew from all its versions loses its revisions first and gets them all
  again, so that a rebuild has the same.

  config of the model: `revised` (the column that is followed), `revisions` (the table, with old_value and
  new_value).
#}

{#
  Before anything is deleted or upserted. A batch whose rows are all to `keep` has nothing anew, and no versions that
  differ. `batch` is what is in it (contents_of_batch), `met_revised` the number of rows that may have been revised of
  those that were met.
#}
{% macro note_revisions(relation, unique_key, existing, batch, met_revised) %}
{%- set merges = batch.merges -%}
{%- set revisions = 'health.' ~ config.get('revisions') -%}
{%- set revised = config.get('revised') -%}
{% if existing is not none %}
{% if batch.is_replayed %}
delete from {{ revisions }} as target
using health._pending_objects as objects
where objects.raw_object_id = target.raw_object_id
    and objects.standing = 'replayed';
{% endif %}

{% if 'replace' in merges or 'remove' in merges %}
delete from {{ revisions }} as target
using pg_temp.batch as batch
where batch._is_remade and {{ same_values(unique_key) }};
{% endif %}

{% if met_revised %}
-- What the batch met is a table of the run's own.
set local enable_hashjoin = on;
insert into {{ revisions }} ({{ unique_key | join(', ') }}, revised_at, raw_object_id, old_value, new_value)
select
    {{ prefixed('batch', unique_key) }},
    objects.received_at,
    objects.raw_object_id,
    met.old_value,
    case when documents.first_receipt < batch._first_value_receipt then null else batch._first_value end
from pg_temp.met as met
inner join pg_temp.batch as batch on batch.ctid = met.batch_row
left join pg_temp.scope as documents
    on documents.source_record_id = met.source_record_id
    and documents.user_id = batch.user_id
    and documents.source = batch.source
inner join health._pending_objects as objects
    on objects.receipt = least(documents.first_receipt, batch._first_value_receipt)
where met.is_revised
    -- A run that did not come to its end has noted what it did; its rows are versions of this batch.
    and not exists (
        select from health._pending_objects as own
        where own.raw_object_id = met.raw_object_id and own.standing <> 'context'
    )
    and (
        documents.first_receipt < batch._first_value_receipt
        or met.old_value is distinct from batch._first_value
    )
on conflict do nothing;

set local enable_hashjoin = off;
{% endif %}

{% if batch.has_scope %}
insert into {{ revisions }} ({{ unique_key | join(', ') }}, revised_at, raw_object_id, old_value, new_value)
select
    {{ prefixed('target', unique_key) }},
    objects.received_at,
    objects.raw_object_id,
    target.{{ revised }},
    null
from pg_temp.scope as documents
-- A document's rows by the index, whatever the planner thinks of their number (offset 0): else it would rather
-- read the whole table.
cross join lateral (
    select * from {{ relation }} as target
    where target.source_record_id = documents.source_record_id
        and target.user_id = documents.user_id
        and target.source = documents.source
    offset 0
) as target
inner join health._pending_objects as objects on objects.receipt = documents.first_receipt
where not exists (select from pg_temp.batch as batch where {{ same_values(unique_key) }})
on conflict do nothing;
{% endif %}
{% endif %}

{% if merges | reject('equalto', 'keep') | list %}
insert into {{ revisions }} ({{ unique_key | join(', ') }}, revised_at, raw_object_id, old_value, new_value)
select
    {{ prefixed('batch', unique_key) }},
    objects.received_at,
    objects.raw_object_id,
    (revision ->> 'old')::double precision,
    (revision ->> 'new')::double precision
from pg_temp.batch as batch
cross join jsonb_array_elements(batch._revisions) as revision
inner join health._pending_objects as objects on objects.receipt = (revision ->> 'receipt')::integer
where batch._revisions is not null
on conflict do nothing;
{% endif %}
{% endmacro %}


{% macro prefixed(alias, columns) -%}
    {% for column in columns -%}{{ alias }}.{{ column }}{{ ', ' if not loop.last }}{%- endfor %}
{%- endmacro %}
