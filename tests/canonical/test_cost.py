"""A run costs what changed, not what is stored: plans and rows read, over large tables."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
from analyst_queries import QUERIES, bound, buffers, nodes, partitions_read, read_whole
from canonical_lab import Lab, hours, messages

from health_pipeline.warehouse.dbt_project import Views

LOADS = 300
ROWS_A_LOAD = 1_000
MONTHS = 24

_FILL_STAGING = f"""
insert into staging_oura.heartrate (_raw_object_id, _load_id, "timestamp", bpm, source)
select 0, -load_id, timestamptz '2024-01-01' + make_interval(mins => 5 * sample), 60, 'rest'
from generate_series({LOADS}, 1, -1) as load_id
cross join generate_series(1, {ROWS_A_LOAD}) as sample;
analyze staging_oura.heartrate;
select brin_summarize_new_values('staging_oura.heartrate_load_brin');
"""
_FILL_PARTITIONS = f"""
do $$
begin
    for month in 0..{MONTHS - 1} loop
        execute format(
            'create table if not exists health.health_metrics_%s partition of health.health_metrics '
            'for values from (%L) to (%L)',
            to_char(date '2024-03-01' + make_interval(months => month), 'YYYY_MM'),
            to_char(date '2024-03-01' + make_interval(months => month), 'YYYY-MM-DD') || ' 00:00+00',
            to_char(date '2024-03-01' + make_interval(months => month + 1), 'YYYY-MM-DD') || ' 00:00+00'
        );
    end loop;
end
$$;
insert into health.health_metrics (user_id, metric_type, metric_value, metric_unit, source, recorded_at,
    utc_offset_minutes, utc_offset_source, local_date, source_record_id, raw_object_id, first_seen_at, updated_at)
select users.user_id, 'heart_rate', 60, '/min', 'oura', instant, 0, 'assumed_utc', instant::date,
    'of ' || instant::date, 0, instant, instant
from ops.users
cross join generate_series(timestamptz '2024-03-01 00:00+00', '2026-02-28 00:00+00', '42 minutes') as instant
order by 1, 6;
insert into health.daily_metrics (user_id, local_date, metric_type, metric_value, metric_unit, source, sources_seen,
    sample_count, coverage)
select user_id, local_date, metric_type, avg(metric_value), '/min', 'oura', array['oura'], count(*), 1
from health.health_metrics
group by 1, 2, 3
order by 2, 1;
insert into health._applied_objects (provider, raw_object_id, load_id, user_id, entity, received_at)
select 'oura', 1000000 + row_number() over (order by day), 0, user_id, 'daily_spo2', day
from ops.users
cross join generate_series(timestamptz '2023-06-01 00:00+00', '2026-02-24 00:00+00', '1 day') as day;
insert into health.glucose_readings (user_id, recorded_at, glucose_mg_dl, reading_type, source, source_device,
    utc_offset_minutes, utc_offset_source, local_date, raw_object_id, first_seen_at, updated_at)
