with named as (
    select distinct
        observation_id,
        coalesce(loinc_codes, '') as loinc_codes,
        code_text
    from {{ source('staging_fhir', 'observation_value') }}
    where value is not null
        and not exists (
            select from {{ ref('int_loinc_metrics') }} as known
            where known.loinc = any(string_to_array(loinc_codes, '|'))
        )
)

select
    loinc_codes,
    min(code_text) as code_text,
    count(distinct observation_id) as observations
from named
group by loinc_codes
