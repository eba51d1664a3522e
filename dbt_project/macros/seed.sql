{#
  A seed that is loaded where its file has changed, or the table by another hand. dbt's own way empties and fills the
  table in each run: a tenth of a second each, and no run could begin while an analyst reads the catalogue.

  `health_internal._loaded_seeds` says of which file a table is, and what came of it. With --full-refresh it is loaded
  anyway.
#}
{% materialization seed, adapter='postgres' %}
    {%- set existing = load_cached_relation(this) -%}
    {%- set file = local_md5(model.checksum.checksum ~ config.get('column_types')) -%}
    {%- set content = "(select md5(string_agg(loaded::text, '|' order by loaded::text)) from " ~ this ~ ' as loaded)' -%}
    {% if existing is not none and existing.is_table and not should_full_refresh() %}
        {% set loaded = run_query(
            "select 1 as loaded from health_internal._loaded_seeds where name = '" ~ this.identifier
            ~ "' and file = '" ~ file ~ "' and content = " ~ content
        ) %}
        {% if loaded | length %}
            {% do store_result('agate_table', response='OK', agate_table=loaded) %}
            {% call noop_statement('main', 'UNCHANGED', 'UNCHANGED', 0) %}{% endcall %}
            {{ return({'relations': [this.incorporate(type='table')]}) }}
        {% endif %}
    {% endif %}

    {% set made = dbt.materialization_seed_default() %}
    {% call statement('note_loaded', auto_begin=true) %}
insert into health_internal._loaded_seeds select '{{ this.identifier }}', '{{ file }}', {{ content }}
on conflict (name) do update set file = excluded.file, content = excluded.content
    {% endcall %}
    {% do adapter.commit() %}
    {{ return(made) }}
{% endmaterialization %}
