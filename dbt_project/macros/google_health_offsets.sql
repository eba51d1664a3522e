{# The offset that a session says, else the one of the person's home zone, else UTC's. #}
{% macro google_health_offset(instant, offset_minutes, home_time_zone) -%}
    coalesce({{ offset_minutes }}, {{ zone_offset_minutes(instant, home_time_zone) }}, 0)::smallint
{%- endmacro %}

{% macro google_health_local_day(instant, offset_minutes, home_time_zone) -%}
    {{ local_day(instant, google_health_offset(instant, offset_minutes, home_time_zone)) }}
{%- endmacro %}
