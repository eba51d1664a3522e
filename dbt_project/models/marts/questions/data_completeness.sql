{{ config(meta={'rights': 'reader'}) }}

{#- Rows of each source behind a daily value, elected or not. -#}
{%- set samples_by_source -%}
    select
        daily.user_id,
        daily.local_date,
        daily.metric_type,
        sources.source,
        sources.samples
    from {{ ref('daily_metrics') }} as daily
    cross join lateral jsonb_to_recordset(
        coalesce(
            daily.contributions,
            jsonb_build_array(jsonb_build_object('source', daily.source, 'samples', daily.sample_count))
        )
    ) as sources (source text, samples integer)
{%- endset -%}

with days as (
    select distinct
        spans.user_id,
        spans.source,
        spans.first_date + days_on.number as local_date
    from {{ ref('source_spans') }} as spans
    cross join lateral generate_series(0, spans.last_date - spans.first_date) as days_on (number)
)

select
    days.user_id,
    days.local_date,
    days.source,
    expectations.metric_type,
    true as is_expected,
    coalesce(expectations.samples_per_day, 1) as expected_samples,
    coalesce(seen.samples, 0) as samples,
    least(coalesce(seen.samples, 0)::double precision / coalesce(expectations.samples_per_day, 1), 1) as coverage
from days
inner join {{ ref('provider_expectations') }} as expectations on expectations.source = days.source
left join ({{ samples_by_source }}) as seen
    on seen.user_id = days.user_id
    and seen.metric_type = expectations.metric_type
    and seen.local_date = days.local_date
    and seen.source = days.source
union all
-- What comes without being expected.
select
    seen.user_id,
    seen.local_date,
    seen.source,
    seen.metric_type,
    false as is_expected,
    null::integer as expected_samples,
    seen.samples,
    null::double precision as coverage
from ({{ samples_by_source }}) as seen
where not exists (
    select
    from {{ ref('provider_expectations') }} as expectations
    where expectations.source = seen.source and expectations.metric_type = seen.metric_type
)
