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
    {%- set changes = config.get('changes') -%}
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

    {{ get_assert_columns_equivalent('select ' ~ columns | join(', ') ~ ' from (' ~ sql ~ ') as batch') }}
    {% if existing is none %}
        {% do run_query(create_upsert_table(target_relation, unique_key, partition_by)) %}
    {% else %}
        {{ add_missing_columns(existing) }}
    {% endif %}
    {{ add_missing_indexes(target_relation) }}

    {# Of half a million rows a sort fits: on disk it takes half as long again. Two tables are made at a time, each
       with two sorts at most. Merge joins would sort rows as they come for the sake of the few units they are
       joined with. #}
    {% do run_query("set local work_mem = '256MB'; set local enable_mergejoin = off") %}
    {% if existing is not none and config.get('nested') %}{{ join_by_index() }}{% endif %}
    {% do run_query('drop table if exists pg_temp.batch') %}
    {# Versions come in the order of the key: to sort them once more would cost a tenth of all. #}
    {% do run_query(
        'create temporary table batch on commit drop as select * from (' ~ sql ~ '\n) as batch'
        ~ (' order by ' ~ unique_key | join(', ') if not versioned)
    ) %}
    {% if versioned %}{% do fold_batch(unique_key, columns) %}{% endif %}
    {% if partition_by %}{% do make_spans(unique_key, partition_by, versioned) %}{% endif %}
    {% set batch = contents_of_batch(versioned, partition_by) %}
    {% set is_dense = partition_by and batch.rows > 20 * batch.spans %}
    {% set new_months = months_without_partition(target_relation, batch.months) %}

    {% if existing is not none %}
        {% set has_scope = false %}
        {% if scope %}
            {% do run_query('drop table if exists pg_temp.scope') %}
            {% do run_query('create temporary table scope on commit drop as select * from ' ~ of_pending(scope) ~ ' as scope') %}
            {% do run_query('analyze pg_temp.scope') %}
            {% set has_scope = run_query('select exists (select from pg_temp.scope)').columns[0].values()[0] %}
        {% endif %}
        {% if has_scope or 'remove' in batch.merges %}
            {% do run_query('create index on pg_temp.batch (' ~ unique_key | join(', ') ~ ')') %}
            {% do run_query('analyze pg_temp.batch') %}
        {% endif %}
        {% if versioned %}
            {# An object that is read anew, by a mended parser perhaps, takes back what it said before. #}
            {% set replayed = "(select user_id, raw_object_id from health._pending_objects where standing = 'replayed')" %}
            {% if run_query('select exists ' ~ replayed).columns[0].values()[0] %}
                {% call statement('delete_replayed') %}
                    {{ upsert_delete(target_relation, unique_key, replayed, ['user_id', 'raw_object_id'], true) }}
                {% endcall %}
            {% endif %}
        {% endif %}
        {{ join_by_index() }}
        {% set meets = not partition_by or spans_meet(target_relation, unique_key, partition_by) %}
        {% if is_dense %}{% do run_query('set local enable_hashjoin = on') %}{% endif %}
        {% do run_query('drop table if exists pg_temp.met') %}
        {% do run_query(
            meet_rows(target_relation, unique_key, columns, batch.merges, versioned, partition_by if is_dense)
            ~ (' limit 0' if not meets)
        ) %}
        {{ join_by_index() }}
        {% set met = what_was_met() %}
        {% if config.get('revisions') %}
            {% call statement('note_revisions') %}
                {{ note_revisions(target_relation, unique_key, existing, batch.merges, has_scope, met.revised) }}
            {% endcall %}
        {% endif %}
        {% if has_scope %}
            {% call statement('delete_retracted') %}
                {{ upsert_delete(target_relation, unique_key, 'pg_temp.scope', config.get('scope_columns'), versioned) }}
            {% endcall %}
        {% endif %}
        {% if 'remove' in batch.merges %}
            {% set removed = "(select * from pg_temp.batch where _merge = 'remove')" %}
            {% call statement('delete_removed') %}
                {{ upsert_delete(target_relation, unique_key, removed, unique_key, versioned) }}
            {% endcall %}
        {% endif %}
        {% if met.moved %}
            {# A row that moves to another local day leaves the old day changed, too. #}
            {% call statement('note_moved') %}
insert into health.{{ changes }} (user_id, local_date, metric_type)
select distinct batch.user_id, met.moved_from, {{ config.get('change_metric', 'batch.metric_type') }}
from pg_temp.met as met
inner join pg_temp.batch as batch on batch.ctid = met.batch_row
where met.moved_from is not null
            {% endcall %}
        {% endif %}
        {{ join_by_hash() }}
    {% else %}
        {% set met = {'rows': 0, 'differing': 0} %}
        {% if config.get('revisions') and batch.merges | reject('equalto', 'keep') | list %}
            {% call statement('note_revisions') %}
                {{ note_revisions(target_relation, unique_key, existing, batch.merges, false, 0) }}
            {% endcall %}
        {% endif %}
    {% endif %}

    {# Where every row is new, the spans name the days: to collect them row by row takes a sixth of an insert. #}
    {% set days_are_known = changes and partition_by and met.rows == 0 %}
    {% if new_months %}
        {% do fill_new_partitions(
            target_relation, unique_key, columns, partition_by, new_months, versioned, not days_are_known
        ) %}
    {% endif %}
    {% if met.rows == batch.rows and met.differing == 0 or new_months and new_months == batch.months %}
        {% call statement('main') %}select 'nothing else is new'{% endcall %}
    {% else %}
        {% call statement('main') %}
            {{ upsert_rows(
                target_relation, unique_key, columns, versioned, met.rows > 0, not days_are_known,
                'not ' ~ in_months('batch.' ~ partition_by, new_months) if new_months
            ) }}
        {% endcall %}
    {% endif %}
    {% if days_are_known %}
        {% call statement('note_days') %}
insert into health.{{ changes }} (user_id, local_date, metric_type)
select distinct batch.user_id, batch.local_date, {{ config.get('change_metric', 'batch.metric_type') }}
from pg_temp.spans as batch
{{ "where batch._merge <> 'remove'" if versioned }}
        {% endcall %}
    {% endif %}
    {% if changes %}
        {# Who reads the queue joins it to large tables, and the planner has to know how short it is. #}
        {% do run_query('analyze health.' ~ changes) %}
    {% endif %}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {% if existing is none %}{% do persist_docs(target_relation, model) %}{% endif %}
    {% do run_query("select ops.secure_table('" ~ target_relation.schema ~ '.' ~ target_relation.identifier ~ "')") %}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}


{# Put one row in the place of the versions of each key that has several. #}
{% macro fold_batch(unique_key, columns) %}
    {%- set measured = columns | reject('in', unique_key + ['raw_object_id', 'first_seen_at', 'updated_at']) | list -%}
    {%- set revised = config.get('revised') -%}
    {%- set names = batch_columns(unique_key, measured, revised) | join(', ') -%}
    {% do run_query('drop table if exists pg_temp.several') %}
    {% do run_query('create temporary table several on commit drop as select * from pg_temp.batch limit 0') %}
    {% do run_query(
        'with several as (delete from pg_temp.batch where not _is_alone returning *) '
        ~ 'insert into pg_temp.several select * from several'
    ) %}
    {% do run_query(
        'insert into pg_temp.batch (' ~ names ~ ') select ' ~ names
        ~ ' from (' ~ folded_versions('pg_temp.several', unique_key, measured, revised) ~ ') as folded'
    ) %}
{% endmacro %}


{#
  Make `spans`: the days (UTC) that the batch has of each series, which is what remains of the key without time, by
  local date and by what becomes of the rows, with the first and last instant of each.
#}
{% macro make_spans(unique_key, partition_by, versioned) %}
    {% set named = unique_key | reject('equalto', partition_by) | list %}
    {% set named = named + (['local_date'] if config.get('changes') else []) + (['_merge'] if versioned else []) %}
    {% do run_query('drop table if exists pg_temp.spans') %}
    {% do run_query(
        'create temporary table spans on commit drop as select ' ~ named | join(', ')
        ~ ", date_bin('1 day', " ~ partition_by ~ ", timestamptz '2000-01-01 00:00:00+00') as day, min(" ~ partition_by
        ~ ') as first, max(' ~ partition_by ~ ') as last, count(*) as rows from pg_temp.batch group by '
        ~ named | join(', ') ~ ', day'
    ) %}
{% endmacro %}


{#
  What is in the batch: the number of its `rows`, its `merges`, and, of a partitioned table, the number of its `spans`
  and the `months` of the partitions they need.
#}
{% macro contents_of_batch(versioned, partition_by) %}
    {% set merge = '_merge' if versioned else "'replace'" %}
    {% if not partition_by %}
        {% set found = run_query(
            'select ' ~ merge ~ ', count(*) from pg_temp.batch group by 1 having count(*) > 0 order by 1'
        ).rows %}
        {% do return({
            'rows': found | map(attribute=1) | sum, 'merges': found | map(attribute=0) | list, 'spans': 0, 'months': [],
        }) %}
    {% endif %}
    {% set found = run_query(
        'select ' ~ merge ~ ", date_trunc('month', day at time zone 'UTC')::date, sum(rows)::bigint, count(*)"
        ~ ' from pg_temp.spans group by 1, 2 order by 1, 2'
    ).rows %}
    {% do return({
        'rows': found | map(attribute=2) | sum,
        'merges': found | map(attribute=0) | unique | list,
        'spans': found | map(attribute=3) | sum,
        'months': found | map(attribute=1) | unique | sort | list,
    }) %}
{% endmacro %}


{#
  Whether the table has any row within the spans of time that the batch is of, by the rest of its key. What is
  later than everything before, as most is, need not be looked for row by row.
#}
{% macro spans_meet(relation, unique_key, partition_by) %}
    {% set others = unique_key | reject('equalto', partition_by) | list %}
    {% set found %}
select exists (
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
    {% endset %}
    {% do return(run_query(found).columns[0].values()[0]) %}
{% endmacro %}


{#
  The rows of the batch whose key is in the table already, and what of theirs there is needed:

    differs        the batch says something else: to be updated
    first_seen_at  of the row that is there, with source_record_id, where the batch is versioned
    moved_from     its local day, where the batch has another
    is_revised     its followed column may have changed: old_value, and raw_object_id, which brought it

  One look at the table does for everything that follows. A batch of many rows a day reads its spans (of
  `spans_of`, a column of time) as a whole, instead of looking for each row in the index.
#}
{% macro meet_rows(relation, unique_key, columns, merges, versioned, spans_of) %}
{%- set data = columns | reject('in', unique_key) | list -%}
{%- set compared = {
    'keep': data | reject('in', ['raw_object_id', 'first_seen_at', 'updated_at']) | list,
    'revise': data | reject('in', ['first_seen_at']) | list,
    'replace': data,
} -%}
{%- set revised = config.get('revised') %}
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
{% if spans_of %}
from (
    select {{ unique_key | reject('equalto', spans_of) | join(', ') }}, min(first) as first, max(last) as last
    from pg_temp.spans
    group by {{ unique_key | reject('equalto', spans_of) | join(', ') }}, day
) as batch_spans
cross join lateral (
    select * from {{ relation }} as target
    where target.{{ spans_of }} between batch_spans.first and batch_spans.last
        {% for column in unique_key if column != spans_of -%}
        and target.{{ column }} = batch_spans.{{ column }}
        {% endfor %}
    offset 0
) as target
inner join pg_temp.batch as batch on {{ same_values(unique_key) }}
{% else %}
from pg_temp.batch as batch
inner join {{ relation }} as target on {{ same_values(unique_key) }}
{% endif %}
{% endmacro %}


{# How many rows were met, and of them those that differ, have moved to another day, may have been revised. #}
{% macro what_was_met() %}
    {% set found = run_query(
        'select count(*), count(*) filter (where differs)'
        ~ (', count(moved_from)' if config.get('changes') else ', 0')
        ~ (', count(*) filter (where is_revised)' if config.get('revised') else ', 0')
        ~ ' from pg_temp.met'
    ).rows[0] %}
    {% do return({'rows': found[0], 'differing': found[1], 'moved': found[2], 'revised': found[3]}) %}
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
    {% do run_query('set local enable_hashjoin = off; set local enable_mergejoin = off') %}
{% endmacro %}


{# As before: for what joins the batch with other rows of the run only. #}
{% macro join_by_hash() %}
    {% do run_query('set local enable_hashjoin = on; set local enable_mergejoin = on') %}
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


{% macro create_upsert_table(relation, unique_key, partition_by) %}
create table {{ relation }} (
    {% for column in model.columns.values() -%}
    {{ column.name }} {{ column.data_type }}
    {%- for constraint in column.constraints if constraint.type == 'not_null' %} not null{% endfor %},
    {% endfor -%}
    primary key ({{ unique_key | join(', ') }})
)
{%- if partition_by %} partition by range ({{ partition_by }}){% endif %}
{% endmacro %}


{# A column the model has gained is empty in the rows of before, until `dbt build --full-refresh`. #}
{% macro add_missing_columns(relation) %}
    {% set there = adapter.get_columns_in_relation(relation) | map(attribute='name') | list %}
    {% for column in model.columns.values() if column.name not in there %}
        {% if column.constraints | selectattr('type', 'equalto', 'not_null') | list %}
            {{ exceptions.raise_compiler_error(
                relation ~ ' lacks the column ' ~ column.name ~ ', which may not be empty: run dbt build --full-refresh'
            ) }}
        {% endif %}
        {% do run_query('alter table ' ~ relation ~ ' add column ' ~ column.name ~ ' ' ~ column.data_type) %}
    {% endfor %}
{% endmacro %}


{# The indexes of a new table, and those that the model has gained since. #}
{% macro add_missing_indexes(relation) %}
    {% for index in config.get('indexes', []) %}
        {% set name = relation.identifier ~ '_' ~ index.columns | join('_') ~ '_idx' %}
        {% if run_query("select to_regclass('" ~ relation.schema ~ '.' ~ name ~ "')").columns[0].values()[0] is none %}
            {% do run_query(
                'create index ' ~ name ~ ' on ' ~ relation ~ ' (' ~ index.columns | join(', ') ~ ')'
                ~ (' where ' ~ index.where if index.where else '')
            ) %}
        {% endif %}
    {% endfor %}
{% endmacro %}


{# Which of the months that begin on these days have no partition. #}
{% macro months_without_partition(relation, months) %}
    {% set missing = [] %}
    {% for month in months %}
        {% if run_query("select to_regclass('" ~ partition_of(relation, month) ~ "')").columns[0].values()[0] is none %}
            {% do missing.append(month) %}
        {% endif %}
    {% endfor %}
    {% do return(missing) %}
{% endmacro %}


{#
  Make the partitions of months that have none, with the batch's rows of these months in them.

  They are filled before they have an index, and join the table then: an index of all rows at once takes a third of
  the time, and is smaller, and who reads the table meanwhile does not wait.
#}
{% macro fill_new_partitions(relation, unique_key, columns, partition_by, months, versioned, notes) %}
    {% set door = relation.incorporate(path={'identifier': '_new_' ~ relation.identifier}) %}
    {% do run_query(
        'create table ' ~ door ~ ' (like ' ~ relation ~ ' including defaults) partition by range (' ~ partition_by ~ ')'
    ) %}
    {% for month in months %}
        {% do run_query(
            'create table ' ~ partition_of(relation, month) ~ ' partition of ' ~ door ~ ' ' ~ bounds_of(month)
        ) %}
    {% endfor %}
    {% call statement('fill_new_partitions') %}
        {{ upsert_rows(
            door, unique_key, columns, versioned, false, notes, in_months('batch.' ~ partition_by, months)
        ) }}
    {% endcall %}
    {% for month in months %}
        {% set partition = partition_of(relation, month) %}
        {% do run_query('alter table ' ~ door ~ ' detach partition ' ~ partition) %}
        {% do run_query('alter table ' ~ relation ~ ' attach partition ' ~ partition ~ ' ' ~ bounds_of(month)) %}
        {% do run_query("select ops.secure_table('" ~ partition ~ "')") %}
    {% endfor %}
    {% do run_query('drop table ' ~ door) %}
{% endmacro %}


{% macro partition_of(relation, month) -%}
    {{ relation.schema }}.{{ relation.identifier }}_{{ month.strftime('%Y_%m') }}
{%- endmacro %}


{% macro bounds_of(month) -%}
    {%- set next = (month + modules.datetime.timedelta(days=31)).replace(day=1) -%}
    for values from ('{{ month }} 00:00:00+00') to ('{{ next }} 00:00:00+00')
{%- endmacro %}


{% macro in_months(instant, months) -%}
    (date_trunc('month', {{ instant }} at time zone 'UTC') in ('{{ months | join("', '") }}'))
{%- endmacro %}


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
