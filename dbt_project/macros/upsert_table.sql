{#
  A table that takes a run's rows by its natural key and touches only those that changed.

  The model's SQL gives the rows of this run (the batch), one a key. Rows are inserted in key order. A row
  that is there already is updated only where a compared column differs and the batch's is not older.

  config:
    unique_key       the natural key, which becomes the primary key
    compare          columns whose change is a change; default: all but the key, raw_object_id, first_seen_at
                     and updated_at
    partition_by     timestamptz column: the table is partitioned by its UTC month
    scope            a model whose rows name what the batch is complete for; rows of the table in that scope
                     which the batch does not have are deleted
    scope_columns    the columns the scope and the table share
    changes          name of the queue table that gets (user_id, local_date, metric_type) of every change
    change_metric    SQL for the queue's metric_type; default: the column of that name
    applies_objects  true where the table is filled from staged objects (see pending_objects.sql)
    indexes          further indexes: lists of columns, or {columns, where}
#}
{% materialization upsert_table, adapter='postgres' %}
    {%- set target_relation = this.incorporate(type='table') -%}
    {%- set existing = load_cached_relation(this) -%}
    {%- set unique_key = config.require('unique_key') -%}
    {%- set partition_by = config.get('partition_by') -%}
    {%- set scope = config.get('scope') -%}
    {%- set changes = config.get('changes') -%}
    {%- set change_metric = config.get('change_metric', 'metric_type') -%}
    {%- set provenance = ['raw_object_id', 'first_seen_at', 'updated_at'] -%}
    {%- set columns = model.columns.values() | map(attribute='name') | list -%}
    {%- set compare = config.get('compare') or (columns | reject('in', unique_key + provenance) | list) -%}
    {%- set updated = columns | reject('in', unique_key + ['first_seen_at']) | list -%}

    {{ run_hooks(pre_hooks, inside_transaction=False) }}
    {{ run_hooks(pre_hooks, inside_transaction=True) }}

    {% if should_full_refresh() and existing is not none %}
        {% if config.get('applies_objects') %}
            {{ require_complete_selection() }}
        {% endif %}
        {% do adapter.drop_relation(existing) %}
        {% set existing = none %}
    {% endif %}

    {{ get_assert_columns_equivalent(sql) }}
    {% if existing is none %}
        {% do run_query(create_upsert_table(target_relation, unique_key, partition_by)) %}
    {% endif %}

    {% do run_query('drop table if exists pg_temp.batch') %}
    {% do run_query('create temporary table batch on commit drop as ' ~ sql) %}
    {% do run_query('analyze pg_temp.batch') %}
    {% if partition_by %}
        {% do create_missing_partitions(target_relation, partition_by) %}
    {% endif %}

    {% if scope %}
        {% set scope_columns = config.require('scope_columns') %}
        {% call statement('delete_retracted') %}
with retracted as (
    delete from {{ target_relation }} as target
    using (select distinct {{ scope_columns | join(', ') }} from {{ ref(scope) }}) as scope
    where {% for column in scope_columns -%}
            target.{{ column }} = scope.{{ column }} and {% endfor -%}
        not exists (
            select from pg_temp.batch as batch
            where {% for column in unique_key -%}
                batch.{{ column }} = target.{{ column }}{{ ' and ' if not loop.last }}
            {%- endfor %}
        )
    returning target.*
)
{% if changes %}
insert into health.{{ changes }} (user_id, local_date, metric_type)
select distinct user_id, local_date, {{ change_metric }} from retracted
{% else %}
select count(*) from retracted
{% endif %}
        {% endcall %}
    {% endif %}

    {% if changes %}
        {# A row that moves to another local day leaves the old day changed, too. #}
        {% call statement('note_moved') %}
insert into health.{{ changes }} (user_id, local_date, metric_type)
select distinct target.user_id, target.local_date, {{ change_metric if change_metric != 'metric_type' else 'target.metric_type' }}
from pg_temp.batch as batch
inner join {{ target_relation }} as target
    on {% for column in unique_key -%}
        target.{{ column }} = batch.{{ column }}{{ ' and ' if not loop.last }}
    {%- endfor %}
where target.local_date <> batch.local_date
        {% endcall %}
    {% endif %}

    {% call statement('main') %}
with upserted as (
    insert into {{ target_relation }} as target ({{ columns | join(', ') }})
    select {{ columns | join(', ') }} from pg_temp.batch
    order by {{ unique_key | join(', ') }}
    on conflict ({{ unique_key | join(', ') }}) do update set
        {% for column in updated -%}
        {{ column }} = excluded.{{ column }}{{ ',' if not loop.last }}
        {% endfor %}
    where
        ({{ 'target.' ~ (compare | join(', target.')) }})
        is distinct from ({{ 'excluded.' ~ (compare | join(', excluded.')) }})
        {% if 'updated_at' in columns -%}
        and target.updated_at <= excluded.updated_at
        {%- endif %}
    returning target.*
)
{% if changes %}
insert into health.{{ changes }} (user_id, local_date, metric_type)
select distinct user_id, local_date, {{ change_metric }} from upserted
{% else %}
select count(*) from upserted
{% endif %}
    {% endcall %}

    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {% if existing is none %}{% do persist_docs(target_relation, model) %}{% endif %}
    {% do run_query("select ops.secure_table('" ~ target_relation.schema ~ '.' ~ target_relation.identifier ~ "')") %}
    {{ adapter.commit() }}
    {{ run_hooks(post_hooks, inside_transaction=False) }}
    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}


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
