{#-
  Summaries and their metrics: (metric, unit, expression). A summary that does not say a value (any more) still
  gives a row, marked as deleted, so that an earlier version's value goes.

  Steps, distance and active energy are those of the epochs, which make up the whole day; the daily summary's
  totals, and the activities', are the same movement once more. Stress is that of the 3-minute values, oxygen
  saturation that of the pulse-ox series, and heart rate that of the daily summary's series.
-#}
{%- set summaries = {
    'dailies': {
        'starts': 'said.recorded_at',
        'ends': 'said.recorded_at + make_interval(secs => said.duration_seconds)',
        'day': 'said.day',
        'metrics': [
            ('basal_calories', 'kcal', 'said.basal_energy_kcal'),
            ('total_calories', 'kcal', 'said.basal_energy_kcal + said.active_energy_kcal'),
            ('active_minutes', 's', 'said.moderate_intensity_seconds + said.vigorous_intensity_seconds'),
            ('floors', '{floors}', 'said.floors_climbed'),
            ('resting_heart_rate', '/min', 'said.resting_heart_rate_bpm'),
            ('max_heart_rate', '/min', 'said.max_heart_rate_bpm'),
            ('stress_high_time', 's', 'said.high_stress_seconds'),
        ],
    },
    'sleeps': {
        'starts': 'said.recorded_at',
        'ends': 'said.recorded_at + make_interval(secs => said.duration_seconds)',
        'day': 'night',
        'metrics': [
            ('sleep_duration', 's', garmin_sleep_seconds('said')),
            ('time_in_bed', 's', 'said.duration_seconds'),
            ('deep_sleep', 's', 'said.deep_sleep_seconds'),
            ('light_sleep', 's', 'said.light_sleep_seconds'),
            ('rem_sleep', 's', 'said.rem_sleep_seconds'),
            ('awake_time', 's', 'said.awake_seconds'),
            ('sleep_efficiency', '%', '100.0 * ' ~ garmin_sleep_seconds('said') ~ ' / nullif(said.duration_seconds, 0)'),
            ('sleep_score', '{score}', 'said.sleep_score'),
            ('respiratory_rate', '/min', 'said.average_breath_per_minute'),
        ],
    },
    'hrv': {
        'starts': 'said.recorded_at',
        'ends': 'said.recorded_at + make_interval(secs => said.duration_seconds)',
        'day': 'night',
        'metrics': [('heart_rate_variability', 'ms', 'said.last_night_average_ms')],
    },
    'skin_temp': {
        'starts': 'said.recorded_at',
        'ends': 'said.recorded_at + make_interval(secs => said.duration_seconds)',
        'day': 'night',
        'metrics': [('body_temperature_deviation', 'Cel', 'said.average_deviation_celsius')],
    },
    'body_comps': {
        'starts': 'said.recorded_at',
        'ends': 'null::timestamptz',
        'day': 'null::date',
        'metrics': [
            ('weight', 'g', 'said.weight_g'),
            ('body_fat', '%', 'said.body_fat_percent'),
            ('bmi', 'kg/m2', 'said.body_mass_index_kg_per_m2'),
            ('muscle_mass', 'g', 'said.muscle_mass_g'),
            ('bone_mass', 'g', 'said.bone_mass_g'),
            ('body_water', 'g', 'said.weight_g * said.body_water_percent / 100'),
        ],
    },
    'blood_pressures': {
        'starts': 'said.recorded_at',
        'ends': 'null::timestamptz',
        'day': 'null::date',
        'metrics': [
            ('blood_pressure_systolic', 'mm[Hg]', 'said.systolic_mmhg'),
            ('blood_pressure_diastolic', 'mm[Hg]', 'said.diastolic_mmhg'),
            ('heart_rate', '/min', 'said.pulse_bpm'),
        ],
    },
    'user_metrics': {
        'starts': "said.day::timestamp at time zone coalesce(said.home_time_zone, 'UTC')",
        'ends': "(said.day + 1)::timestamp at time zone coalesce(said.home_time_zone, 'UTC')",
        'day': 'said.day',
        'metrics': [
            ('vo2_max', 'mL/(kg.min)', 'said.vo2_max_ml_per_kg_min'),
            ('fitness_age', 'a', 'said.fitness_age_years'),
        ],
    },
} -%}
{%- set sampled = {
    'heart_rate': ('heart_rate', '/min', 'dailies'),
    'stress': ('stress_score', '{score}', 'stress_details'),
    'body_battery': ('energy_score', '{score}', 'stress_details'),
    'hrv': ('heart_rate_variability_sample', 'ms', 'hrv'),
    'spo2': ('spo2', '%', 'pulse_ox'),
} -%}
{%- set measured = {
    'sdrr_hrv': ('heart_rate_variability_sdnn', 'ms'),
    'spo2': ('spo2', '%'),
} -%}
with epochs as (
    select
        *,
        max(duration_seconds) over (partition by raw_object_id, recorded_at) as longest_seconds
    from {{ ref('stg_garmin__epochs') }}
),

-- One row a kind of activity: all of a start are one set, and of a set still under way the longest counts.
intervals as (
    select
        user_id,
        source,
        recorded_at,
        recorded_at + make_interval(secs => longest_seconds) as ended_at,
        max(utc_offset_minutes) as utc_offset_minutes,
        home_time_zone,
        raw_object_id,
        received_at,
        sum(steps) as steps,
        sum(distance_m) as distance_m,
        sum(active_energy_kcal) as active_energy_kcal
    from epochs
    where duration_seconds = longest_seconds
    group by user_id, source, recorded_at, longest_seconds, home_time_zone, raw_object_id, received_at
)

{% for table, summary in summaries.items() %}
select
    said.user_id,
    metrics.metric_type,
    metrics.source_value,
    metrics.source_unit,
    said.source,
    null::text as source_device,
    {{ summary.starts }} as recorded_at,
    {{ summary.ends }} as ended_at,
    {% if table == 'user_metrics' -%}
    null::smallint as utc_offset_minutes,
    null::text as utc_offset_source,
    {%- else -%}
    said.utc_offset_minutes,
    'record' as utc_offset_source,
    {%- endif %}
    {% if summary.day == 'night' -%}
    -- The day the person woke up, where they woke up: the offset is that of the place they fell asleep in.
    coalesce(said.day, {{ local_day('(' ~ summary.ends ~ ')', 'said.utc_offset_minutes') }}) as local_date,
    {%- else -%}
    {{ summary.day }} as local_date,
    {%- endif %}
    '{{ table }} ' || said.summary_id as source_record_id,
    null::jsonb as metadata,
    metrics.source_value is null{% if table == 'sleeps' %} or {{ garmin_is_no_sleep('said.validation') }}{% endif %} as is_deleted,
    said.home_time_zone,
    '{{ table }} ' || said.summary_id as location,
    said.raw_object_id,
    said.received_at
from {{ ref('stg_garmin__' ~ table) }} as said
cross join lateral (
    values
    {% for metric, unit, expression in summary.metrics -%}
    ('{{ metric }}', ({{ expression }})::double precision, '{{ unit }}'){{ ',' if not loop.last }}
    {% endfor -%}
) as metrics (metric_type, source_value, source_unit)
union all
{% endfor %}
select
    intervals.user_id,
    metrics.metric_type,
    metrics.source_value,
    metrics.source_unit,
    intervals.source,
    null::text as source_device,
    intervals.recorded_at,
    intervals.ended_at,
    intervals.utc_offset_minutes,
    'record' as utc_offset_source,
    null::date as local_date,
    null::text as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    intervals.home_time_zone,
    'epochs at ' || {{ utc_text('intervals.recorded_at') }} as location,
    intervals.raw_object_id,
    intervals.received_at
from intervals
cross join lateral (
    values
    ('steps', intervals.steps::double precision, '{steps}'),
    ('distance', intervals.distance_m, 'm'),
    ('calories_burned', intervals.active_energy_kcal, 'kcal')
) as metrics (metric_type, source_value, source_unit)
where metrics.source_value is not null
union all
select
    samples.user_id,
    case samples.kind
        {% for kind, (metric, unit, table) in sampled.items() -%}
        when '{{ kind }}' then '{{ metric }}'
        {% endfor -%}
    end as metric_type,
    samples.value as source_value,
    case samples.kind
        {% for kind, (metric, unit, table) in sampled.items() -%}
        when '{{ kind }}' then '{{ unit }}'
        {% endfor -%}
    end as source_unit,
    samples.source,
    null::text as source_device,
    samples.recorded_at,
    null::timestamptz as ended_at,
    samples.utc_offset_minutes,
    'record' as utc_offset_source,
    -- What is of a day stays of it when the clocks change.
    case samples.kind
        {% for kind, (metric, unit, table) in sampled.items() if table in ['dailies', 'stress_details'] -%}
        when '{{ kind }}' then samples.day
        {% endfor -%}
    end as local_date,
    case samples.kind
        {% for kind, (metric, unit, table) in sampled.items() -%}
        when '{{ kind }}' then '{{ table }} '
        {% endfor -%}
    end || samples.summary_id as source_record_id,
    null::jsonb as metadata,
    false as is_deleted,
    samples.home_time_zone,
    samples.kind || ' of ' || samples.summary_id || ' at ' || {{ utc_text('samples.recorded_at') }} as location,
    samples.raw_object_id,
    samples.received_at
from {{ ref('stg_garmin__sample') }} as samples
where samples.kind in ('{{ sampled | join("', '") }}')
union all
select
    measures.user_id,
    case measures.kind
        {% for kind, (metric, unit) in measured.items() -%}
        when '{{ kind }}' then '{{ metric }}'
        {% endfor -%}
    end as metric_type,
    measures.average as source_value,
    case measures.kind
        {% for kind, (metric, unit) in measured.items() -%}
        when '{{ kind }}' then '{{ unit }}'
        {% endfor -%}
    end as source_unit,
    measures.source,
    null::text as source_device,
    measures.recorded_at,
    null::timestamptz as ended_at,
    measures.utc_offset_minutes,
    'record' as utc_offset_source,
    null::date as local_date,
    'health_snapshots ' || measures.summary_id as source_record_id,
    null::jsonb as metadata,
    measures.average is null as is_deleted,
    measures.home_time_zone,
    'health_snapshots ' || measures.summary_id as location,
    measures.raw_object_id,
    measures.received_at
from {{ ref('stg_garmin__health_snapshot_measure') }} as measures
where measures.kind in ('{{ measured | join("', '") }}')
