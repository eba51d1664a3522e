"""`docs/validity.md`: how good the engine's numbers are, measured where the truth is known.

`python tests/benchmarks/validity.py` (`make validity`) computes everything anew and writes the page. All of it comes
from fixed seeds, so that the page changes only where the engine does.
"""

from __future__ import annotations

import datetime as dt
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from health_pipeline.engine import alerts, baselines, forecast, glucose, recovery, training_load
from health_pipeline.engine.backtest import FLAT, HORIZONS
from health_pipeline.engine.frames import FloatArray
from health_pipeline.sandbox.life import Day, life_of
from health_pipeline.sandbox.people import population

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from public_traces import MAGE_ELSEWHERE, last_days, traces

_TRACES = "## Real glucose"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "validity.md"
_START = dt.date(2025, 1, 1)
_USERS = 400
_YEAR = (dt.date(2025, 3, 1), dt.date(2026, 2, 28))
_NO_GOALS = pd.DataFrame(
    {
        "user_id": np.empty(0, dtype="int64"),
        "metric_type": pd.Series([], dtype=object),
        "target_value": np.empty(0),
        "target_date": pd.to_datetime([]),
    }
)


def write_page(path: Path = PAGE) -> str:
    """Compute the page, write it, and give it back."""
    page = "\n".join(
        [
            "<!-- Written by `make validity`: do not edit. -->",
            "# Validity",
            "",
            "How good the numbers are, measured where the truth is known: simulated series and the sandbox's people, "
            "whose illnesses, training and journeys are known to the day; and on real people's glucose. "
            "`make validity` computes this page anew.",
            "",
            *_forecast_section(),
            *_date_section(),
            *_recovery_section(),
            *_alert_section(),
            "",
            *_trace_section(path),
        ]
    )
    path.write_text(page + "\n", encoding="utf-8")
    return page


def _autocorrelated(rho: float, days: int, trend: float, seed: int) -> FloatArray:
    """People x days: lag-1 autocorrelated noise of unit variance (a random walk for 1) about a line."""
    rng = np.random.default_rng(seed)
    fresh = np.sqrt(1 - rho**2) if rho < 1 else 1.0
    noise = np.zeros((_USERS, days))
    noise[:, 0] = rng.normal(size=_USERS)
    for day in range(1, days):
        noise[:, day] = rho * noise[:, day - 1] + fresh * rng.normal(size=_USERS)
    line: FloatArray = 100 + noise + trend * np.arange(days)
    return line


def _daily(values: FloatArray, metric: str = "weight") -> pd.DataFrame:
    users, days = values.shape
    return pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), days),
            "local_date": np.tile(pd.date_range(_START, periods=days, unit="us").to_numpy(), users),
            "metric_type": metric,
            "value": values.ravel(),
            "source": "simulated",
        }
    )


def _forecast_section() -> Iterator[str]:
    yield "## Forecasts"
    yield ""
    yield (
        f"{_USERS} simulated people a line. Noise of standard deviation 1 with the lag-1 autocorrelation given, and a "
        "trend a day. *Covered*: share of true values in the 90 % range, 7 / 14 / 30 days ahead. *MASE*: error of the "
        "back-test 30 days ahead relative to that of the last value. *Trend said*: how often a trend is claimed; "
        "without one, that is the false rate (plain regression: 41 % at 0.7). *Follows*: how often a candidate that "
        "follows a trend won the back-test."
    )
    yield ""
    yield "| history | autocorrelation | trend | covered 7 / 14 / 30 | MASE | trend said | follows |"
    yield "|---|---|---|---|---|---|---|"
    cases = [(180, rho, trend) for rho in (0.0, 0.5, 0.7) for trend in (0.0, 0.1)]
    cases += [(180, 1.0, 0.0), *((30, rho, trend) for rho in (0.5, 0.7) for trend in (0.0, 0.1))]
    for seed, (days, rho, trend) in enumerate(cases):
        values = _autocorrelated(rho, days + max(HORIZONS), trend, seed)
        result = forecast.forecasts(_daily(values[:, :days]), _NO_GOALS)
        covered = []
        for ahead in HORIZONS:
            actual = values[:, days - 1 + ahead]
            inside = (result[f"low_{ahead}d"] <= actual) & (actual <= result[f"high_{ahead}d"])
            covered.append(f"{inside.mean():.2f}")
        said = 1 - result["sentence"].str.contains("no clear trend").mean()
        mase = result["mase_naive_30d"].mean()
        tested = result["n_origins_30d"] > 0
        follows = f"{(~result['method'].isin(FLAT)).mean():.0%}" if tested.all() else "no back-test"
        yield (
            f"| {days} days | {f'{rho:.1f}' if rho < 1 else 'random walk'} | {trend:g} | {' / '.join(covered)} "
            f"| {f'{mase:.2f}' if tested.all() else '-'} | {said:.0%} | {follows} |"
        )
    yield ""
    yield (
        "A random walk is the hard case: it wanders without a trend, and no candidate does much better than its last "
        "value. Of trends of 0.1 a day many go unsaid at 0.7: 30 days are too few to tell them from wandering. "
        "`health.forecasts` stores a person's own MASE and coverage."
    )
    yield ""


