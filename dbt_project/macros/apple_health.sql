{# The day in UTC by which int_apple_health_away is joined. #}
{% macro utc_day(instant) -%}
    ({{ instant }} at time zone 'UTC')::date
{%- endmacro %}

{#
  The offset of an Apple record: its own (HKTimeZone), else that of the zone a record shortly before it names,
  else that of the upload's or the user's zone. The one that is printed is the phone's at the export, and the
  last resort.
#}
{% macro apple_health_offset(records, away, instant, home='true') -%}
    case
        when {{ records }}.utc_offset_source = 'record' then {{ records }}.utc_offset_minutes
        when {{ away }}.time_zone is not null then {{ zone_offset_minutes(instant, away ~ '.time_zone') }}
        when {{ records }}.utc_offset_source = 'export' and {{ records }}.home_time_zone is not null
            then {{ zone_offset_minutes(instant, records ~ '.home_time_zone') }}
        else {{ records }}.utc_offset_minutes
    end
{%- endmacro %}

{% macro apple_health_offset_source(records, away) -%}
    case
        when {{ records }}.utc_offset_source = 'record' then 'record'
        when {{ away }}.time_zone is not null then 'nearby_record'
        when {{ records }}.utc_offset_source = 'export' and {{ records }}.home_time_zone is not null then 'user_zone'
        else {{ records }}.utc_offset_source
    end
{%- endmacro %}

{% macro join_away(records, away, instant) -%}
left join {{ ref('int_apple_health_away') }} as {{ away }}
    on {{ away }}.raw_object_id = {{ records }}.raw_object_id
    and {{ away }}.utc_date = {{ utc_day(instant) }}
    and {{ away }}.started_at <= {{ instant }}
    and {{ away }}.ended_at > {{ instant }}
{%- endmacro %}
