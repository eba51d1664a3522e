{#
  The view has one row a key, and no part of the key is null. A view of users is read for some of the users and
  days that changed last, since reading all of it would cost what is stored: its definition is the same for all.
#}
{% test unique_grain(model, columns) %}
{%- set keys = ['user_id', 'local_date'] | select('in', columns) | list -%}
{%- set keyed = [] -%}
{%- for column in columns %}{% do keyed.append('tested.' ~ column) %}{% endfor %}
select {{ keyed | join(', ') }}, count(*) as row_count
{% if keys %}
from (
    select distinct {{ keys | join(', ') }}
    from (
        select user_id, local_date from health._changed_daily order by change_id desc limit 100
    ) as changes
) as changed
cross join lateral (
    select *
    from {{ model }} as rows_of_view
    where {% for key in keys %}rows_of_view.{{ key }} = changed.{{ key }}{{ ' and ' if not loop.last }}{% endfor %}
    offset 0
) as tested
{% else %}
from {{ model }} as tested
{% endif %}
group by {{ keyed | join(', ') }}
having count(*) > 1 or {% for column in keyed %}{{ column }} is null{{ ' or ' if not loop.last }}{% endfor %}
{% endtest %}
