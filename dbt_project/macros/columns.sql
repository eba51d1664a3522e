{# The rows of several models of one shape. #}
{% macro union_of(models) %}
    {% for model in models %}
select * from {{ ref(model) }}
    {% if not loop.last %}union all{% endif %}
    {% endfor %}
{% endmacro %}

{# Minutes that the local time of a zone is ahead of UTC at an instant. #}
{% macro zone_offset_minutes(instant, zone) -%}
    (extract(epoch from ({{ instant }} at time zone {{ zone }}) - ({{ instant }} at time zone 'UTC')) / 60)::smallint
{%- endmacro %}

{# The local day of an instant, given its offset. #}
{% macro local_day(instant, offset_minutes) -%}
    (({{ instant }} at time zone 'UTC') + make_interval(mins => {{ offset_minutes }}))::date
{%- endmacro %}

{# An instant as text, in UTC whatever the session's time zone. #}
{% macro utc_text(instant) -%}
    to_char({{ instant }} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
{%- endmacro %}
