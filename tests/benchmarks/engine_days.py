"""The engine over many people: a day and ninety days, against the same arithmetic on arrays in memory."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "canonical"), str(TESTS / "benchmarks")]

import numpy as np  # noqa: E402
import sqlalchemy as sa  # noqa: E402
from canonical_lab import Lab  # noqa: E402
from measure import Bench, Figure, peak_megabytes, settle, stopwatch  # noqa: E402

from health_pipeline.defs import engine  # noqa: E402
from health_pipeline.engine import backtest, baselines, forecast, recovery, training_load  # noqa: E402
from health_pipeline.engine.frames import FloatArray  # noqa: E402
from health_pipeline.warehouse import engine_tables  # noqa: E402
from health_pipeline.warehouse.connection import Warehouse  # noqa: E402
from health_pipeline.warehouse.engine_tables import EngineTable  # noqa: E402

LAST = dt.date(2026, 11, 20)
DAYS = backtest.HISTORY_DAYS
#: Level and day-to-day spread.
METRICS = {
    "heart_rate_variability": (60.0, 8.0),
    "resting_heart_rate": (55.0, 2.0),
    "sleep_duration": (27_000.0, 2_400.0),
    "sleep_efficiency": (90.0, 2.0),
    "steps": (8_000.0, 2_000.0),
    "stress_score": (35.0, 8.0),
}
COMPUTE: dict[EngineTable, engine.Compute] = {
    engine_tables.BASELINES: engine._compute_baselines,
    engine_tables.TRAINING_LOADS: engine._compute_training_loads,
    engine_tables.RECOVERY_SCORES: engine._compute_recovery,
    engine_tables.FORECASTS: engine._compute_forecasts,
}

_PEOPLE = (
    "insert into ops.users (handle, time_zone) select 'p' || n, 'UTC' from generate_series(1, {users}) as n"
)
_DAILY = """
insert into health.daily_metrics (user_id, local_date, metric_type, metric_value, metric_unit, source, sources_seen,
    sample_count, coverage)
select user_id, date '{last}' - back, metric_type, level + spread * (user_id % 7 - 3 + 2 * (random() - 0.5)), 'u',
    'oura', array['oura'], 1, 1
from ops.users
cross join (values {metrics}) as metrics (metric_type, level, spread)
cross join generate_series({first}, {final}, -1) as back
"""
_NIGHTS = """
insert into health.sleep_sessions (user_id, source, source_record_id, started_at, ended_at, local_date, is_main_sleep,
    utc_offset_minutes, end_utc_offset_minutes, raw_object_id, first_seen_at, updated_at)
select user_id, 'oura', 's' || back, up - interval '8 hours', up, up::date, true, 0, 0, 1, up, up
from ops.users
cross join generate_series({first}, {final}, -1) as back
cross join lateral (
    select (date '{last}' - back + time '07:00' + random() * interval '1 hour') at time zone 'UTC' as up
) as nights
"""
_WORKOUTS = """
insert into health.workouts (user_id, source, source_record_id, started_at, ended_at, local_date, activity, intensity,
    duration_seconds, raw_object_id, first_seen_at, updated_at)
select user_id, 'oura', 'w' || back, began, began + interval '45 minutes', began::date, 'running', 'hard', 2700, 1,
    began, began
from ops.users
cross join generate_series({first}, {final}, -1) as back
cross join lateral (select (date '{last}' - back + time '17:00') at time zone 'UTC' as began) as sessions
where (user_id + back) % 3 = 0
"""
#: Where the running means stand, and the loads that the ratio needs: as the days before would have left them.
_LOADS = """
insert into health.training_loads (user_id, local_date, load, load_method, intensity_assumed, workout_count, worn,
    acute_load, chronic_load, days_of_history, missing_days)
