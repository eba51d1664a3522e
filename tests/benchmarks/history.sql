-- What runs of the days :first to :last would have left behind of everybody: hourly heart rates and twelve daily metrics.
insert into ops.subjects (subject_id, user_id)
select gen_random_uuid(), user_id from ops.users
on conflict do nothing;

create table days as
select generate_series(date :first, date :last, interval '1 day')::date as day;

create table metrics (metric_type text, level double precision);
insert into metrics values
('steps', 8000), ('distance', 6000), ('calories_burned', 400), ('total_calories', 2100), ('sleep_duration', 26000),
('deep_sleep', 5000), ('rem_sleep', 6000), ('sleep_efficiency', 90), ('resting_heart_rate', 55),
('heart_rate_variability', 60), ('respiratory_rate', 15), ('spo2', 97);

insert into ops.raw_objects (provider, entity, subject_id, door, received_at, partition_start, partition_end,
    data_start_date, data_end_date, sha256, size_bytes, stored_bytes, object_key, content_type)
select 'oura', entity, subject_id, 'fetch', day + interval '30 hours', day, day, day, day,
    md5(subject_id::text || day || entity), 1, 1, md5(subject_id::text || day || entity), 'application/json'
from days
cross join ops.users
inner join ops.subjects using (user_id)
cross join (values ('heartrate'), ('sleep'), ('daily_activity'), ('daily_spo2')) as entities (entity);

insert into staging_oura.loads (load_id, finished, accounted)
select nextval('ops.load_id_seq'), true, true from days;

create table load_of as
select load_id, date :first - 1 + row_number() over (order by load_id)::integer as day
from staging_oura.loads
where load_id > (select coalesce(max(load_id), 0) from staging_oura.staged_objects);

create table objects as
select raw_object_id, load_id, user_id, entity, received_at, day
from ops.raw_objects
inner join ops.subjects using (subject_id)
inner join load_of on day = partition_start
where provider = 'oura' and partition_start between date :first and date :last;

insert into staging_oura.staged_objects (raw_object_id, load_id, parser_version, records_in, records_loaded,
    records_quarantined, records_skipped, rows_staged, notes)
select raw_object_id, load_id, 1, 1, 1, 0, '{}', '{}', array[]::text[] from objects;

insert into health._applied_objects (provider, raw_object_id, load_id, user_id, entity, received_at)
select 'oura', raw_object_id, load_id, user_id, entity, received_at from objects;

insert into staging_oura.heartrate (_raw_object_id, _load_id, "timestamp", bpm, source)
select raw_object_id, load_id, (day + make_interval(hours => hour)) at time zone 'UTC', 60, 'awake'
from objects
cross join generate_series(0, 23) as hour
where entity = 'heartrate'
order by load_id;

insert into health.health_metrics (user_id, metric_type, metric_value, metric_unit, source, recorded_at,
    utc_offset_minutes, utc_offset_source, local_date, raw_object_id, first_seen_at, updated_at)
select user_id, 'heart_rate', 60 + 9 * random(), '/min', 'oura', (day + make_interval(hours => hour)) at time zone 'UTC',
    0, 'user_zone', day, 0, day, day
from days
cross join ops.users
cross join generate_series(0, 23) as hour;

insert into health.health_metrics (user_id, metric_type, metric_value, metric_unit, source, recorded_at, ended_at,
    utc_offset_minutes, utc_offset_source, local_date, raw_object_id, first_seen_at, updated_at)
select user_id, metric_type, level * (0.9 + 0.2 * random()), unit, 'oura', day::timestamp at time zone 'UTC',
    (day + 1)::timestamp at time zone 'UTC', 0, 'record', day, 0, day, day
from days
cross join ops.users
cross join metrics
inner join health.metric_types using (metric_type);

insert into metrics values ('heart_rate', 63);

insert into health.daily_metrics (user_id, local_date, metric_type, metric_value, metric_unit, source, sources_seen,
    sample_count, coverage)
select user_id, day, metric_type, level * (0.9 + 0.2 * random()), unit, 'oura', array['oura'], 1, 1
from days
cross join ops.users
cross join metrics
inner join health.metric_types using (metric_type);

insert into health.sleep_sessions (user_id, source, source_record_id, started_at, ended_at, local_date, is_main_sleep,
    utc_offset_minutes, end_utc_offset_minutes, raw_object_id, first_seen_at, updated_at)
select user_id, 'oura', 's' || day, day, day + interval '7 hours', day, true, 0, 0, 1, day, day
from days
cross join ops.users;

insert into health.workouts (user_id, source, source_record_id, started_at, ended_at, local_date, activity,
    duration_seconds, raw_object_id, first_seen_at, updated_at)
select user_id, 'oura', 'w' || day, day + interval '17 hours', day + interval '18 hours', day, 'running', 3600, 1, day, day
from days
cross join ops.users
where (day - date '2000-01-01' + user_id) % 3 = 0;

insert into health.baselines (user_id, local_date, metric_type, source, baseline_center, baseline_scale, center_value,
    n_days, first_day, last_day, staleness_days, transform, recent_mean, recent_n_days)
select user_id, day, metric_type, 'oura', level, level / 10, level, 60, day - 60, day - 1, 1, 'identity', level, 7
from days
cross join ops.users
cross join metrics
where metric_type <> 'total_calories';

insert into health.training_loads (user_id, local_date, load, load_method, intensity_assumed, workout_count, worn,
    acute_load, chronic_load, days_of_history, missing_days)
select user_id, day, 100, 'duration_intensity', false, 1, true, 90, 100, 150, 0
from days
cross join ops.users;

insert into health.recovery_scores (user_id, local_date, method, recovery_score, score_low, score_high, stress_component,
    sleep_component, heart_rate_component, load_component, weight_stress, weight_sleep, weight_heart_rate, weight_load,
    present_weight, baseline_days, explanation)
select user_id, day, method, 75, 70, 80, 75, 80, 70, 75, 0.25, 0.3, 0.2, 0.25, 1, 60, 'as usual'
from days
cross join ops.users
cross join (values ('calibrated'), ('seed')) as methods (method);

drop table days, metrics, load_of, objects;
truncate health._changed_daily, health._changed_metrics;
