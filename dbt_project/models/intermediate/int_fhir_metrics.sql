{#-
  Values of Observations, of their components too. One that is no metric, says no value or was entered in error
  gives a row that is marked as deleted, so that what an earlier version said goes.
-#}
with observations as (
    select
        *,
        effective_date::timestamp at time zone coalesce(home_time_zone, 'UTC') as date_starts_at,
        (effective_date + case effective_precision
            when 'year' then interval '1 year'
            when 'month' then interval '1 month'
            else interval '1 day'
        end)::timestamp at time zone coalesce(home_time_zone, 'UTC') as date_ends_at
    from {{ ref('stg_fhir__observation') }}
)

select
    observations.user_id,
    meaning.metric_type,
    said.value as source_value,
    -- The code is UCUM's; some servers give the unit's printed form alone, which is often the same.
    case
        when coalesce(said.unit_system, 'http://unitsofmeasure.org') = 'http://unitsofmeasure.org'
            then coalesce(said.unit_code, said.unit)
        else said.unit
    end as source_unit,
    observations.source,
    observations.device as source_device,
    coalesce(observations.effective_at, observations.date_starts_at) as recorded_at,
    -- Of a date alone it is only known that it was some time of that day, month or year.
    case
        when observations.effective_at is null then observations.date_ends_at
        when observations.dated_by = 'period_start' then observations.effective_end_at
    end as ended_at,
    observations.utc_offset_minutes,
    case when observations.utc_offset_minutes is not null then 'record' end as utc_offset_source,
    case when observations.effective_at is null then observations.effective_date end as local_date,
    'Observation/' || observations.id as source_record_id,
    jsonb_strip_nulls(jsonb_build_object(
        'loinc', meaning.loinc,
        'category', observations.category,
        'comparator', said.comparator,
        'status', nullif(observations.status, 'final'),
        'date_precision', nullif(observations.effective_precision, 'time'),
        'dated_by', case when observations.dated_by = 'issued' then 'issued' end,
        'interpretation', said.interpretation,
        'reference_low', said.reference_low,
        'reference_high', said.reference_high
    )) as metadata,
    (
        observations.status in ('entered-in-error', 'cancelled')
        or meaning.metric_type is null
        or said.value is null
    ) as is_deleted,
    observations.home_time_zone,
    'Observation/' || observations.id as location,
    observations.raw_object_id,
    observations.received_at
from observations
inner join {{ ref('stg_fhir__observation_value') }} as said
    on said.raw_object_id = observations.raw_object_id
    and said.observation_id = observations.id
left join lateral (
    -- Several codes of one value are several words for it: the first that we know counts.
    select
        known.metric_type,
        known.loinc
    from unnest(string_to_array(said.loinc_codes, '|')) with ordinality as codes (code, place)
    inner join {{ ref('int_loinc_metrics') }} as known on known.loinc = codes.code
    order by codes.place
    limit 1
) as meaning on true