select user_id, date '{last}' - back, 100, 'duration_intensity', false, 1, true, 90, 100, 150, 0
from ops.users cross join generate_series({first}, {final}, -1) as back
"""
_QUEUE = """
insert into health._changed_daily (user_id, local_date, metric_type)
select user_id, date '{last}' - {back}, metric_type
from ops.users cross join (values {metrics}) as metrics (metric_type)
where user_id <= {users}
"""


def figures(bench: Bench) -> Iterator[Figure]:
    users, few = bench.size(20_000, 500), bench.size(2_000, 50)
    with bench.lab() as lab:
        bench.say(f"{users:,} people's last {DAYS} days")
        fill(lab, users)
        bench.say(f"a day of {few:,} of them, and 90")
        one, small = run_days(lab, few, 0)
        many, _ = run_days(lab, few, 89)
        yield Figure(
            f"engine, 90 days of {few:,} people", "their last day alone", "seconds",
            sum(many.values()), sum(one.values()), 10, False, _parts(many, one),
        )  # fmt: skip
        bench.say("a day of everybody")
        ours, large = run_days(lab, users, 0)
        theirs = in_memory(users)
        yield Figure(
            f"engine, a day of {users:,} people", "the same arithmetic in NumPy on arrays in memory", "people/s",
            users / sum(ours.values()), users / sum(theirs.values()), 0.3, True, _parts(ours, theirs),
        )  # fmt: skip
        yield Figure(
            f"peak memory of the engine, {users:,} people", f"{few:,} people", "MB", large, small, 1.3, False
        )  # fmt: skip


def fill(lab: Lab, users: int) -> None:
    """180 days of everybody, of which the engine has seen all but the last."""
    engine_tables.ensure_engine_tables(lab.warehouse)
    levels = ", ".join(f"('{name}', {level}, {spread})" for name, (level, spread) in METRICS.items())
    days = {"last": LAST, "first": DAYS - 1, "final": 0, "metrics": levels, "users": users}
    for statement in (_PEOPLE, _DAILY, _NIGHTS, _WORKOUTS):
        lab.execute(statement.format(**days))
    lab.execute(_LOADS.format(last=LAST, first=DAYS - 1, final=1))
    lab.execute("truncate health._changed_daily")
    for table in engine_tables.TABLES:
        lab.execute("insert into health._engine_watermarks values (:name, 0)", name=table.name)
    settle(lab, "health.daily_metrics", "health.sleep_sessions", "health.workouts", "health.training_loads")


def run_days(lab: Lab, users: int, back: int) -> tuple[dict[str, float], float]:
    """The first `users` people from `back` days before the last on, in a process of its own.

    Seconds by table, without its start, and the megabytes it had at the most.
    """
    names = ", ".join(f"('{name}')" for name in METRICS)
    lab.execute(_QUEUE.format(last=LAST, back=back, metrics=names, users=users))
    settle(lab, "health._changed_daily", *(f"health.{table.name}" for table in COMPUTE))
    url = lab.warehouse.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, url], check=True, stdout=subprocess.PIPE, text=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    counts = {name: each["users_computed"] for name, each in found["counts"].items()}
    if counts != dict.fromkeys(found["seconds"], users):
        raise RuntimeError(f"not everybody was computed: {counts}")
    return found["seconds"], found["megabytes"]


def _child(url: str) -> None:
    import scipy.special  # noqa: F401 - a run has imported it for its first table

    warehouse = Warehouse(sa.make_url(url), sa.make_url(url))
    platform: Any = SimpleNamespace(warehouse=lambda: warehouse)
    seconds, counts = {}, {}
    for table, compute in COMPUTE.items():
        with stopwatch() as clock:
            counts[table.name] = engine._update(platform, table, compute)
        seconds[table.name] = clock()
    print(json.dumps({"seconds": seconds, "counts": counts, "megabytes": peak_megabytes()}))


def in_memory(users: int) -> dict[str, float]:
    """Seconds by table for the last day's arithmetic alone, with the numbers laid out as it wants them."""
    import scipy.special  # noqa: F401 - not while the clock runs

    rng = np.random.default_rng(7)
    level = np.array([each for each, _ in METRICS.values()])[:, None]
    spread = np.array([each for _, each in METRICS.values()])[:, None]
    values = level + spread * rng.normal(size=(users, len(METRICS), DAYS))
    days = (users, training_load.UNCOUPLED_DAYS)
    loads = np.where(rng.random(days) < 1 / 3, 360.0, 0.0)
    acute, chronic = np.full(users, 90.0), np.full(users, 100.0)
    midpoints = rng.normal(180.0, 20.0, size=(users, recovery.REGULARITY_NIGHTS + 1))

    steps: dict[str, Callable[[], Any]] = {
        "baselines": lambda: _baselines(values),
        "training_loads": lambda: _loads(loads, acute, chronic),
        "recovery_scores": lambda: _recovery(values, *found["baselines"], acute, chronic, midpoints),
        "forecasts": lambda: _forecasts(values),
    }
    found: dict[str, Any] = {}
    seconds = {}
    for name, step in steps.items():
        with stopwatch() as clock:
            found[name] = step()
        seconds[name] = clock()
    return seconds


