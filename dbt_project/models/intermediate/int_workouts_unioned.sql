{%- set models = [] -%}
{%- for provider in var('workout_providers') -%}
    {%- do models.append('int_' ~ provider ~ '_workouts') -%}
{%- endfor -%}
{{ union_of(models) }}
