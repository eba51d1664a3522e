"""Alerts: caught in time, once an episode, seldom for nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from test_glucose import readings

from health_pipeline.engine.alerts import alerts

pytestmark = pytest.mark.filterwarnings("error")

DAY = 288
NOTHING_DAILY = pd.DataFrame(
    {
        "user_id": np.empty(0, dtype="int64"),
        "local_date": pd.to_datetime([]),
        "metric_type": pd.Series([], dtype=object),
        "value": np.empty(0),
        "source": pd.Series([], dtype=object),
    }
)
NOTHING_USUAL = NOTHING_DAILY.assign(baseline_center=1.0, baseline_scale=1.0)


def of(frame: pd.DataFrame, kind: str | None = None) -> pd.DataFrame:
    found = alerts(frame, NOTHING_DAILY, NOTHING_USUAL)
    return found if kind is None else found[found["kind"] == kind].reset_index(drop=True)


def at(minutes: float) -> pd.Timestamp:
    return pd.Timestamp("2026-03-01", tz="UTC") + pd.Timedelta(minutes=minutes)


def falling(rate: float, fall_from: int = 200, minutes: int = 40) -> np.ndarray:
    """A day at a level, then a fall by so many mg/dL a minute, then the new level for two hours."""
    steps = minutes // 5
    fall = fall_from - rate * 5 * np.arange(1, steps + 1)
    return np.concatenate([np.full(DAY, float(fall_from)), fall, np.full(24, fall[-1])])


def test_a_fall_is_told_once_within_a_quarter_of_an_hour() -> None:
    found = of(readings(falling(3.0)), "rapid_fall")
    assert len(found) == 1
    row = found.iloc[0]
    onset = (DAY - 1) * 5
    assert at(onset) < row["detected_at"] <= at(onset + 15)
    assert row["value"] <= -2
    assert row["ended_at"] > row["detected_at"] + pd.Timedelta(minutes=20)
    assert not row["suppressed"]
    assert row["sentence"].startswith("Glucose fell by ")
    assert of(readings(400 - falling(3.0)), "rapid_rise")["value"].iloc[0] == -row["value"]


def test_most_rapid_falls_of_noisy_sensors_are_caught_in_time() -> None:
    """300 people fall by 3 mg/dL a minute; sensor noise of 4 mg/dL, half of it shared by neighbours."""
    rng = np.random.default_rng(8)
    people = []
    for user in range(300):
        values = falling(3.0)
        noise = rng.normal(0, 4, len(values))
        noise[1:] = 0.5 * noise[:-1] + np.sqrt(0.75) * noise[1:]
        people.append(readings(np.rint(values + noise), user=user))
    found = of(pd.concat(people, ignore_index=True), "rapid_fall")
    onset = at((DAY - 1) * 5)
    caught = found[
        (found["detected_at"] >= onset) & (found["detected_at"] <= onset + pd.Timedelta(minutes=15))
    ]
    assert caught["user_id"].nunique() >= 0.95 * 300


def test_flat_noisy_traces_alarm_nobody() -> None:
    """50 people, a week each at about 120, the same noise: at most one alert a person and week."""
    rng = np.random.default_rng(2)
    people = []
    for user in range(50):
        noise = rng.normal(0, 4, 7 * DAY)
        noise[1:] = 0.5 * noise[:-1] + np.sqrt(0.75) * noise[1:]
        people.append(readings(np.rint(120 + 15 * np.sin(np.arange(7 * DAY) / 40) + noise), user=user))
    found = of(pd.concat(people, ignore_index=True))
    assert len(found) <= 50 * 0.2


def test_slow_falls_and_single_odd_readings_are_no_rapid_change() -> None:
    assert of(readings(falling(1.5))).empty
    odd = np.full(2 * DAY, 120.0)
    odd[DAY] = 128
    assert of(readings(odd)).empty


def test_a_second_fall_needs_calm_between() -> None:
    down = falling(3.0, 250, 20)
    apart = np.concatenate([down, down[-1] - 15 * np.arange(1, 5)])
    assert len(of(readings(apart), "rapid_fall")) == 2
    pause = np.concatenate([down[: DAY + 4], [down[-1]], down[-1] - 15 * np.arange(1, 5)])
    assert len(of(readings(pause), "rapid_fall")) == 1


def test_a_new_sensor_settles_first() -> None:
    early = falling(3.0)[DAY - 12 :]
    found = of(readings(early))
    assert found["suppressed"].tolist() == [True]
    low = of(readings(np.where(np.arange(len(early)) > 4, 50.0, 120.0)), "urgent_low")
    assert low["suppressed"].tolist() == [False]


def test_readings_every_15_minutes_have_no_slope() -> None:
    assert of(readings(falling(3.0), every=15), "rapid_fall").empty


def test_an_urgent_low_is_told_by_one_reading_and_once() -> None:
    values = [100, 53, 60, 52, 80, 80, 80, 80, 50, 49]
    found = of(readings(values), "urgent_low")
    assert found["detected_at"].tolist() == [at(5), at(40)]
    assert found["ended_at"].iloc[0] == at(15)
    assert pd.isna(found["ended_at"].iloc[1])
    assert found["episode"].tolist() == [1, 2]
    assert set(found["severity"]) == {"urgent"}
    assert found["sentence"].iloc[0] == "Glucose is 53 mg/dL, under 54."


def test_a_prolonged_high_is_told_when_it_is_two_hours_old() -> None:
    high = [200] * 6 + [260] * 30 + [200] * 6
    found = of(readings(high), "prolonged_high")
    assert found[["detected_at", "ended_at"]].to_numpy().tolist() == [[at(150), at(175)]]
    assert of(readings([200] * 6 + [260] * 20 + [200] * 6), "prolonged_high").empty


def test_off_baseline_on_the_first_of_days_in_a_row() -> None:
    values = [55, 62, 63, 60.9, 62, 55, 62]
    days = pd.date_range("2026-03-01", periods=7, unit="us")
    daily = pd.DataFrame(
        {
            "user_id": 1,
            "local_date": days,
            "metric_type": "resting_heart_rate",
            "value": values,
            "source": "oura",
        }
    )
    usual = daily.drop(columns="value").assign(baseline_center=55.0, baseline_scale=2.0)
    found = alerts(readings([]), daily, usual)
    assert found["local_date"].tolist() == [days[1], days[6]]
    assert found["value"].tolist() == [3.5, 3.5]
    assert found["detected_at"].isna().all()
    other = alerts(readings([]), daily.assign(source="garmin"), usual)
    assert other.empty


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_repeats_and_other_people_change_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    people = []
    for user in (1, 2, 3):
        values = np.clip(np.rint(140 + 60 * rng.normal(size=2 * DAY).cumsum() / 10), 40, 400)
        values[rng.random(len(values)) < 0.1] = np.nan
        people.append(readings(values, user=user))
    full = of(pd.concat(people, ignore_index=True))
    part = of(pd.concat([people[1], people[1].head(5)]).sample(frac=1, random_state=seed))
    assert_frame_equal(part, full[full["user_id"] == 2].reset_index(drop=True), check_exact=True)


def worn(days: str, metric: str = "sleep_duration", user: int = 1) -> pd.DataFrame:
    """A character a day from 1 March on: `x` has a value."""
    known = [place for place, mark in enumerate(days) if mark == "x"]
    return pd.DataFrame(
        {
            "user_id": user,
            "local_date": pd.Timestamp("2026-03-01") + pd.to_timedelta(known, unit="D"),
            "metric_type": metric,
            "value": 7.0,
            "source": "ring",
        }
    )


def missing(*frames: pd.DataFrame) -> pd.DataFrame:
    daily = pd.concat(frames, ignore_index=True).astype({"local_date": "datetime64[us]"})
    found = alerts(readings(np.full(3, 120.0)), daily, NOTHING_USUAL)
    return found[found["kind"] == "missing_data"].reset_index(drop=True)


@pytest.mark.parametrize(
    ("days", "told"),
    [
        ("x" * 14 + "...", [17]),
        ("x" * 14 + "......", [17]),
        ("x" * 14 + "..x...", [20]),
        ("x" * 10 + "...", [13]),
        ("x" * 9 + "...", []),
        ("x.x.x.x.x.x.x.x.x.x.x...", []),
        ("x" * 14 + "...x" + "x" * 13 + "...", [17, 34]),
    ],
)
def test_a_measurement_that_stops_is_told_on_the_third_day(days: str, told: list[int]) -> None:
    found = missing(worn(days), worn("x" * len(days), "steps"))
    assert (found["local_date"] - pd.Timestamp("2026-02-28")).dt.days.tolist() == told
    assert found["severity"].tolist() == ["warning"] * len(told)
    if days == "x" * 14 + "...":
        assert found["sentence"].iloc[0] == (
            "There is no sleep duration of the last 3 days, although it came on 14 of the 14 before."
        )


def test_where_nothing_comes_there_is_no_day_to_tell_it_on() -> None:
    assert missing(worn("x" * 20)).empty
    alone = missing(worn("x" * 14 + "..."), worn("x" * 17, "steps"))
    # Another person's days, long before or after, change nothing.
    early = worn("x" * 3, "steps", user=2).assign(local_date=pd.Timestamp("2025-12-01"))
    both = missing(worn("x" * 14 + "..."), worn("x" * 17, "steps"), early.drop_duplicates())
    assert_frame_equal(both, alone)