def _baselines(values: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Median and spread of the 60 days before the last, and the mean of the last 7."""
    values = values.copy()
    names = list(METRICS)
    logarithm = names.index("heart_rate_variability")
    values[:, logarithm] = np.log(values[:, logarithm])
    window = values[..., -baselines.WINDOW_DAYS - 1 : -1]
    center = np.median(window, axis=-1)
    deviation = np.median(np.abs(window - center[..., None]), axis=-1)
    floor = np.array([baselines.METRICS[name].floor for name in names])
    np.mean(values[..., -baselines.RECENT_DAYS :], axis=-1)
    return center, np.maximum(baselines.MAD_TO_SD * deviation, floor)


def _loads(loads: FloatArray, acute: FloatArray, chronic: FloatArray) -> tuple[FloatArray, ...]:
    """The running means' next step, and the ratio of a week to the three before."""
    today = loads[:, -1]
    ratio = loads[:, -training_load.ACUTE_DAYS :].mean(axis=1) / np.maximum(
        loads[:, : -training_load.ACUTE_DAYS].mean(axis=1), training_load.MIN_USUAL_LOAD
    )
    return (
        acute + (today - acute) / training_load.ACUTE_DAYS,
        chronic + (today - chronic) / training_load.CHRONIC_DAYS,
        ratio,
    )


def _recovery(
    values: FloatArray,
    center: FloatArray,
    scale: FloatArray,
    acute: FloatArray,
    chronic: FloatArray,
    midpoints: FloatArray,
) -> list[FloatArray]:
    """Both scores with their ranges."""
    from scipy.special import ndtr

    today = {name: values[:, position, -1].copy() for position, name in enumerate(METRICS)}
    today["heart_rate_variability"] = np.log(today["heart_rate_variability"])
    z = {
        name: np.clip((today[name] - center[:, position]) / scale[:, position], -4, 4)
        for position, name in enumerate(METRICS)
    }
    n = float(baselines.WINDOW_DAYS)
    error = {
        name: recovery.MEDIAN_MAD_INEFFICIENCY * np.sqrt(1 / n + each**2 / (2 * (n - 1)))
        for name, each in z.items()
    }
    angle = midpoints * (np.pi / 720)
    cosine, sine = np.cos(angle[:, :-1]).mean(axis=1), np.sin(angle[:, :-1]).mean(axis=1)
    spread = np.sqrt(-2 * np.log(np.clip(np.hypot(cosine, sine), 1e-9, 1))) * (720 / np.pi)
    apart = np.abs((angle[:, -1] - np.arctan2(sine, cosine) + np.pi) % (2 * np.pi) - np.pi) * (720 / np.pi)
    irregular = np.clip(apart / np.clip(spread, 30, 60) - recovery.ORDINARY_DAY, -4, 4)
    hours = today["sleep_duration"] / 3600
    short = np.minimum(np.maximum(7 - hours, 0) + 0.5 * np.maximum(hours - 9, 0), 4)
    sleep = 0.70 * short + 0.15 * irregular - 0.15 * z["sleep_efficiency"]
    excess = (acute - chronic) / np.maximum(chronic, 100)

    def marks(deviation: FloatArray) -> FloatArray:
        return np.asarray(100 * ndtr(recovery.ORDINARY_DAY - deviation))

    calibrated = (
        (0.25, z["stress_score"], error["stress_score"]),
        (0.30, sleep, error["sleep_efficiency"]),
        (0.20, z["resting_heart_rate"], error["resting_heart_rate"]),
        (0.25, excess / 0.25, np.full(len(values), 0.3)),
    )
    score, low, high = (
        np.sum([weight * marks(each + way * wide) for weight, each, wide in calibrated], axis=0)
        for way in (0, 1, -1)
    )
    seed = (
        0.25 * np.clip(100 - today["stress_score"], 0, 100)
        + 0.30 * np.clip(hours / 8, 0, 1) * 100
        + 0.20 * np.clip(50 - 500 * (today["resting_heart_rate"] / center[:, 1] - 1), 0, 100)
        + 0.25 * np.clip(50 - 100 * excess, 0, 100)
    )
    return [score, low, high, seed]


def _forecasts(values: FloatArray) -> Any:
    """Line, robust line, back-test. The kernels are the engine's own: they are NumPy on arrays in memory."""
    wanted = [position for position, name in enumerate(METRICS) if name in forecast.DEFAULT_METRICS]
    found = []
    for part in np.array_split(values, max(len(values) // 1000, 1)):
        history = np.ascontiguousarray(part[:, wanted].reshape(-1, DAYS).T)
        autocorrelation = forecast._autocorrelation(history)
        window = history[-backtest.WINDOW_DAYS :]
        found.append(forecast._theil_sen(window, forecast._fit(window, autocorrelation)))
        backtest.backtest(history, autocorrelation)
    return found


def _parts(ours: dict[str, float], theirs: dict[str, float]) -> str:
    return ", ".join(f"{name} {ours[name]:.2f} s against {theirs[name]:.2f} s" for name in ours)


if __name__ == "__main__":
    _child(sys.argv[1])