select user_id, instant, 100, 'cgm', 'libreview', 'Libre', 0, 'assumed_utc', instant::date, 0, instant, instant
from ops.users
cross join generate_series(timestamptz '2024-03-01 00:00+00', '2026-02-28 00:00+00', '4 hours') as instant
order by 1, 2;
analyze health.health_metrics, health.daily_metrics, health.glucose_readings, health._applied_objects;
"""


@pytest.fixture(scope="module")
def large(lab_of_module: Lab) -> Lab:
    """300 loads of 1,000 staged samples; of 20 people over 24 months 500,000 metrics and 88,000 readings."""
    lab = lab_of_module
    for number in range(20):
        lab.user(f"person-{number}", "UTC")
    lab.build()
    lab.execute(_FILL_STAGING)
    lab.execute(_FILL_PARTITIONS)
    return lab


def test_small_load_reads_its_blocks_by_the_range_index(large: Lab) -> None:
    large.deliver(large.user("person-3"), "heartrate", [_sample("2026-02-27T12:00:00Z", 70)], hours(1))
    large.run("oura")

    plan = explain(large, "select * from health_internal.stg_oura__heartrate")

    (scan,) = [node for node in nodes(plan) if node.get("Relation Name") == "heartrate"]
    pages = large.one("select pg_relation_size('staging_oura.heartrate') / 8192 as pages")["pages"]
    assert (scan["Node Type"], scan["Actual Rows"]) == ("Bitmap Heap Scan", 1)
    assert scan["Shared Hit Blocks"] + scan["Shared Read Blocks"] < pages / 10


def test_load_of_long_ago_beside_a_new_one_skips_those_between(large: Lab) -> None:
    """As when late objects are applied with what was received around them."""
    large.execute(
        """
        truncate health._pending_objects;
        insert into health._pending_objects (provider, raw_object_id, load_id, user_id, entity, received_at,
            home_time_zone, receipt, standing)
        select 'oura', object, case when object % 2 = 0 then -1 else -:first end, 1, 'heartrate', now(), 'UTC',
            object, 'new'
        from generate_series(0, 199) as object;
        analyze health._pending_objects;
        """,
        first=LOADS,
    )

    plan = explain(large, "select * from health_internal.stg_oura__heartrate")

    scans = [node for node in nodes(plan) if node.get("Relation Name") == "heartrate"]
    pages = large.one("select pg_relation_size('staging_oura.heartrate') / 8192 as pages")["pages"]
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in scans) >= ROWS_A_LOAD
    assert sum(node["Shared Hit Blocks"] + node["Shared Read Blocks"] for node in scans) < pages / 10


def test_changed_day_reads_the_partitions_around_it(large: Lab) -> None:
    large.execute(
        "insert into health._changed_metrics (user_id, local_date, metric_type) "
        "values (:user, '2025-06-01', 'heart_rate')",
        user=large.user("person-5"),
    )

    plan = explain(large, compiled(large, "marts/daily_metrics"))

    read = [node for node in nodes(plan) if node.get("Relation Name", "").startswith("health_metrics_")]
    touched = {node["Relation Name"] for node in read if node["Actual Loops"] > 0}
    assert touched == {"health_metrics_2025_05", "health_metrics_2025_06"}
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in read) == 34
    large.execute("truncate health._changed_metrics")


#: Of each query the rows it finds, the most blocks it may read for them, and the months it may look into.
_ANSWERS = {
    "last 90 days of one metric of one user": (3_120, 200, 4),
    "one day of all users, a value a metric": (20, 30, 0),
    "one day of all users, every sample": (680, 400, 1),
    "latest value of each metric of a user": (1, 6_000, MONTHS),
}


@pytest.mark.parametrize("name", QUERIES)
def test_query_of_an_analyst_reads_no_whole_table(large: Lab, name: str) -> None:
    """`tests/benchmarks/explain_large.py` has the same over 20 million rows."""
    rows, most_blocks, most_months = _ANSWERS[name]
    query = bound(QUERIES[name], large.user("person-7"), "heart_rate", dt.date(2025, 6, 12))

    plan = explain(large, query)

    # At most one of the 24 months, and none where a user is named.
    assert len(read_whole(plan)) <= (name == "one day of all users, every sample")
    assert not any(table.startswith("daily_metrics") for table in read_whole(plan))
    assert plan["Actual Rows"] == rows
    assert buffers(plan) <= most_blocks
    assert len(partitions_read(plan)) <= most_months


@pytest.mark.parametrize(("entity", "metric"), [("heartrate", "heart_rate"), ("daily_activity", "steps")])
def test_run_reads_little(large: Lab, entity: str, metric: str) -> None:
    """No step of a run goes through a large table: 1,000 samples of a day, and 100 documents, of 20 people."""
    days = [dt.date(2025, 7, 1) - dt.timedelta(days=number) for number in range(100)]
    answers = {
        "heartrate": [
            _sample(f"2025-07-01T{minute // 60:02}:{minute % 60:02}:30Z", 71) for minute in range(1000)
        ],
        "daily_activity": [
            {"id": f"{day}", "day": f"{day}", "timestamp": f"{day}T04:00:00Z", "steps": 8000} for day in days
        ],
    }
    for number in range(20):
        large.deliver(large.user(f"person-{number}"), entity, answers[entity], hours(2))
    large.stage("oura")
    before = rows_read(large)

    result = large.dbt(large.warehouse, "build", "--exclude-resource-type", "unit_test", *Views.KEEP)

    assert result.success, messages(result)
    changed = large.one(
        "select count(*) from health.daily_metrics where local_date = '2025-07-01' and metric_type = :metric",
        metric=metric,
    )
    assert changed["count"] == 20
    read = {name: count - before[name] for name, count in rows_read(large).items()}
    # Of 500,000 and 300,000. The staged rows of the day are read for each table that is made of them.
    assert read["health.health_metrics"] < 60_000
    assert read["staging_oura.heartrate"] < 100_000
    # Of 15,000 and 88,000: what is tested was changed, and nothing was of the second.
    assert read["health.daily_metrics"] < 10_000
    assert read["health.glucose_readings"] == 0
    # Of 20,000, which to find what is pending may be read as a whole; not once more for each table of documents.
    assert read["health._applied_objects"] < 80_000


def test_a_run_with_nothing_new_reads_nothing_that_is_stored(large: Lab) -> None:
    large.build()
    before = rows_read(large)

    large.build()

    read = {name: count - before[name] for name, count in rows_read(large).items() if count > before[name]}
    for name in ("health.health_metrics", "health.daily_metrics", "staging_oura.heartrate"):
        assert name not in read


_FILL_DAYS = """
insert into health.daily_metrics (user_id, local_date, metric_type, metric_value, metric_unit, source, sources_seen,
    sample_count, coverage)