def _date_section() -> Iterator[str]:
    values = _autocorrelated(0.5, 30, 0.0, 99) - 0.25 * np.arange(30)
    goals = pd.DataFrame(
        {
            "user_id": np.arange(_USERS),
            "metric_type": "weight",
            "target_value": 88.0,
            "target_date": pd.NaT,
        }
    )
    result = forecast.forecasts(_daily(values), goals)
    dated = result[result["projected_reason"] == "on_course"]
    truth = pd.Timestamp(_START) + pd.Timedelta(days=48)
    held = (dated["projected_date_low"] <= truth) & (truth <= dated["projected_date_high"])
    yield (
        f"The day of reaching a goal, a true trend of 0.25 a day and autocorrelation 0.5: {len(dated) / _USERS:.0%} of "
        f"people get a date; its 80 % range holds the true one for {held.mean():.0%} of them."
    )
    yield ""


def _recovery_section() -> Iterator[str]:
    frames, truth = _lives()
    whole = _recovery(*frames)
    scores = whole.merge(truth, on=["user_id", "local_date"])
    ordinary = scores[scores["kind"] == "ordinary"].groupby("method")["recovery_score"].mean()
    yield "## Recovery score"
    yield ""
    yield (
        f"A year of the sandbox's {truth['user_id'].nunique()} people. Their hearts answer illness, training and "
        "journeys as the literature has it; the score is not told of any of them. Difference of the mean score from "
        "ordinary days, whose own mean is "
        + " and ".join(f"{value:.1f} ({method})" for method, value in ordinary.items())
        + ":"
    )
    yield ""
    yield "| days | number | calibrated | seed |"
    yield "|---|---|---|---|"
    for kind, words in (
        ("ill", "ill (severity 0.5 or more)"),
        ("jet_lag", "three hours or more of jet lag left"),
        ("hard", "the day after a load of twice the person's mean or more"),
    ):
        chosen = scores[scores["kind"] == kind]
        change = chosen.groupby("method")["recovery_score"].mean() - ordinary
        number = int((chosen["method"] == "calibrated").sum())
        yield f"| {words} | {number} | {change['calibrated']:+.1f} | {change['seed']:+.1f} |"
    yield ""
    daily, workouts, slept = frames
    rng = np.random.default_rng(7)
    lost = daily[["user_id", "local_date"]].drop_duplicates()
    lost = lost[rng.random(len(lost)) < 0.2].assign(lost=True)
    marked = daily.merge(lost, how="left", on=["user_id", "local_date"])
    fewer = _recovery(marked[marked["lost"].isna()].drop(columns="lost"), workouts, slept)
    both = whole.merge(fewer, on=["user_id", "local_date", "method"], suffixes=("", "_fewer"))
    moved = (both["recovery_score"] - both["recovery_score_fewer"]).abs().groupby(both["method"]).mean()
    yield (
        "With a fifth of all days missing at random, the scores of the days that are left move by "
        + " and ".join(f"{value:.1f} ({method})" for method, value in moved.items())
        + " of 100 on average."
    )
    yield ""


def _recovery(daily: pd.DataFrame, workouts: pd.DataFrame, slept: pd.DataFrame) -> pd.DataFrame:
    usual = baselines.baselines(daily, _YEAR)
    loads = training_load.training_loads(workouts, daily, _YEAR)
    return recovery.recovery_scores(daily, usual, loads, _YEAR, slept)


