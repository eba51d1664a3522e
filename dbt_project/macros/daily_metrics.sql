{# What daily_metrics is made of. #}

{#
  Rows of health_metrics that are of a day, or of the days from a first to a last. The bounds on recorded_at let the
  primary key and the months' partitions find them; a record may start a day before its local day (a night) and zones
  reach from UTC-12 to UTC+14.
#}
{% macro of_day(metrics, day) -%}
    {{ of_days(metrics, day, day ~ '.local_date', day ~ '.local_date') }}
{%- endmacro %}


{% macro of_days(metrics, series, first, last) -%}
    {{ metrics }}.user_id = {{ series }}.user_id
        and {{ metrics }}.metric_type = {{ series }}.metric_type
        and {{ metrics }}.recorded_at >= {{ first }}::timestamp at time zone 'UTC' - interval '2 days'
        and {{ metrics }}.recorded_at < {{ last }}::timestamp at time zone 'UTC' + interval '3 days'
        and {{ metrics }}.local_date between {{ first }} and {{ last }}
{%- endmacro %}


{#
  The sum of a day's intervals over several devices, where no second counts twice: an interval counts by the
  share of it that no better device covers. Devices rank by their source, then by how much of the day they
  saw. Of sleeps, which do not divide, one that meets a better device's counts for nothing. Sources that know
  day totals only, or only instants, take no part: nobody can say when they were worn.
#}
{% macro merged_by_segment(days) %}
with day_rows as materialized (
    select
        metrics.source,
        coalesce(metrics.source_device, '') as device,
        array_position({{ days }}.timed_sources, metrics.source) as source_place,
        metrics.recorded_at,
        metrics.metric_value,
        tstzrange(metrics.recorded_at, metrics.ended_at) as span
    from {{ ref('health_metrics') }} as metrics
    where
        {{ days }}.is_merged
        and {{ of_day('metrics', days) }}
        and metrics.source = any({{ days }}.timed_sources)
),

devices as materialized (
    select
        source,
        device,
        range_agg(span) as spans,
        row_number() over (order by source_place, {{ seconds_of('range_agg(span)') }} desc, device) as place
    from day_rows
    group by source, device, source_place
),

better as materialized (
    select
        devices.source,
        devices.device,
        coalesce(
            (select range_agg(other.spans) from devices as other where other.place < devices.place), '{}'
        ) as taken
    from devices
),

counted as (
    select
        day_rows.source,
        day_rows.recorded_at,
        day_rows.span,
        day_rows.metric_value * case
            when not day_rows.span && better.taken then 1
            when {{ days }}.category = 'sleep' then 0
            else
                {{ seconds_of('day_rows.span::tstzmultirange - better.taken') }}
                / {{ seconds_of('day_rows.span::tstzmultirange') }}
        end as value
    from day_rows
    inner join better
        on better.source = day_rows.source
        and better.device = day_rows.device
),

counted_sources as (
    select
        source,
        sum(value order by recorded_at) as value,
        count(*) filter (where value > 0) as sample_count,
        range_agg(span) as spans
    from counted
    group by source
)

select
    sum(value order by source) as metric_value,
    sum(sample_count)::integer as sample_count,
    least(1, {{ seconds_of('range_agg(spans)') }} / 86400) as coverage,
    jsonb_object_agg(source, value) as counted
from counted_sources
having count(*) > 0
{% endmacro %}


{% macro seconds_of(multirange) -%}
    (
        select coalesce(sum(extract(epoch from upper(part) - lower(part))), 0)
        from unnest({{ multirange }}) as part
    )::double precision
{%- endmacro %}


{#
  When somebody's ranks have changed, the days that had a choice are made anew. `health._applied_priorities`
  are the ranks that the table was made with. Whether any has changed is asked first: to look for days of no rank
  would go through the whole table.
#}
{% macro queue_days_ranked_anew() %}
{%- set now = "select user_id, metric_type, source, priority from " ~ ref('int_source_priorities') -%}
{%- set before = "select user_id, metric_type, source, priority from health._applied_priorities" -%}
{%- set ranked_anew = "(" ~ now ~ " except " ~ before ~ ") union (" ~ before ~ " except " ~ now ~ ")" -%}
{% if execute and run_query("select exists (" ~ ranked_anew ~ ")").columns[0].values()[0] %}
{% if load_relation(this) is not none %}
with ranked_anew as (
    {{ ranked_anew }}
)

insert into health._changed_metrics (user_id, local_date, metric_type)
select
    daily.user_id,
    daily.local_date,
    daily.metric_type
from {{ this }} as daily
where
    cardinality(daily.sources_seen) > 1
    and exists (
        select from ranked_anew
        where
            coalesce(ranked_anew.user_id, daily.user_id) = daily.user_id
            and ranked_anew.metric_type in (daily.metric_type, '*')
            and ranked_anew.source = any(daily.sources_seen)
    );
{% endif %}
delete from health._applied_priorities;
insert into health._applied_priorities (user_id, metric_type, source, priority) {{ now }};
{% endif %}
{% endmacro %}
