{# What `upsert_table` makes: the table, what its model has gained since, and partitions. #}

{% macro create_upsert_table(relation, unique_key, partition_by) %}
create table {{ relation }} (
    {% for column in model.columns.values() -%}
    {{ column.name }} {{ column.data_type }}
    {%- for constraint in column.constraints if constraint.type == 'not_null' %} not null{% endfor %},
    {% endfor -%}
    {% for name, expression in checks_of(relation).items() -%}
    constraint {{ name }} check ({{ expression }}),
    {% endfor -%}
    primary key ({{ unique_key | join(', ') }})
)
{%- if partition_by %} partition by range ({{ partition_by }}){% endif %};
{{ indexes_of(relation).values() | join('\n') }}
{% endmacro %}


{# What the model's columns may hold, by the name of the constraint: one a column. #}
{% macro checks_of(relation) %}
    {% set checks = {} %}
    {% for column in model.columns.values() %}
        {% for constraint in column.constraints if constraint.type == 'check' %}
            {% do checks.update({relation.identifier ~ '_' ~ column.name ~ '_check': constraint.expression}) %}
        {% endfor %}
    {% endfor %}
    {% do return(checks) %}
{% endmacro %}


{# Statements that make the model's further indexes, by the index's name. #}
{% macro indexes_of(relation) %}
    {% set statements = {} %}
    {% for index in config.get('indexes', []) %}
        {% set name = relation.identifier ~ '_' ~ index.columns | join('_') ~ '_idx' %}
        {% do statements.update({
            name: 'create index ' ~ name ~ ' on ' ~ relation ~ ' (' ~ index.columns | join(', ') ~ ')'
            ~ (' where ' ~ index.where if index.where else '') ~ ';'
        }) %}
    {% endfor %}
    {% do return(statements) %}
{% endmacro %}


{#
  Statements that give a table of before the columns, checks and indexes the model has gained since. A column is empty
  in the rows of before, until `dbt build --full-refresh`; a check that one of them does not keep raises.
#}
{% macro add_missing(relation) %}
{%- set indexes = indexes_of(relation) -%}
{%- set checks = checks_of(relation) -%}
{%- set missing = fromjson(run_query(what_is_missing(relation, checks, indexes)).columns[0].values()[0]) -%}
{%- for column in model.columns.values() if column.name in missing.columns %}
    {%- if column.constraints | selectattr('type', 'equalto', 'not_null') | list %}
        {{ exceptions.raise_compiler_error(
            relation ~ ' lacks the column ' ~ column.name ~ ', which may not be empty: run dbt build --full-refresh'
        ) }}
    {%- endif %}
alter table {{ relation }} add column {{ column.name }} {{ column.data_type }};
{%- endfor %}
{%- for name in missing.checks %}
alter table {{ relation }} add constraint {{ name }} check ({{ checks[name] }});
{%- endfor %}
{%- for name in missing.indexes %}
{{ indexes[name] }}
{%- endfor %}
{% endmacro %}


{# Names of the model's columns, checks and indexes that the table does not have, as JSON. #}
{% macro what_is_missing(relation, checks, indexes) %}
{%- set table = "'" ~ relation.schema ~ '.' ~ relation.identifier ~ "'::regclass" -%}
{%- set kinds = {
    'columns': (
        model.columns.values() | map(attribute='name') | list,
        'select from pg_attribute where attrelid = ' ~ table ~ ' and attname = name and not attisdropped',
    ),
    'checks': (
        checks | list,
        "select from pg_constraint where conrelid = " ~ table ~ " and contype = 'c' and conname = name",
    ),
    'indexes': (indexes | list, "select where to_regclass('" ~ relation.schema ~ ".' || name) is not null"),
} -%}
select
    jsonb_build_object(
        {% for kind, (names, known) in kinds.items() -%}
        '{{ kind }}', (
            select coalesce(jsonb_agg(name), '[]')
            from unnest(array[{% for name in names %}'{{ name }}'{{ ', ' if not loop.last }}{% endfor %}]::text[]) as name
            where not exists ({{ known }})
        ){{ ',' if not loop.last }}
        {% endfor %}
    )::text
{% endmacro %}


{#
  Make the partitions of months that have none, with the batch's rows of these months in them.

  They are filled before they have an index, and join the table then: an index of all rows at once takes a third of
  the time, and is smaller, and who reads the table meanwhile does not wait.
#}
{% macro fill_new_partitions(relation, unique_key, columns, partition_by, months, versioned, notes) %}
    {% set door = relation.incorporate(path={'identifier': '_new_' ~ relation.identifier}) %}
    {% set filling %}
create table {{ door }} (like {{ relation }} including defaults) partition by range ({{ partition_by }});
{% for month in months %}
create table {{ partition_of(relation, month) }} partition of {{ door }} {{ bounds_of(month) }};
{% endfor %}
{{ upsert_rows(door, unique_key, columns, versioned, false, notes, in_months('batch.' ~ partition_by, months)) }};
{% for month in months %}
alter table {{ door }} detach partition {{ partition_of(relation, month) }};
alter table {{ relation }} attach partition {{ partition_of(relation, month) }} {{ bounds_of(month) }};
{% endfor %}
drop table {{ door }};
    {% endset %}
    {% do run_statements(filling) %}
{% endmacro %}


{# Dates that were read from JSON. #}
{% macro months_of(texts) %}
    {% set months = [] %}
    {% for text in texts %}{% do months.append(modules.datetime.date.fromisoformat(text)) %}{% endfor %}
    {% do return(months) %}
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
