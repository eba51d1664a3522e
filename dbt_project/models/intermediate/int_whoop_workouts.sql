with energy as (
    select factor
    from {{ ref('int_metric_units') }}
    where metric_type = 'total_calories' and source_unit = 'kJ'
)

select
    workouts.user_id,
    workouts.source,
    workouts.id as source_record_id,
    workouts.started_at,
    workouts.ended_at,
    workouts.utc_offset_minutes,
    {{ local_day('workouts.started_at', 'workouts.utc_offset_minutes') }} as local_date,
    -- The vendor's own word for what it cannot tell.
    coalesce(workouts.sport_name, 'activity') as activity,
    null::text as intensity,
    extract(epoch from workouts.ended_at - workouts.started_at)::integer as duration_seconds,
    workouts.kilojoule * energy.factor as calories_kcal,
    workouts.distance_m,
    workouts.average_heart_rate_bpm,
    workouts.max_heart_rate_bpm,
    workouts.altitude_gain_m as elevation_gain_m,
    null::double precision as perceived_exertion,
    false as is_deleted,
    workouts.raw_object_id,
    workouts.received_at
from {{ ref('stg_whoop__workout') }} as workouts
cross join energy
