with catalogue as (
    select * from {{ ref('metric_types') }}
),

units as (
    select
        metric_type,
        unit,
        valid_min,
        valid_max,
        string_to_array(accepted, ':') as parts
    from catalogue
    cross join unnest(string_to_array(source_units, '|')) as accepted
)

select
    metric_type,
    unit as metric_unit,
    valid_min,
    valid_max,
    parts[1] as source_unit,
    parts[2]::double precision as factor,
    coalesce(parts[3]::double precision, 0) as shift
from units
