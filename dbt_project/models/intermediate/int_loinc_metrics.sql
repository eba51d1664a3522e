-- A sensor's glucose is not among them: it belongs in glucose_readings.
select
    loinc,
    metric_type
from {{ ref('metric_types') }}
where loinc is not null and metric_type <> 'glucose'
union all
select
    loinc,
    metric_type
from {{ ref('loinc_metrics') }}
