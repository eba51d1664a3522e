{%- set models = [] -%}
{%- for provider in var('sleep_providers') -%}
    {%- do models.append('int_' ~ provider ~ '_sleep_sessions') -%}
{%- endfor -%}
{{ union_of(models) }}