select user_id, day::date, metric_type, 70, 'kg', 'oura', array['oura'], 1, 1
from ops.users
cross join generate_series(timestamp '2024-03-01', timestamp '2026-02-27', '1 day') as day
cross join (values ('heart_rate'), ('weight'), ('steps')) as metrics (metric_type)
on conflict do nothing;
insert into ops.subjects (subject_id, user_id) select gen_random_uuid(), user_id from ops.users
on conflict do nothing;
insert into ops.provider_accounts (user_id, provider, status, created_at)
select user_id, 'oura', 'active', '2024-03-01' from ops.users on conflict do nothing;
analyze health.daily_metrics;
"""


@pytest.mark.parametrize(
    ("question", "of_metrics", "of_days"),
    [
        # The rows of a measured metric around the day.
        ("day_timeline where user_id = {user} and local_date = '2025-06-01'", 200, 150),
        # Of 44,000: a year of three metrics, and one value of each person and metric.
        ("health_summary where user_id = {user}", 0, 1_500),
        (
            "data_completeness where user_id = {user} and local_date between '2025-05-01' and '2025-06-30'",
            0,
            6_000,
        ),
    ],
    ids=lambda value: str(value).split()[0],
)
def test_question_about_a_person_reads_little(
    large: Lab, question: str, of_metrics: int, of_days: int
) -> None:
    large.execute(_FILL_DAYS)

    plan = explain(large, f"select * from health.{question.format(user=large.user('person-7'))}")

    assert plan["Actual Rows"] > 0
    assert _rows_of(plan, "health_metrics") <= of_metrics
    assert 0 < _rows_of(plan, "daily_metrics") <= of_days


def _rows_of(plan: dict[str, Any], table: str) -> float:
    """Rows that a plan's scans of a table or its partitions read, those filtered away included."""
    return sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in nodes(plan)
        if node.get("Relation Name", "").startswith(table)
    )


def rows_read(lab: Lab) -> dict[str, int]:
    """Rows read from each table of the warehouse so far, by whatever scan."""
    lab.execute("select pg_stat_force_next_flush()")
    return {
        row["name"]: row["read"]
        for row in lab.rows(
            """
            select
                schemaname || '.' || regexp_replace(relname, '_2\\d{3}_\\d{2}$', '') as name,
                sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint as read
            from pg_stat_user_tables group by 1
            """
        )
    }


def explain(lab: Lab, query: str) -> Any:
    ((plan,),) = [
        tuple(row.values())
        for row in lab.rows(f"explain (analyze, buffers, format json) {query}".replace(":", r"\:"))
    ]
    return plan[0]["Plan"]


def compiled(lab: Lab, model: str) -> str:
    """The SQL that dbt ran last for a model."""
    path: Path = lab.dbt.target / "compiled" / "health" / "models" / f"{model}.sql"
    return path.read_text()


def _sample(timestamp: str, bpm: int) -> dict[str, Any]:
    return {"timestamp": timestamp, "bpm": bpm, "source": "rest"}
