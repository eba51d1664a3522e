-- A sleep as each of this run's objects leaves it. Its summary and its stages come in objects of their own,
-- and one may come without the other: each meets the newest of the other that was there when it came.
{%- set shared = ['id', 'date', 'started_at', 'ended_at', 'utc_offset_minutes', 'end_utc_offset_minutes'] %}
{%- set measured = [
    'total_timeinbed_seconds', 'total_sleep_time_seconds', 'asleepduration_seconds', 'lightsleepduration_seconds',
    'deepsleepduration_seconds', 'remsleepduration_seconds', 'wakeupduration_seconds', 'sleep_latency_seconds',
    'sleep_efficiency_ratio', 'sleep_score', 'hr_average_bpm', 'hr_min_bpm', 'rr_average_per_minute',
] %}
with said as (
    select user_id, source, id as sleep_id, home_time_zone, raw_object_id, received_at
    from {{ ref('stg_withings__sleep') }}
    union all
    select user_id, source, sleep_id, home_time_zone, raw_object_id, received_at
    from {{ ref('stg_withings__sleep_hypnogram') }}
),

objects as (
    select raw_object_id, load_id, user_id, received_at
    from health._pending_objects
    where provider = 'withings' and entity = 'sleep'
    union all
    select applied.raw_object_id, max(applied.load_id) as load_id, applied.user_id, applied.received_at
    from health._applied_objects as applied
    where
        applied.provider = 'withings'
        and applied.entity = 'sleep'
        and applied.user_id in (select said.user_id from said)
        and not exists (
            select from health._pending_objects as pending where pending.raw_object_id = applied.raw_object_id
        )
    group by applied.raw_object_id, applied.user_id, applied.received_at
),

summaries as (
    select staged.*, objects.user_id, objects.received_at
    from {{ source('staging_withings', 'sleep') }} as staged
    inner join objects on objects.raw_object_id = staged._raw_object_id and objects.load_id = staged._load_id
),

hypnograms as (
    select staged.*, objects.user_id, objects.received_at
    from {{ source('staging_withings', 'sleep_hypnogram') }} as staged
    inner join objects on objects.raw_object_id = staged._raw_object_id and objects.load_id = staged._load_id
),

met as (
    select distinct on (said.user_id, said.sleep_id, said.raw_object_id)
        said.user_id,
        said.source,
        said.sleep_id,
        {% for column in shared[1:] + measured -%}
        summaries.{{ column }},
        {% endfor -%}
        summaries.id is null as is_unknown,
        hypnograms.stages::jsonb as stages,
        extract(epoch from hypnograms.started_at - summaries.started_at)::integer as stages_later_seconds,
        hypnograms.rmssd_average_ms,
        said.home_time_zone,
        said.raw_object_id,
        said.received_at
    from said
    left join summaries
        on summaries.user_id = said.user_id
        and summaries.id = said.sleep_id
        and (summaries.received_at, summaries._raw_object_id) <= (said.received_at, said.raw_object_id)
    left join hypnograms
        on hypnograms.user_id = said.user_id
        and hypnograms.sleep_id = said.sleep_id
        and (hypnograms.received_at, hypnograms._raw_object_id) <= (said.received_at, said.raw_object_id)
    order by
        said.user_id asc,
        said.sleep_id asc,
        said.raw_object_id asc,
        summaries.received_at desc nulls last,
        summaries._raw_object_id desc nulls last,
        hypnograms.received_at desc nulls last,
        hypnograms._raw_object_id desc nulls last
)

select
    user_id,
    source,
    sleep_id::text as id,
    {% for column in shared[1:] -%}
    {{ column }},
    {% endfor -%}
    -- The vendor does not tell naps from nights.
    not is_unknown and ended_at - started_at >= interval '3 hours' as is_main_sleep,
    -- A night of another device's has no stages and its length elsewhere.
    coalesce(total_sleep_time_seconds, asleepduration_seconds) as sleep_seconds,
    {% for column in measured -%}
    {{ column }},
    {% endfor -%}
    rmssd_average_ms,
    case
        when stages_later_seconds = 0 then stages
        when stages_later_seconds is not null then (
            select
                jsonb_agg(
                    jsonb_set(part.value, '{start}', to_jsonb((part.value ->> 'start')::integer + stages_later_seconds))
                    order by part.ordinality
                )
            from jsonb_array_elements(stages) with ordinality as part
        )
    end as stages,
    is_unknown as is_deleted,
    home_time_zone,
    raw_object_id,
    received_at
from met