def _lives() -> tuple[tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame], pd.DataFrame]:
    """What a perfect device would have measured of the sandbox's people, and what befell them."""
    measured, sessions, slept, befell = [], [], [], []
    for user_id, person in enumerate(population(), start=1):
        life = life_of(person)
        days = life.days(*_YEAR)
        mean_load = float(np.mean([day.load for day in days]))
        before: Day | None = None
        for day in days:
            local_date = pd.Timestamp(day.date)
            if day.night_worn:
                middle = (day.bed + day.wake) / 2 + life.timeline.offset_seconds(day.wake)
                slept.append((user_id, local_date, middle / 60 % 1440))
                for metric, value in (
                    ("resting_heart_rate", day.resting_heart_rate),
                    ("heart_rate_variability", day.hrv),
                    ("sleep_duration", float(day.wake - day.bed) * (1 - 0.1)),
                ):
                    measured.append((user_id, local_date, metric, value, "oura"))
            measured.append((user_id, local_date, "steps", max(day.steps_wanted, 1.0), "oura"))
            for done in day.workouts:
                intensity = "hard" if done.met >= 8 else "moderate" if done.met >= 4 else "easy"
                start, end = pd.Timestamp(done.start, unit="s"), pd.Timestamp(done.end, unit="s")
                sessions.append((user_id, local_date, start, end, done.activity, intensity, np.nan, "oura"))
            kind = "ordinary"
            if day.illness >= 0.5:
                kind = "ill"
            elif abs(day.jet_lag_hours) >= 3:
                kind = "jet_lag"
            elif before is not None and before.load >= 2 * mean_load and before.load > 0:
                kind = "hard"
            elif day.illness > 0 or day.jet_lag_hours:
                kind = "other"
            befell.append((user_id, local_date, kind))
            before = day
    daily = pd.DataFrame(measured, columns=["user_id", "local_date", "metric_type", "value", "source"])
    workouts = pd.DataFrame(sessions, columns=list(training_load.WORKOUT_COLUMNS))
    nights = pd.DataFrame(slept, columns=list(recovery.NIGHT_COLUMNS))
    truth = pd.DataFrame(befell, columns=["user_id", "local_date", "kind"])
    # The date line gives a date two nights; the later one stands.
    keys = ["user_id", "local_date", "metric_type"]
    days_of = ["user_id", "local_date"]
    frames = (
        daily.drop_duplicates(keys, keep="last"),
        workouts,
        nights.drop_duplicates(days_of, keep="last"),
    )
    return frames, truth.drop_duplicates(days_of, keep=False)


def _alert_section() -> Iterator[str]:
    rng = np.random.default_rng(8)
    steps, users = 288 + 8, 300
    level = np.concatenate([np.full(288, 200.0), 200 - 15.0 * np.arange(1, 9)])
    falls = _sensors(level + _sensor_noise(rng, users, steps))
    week = 7 * 288
    flat = _sensors(120 + 15 * np.sin(np.arange(week) / 40) + _sensor_noise(rng, 50, week))
    found = _alerts(falls)
    onset = pd.Timestamp(_START, tz="UTC") + pd.Timedelta(minutes=5 * 287)
    in_time = found[
        (found["kind"] == "rapid_fall")
        & found["detected_at"].between(onset, onset + pd.Timedelta(minutes=15))
    ]
    yield "## Alerts"
    yield ""
    yield (
        "Glucose sensors every 5 minutes with noise of 4 mg/dL, half of it shared by neighbouring readings. Of "
        f"{users} falls by 3 mg/dL a minute, {in_time['user_id'].nunique() / users:.0%} are told within 15 minutes of "
        f"their onset. On 50 weeks without one there are {len(_alerts(flat)) / 50:.2f} alerts a person and week."
    )


