with workouts as (
    select distinct on (workouts.raw_object_id, workouts.device, workouts.recorded_at, workouts.activity)
        workouts.*,
        coalesce(workouts.ended_at, workouts.recorded_at) as finished_at,
        {{ apple_health_offset('workouts', 'away', 'workouts.recorded_at') }}::smallint as offset_minutes
    from {{ ref('stg_apple_health__workouts') }} as workouts
    {{ join_away('workouts', 'away', 'workouts.recorded_at') }}
    order by workouts.raw_object_id, workouts.device, workouts.recorded_at, workouts.activity, workouts.line
)

select
    user_id,
    source,
    device || ' ' || activity || ' ' || {{ utc_text('recorded_at') }} as source_record_id,
    recorded_at as started_at,
    finished_at as ended_at,
    offset_minutes as utc_offset_minutes,
    {{ local_day('recorded_at', 'offset_minutes') }} as local_date,
    activity,
    null::text as intensity,
    coalesce(duration_seconds, extract(epoch from finished_at - recorded_at))::integer as duration_seconds,
    active_energy_kcal as calories_kcal,
    distance_m,
    average_heart_rate_bpm,
    max_heart_rate_bpm,
    elevation_gain_m,
    null::double precision as perceived_exertion,
    false as is_deleted,
    raw_object_id,
    received_at
from workouts
