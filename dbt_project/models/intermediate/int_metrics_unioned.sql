{%- set models = ['int_glucose_metrics'] -%}
{%- for provider in var('metric_providers') -%}
    {%- do models.append('int_' ~ provider ~ '_metrics') -%}
{%- endfor -%}
{{ union_of(models) }}