def _trace_section(path: Path) -> Iterator[str]:
    """Where the traces are not at hand, what the page said of them before."""
    files = traces()
    if not files:
        _, title, before = (path.read_text(encoding="utf-8") if path.exists() else "").partition(_TRACES)
        yield title + before.rstrip("\n")
        return
    people = []
    for user_id, file in enumerate(files, start=1):
        table = last_days(file)
        people.append(_trace(user_id, table["time"], table["gl"].to_numpy(dtype=float)))
    readings = pd.concat(people, ignore_index=True)
    periods = glucose.glucose_periods(readings)
    mage = periods[periods["period_days"] == 90].sort_values("user_id")["mage"].to_numpy(dtype=float)
    off = mage / np.array([MAGE_ELSEWHERE[file.stem] for file in files]) - 1
    days = len(readings[["user_id", "local_date"]].drop_duplicates())
    found = _alerts(readings)
    weekly = found[~found["suppressed"]].groupby("kind").size() / (days / 7)
    yield _TRACES
    yield ""
    yield (
        f"Sensors of {len(files)} people with and without diabetes, {days} days in all (Hall et al. 2018, and the "
        "example data of iglu). Mean, SD, CV, GRI, LBGI and HBGI are those of another implementation of the published "
        "definitions (iglu-python, used in tests alone) to 1e-6; MAGE, whose algorithm leaves room, is within 10 % of "
        f"its `ma` for {int((np.abs(off) < 0.1).sum())} of {len(files)}, {np.abs(off).mean():.1%} off on average and "
        f"{np.abs(off).max():.1%} at most (`tests/engine/test_glucose.py`)."
    )
    yield ""
    yield "Alerts a person and week, and what glucose did in the 15 minutes after a rapid one:"
    yield ""
    yield "| alert | a week | went on the same way |"
    yield "|---|---|---|"
    for kind in ("rapid_fall", "rapid_rise", "urgent_low", "prolonged_high"):
        told = found[(found["kind"] == kind) & ~found["suppressed"]]
        words = f"{_goes_on(told, readings):.0%}" if kind.startswith("rapid") else "-"
        yield f"| {kind.replace('_', ' ')} | {weekly.get(kind, 0.0):.1f} | {words} |"


def _goes_on(told: pd.DataFrame, readings: pd.DataFrame) -> float:
    """Share of rapid changes after which glucose was further the same way 15 minutes later, where that is known."""
    way = np.where(told["kind"].iloc[0] == "rapid_fall", -1.0, 1.0)
    values = readings[["user_id", "recorded_at", "glucose_mg_dl"]].sort_values("recorded_at")
    now = told[["user_id", "detected_at"]].sort_values("detected_at")
    later = now.assign(detected_at=now["detected_at"] + pd.Timedelta(minutes=15))
    levels = [
        pd.merge_asof(
            *(at, values),
            left_on="detected_at",
            right_on="recorded_at",
            by="user_id",
            direction="nearest",
            tolerance=pd.Timedelta(minutes=3),
        )["glucose_mg_dl"].to_numpy(dtype=float)
        for at in (now, later)
    ]
    change = (levels[1] - levels[0]) * way
    return float((change[~np.isnan(change)] > 0).mean())


def _trace(user_id: int, time: pd.Series, values: FloatArray) -> pd.DataFrame:
    at = pd.to_datetime(time).dt.tz_localize("UTC").dt.as_unit("us").reset_index(drop=True)
    return pd.DataFrame(
        {
            "user_id": user_id,
            "recorded_at": at,
            "local_date": at.dt.tz_localize(None).dt.normalize(),
            "utc_offset_minutes": 0,
            "source": "sensor",
            "source_device": "",
            "glucose_mg_dl": values,
            "source_value": values,
            "source_unit": "mg/dL",
            "censored": None,
        }
    )


def _sensor_noise(rng: np.random.Generator, users: int, steps: int) -> FloatArray:
    noise: FloatArray = rng.normal(0, 4, (users, steps))
    noise[:, 1:] = 0.5 * noise[:, :-1] + np.sqrt(0.75) * noise[:, 1:]
    return noise


def _sensors(values: FloatArray) -> pd.DataFrame:
    users, steps = values.shape
    at = pd.Timestamp(_START, tz="UTC") + pd.to_timedelta(np.tile(np.arange(steps) * 5, users), unit="min")
    glucose = np.rint(values).ravel()
    return pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), steps),
            "recorded_at": at,
            "local_date": at.tz_localize(None).normalize(),
            "utc_offset_minutes": 0,
            "source": "simulated",
            "source_device": "",
            "glucose_mg_dl": glucose,
            "source_value": glucose,
            "source_unit": "mg/dL",
            "censored": None,
        }
    )


def _alerts(readings: pd.DataFrame) -> pd.DataFrame:
    daily = _daily(np.empty((0, 0)))
    usual = daily.assign(baseline_center=1.0, baseline_scale=1.0)
    return alerts.alerts(readings, daily, usual)


if __name__ == "__main__":
    write_page()
