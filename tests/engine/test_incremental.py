"""The engine's tables on Postgres: what changed is computed anew, and only that; the result is a full one's."""

from __future__ import annotations

import datetime as dt
from types import SimpleNamespace
from typing import Any

import dagster as dg
import numpy as np
import pytest
import sqlalchemy as sa

from health_pipeline.definitions import defs
from health_pipeline.defs import engine
from health_pipeline.defs.checks import ranges_hold
from health_pipeline.runtime.users import set_profile
from health_pipeline.warehouse import engine_changes, engine_tables
from health_pipeline.warehouse.connection import Warehouse

_MARTS = """
create schema if not exists health;
create table health.daily_metrics (user_id integer, local_date date, metric_type text,
    metric_value double precision, source text, primary key (user_id, metric_type, local_date));
create table health.workouts (user_id integer, local_date date, started_at timestamptz, ended_at timestamptz,
    activity text, intensity text, source text, perceived_exertion double precision);
create table health.sleep_sessions (user_id integer, local_date date, source text, is_main_sleep boolean,
    started_at timestamptz, ended_at timestamptz, utc_offset_minutes smallint, end_utc_offset_minutes smallint);
create table health.health_metrics (user_id integer, metric_type text, source text, recorded_at timestamptz,
    metric_value double precision);
create table health.glucose_readings (user_id integer, recorded_at timestamptz, local_date date,
    utc_offset_minutes smallint, source text, source_device text, glucose_mg_dl double precision,
    source_value double precision, source_unit text, censored text, reading_type text);
create table health.metric_types (metric_type text, valid_min double precision, valid_max double precision,
    unit text);
create table health._changed_daily (change_id bigint generated always as identity primary key,
    user_id integer, local_date date, metric_type text);
insert into ops.users (handle, time_zone) values ('ada', 'UTC'), ('ben', 'UTC');
"""
_FIRST = dt.date(2026, 1, 1)
_DAYS = 110
_COMPUTE = {
    "baselines": engine._compute_baselines,
    "training_loads": engine._compute_training_loads,
    "recovery_scores": engine._compute_recovery,
    "forecasts": engine._compute_forecasts,
    "glucose_daily": engine._compute_glucose_daily,
    "glucose_periods": engine._compute_glucose_periods,
    "agp": engine._compute_agp,
    "alerts": engine._compute_alerts,
    "correlations": engine._compute_correlations,
    "narratives": engine._compute_narratives,
}
_METRICS = {
    "heart_rate_variability": (60.0, 8.0),
    "resting_heart_rate": (55.0, 2.0),
    "sleep_duration": (27_000.0, 2_400.0),
    "sleep_efficiency": (90.0, 2.0),
    "steps": (8_000.0, 2_000.0),
    "stress_score": (35.0, 8.0),
}


@pytest.fixture
def lived(warehouse: Warehouse) -> Warehouse:
    """Two people, 110 days, the last 20 with a glucose sensor."""
    _run(warehouse, _MARTS)
    rng = np.random.default_rng(4)
    users = [row["user_id"] for row in _rows(warehouse, "select user_id from ops.users order by handle")]
    values, workouts, readings, beats, sleeps = [], [], [], [], []
    for user in users:
        for offset in range(_DAYS):
            day = _FIRST + dt.timedelta(days=offset)
            for metric, (level, spread) in _METRICS.items():
                values.append((user, day, metric, level + spread * rng.normal(), "oura"))
            up = dt.datetime.combine(day, dt.time(7), dt.UTC) + dt.timedelta(minutes=int(rng.integers(0, 90)))
            sleeps.append((user, day, "oura", True, up - dt.timedelta(hours=8), up, 0, 60))
            if offset % 3 == 0:
                start = dt.datetime.combine(day, dt.time(17), dt.UTC)
                end = start + dt.timedelta(minutes=int(rng.integers(20, 90)))
                workouts.append((user, day, start, end, "running", "hard", "oura"))
                for minute in range(20):
                    at, bpm = start + dt.timedelta(minutes=minute), float(rng.integers(120, 170))
                    beats.append((user, "heart_rate", "oura", at, bpm))
            if offset >= _DAYS - 20:
                level = 120 + 50 * np.sin(np.arange(96) / 9 + offset) + 10 * rng.normal(size=96)
                values.append((user, day, "glucose", float(level.mean()), "dexcom"))
                midnight = dt.datetime.combine(day, dt.time(0), dt.UTC)
                for step, glucose in enumerate(level.tolist()):
                    at = midnight + dt.timedelta(minutes=15 * step)
                    readings.append((user, at, day, 0, "dexcom", "", glucose, glucose, "mg/dL", None, "cgm"))
    for table, rows in (
        ("daily_metrics", values),
        ("workouts", workouts),
        ("glucose_readings", readings),
        ("health_metrics", beats),
        ("sleep_sessions", sleeps),
    ):
        _insert(warehouse, table, rows)
    _run(
        warehouse,
        "insert into ops.goals (user_id, metric_type, target_value) select user_id, 'steps', 9000 from ops.users",
    )
    return warehouse


