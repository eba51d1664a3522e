{%- set models = [] -%}
{%- for provider in var('glucose_providers') -%}
    {%- do models.append('stg_' ~ provider ~ '__readings') -%}
{%- endfor -%}
{{ union_of(models) }}
