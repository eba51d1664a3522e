{# Seconds asleep in a Garmin night: its stages', else all but the time awake. #}
{% macro garmin_sleep_seconds(night) -%}
    (case
        when num_nonnulls({{ night }}.deep_sleep_seconds, {{ night }}.light_sleep_seconds, {{ night }}.rem_sleep_seconds) > 0
            then coalesce({{ night }}.deep_sleep_seconds, 0) + coalesce({{ night }}.light_sleep_seconds, 0)
            + coalesce({{ night }}.rem_sleep_seconds, 0)
        else {{ night }}.duration_seconds - coalesce({{ night }}.awake_seconds, 0)
    end)
{%- endmacro %}

{# A night that is none: the watch lay on the table. Every other word, of words to come too, is a night. #}
{% macro garmin_is_no_sleep(validation) -%}
    upper({{ validation }}) is not distinct from 'OFF_WRIST'
{%- endmacro %}