def test_a_late_night_is_computed_as_if_it_had_always_been_there(lived: Warehouse) -> None:
    first = _update(lived)
    assert all(counts["users_computed"] == 2 for counts in first.values())
    assert all(counts["rows_changed"] > 0 for counts in first.values())
    assert all(counts["users_computed"] == 0 for counts in _update(lived).values())

    late = _FIRST + dt.timedelta(days=_DAYS - 6)
    ada = _rows(lived, "select user_id from ops.users where handle = 'ada'")[0]["user_id"]
    day = f"user_id = {ada} and local_date = date '{late}'"
    pulse = "resting_heart_rate"
    _run(
        lived,
        f"update health.daily_metrics set metric_value = 70 where {day} and metric_type = '{pulse}';"
        f"insert into health._changed_daily (user_id, local_date, metric_type) values ({ada}, '{late}', '{pulse}')",
    )
    night = _update(lived)
    assert night["baselines"]["users_computed"] == 1
    assert 0 < night["recovery_scores"]["rows_changed"] <= 2 * 6
    # Nobody's glucose changed.
    assert night["glucose_daily"]["users_computed"] == night["agp"]["users_computed"] == 0

    _run(
        lived,
        "update health.glucose_readings set glucose_mg_dl = 60, source_value = 60 "
        f"where {day} and recorded_at::time < '02:00';"
        f"insert into health._changed_daily (user_id, local_date, metric_type) values ({ada}, '{late}', 'glucose')",
    )
    sugar = _update(lived)
    assert sugar["glucose_daily"]["users_computed"] == 1
    # The day itself, and the one after, which is compared with it; an episode may begin the evening before.
    assert sugar["glucose_daily"]["rows_changed"] in (2, 3)

    assert "born in 1990" in set_profile(lived, "ada", sex="female", birth_year=1990)
    assert _update(lived)["training_loads"]["users_computed"] == 1
    methods = "select distinct user_id, load_method from health.training_loads where workout_count > 0 order by 1, 2"
    ways = [tuple(row.values()) for row in _rows(lived, methods)]
    # Sessions that last longer than twice their samples are judged by their word.
    assert [way for user, way in ways if user == ada] == ["banister", "duration_intensity"]
    assert [way for user, way in ways if user != ada] == ["duration_intensity"]

    piecemeal = {name: _content(lived, name) for name in _COMPUTE}
    assert len(piecemeal["agp"]) == 2 * 96
    for name in _COMPUTE:
        # One of an older version is made anew as one that is missing.
        _run(
            lived, "alter table health.agp drop column p05" if name == "agp" else f"drop table health.{name}"
        )
    _update(lived)
    assert {name: _content(lived, name) for name in _COMPUTE} == piecemeal


