{#
  A table that takes a run's rows by its natural key and touches only those that changed.

  The model's SQL gives the rows of this run (the batch), one a key. Rows are inserted in key order, and those
  that are there already are updated only where they differ.

  config:
    unique_key       the natural key, which becomes the primary key
    partition_by     timestamptz column: the table is partitioned by its UTC month
    scope            a model whose rows name what the batch is complete for; rows of the table in that scope
                     which the batch does not have are deleted
    scope_columns    the columns the scope and the table share
    changes          name of the queue table that gets (user_id, local_date, metric_type) of every change
    change_metric    SQL for the queue's metric_type; default: the column of that name
    applies_objects  true where the table is filled from staged objects (see pending_objects.sql)
    revised          a measured column whose changes are noted in the table `revisions` of schema health (see
                     metric_revisions.sql)
    versioned        true where the SQL gives `_merge` (see newest_versions.sql), which says how each row meets
                     the one that is there; else the batch's row is the whole truth
    nested           true where the SQL joins few rows to large tables: see join_by_index
    indexes          further indexes: lists of columns, or {columns, where}
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

    {% if existing is not none and config.get('nested') %}{{ join_by_index() }}{% endif %}
    {% do run_query('drop table if exists pg_temp.batch') %}
    {% do run_query('create temporary table batch on commit drop as ' ~ sql) %}
    {% set merges = ['replace'] %}
    {% if versioned %}
        {% set merges = run_query('select distinct _merge from pg_temp.batch').columns[0].values() | list %}
    {% endif %}
    {% if partition_by %}
        {% do create_missing_partitions(target_relation, partition_by) %}
    {% endif %}

    {% if existing is not none %}
        {% if versioned %}
            {# An object that is read anew, by a mended parser perhaps, takes back what it said before. #}
            {% set replayed = "(select user_id, raw_object_id from health._pending_objects where standing = 'replayed')" %}
            {% if run_query('select exists ' ~ replayed).columns[0].values()[0] %}
                {% do run_query('analyze pg_temp.batch') %}
                {% call statement('delete_replayed') %}
                    {{ upsert_delete(target_relation, unique_key, replayed, ['user_id', 'raw_object_id'], true) }}
                {% endcall %}
            {% endif %}
        {% endif %}

        {% do run_query('create index on pg_temp.batch (' ~ unique_key | join(', ') ~ ')') %}
        {% do run_query('analyze pg_temp.batch') %}
        {% set scope_columns = config.get('scope_columns', []) %}
        {% if scope %}
            {% do run_query('drop table if exists pg_temp.scope') %}
            {% do run_query(
                'create temporary table scope on commit drop as select distinct '
                ~ scope_columns | join(', ') ~ ' from ' ~ ref(scope)
            ) %}
            {% do run_query('analyze pg_temp.scope') %}
        {% endif %}
        {{ join_by_index() }}
        {% if config.get('revisions') %}
            {% call statement('note_revisions') %}
                {{ note_revisions(target_relation, unique_key, existing) }}
            {% endcall %}
        {% endif %}
        {% if scope %}
            {% call statement('delete_retracted') %}
                {{ upsert_delete(target_relation, unique_key, 'pg_temp.scope', scope_columns, versioned) }}
            {% endcall %}
        {% endif %}
        {% if 'remove' in merges %}
            {% set removed = "(select * from pg_temp.batch where _merge = 'remove')" %}
            {% call statement('delete_removed') %}
                {{ upsert_delete(target_relation, unique_key, removed, unique_key, versioned) }}
            {% endcall %}
        {% endif %}

        {% if changes %}
            {# A row that moves to another local day leaves the old day changed, too. #}
            {% call statement('note_moved') %}
insert into health.{{ changes }} (user_id, local_date, metric_type)
select distinct target.user_id, target.local_date, {{ config.get('change_metric', 'target.metric_type') }}
from pg_temp.batch as batch
inner join {{ target_relation }} as target on {{ same_values(unique_key) }}
where target.local_date <> batch.local_date
            {% endcall %}
        {% endif %}
    {% elif config.get('revisions') %}
        {% call statement('note_revisions') %}
            {{ note_revisions(target_relation, unique_key, existing) }}
        {% endcall %}
    {% endif %}

    {% for merge in merges if merge != 'remove' %}
        {% call statement('main' if loop.first else 'upsert_' ~ merge) %}
            {{ upsert_rows(target_relation, unique_key, columns, merge, versioned) }}
        {% endcall %}
    {% else %}
        {% call statement('main') %}select 'nothing new'{% endcall %}
    {% endfor %}
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


{# Delete the rows that `gone` names by `columns`, unless the batch has them; their days have changed. #}
{% macro upsert_delete(relation, unique_key, gone, columns, versioned) %}
with retracted as (
    delete from {{ relation }} as target
    using {{ gone }} as batch
    where {{ same_values(columns) }}
        and not exists (
            select from pg_temp.batch as batch
            where {{ same_values(unique_key) }}{{ " and batch._merge <> 'remove'" if versioned }}
        )
    returning target.*
)
{{ note_changes('retracted') }}
{% endmacro %}


{#
  Upsert the batch's rows of one `_merge`. Where the batch is not complete in itself the row that is there has
  been seen first, unless it is another document's.
#}
{% macro upsert_rows(relation, unique_key, columns, merge, versioned) %}
{%- set data = columns | reject('in', unique_key) | list -%}
{%- set compare = {
    'keep': data | reject('in', ['raw_object_id', 'first_seen_at', 'updated_at']) | list,
    'revise': data | reject('in', ['first_seen_at']) | list,
    'replace': data,
}[merge] -%}
with upserted as (
    insert into {{ relation }} as target ({{ columns | join(', ') }})
    select {{ columns | join(', ') }} from pg_temp.batch
    {% if versioned %}where _merge = '{{ merge }}'{% endif %}
    order by {{ unique_key | join(', ') }}
    on conflict ({{ unique_key | join(', ') }}) do update set
        {% for column in data -%}
        {% if column == 'first_seen_at' and merge != 'replace' -%}
            {%- if 'source_record_id' in data -%}
        first_seen_at = case
            when target.source_record_id is distinct from excluded.source_record_id then excluded.first_seen_at
            else target.first_seen_at
        end
            {%- else -%}
        first_seen_at = target.first_seen_at
            {%- endif -%}
        {%- else -%}
        {{ column }} = excluded.{{ column }}
        {%- endif %}{{ ',' if not loop.last }}
        {% endfor %}
    where
        ({{ 'target.' ~ compare | join(', target.') }})
        is distinct from ({{ 'excluded.' ~ compare | join(', excluded.') }})
    returning target.*
)
{{ note_changes('upserted') }}
{% endmacro %}


{#
  Until the transaction ends, find rows of the table by its indexes, one by one: the cost of a run is then that
  of its batch, where a hash join of a larger batch would read the whole table.
#}
{% macro join_by_index() %}
    {% do run_query('set local enable_hashjoin = off') %}
    {% do run_query('set local enable_mergejoin = off') %}
{% endmacro %}


{% macro same_values(columns) -%}
    {% for column in columns -%}
    target.{{ column }} = batch.{{ column }}{{ ' and ' if not loop.last }}
    {%- endfor %}
{%- endmacro %}


{% macro note_changes(changed) %}
{% if config.get('changes') %}
insert into health.{{ config.get('changes') }} (user_id, local_date, metric_type)
select distinct user_id, local_date, {{ config.get('change_metric', 'metric_type') }} from {{ changed }}
{% else %}
select count(*) from {{ changed }}
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
{%- if partition_by %} partition by range ({{ partition_by }}){% endif %};
{% for index in config.get('indexes', []) %}
create index on {{ relation }} ({{ index.columns | join(', ') }})
{%- if index.where %} where {{ index.where }}{% endif %};
{% endfor %}
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


{% macro create_missing_partitions(relation, column) %}
    {% set months = run_query(
        "select distinct to_char(date_trunc('month', " ~ column ~ " at time zone 'UTC'), 'YYYY-MM-DD'), "
        ~ "to_char(date_trunc('month', " ~ column ~ " at time zone 'UTC') + interval '1 month', 'YYYY-MM-DD') "
        ~ "from pg_temp.batch order by 1"
    ) %}
    {% for month in months.rows %}
        {% set name = relation.identifier ~ '_' ~ month[0][:7] | replace('-', '_') %}
        {% do run_query(
            'create table if not exists ' ~ relation.schema ~ '.' ~ name ~ ' partition of ' ~ relation
            ~ " for values from ('" ~ month[0] ~ " 00:00:00+00') to ('" ~ month[1] ~ " 00:00:00+00')"
        ) %}
        {% do run_query("select ops.secure_table('" ~ relation.schema ~ '.' ~ name ~ "')") %}
    {% endfor %}
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
