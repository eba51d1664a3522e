{# The table has a primary key of just these columns: the grain is enforced by the database on every write. #}
{% test primary_key(model, columns) %}
select 'no primary key over ({{ columns | join(", ") }})' as failure
where not exists (
    select
    from pg_index
    where indrelid = '{{ model }}'::regclass
        and indisprimary
        and (
            select array_agg(attname::text order by attname)
            from pg_attribute
            where attrelid = indrelid and attnum = any(indkey)
        ) = array[{% for column in columns | sort %}'{{ column }}'{{ ', ' if not loop.last }}{% endfor %}]
)
{% endtest %}
