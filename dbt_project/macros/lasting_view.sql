{#
  A view that is made once and touched only when its definition changes: what depends on it stays, and its grants,
  and a reader's long query neither waits for a run nor makes one wait.

  config meta:
    rights   reader   for readers, with the rights of whoever asks (security_invoker): row-level security of the
                      tables holds
             owner    for readers, of tables that they may not read: with its owner's rights. The SQL restricts
                      the rows by visible_to_reader; security_barrier keeps a reader's functions from running on
                      rows before that
             without: not for readers
#}
{% materialization lasting_view, adapter='postgres' %}
    {%- set target_relation = this.incorporate(type='view') -%}
    {%- set rights = config.get('meta', {}).get('rights') -%}
    {%- set options = {
        'reader': 'with (security_invoker=true)',
        'owner': 'with (security_barrier=true)',
    }[rights] if rights -%}

    {{ run_hooks(pre_hooks, inside_transaction=True) }}
    {% if config.get('contract').enforced %}{{ get_assert_columns_equivalent(sql) }}{% endif %}
    {% do run_query('create temporary view draft ' ~ options ~ ' as ' ~ sql) %}
    {% set change = run_query(view_change(target_relation)).columns[0].values()[0] %}
    {% do run_query('drop view pg_temp.draft') %}
    {% if change == 'other columns' %}
        {% do run_query('drop view ' ~ target_relation ~ ' cascade') %}
    {% endif %}
    {% if change == 'none' %}
        {% call statement('main') %}select 'unchanged'{% endcall %}
    {% else %}
        {% call statement('main') %}
            create or replace view {{ target_relation }} {{ options }} as {{ sql }}
        {% endcall %}
    {% endif %}
    {% do persist_docs(target_relation, model) if change != 'none' %}
    {% if rights %}{% do run_query(grant_to_readers(target_relation)) %}{% endif %}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {{ adapter.commit() }}
    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}


{#
  What the draft is to the view that is there: none (the same), new, definition, or other columns, where
  Postgres cannot replace the view: more columns at the end are all it takes.
#}
{% macro view_change(relation) %}
with present as (
    select to_regclass('{{ relation.schema }}.{{ relation.identifier }}') as view
),

options as (
    select oid, coalesce(array_to_string(reloptions, ','), '') as names from pg_class
)

select
    case
        when present.view is null then 'new'
        when
            pg_get_viewdef(present.view) = pg_get_viewdef('pg_temp.draft'::regclass)
            and old.names = draft.names then 'none'
        when exists (
            select
            from pg_attribute as was
            left join pg_attribute as becomes
                on becomes.attrelid = 'pg_temp.draft'::regclass and becomes.attnum = was.attnum
            where was.attrelid = present.view
                and (was.attname, was.atttypid) is distinct from (becomes.attname, becomes.atttypid)
        ) then 'other columns'
        else 'definition'
    end as change
from present
left join options as old on old.oid = present.view
left join options as draft on draft.oid = 'pg_temp.draft'::regclass
{% endmacro %}


{# Reading roles may not exist, where the pipeline's user may not create them (migration 0002). #}
{% macro grant_to_readers(relation) %}
do $$
begin
    if exists (select from pg_roles where rolname = 'health_analyst')
        and not has_table_privilege('health_analyst', '{{ relation }}', 'select') then
        -- The schema's grants change one at a time (ops.secure_table).
        perform pg_advisory_xact_lock(7104114825);
        if not has_schema_privilege('health_analyst', '{{ relation.schema }}', 'usage') then
            grant usage on schema {{ relation.schema }} to health_analyst, health_subject;
        end if;
        grant select on {{ relation }} to health_analyst, health_subject;
    end if;
end
$$
{% endmacro %}


{#
  True for rows that whoever asks may see: those of the person that the session is sealed for (ops.subject_id), all
  for analysts and for the pipeline itself. The same rule as the policies of ops.secure_table, for views that read
  as their owner.
#}
{% macro visible_to_reader(user_id) -%}
    (
        {{ user_id }} = (select ops.subject_id())
        or (
            select bool_or(pg_has_role(current_user, oid, 'usage'))
            from pg_roles
            where rolname in ('health_analyst', '{{ target.user | replace("'", "''") }}')
        )
    )
{%- endmacro %}


{# The present, for views only: a derived table never holds it. Unit tests put another in its place. #}
{% macro present_instant() -%}
    now()
{%- endmacro %}


{# The last day that is over everywhere on earth (UTC-12). #}
{% macro last_day_over() -%}
    (({{ present_instant() }} at time zone 'UTC') - interval '12 hours')::date - 1
{%- endmacro %}


{# Where a value stands among others, percent: those below, and half of those equal. #}
{% macro percentile_of(below, equal, count) -%}
    100.0 * ({{ below }} + 0.5 * {{ equal }}) / nullif({{ count }}, 0)
{%- endmacro %}


{# `7 h 5 min` from seconds. #}
{% macro duration_text(seconds) -%}
    concat_ws(
        ' ',
        nullif(round(({{ seconds }})::numeric / 60)::integer / 60, 0) || ' h',
        round(({{ seconds }})::numeric / 60)::integer % 60 || ' min'
    )
{%- endmacro %}


{# `72.3 kg`, and seconds as a duration; what UCUM writes in braces is for machines. #}
{% macro value_text(value, unit) -%}
    case
        when {{ unit }} = 's' then {{ duration_text(value) }}
        else concat_ws(
            ' ',
            trim_scale(round(({{ value }})::numeric, 2)),
            case when left({{ unit }}, 1) <> '{' then {{ unit }} end
        )
    end
{%- endmacro %}


{# Clock time, given the offset in force. #}
{% macro local_time(instant, offset_minutes) -%}
    to_char(({{ instant }} at time zone 'UTC') + make_interval(mins => {{ offset_minutes }}), 'HH24:MI')
{%- endmacro %}
