{%- set models = [] -%}
{%- for provider in var('medication_providers') -%}
    {%- do models.append('int_' ~ provider ~ '_medications') -%}
{%- endfor -%}
{{ union_of(models) }}