def test_a_table_takes_no_change_before_those_it_reads_have_taken_it(lived: Warehouse) -> None:
    """The tables of one change may be computed by two runs, at the same time."""
    _update(lived)
    ada = _rows(lived, "select user_id from ops.users where handle = 'ada'")[0]["user_id"]
    day = _FIRST + dt.timedelta(days=_DAYS - 6)
    pulse = "resting_heart_rate"
    _run(
        lived,
        f"update health.daily_metrics set metric_value = 90 where user_id = {ada} and local_date = '{day}' "
        f"and metric_type = '{pulse}';"
        f"insert into health._changed_daily (user_id, local_date, metric_type) values ({ada}, '{day}', '{pulse}')",
    )
    platform: Any = SimpleNamespace(warehouse=lambda: lived)

    def computed(table: engine_tables.EngineTable) -> int:
        return engine._update(platform, table, _COMPUTE[table.name])["users_computed"]

    assert computed(engine_tables.RECOVERY_SCORES) == 0
    assert computed(engine_tables.BASELINES) == 1
    assert computed(engine_tables.RECOVERY_SCORES) == 0, "loads have not taken it"
    _run(lived, "delete from health._engine_watermarks where table_name = 'training_loads'")
    assert computed(engine_tables.RECOVERY_SCORES) == 0, "loads are to be made anew"
    assert computed(engine_tables.TRAINING_LOADS) == 2
    assert computed(engine_tables.RECOVERY_SCORES) == 1
    assert computed(engine_tables.RECOVERY_SCORES) == 0


def test_what_a_table_follows_comes_before_it_in_a_run() -> None:
    keys = {table.name: dg.AssetKey(["health", table.name]) for table in engine_tables.TABLES}
    nodes = defs.get_repository_def().asset_graph
    for table in engine_tables.TABLES:
        parents = nodes.get(keys[table.name]).parent_keys
        assert {keys[name] for name in table.follows} == parents & set(keys.values()), table.name


@pytest.mark.parametrize(("share", "series", "passes"), [(0.9, 20, True), (0.6, 20, False), (0.6, 19, True)])
def test_a_check_trips_when_ranges_hold_less_than_they_promise(
    warehouse: Warehouse, share: float, series: int, passes: bool
) -> None:
    engine_tables.ensure_engine_tables(warehouse)
    _run(
        warehouse,
        "insert into health.forecasts (user_id, metric_type, as_of_date, n_days, window_start, window_end, sentence, "
        "coverage_7d, coverage_14d, coverage_30d) select n, 'steps', date '2026-03-01', 30, date '2026-01-31', "
        f"date '2026-03-01', '', 0.9, 0.9, {share} from generate_series(1, {series}) as n",
    )
    platform: Any = SimpleNamespace(warehouse=lambda: warehouse)
    result = ranges_hold.node_def.compute_fn.decorated_fn(platform)  # type: ignore[union-attr]
    assert result.passed is passes
    assert result.metadata["outside"].value == ("none" if passes else "30 days")


def _update(warehouse: Warehouse) -> dict[str, dict[str, int]]:
    platform: Any = SimpleNamespace(warehouse=lambda: warehouse)
    return {
        table.name: engine._update(platform, table, _COMPUTE[table.name]) for table in engine_tables.TABLES
    }


def _content(warehouse: Warehouse, table: str) -> list[str]:
    return [
        row["row"] for row in _rows(warehouse, f"select t::text as row from health.{table} as t order by 1")
    ]


def _rows(warehouse: Warehouse, query: str) -> list[Any]:
    with warehouse.engine.connect() as connection:
        return list(connection.execute(sa.text(query)).mappings())


def _run(warehouse: Warehouse, statements: str) -> None:
    with warehouse.engine.begin() as connection:
        connection.exec_driver_sql(statements)


def _insert(warehouse: Warehouse, table: str, rows: list[tuple[Any, ...]]) -> None:
    from psycopg2.extras import execute_values

    with warehouse.engine.begin() as connection:
        cursor = connection.connection.cursor()
        execute_values(cursor, f"insert into health.{table} values %s", rows, page_size=5_000)


def test_users_are_computed_so_many_at_once_that_memory_holds_their_days() -> None:
    end = dt.date(2026, 3, 1)

    def user(number: int, days_back: int) -> Any:
        return SimpleNamespace(user_id=number, first_day=end - dt.timedelta(days=days_back), last_day=end)

    rows = [*(user(number, 0) for number in range(10)), *(user(number, 300) for number in range(10, 16))]
    scopes = engine_changes._group(rows, 4 * 181)
    assert [len(scope.user_ids) for scope in scopes] == [4, 4, 2, 1, 1, 1, 1, 1, 1]
    assert sorted(user for scope in scopes for user in scope.user_ids) == list(range(16))
    assert {scope.start for scope in scopes} == {end, end - dt.timedelta(days=300)}
    assert len(engine_changes._group(rows, 1_000_000)) == 2
