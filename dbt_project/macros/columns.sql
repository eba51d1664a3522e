{# The rows of several models of one shape. #}
{% macro union_of(models) %}
    {% for model in models %}
select * from {{ ref(model) }}
    {% if not loop.last %}union all{% endif %}
    {% endfor %}
{% endmacro %}

{# Minutes that the local time of a zone is ahead of UTC at an instant. #}
{% macro zone_offset_minutes(instant, zone) -%}
    (date_part('epoch', ({{ instant }} at time zone {{ zone }}) - ({{ instant }} at time zone 'UTC')) / 60)::smallint
{%- endmacro %}

{#
  Whose zone stands in where a record says no offset: the provider's profile of the person when the object came,
  else the user's own.
#}
{% macro zone_source(raw_object_id) -%}
    case
        when {{ raw_object_id }} in (select raw_object_id from health._pending_objects where has_profile_zone) then 'profile'
        else 'user_zone'
    end
{%- endmacro %}

{# The local day of an instant, given its offset. #}
{% macro local_day(instant, offset_minutes) -%}
    (({{ instant }} at time zone 'UTC') + make_interval(mins => {{ offset_minutes }}))::date
{%- endmacro %}

{#
  The instant of a wall-clock time in a zone. Of a time that the clock showed twice it is the first, unless
  `is_second`; one that it skipped is read with the offset before the gap.
#}
{% macro local_instant(local, zone, is_second='false') -%}
    (
        {{ local }} at time zone {{ zone }} - case
            when not {{ is_second }}
                and ({{ local }} at time zone {{ zone }} - interval '1 hour') at time zone {{ zone }} = {{ local }}
                then interval '1 hour'
            else interval '0'
        end
    )
{%- endmacro %}

{# An instant as text, in UTC whatever the session's time zone. #}
{% macro utc_text(instant) -%}
    to_char({{ instant }} at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')
{%- endmacro %}

{#
  The stages of a sleep from a text with one character for so many seconds each: a JSON array in order of
  {"stage", "start" (seconds since the sleep began), "seconds"}; null where there is no text. `names` maps
  characters to deep, light, rem, awake or asleep.
#}
{% macro stages_of_digits(column, seconds_per_character, names={'1': 'deep', '2': 'light', '3': 'rem', '4': 'awake'}) -%}
    (
        select
            jsonb_agg(
                jsonb_build_object('stage', runs.stage, 'start', runs.until - runs.seconds, 'seconds', runs.seconds)
                order by runs.place
            )
        from (
            select
                matches.place,
                case left(matches.run[1], 1)
                    {% for character, name in names.items() -%}
                    when '{{ character }}' then '{{ name }}'
                    {% endfor -%}
                    else 'asleep'
                end as stage,
                length(matches.run[1]) * {{ seconds_per_character }} as seconds,
                sum(length(matches.run[1])) over (order by matches.place) * {{ seconds_per_character }} as until
            from regexp_matches({{ column }}, '((.)\2*)', 'g') with ordinality as matches (run, place)
        ) as runs
    )
{%- endmacro %}
