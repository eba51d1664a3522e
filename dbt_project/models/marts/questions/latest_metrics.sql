{{ config(meta={'rights': 'owner'}) }}

with latest as (
    select
        *,
        -- Vendors' scores are compared with those of the same vendor only.
        case when value_kind = 'score' then source else '' end as scale,
        max(last_date) over (
            partition by metric_type, case when value_kind = 'score' then source else '' end
        ) as newest_date
    from {{ ref('int_daily_values_latest') }}
),

placed as (
    select
        *,
        last_date > newest_date - {{ var('cohort_days') }} as is_recent
    from latest
),

ranked as (
    select
        *,
        rank() over (partition by metric_type, scale, is_recent order by last_value) - 1 as below,
        count(*) over (partition by metric_type, scale, is_recent, last_value) as equal,
        count(*) over (partition by metric_type, scale, is_recent) as cohort_size
    from placed
)

select
    user_id,
    metric_type,
    last_date,
    last_value,
    metric_unit,
    source,
    case when is_recent and cohort_size >= {{ var('minimum_cohort_size') }} then cohort_size end as cohort_size,
    case
        when is_recent and cohort_size >= {{ var('minimum_cohort_size') }}
            then ({{ percentile_of('below', 'equal', 'cohort_size') }})::double precision
    end as cohort_percentile
from ranked
where {{ visible_to_reader('user_id') }}
