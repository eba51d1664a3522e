{#
  A view made anew in one statement. dbt's own way makes it under another name, moves the old one away, renames and
  drops: eight statements, which is most of what hundreds of small views cost. What depends on the old one goes with
  it, as with dbt's own, and follows in the order of the build.
#}
{% materialization view, adapter='postgres' %}
    {%- set target_relation = this.incorporate(type='view') -%}
    {%- set existing = load_cached_relation(this) -%}

    {{ run_hooks(pre_hooks, inside_transaction=True) }}
    {% if existing is not none and not existing.is_view %}
        {% do adapter.drop_relation(existing) %}
    {% endif %}
    {% call statement('main') %}
        drop view if exists {{ target_relation }} cascade;
        {{ get_create_view_as_sql(target_relation, sql) }}
    {% endcall %}
    {% do persist_docs(target_relation, model) %}
    {{ run_hooks(post_hooks, inside_transaction=True) }}
    {{ adapter.commit() }}
    {{ return({'relations': [target_relation]}) }}
{% endmaterialization %}
