{%- set models = [] -%}
{%- for provider in var('document_providers') -%}
    {%- do models.append('int_' ~ provider ~ '_documents') -%}
{%- endfor -%}
{{ union_of(models) }}
