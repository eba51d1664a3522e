{#
  A table that takes a run's rows by its natural key and touches only those that changed.

  The model's SQL gives the rows of this run (the batch), one a key. One join with the table tells which of them
  are there already, and which of those differ: new rows are inserted in key order, those that differ updated.

  config:
    unique_key       the natural key, which becomes the primary key
    partition_by     timestamptz column: the table is partitioned by its UTC month
    scope            a model whose rows name what the batch is complete for, each once; rows of the table in that
                     scope which the batch does not have are deleted
    scope_columns    the columns the scope and the table share
    changes          name of the queue table that gets (user_id, local_date, metric_type) of every change
    change_metric    SQL for the queue's metric_type; default: the column of that name
    applies_objects  true where the table is filled from staged objects (see pending_objects.sql)
    revised          a measured column whose changes are noted in the table `revisions` of schema health (see
                     metric_revisions.sql)
    versioned        true where the SQL gives versions (see newest_versions.sql): `_merge` says how each row meets
                     the one that is there; else the batch's row is the whole truth
    nested           true where the SQL joins few rows to large tables: see join_by_index
    indexes          further indexes: {columns, where}
#}
{% materialization upsert_table, adapter='postgres' %}
    {%- set target_relation = this.incorporate(type='table') -%}
    {%- set existing = load_cached_relation(this) -%}
    {%- set unique_key = config.require('unique_key') -%}
    {%- set partition_by = config.get('partition_by') -%}
    {%- set scope = config.get('scope') -%}
    {%- set versioned = config.get('versioned', false) -%}
    {%- set columns = model.columns.values() | map(attribute='name') | list -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {% if should_full_refresh() and existing is not none %}
        {% if config.get('applies_objects') %}
            {{ require_complete_selection() }}
        {% endif %}
        {% do adapter.drop_relation(existing) %}
        {% set existing = none %}
    {% endif %}

    {% if existing is none %}
        {{ get_assert_columns_equivalent(contracted(sql, columns)) }}
        {% do run_statements(create_upsert_table(target_relation, unique_key, partition_by)) %}
    {% else %}
        {% do run_statements(add_missing(target_relation)) %}
    {% endif %}

    {% set making %}
{{ make_batch(sql, unique_key, columns, partition_by, versioned) }}
{% if existing is not none and scope %}
drop table if exists pg_temp.scope;
create temporary table scope on commit drop as select * from {{ of_pending(scope) }} as scope;
analyze pg_temp.scope;
{% endif %}
    {% endset %}
    {% set batch = fromjson(run_query(
        making ~ contents_of_batch(target_relation, existing, partition_by, versioned, scope)
    ).columns[0].values()[0]) %}
    {% if batch.is_other %}
        {{ get_assert_columns_equivalent(contracted(sql, columns)) }}
    {% endif %}

    {% if batch.rows or batch.has_scope or batch.is_replayed %}
        {% do write_batch(target_relation, unique_key, columns, partition_by, versioned, existing, batch) %}
    {% else %}
        {% call statement('main') %}select ops.secure_table('{{ target_relation.schema }}.{{ target_relation.identifier }}'){% endcall %}
    {% endif %}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {% if existing is none %}{% do persist_docs(target_relation, model) %}{% endif %}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}


{# Statements that give nothing back, all at once: dbt takes three milliseconds for each that it is told of. #}
{% macro run_statements(sql) %}
    {% if sql.strip() %}
        {% call statement('statements', auto_begin=false) %}{{ sql }}{% endcall %}
    {% endif %}
{% endmacro %}


{# The model's SQL as its contract has it. #}
{% macro contracted(sql, columns) %}
    {% do return('select ' ~ columns | join(', ') ~ ' from (' ~ sql ~ ') as batch') %}
{% endmacro %}


{# Bring what is in `batch` (see contents_of_batch) into the table. #}
{% macro write_batch(relation, unique_key, columns, partition_by, versioned, existing, batch) %}
    {% set changes = config.get('changes') %}
    {% set met = {'rows': 0, 'differing': 0, 'moved': 0, 'revised': 0} %}
    {% set before %}
{% if existing is not none and (batch.has_scope or 'remove' in batch.merges) %}
create index on pg_temp.batch ({{ unique_key | join(', ') }});
analyze pg_temp.batch;
{% endif %}
{{ join_by_index() }}
{% if existing is not none and batch.is_replayed %}
-- An object that is read anew, by a mended parser perhaps, takes back what it said before.
{% set replayed = "(select user_id, raw_object_id from health._pending_objects where standing = 'replayed')" %}
{{ upsert_delete(relation, unique_key, replayed, ['user_id', 'raw_object_id'], true) }};
{% endif %}
    {% endset %}
    {% if existing is not none %}
        {% set is_dense = partition_by and batch.rows > 20 * batch.spans %}
        {% set met = fromjson(run_query(
            before ~ meet_rows(relation, unique_key, columns, batch.merges, versioned, partition_by, is_dense)
        ).columns[0].values()[0]) %}
    {% endif %}
    {% set leaving %}
{% if config.get('revisions') %}
{{ note_revisions(relation, unique_key, existing, batch, met.revised) }}
{% endif %}
{% if existing is not none and batch.has_scope %}
{{ upsert_delete(relation, unique_key, 'pg_temp.scope', config.get('scope_columns'), versioned) }};
{% endif %}
{% if existing is not none and 'remove' in batch.merges %}
{% set removed = "(select * from pg_temp.batch where _merge = 'remove')" %}
{{ upsert_delete(relation, unique_key, removed, unique_key, versioned) }};
{% endif %}
{% if met.moved %}
-- A row that moves to another local day leaves the old day changed, too.
insert into health.{{ changes }} (user_id, local_date, metric_type)
select distinct batch.user_id, met.moved_from, {{ config.get('change_metric', 'batch.metric_type') }}
from pg_temp.met as met
inner join pg_temp.batch as batch on batch.ctid = met.batch_row
where met.moved_from is not null;
{% endif %}
    {% endset %}
    {% do run_statements(leaving) %}

    {# Where every row is new, the spans name the days: to collect them row by row takes a sixth of an insert. #}
    {% set days_are_known = changes and partition_by and met.rows == 0 %}
    {% set new_months = months_of(batch.new_months) %}
    {% if new_months %}
        {% do fill_new_partitions(
            relation, unique_key, columns, partition_by, new_months, versioned, not days_are_known
        ) %}
    {% endif %}
    {% if met.rows == batch.rows and met.differing == 0 or new_months and new_months | length == batch.months %}
        {% call statement('main') %}select 'nothing else is new'{% endcall %}
    {% else %}
        {% call statement('main') %}
            {{ join_by_hash() }}
            {{ upsert_rows(
                relation, unique_key, columns, versioned, met.rows > 0, not days_are_known,
                'not ' ~ in_months('batch.' ~ partition_by, new_months) if new_months
            ) }}
        {% endcall %}
    {% endif %}
    {% set after %}
{% if days_are_known %}
insert into health.{{ changes }} (user_id, local_date, metric_type)
select distinct batch.user_id, batch.local_date, {{ config.get('change_metric', 'batch.metric_type') }}
from pg_temp.spans as batch
{{ "where batch._merge <> 'remove'" if versioned }};
{% endif %}
{% if changes %}
-- Who reads the queue joins it to large tables, and the planner has to know how short it is.
analyze health.{{ changes }};
{% endif %}
{% for month in new_months %}
select ops.secure_table('{{ partition_of(relation, month) }}');
{% endfor %}
select ops.secure_table('{{ relation.schema }}.{{ relation.identifier }}');
    {% endset %}
    {% do run_statements(after) %}
{% endmacro %}


{#
  Make `batch`: the rows of the model's SQL, one a key; of a partitioned table `spans`, too.

  Of half a million rows a sort fits: on disk it takes half as long again. Two tables are made at a time, each with
  two sorts at most. Merge joins would sort rows as they come for the sake of the few units they are joined with.
#}
{% macro make_batch(sql, unique_key, columns, partition_by, versioned) %}
set local work_mem = '256MB';
set local enable_mergejoin = off;
{% if config.get('nested') %}{{ join_by_index() }}{% endif %}
drop table if exists pg_temp.batch;
create temporary table batch on commit drop as
select * from (
{{ sql }}
) as batch
{% if not versioned -%}
{# Versions come in the order of the key: to sort them once more would cost a tenth of all. -#}
order by {{ unique_key | join(', ') }}
{%- endif %};
{% if versioned %}{{ fold_batch(unique_key, columns) }}{% endif %}
{% if partition_by %}{{ make_spans(unique_key, partition_by, versioned) }}{% endif %}
{% endmacro %}


{# Put one row in the place of the versions of each key that has several. #}
{% macro fold_batch(unique_key, columns) %}
    {%- set measured = columns | reject('in', unique_key + ['raw_object_id', 'first_seen_at', 'updated_at']) | list -%}
    {%- set revised = config.get('revised') -%}
    {%- set names = batch_columns(unique_key, measured, revised) | join(', ') -%}
drop table if exists pg_temp.several;
create temporary table several on commit drop as select * from pg_temp.batch limit 0;
with several as (delete from pg_temp.batch where not _is_alone returning *)
insert into pg_temp.several select * from several;
insert into pg_temp.batch ({{ names }})
select {{ names }} from ({{ folded_versions('pg_temp.several', unique_key, measured, revised) }}) as folded;
{% endmacro %}


{#
  Make `spans`: the days (UTC) that the batch has of each series, which is what remains of the key without time, by
  local date and by what becomes of the rows, with the first and last instant of each.
#}
{% macro make_spans(unique_key, partition_by, versioned) %}
    {% set named = unique_key | reject('equalto', partition_by) | list %}
    {% set named = named + (['local_date'] if config.get('changes') else []) + (['_merge'] if versioned else []) %}
drop table if exists pg_temp.spans;
create temporary table spans on commit drop as
select
    {{ named | join(', ') }},
    date_bin('1 day', {{ partition_by }}, timestamptz '2000-01-01 00:00:00+00') as day,
    min({{ partition_by }}) as first,
    max({{ partition_by }}) as last,
    count(*) as rows
from pg_temp.batch
group by {{ named | join(', ') }}, day;
{% endmacro %}


{#
  What is in the batch, as JSON: the number of its `rows`, its `merges`, and, of a partitioned table, the number of
  its `spans` and `months`, and `new_months`, which have no partition; whether there is a scope (`has_scope`), and
  whether objects are read anew (`is_replayed`). `is_other` says that a column is not of the contract's type.
#}
{% macro contents_of_batch(relation, existing, partition_by, versioned, scope) %}
{%- set merge = '_merge' if versioned else "'replace'::text" -%}
select
    jsonb_build_object(
        'rows', coalesce(sum(rows), 0),
        'merges', coalesce(jsonb_agg(distinct merge), '[]'),
        'spans', coalesce(sum(spans), 0),
        'months', count(distinct month),
        'new_months', coalesce(
            jsonb_agg(distinct month) filter (
                where month is not null
                    and to_regclass('{{ relation.schema }}.{{ relation.identifier }}_' || to_char(month, 'YYYY_MM')) is null
            ),
            '[]'
        ),
        'has_scope', {{ 'exists (select from pg_temp.scope)' if existing is not none and scope else 'false' }},
        'is_replayed', {% if versioned -%}
            exists (select from health._pending_objects where standing = 'replayed')
        {%- else %}false{% endif %},
        'is_other', exists (
            select
            from (
                values
                {% for column in model.columns.values() -%}
                ('{{ column.name }}', '{{ column.data_type }}'::regtype){{ ', ' if not loop.last }}
                {% endfor %}
            ) as declared (name, type)
            left join pg_attribute
                on attrelid = 'pg_temp.batch'::regclass and attname = name and not attisdropped
            where atttypid is distinct from type
        )
    )::text
from (
    {% if partition_by -%}
    select
        {{ merge }} as merge,
        date_trunc('month', day at time zone 'UTC')::date as month,
        sum(rows)::bigint as rows,
        count(*) as spans
    from pg_temp.spans
    {%- else -%}
    select {{ merge }} as merge, null::date as month, count(*) as rows, 0 as spans
    from pg_temp.batch
    {%- endif %}
    group by 1, 2
    having count(*) > 0
) as contents
{% endmacro %}


{#
  Whether the table has any row within the spans of time that the batch is of, by the rest of its key. What is
  later than everything before, as most is, need not be looked for row by row.
#}
{% macro spans_meet(relation, unique_key, partition_by) %}
{%- set others = unique_key | reject('equalto', partition_by) | list -%}
exists (
    select
    from (
        select {{ others | join(', ') }}, min(first) as first, max(last) as last
        from pg_temp.spans
        group by {{ others | join(', ') }}
    ) as batch
    cross join lateral (
        select from {{ relation }} as target
        where {{ same_values(others) }} and target.{{ partition_by }} between batch.first and batch.last
        limit 1
    ) as met
)
{%- endmacro %}


{#
  Make `met`: the rows of the batch whose key is in the table already, and what of theirs there is needed:

    differs        the batch says something else: to be updated
    first_seen_at  of the row that is there, with source_record_id, where the batch is versioned
    moved_from     its local day, where the batch has another
    is_revised     its followed column may have changed: old_value, and raw_object_id, which brought it

  One look at the table does for everything that follows. A batch of many rows a day (`is_dense`) reads its spans as
  a whole, instead of looking for each row in the index.

  Gives as JSON how many rows were met, and of them those that differ, have moved to another day, may have been
  revised.
#}
{% macro meet_rows(relation, unique_key, columns, merges, versioned, partition_by, is_dense) %}
{%- set data = columns | reject('in', unique_key) | list -%}
{%- set compared = {
    'keep': data | reject('in', ['raw_object_id', 'first_seen_at', 'updated_at']) | list,
    'revise': data | reject('in', ['first_seen_at']) | list,
    'replace': data,
} -%}
{%- set revised = config.get('revised') %}
{{ "set local enable_hashjoin = on;" if is_dense }}
drop table if exists pg_temp.met;
create temporary table met on commit drop as
select
    batch.ctid as batch_row,
    {% if versioned %}
    target.first_seen_at,
    target.source_record_id,
    {% endif %}
    {% if config.get('changes') %}
    nullif(target.local_date, batch.local_date) as moved_from,
    {% endif %}
    {% if revised %}
    target.{{ revised }} as old_value,
    target.raw_object_id,
    not batch._is_remade and (
        target.{{ revised }} is distinct from batch._first_value or target.source_record_id is not null
    ) as is_revised,
    {% endif %}
    {% if merges | length > 1 %}case batch._merge{% endif %}
    {% for merge in merges %}
    {% if merges | length > 1 %}when '{{ merge }}' then{% endif %}
    {% if merge == 'remove' %}
        true
    {% else %}
        ({{ prefixed('target', compared[merge]) }}) is distinct from ({{ prefixed('batch', compared[merge]) }})
    {% endif %}
    {% else %}
        false
    {% endfor %}
    {% if merges | length > 1 %}end{% endif %} as differs
{% if is_dense %}
from (
    select {{ unique_key | reject('equalto', partition_by) | join(', ') }}, min(first) as first, max(last) as last
    from pg_temp.spans
    group by {{ unique_key | reject('equalto', partition_by) | join(', ') }}, day
) as batch_spans
cross join lateral (
    select * from {{ relation }} as target
    where target.{{ partition_by }} between batch_spans.first and batch_spans.last
        {% for column in unique_key if column != partition_by -%}
        and target.{{ column }} = batch_spans.{{ column }}
        {% endfor %}
    offset 0
) as target
inner join pg_temp.batch as batch on {{ same_values(unique_key) }}
{% else %}
from pg_temp.batch as batch
inner join {{ relation }} as target on {{ same_values(unique_key) }}
{% endif %}
{{ 'where (select ' ~ spans_meet(relation, unique_key, partition_by) ~ ')' if partition_by }};
{{ join_by_index() }}
select
    jsonb_build_object(
        'rows', count(*),
        'differing', count(*) filter (where differs),
        'moved', {{ 'count(moved_from)' if config.get('changes') else '0' }},
        'revised', {{ 'count(*) filter (where is_revised)' if revised else '0' }}
    )::text
from pg_temp.met
{% endmacro %}


{# Delete the rows that `gone` names by `columns`, unless the batch has them; their days have changed. #}
{% macro upsert_delete(relation, unique_key, gone, columns, versioned) %}
{% call noting_changes() %}
delete from {{ relation }} as target
using {{ gone }} as batch
where {{ same_values(columns) }}
    and not exists (
        select from pg_temp.batch as batch
        where {{ same_values(unique_key) }}{{ " and batch._merge <> 'remove'" if versioned }}
    )
{% endcall %}
{% endmacro %}


{#
  Insert the batch's rows that are new, and update those that differ. They come in the order of the key, as they
  lie in the batch. A row that is there, and that the batch is not complete for, has been seen first, unless it
  is another document's. `notes` their days in the queue, unless that is done otherwise. Only rows for which
  `condition` holds, where there is one.
#}
{% macro upsert_rows(relation, unique_key, columns, versioned, has_met, notes, condition=none) %}
{%- set data = columns | reject('in', unique_key) | list -%}
{% call noting_changes(notes) %}
insert into {{ relation }} as target ({{ columns | join(', ') }})
select
    {% for column in columns -%}
    {% if column == 'first_seen_at' and versioned and has_met -%}
    case
        when
            met.batch_row is not null
            and batch._merge <> 'replace'
            {{- ' and met.source_record_id is not distinct from batch.source_record_id' }}
            then met.first_seen_at
        else batch.first_seen_at
    end
    {%- else -%}
    batch.{{ column }}
    {%- endif %}{{ ',' if not loop.last }}
    {% endfor %}
from pg_temp.batch as batch
{% if has_met %}
left join pg_temp.met as met on met.batch_row = batch.ctid
{% endif %}
where true
    {% if has_met %}and (met.batch_row is null or met.differs){% endif %}
    {% if versioned %}and batch._merge <> 'remove'{% endif %}
    {% if condition %}and {{ condition }}{% endif %}
{% if has_met %}
on conflict ({{ unique_key | join(', ') }}) do update set
    {% for column in data -%}
    {{ column }} = excluded.{{ column }}{{ ',' if not loop.last }}
    {% endfor %}
{% endif %}
{% endcall %}
{% endmacro %}


{#
  Until the transaction ends, find rows of the table by its indexes, one by one: the cost of a run is then that
  of its batch, where a hash join of a larger batch would read the whole table.
#}
{% macro join_by_index() %}
set local enable_hashjoin = off;
set local enable_mergejoin = off;
{% endmacro %}


{# As before: for what joins the batch with other rows of the run only. #}
{% macro join_by_hash() %}
set local enable_hashjoin = on;
set local enable_mergejoin = on;
{% endmacro %}


{% macro same_values(columns) -%}
    {% for column in columns -%}
    target.{{ column }} = batch.{{ column }}{{ ' and ' if not loop.last }}
    {%- endfor %}
{%- endmacro %}


{# A statement that changes rows of `target`; the queue, where there is one, gets their days. #}
{% macro noting_changes(notes=true) %}
{% if notes and config.get('changes') %}
with changed as (
    {{ caller() }}
    returning target.user_id, target.local_date, {{ config.get('change_metric', 'target.metric_type') }} as metric_type
)

insert into health.{{ config.get('changes') }} (user_id, local_date, metric_type)
select distinct user_id, local_date, metric_type from changed
{% else %}
{{ caller() }}
{% endif %}
{% endmacro %}


{# To rebuild one canonical table alone would leave it with the rows of the last run. #}
{% macro require_complete_selection() %}
    {% for node in graph.nodes.values() if node.config.materialized == 'upsert_table' and node.config.applies_objects %}
        {% if node.unique_id not in selected_resources %}
            {{ exceptions.raise_compiler_error(
                'a full refresh needs all canonical tables in the selection (' ~ node.name
                ~ ' is missing): run dbt build --full-refresh without --select'
            ) }}
        {% endif %}
    {% endfor %}
{% endmacro %}
