{#-
  Records name metric and unit of the catalogue themselves. One without a value takes an earlier version's away. A sleep
  is of the day it ended on.
-#}
select
    records.user_id,
    records.metric_type,
    records.value as source_value,
    records.unit as source_unit,
    records.source,
    records.device as source_device,
    records.recorded_at,
    records.ended_at,
    records.utc_offset_minutes,
    'record' as utc_offset_source,
    case
        when types.category = 'sleep' and records.ended_at is not null
            then {{ local_day('records.ended_at', 'records.ended_utc_offset_minutes') }}
        else {{ local_day('records.recorded_at', 'records.utc_offset_minutes') }}
    end as local_date,
    records.id as source_record_id,
    null::jsonb as metadata,
    records.value is null as is_deleted,
    records.home_time_zone,
    'records[' || records.position || ']' as location,
    records.raw_object_id,
    records.received_at
from {{ ref('stg_generic__record') }} as records
left join {{ ref('metric_types') }} as types
    on types.metric_type = records.metric_type
