"""Forecasts: equal to textbook and library, every reason, honest intervals, and what must not change them."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from scipy import stats

from health_pipeline.engine.forecast import forecasts

#: A division by zero that happens to come out as null is still a mistake.
pytestmark = pytest.mark.filterwarnings("error")

START = dt.date(2026, 3, 1)
RNG = np.random.default_rng(20_260_301)
NOISE = RNG.normal(0, 0.2, 30)


def day(offset: int) -> dt.date:
    return START + dt.timedelta(days=offset)


def series(values, metric="resting_heart_rate", *, user=1, source="oura", offset=0) -> pd.DataFrame:
    """One value a day; NaN is a day without a value."""
    return pd.DataFrame(
        {
            "user_id": user,
            "local_date": pd.to_datetime([day(offset + i) for i in range(len(values))]).astype(
                "datetime64[us]"
            ),
            "metric_type": metric,
            "value": np.asarray(values, dtype=float),
            "source": source,
        }
    )


def goals(*targets: tuple) -> pd.DataFrame:
    """(metric, target) or (metric, target, date or user)."""
    rows = [
        {"user_id": 1, "metric_type": target[0], "target_value": target[1], "target_date": pd.NaT}
        | (target[2] if len(target) > 2 else {})
        for target in targets
    ]
    columns = ["user_id", "metric_type", "target_value", "target_date"]
    return pd.DataFrame(rows, columns=columns).astype({"target_date": "datetime64[us]", "user_id": "int64"})


def one(daily: pd.DataFrame, *targets: tuple, **options) -> pd.Series:
    result = forecasts(daily, goals(*targets), **options)
    assert len(result) == 1
    return result.iloc[0]


def falling(by: float = 0.2, level: float = 56.0) -> pd.DataFrame:
    return series(level - by * np.arange(30) + NOISE)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.01, 1.0, 3000.0]))
def test_equals_scikit_learn(seed: int, scale: float) -> None:
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(seed)
    frames = []
    for user in range(5):
        values = scale * (10 + rng.normal(0, 1, 30).cumsum())
        values[rng.choice(29, rng.integers(0, 16), replace=False)] = np.nan
        frames.append(series(values, "weight", user=user))
    result = forecasts(pd.concat(frames), goals())
    assert len(result) == 5
    for frame, (_, row) in zip(frames, result.iterrows(), strict=True):
        values = frame["value"].to_numpy()
        here = ~np.isnan(values)
        x = np.arange(-29.0, 1.0)[here, None]
        model = LinearRegression().fit(x, values[here])
        residual = values[here] - model.predict(x)
        tolerance = {"rel": 1e-9, "abs": 1e-9 * scale}
        assert row["n_days"] == here.sum()
        assert row["slope_per_day"] == pytest.approx(model.coef_[0], **tolerance)
        assert row["intercept_value"] == pytest.approx(model.intercept_, **tolerance)
        assert row["r_squared"] == pytest.approx(model.score(x, values[here]), abs=1e-9)
        sd = np.sqrt((residual**2).sum() / (here.sum() - 2))
        assert row["residual_sd"] == pytest.approx(sd, **tolerance)
        assert row["predicted_14d"] == pytest.approx(model.predict([[14.0]])[0], **tolerance)


def test_interval_is_the_textbooks_widened_for_autocorrelation() -> None:
    values = 60 + 0.35 * np.sin(np.arange(30) / 2.5) + NOISE
    values[[3, 4, 17]] = np.nan
    row = one(series(values))
    x = np.arange(-29.0, 1.0)
    here = ~np.isnan(values)
    design = np.column_stack([np.ones(here.sum()), x[here]])
    inverse = np.linalg.inv(design.T @ design)
    beta = inverse @ design.T @ values[here]
    residual = values - (beta[0] + beta[1] * x)
    n = here.sum()
    sd = np.sqrt(np.nansum(residual**2) / (n - 2))
    products = residual[1:] * residual[:-1]
    r = np.nanmean(products) / np.nanmean(residual**2)
    r = (n * r + 2) / (n - 4)
    assert 0.3 < r < 0.9
    assert row["autocorrelation"] == pytest.approx(r)
    wider = np.sqrt((1 + r) / (1 - r))
    # Of a line that follows likeness the residuals are too small.
    about = sd**2 * (n - 2) / max(n - 2 * wider**2, n / 4)
    for ahead in (7, 14, 30):
        at = np.array([1.0, ahead])
        half = stats.t.ppf(0.95, n - 2) * np.sqrt(about * (1 + wider**2 * (at @ inverse @ at)))
        assert row[f"low_{ahead}d"] == pytest.approx(at @ beta - half)
        assert row[f"high_{ahead}d"] == pytest.approx(at @ beta + half)
    half = stats.t.ppf(0.975, n - 2) * sd * wider * np.sqrt(inverse[1, 1])
    assert [row["slope_low"], row["slope_high"]] == pytest.approx([beta[1] - half, beta[1] + half])


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.7])
def test_noise_without_a_trend_is_seldom_called_one(rho: float) -> None:
    """Plain regression calls 41 % of such series at lag-1 0.7 a trend."""
    rng = np.random.default_rng(11)
    users = 1500
    noise = np.zeros((users, 90))
    noise[:, 0] = rng.normal(size=users)
    for t in range(1, 90):
        noise[:, t] = rho * noise[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=users)
    past, future = noise[:, :30] + 70, noise[:, 30:] + 70
    daily = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), 30),
            "local_date": np.tile(pd.date_range(START, periods=30, unit="us").to_numpy(), users),
            "metric_type": "weight",
            "value": past.ravel(),
            "source": "scale",
        }
    )
    result = forecasts(daily, goals())
    assert (result["sentence"].str.contains("no clear trend")).mean() >= 0.90
    for ahead in (7, 14, 30):
        actual = future[:, ahead - 1]
        covered = (result[f"low_{ahead}d"] <= actual) & (actual <= result[f"high_{ahead}d"])
        assert 0.86 < covered.mean() < 0.94


def autocorrelated(rho: float, days: int, users: int, trend: float, seed: int) -> np.ndarray:
    """Users x days of lag-1 autocorrelated noise of unit variance about a line."""
    rng = np.random.default_rng(seed)
    noise = np.zeros((users, days))
    noise[:, 0] = rng.normal(size=users)
    for t in range(1, days):
        noise[:, t] = rho * noise[:, t - 1] + np.sqrt(1 - rho**2) * rng.normal(size=users)
    return noise + trend * np.arange(days)


@pytest.mark.parametrize("rho", [0.5, 0.7])
@pytest.mark.parametrize("trend", [0.0, 0.1])
def test_ranges_hold_what_they_promise_and_the_best_candidate_wins(rho: float, trend: float) -> None:
    """90 % intervals of the back-test, on half a year of history."""
    users, days = 400, 180
    values = autocorrelated(rho, days + 30, users, trend, seed=5) + 70
    daily = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), days),
            "local_date": np.tile(pd.date_range(START, periods=days, unit="us").to_numpy(), users),
            "metric_type": "weight",
            "value": values[:, :days].ravel(),
            "source": "scale",
        }
    )
    result = forecasts(daily, goals())
    assert set(result["interval_method"]) <= {"conformal", "student_t"}
    for ahead in (7, 14, 30):
        actual = values[:, days - 1 + ahead]
        covered = (result[f"low_{ahead}d"] <= actual) & (actual <= result[f"high_{ahead}d"])
        assert 0.86 <= covered.mean() <= 0.94
        assert (result[f"n_origins_{ahead}d"] == days - 29 - ahead).all()
        assert result[f"mase_naive_{ahead}d"].mean() < 0.95
        assert 0.8 < result[f"coverage_{ahead}d"].mean() < 0.98
    follows = result["method"].isin(["ols", "theil_sen", "damped_trend", "drift"])
    if trend:
        assert follows.mean() > 0.95
    else:
        assert follows.mean() < 0.05
        assert result["sentence"].str.contains("no clear trend").mean() >= 0.90


def test_a_trend_that_history_says_will_not_last_gets_no_date() -> None:
    """Up and down by turns, 30 days each: at the end of a rise, the rise is certain and useless."""
    back = np.arange(-179, 1)
    wave = 60 + 3 * np.abs(((back / 30) % 2) - 1)
    row = one(series(wave + np.resize(NOISE, 180), "weight", offset=-150), ("weight", 66.0))
    assert row["slope_low"] > 0.05
    assert row["method"] in {"mean_30", "mean_7", "last_value"}
    assert row["projected_reason"] == "no_better_than_average"
    assert (
        "no way of following a trend has done better than the recent average so far: no date"
        in row["sentence"]
    )


def test_the_date_has_a_range_that_holds_the_truth() -> None:
    """80 % ranges of the day on which lines with known slope cross the target."""
    users, days = 400, 30
    values = autocorrelated(0.5, days, users, 0.0, seed=9) - 0.25 * np.arange(days) + 70
    daily = pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(users), days),
            "local_date": np.tile(pd.date_range(START, periods=days, unit="us").to_numpy(), users),
            "metric_type": "weight",
            "value": values.ravel(),
            "source": "scale",
        }
    )
    targets = pd.concat(goals(("weight", 58.0, {"user_id": user})) for user in range(users))
    result = forecasts(daily, targets)
    dated = result[result["projected_reason"] == "on_course"]
    truth = pd.Timestamp(day(48))  # 70 - 0.25 x 48 = 58
    held = (dated["projected_date_low"] <= truth) & (truth <= dated["projected_date_high"])
    assert len(dated) > 0.8 * users
    assert 0.72 < held.mean() < 0.95


def test_theil_and_sens_slope_is_scipys_and_an_odd_day_does_not_move_it() -> None:
    values = 60 - 0.1 * np.arange(30) + NOISE
    values[[2, 9]] = np.nan
    here = ~np.isnan(values)
    row = one(series(values))
    expected = stats.theilslopes(values[here], np.arange(30.0)[here])
    assert row["theil_sen_slope"] == pytest.approx(expected.slope)
    assert row["theil_sen_low"] <= expected.low_slope + 0.005
    assert row["theil_sen_high"] >= expected.high_slope - 0.005
    values[28] = 90.0
    odd = one(series(values))
    assert abs(odd["theil_sen_slope"] - row["theil_sen_slope"]) < 0.02
    assert abs(odd["slope_per_day"] - row["slope_per_day"]) > 0.1


def test_on_course_gives_a_date_and_says_so() -> None:
    row = one(series(56 - 0.2 * np.arange(30)), ("resting_heart_rate", 48.0))
    assert row["slope_per_day"] == pytest.approx(-0.2)
    assert row["intercept_value"] == pytest.approx(50.2)
    assert row["projected_reason"] == "on_course"
    assert row["projected_date"] == pd.Timestamp(day(29 + 11))
    assert row["sentence"] == (
        "Resting heart rate falls by 0.2 bpm a day and is expected to reach 48 bpm around 2026-04-10."
    )
    assert (row["window_start"], row["window_end"]) == (pd.Timestamp(day(0)), pd.Timestamp(day(29)))


def test_the_date_is_compared_with_the_one_set() -> None:
    target = ("resting_heart_rate", 48.0, {"target_date": pd.Timestamp(day(37))})
    row = one(series(56 - 0.2 * np.arange(30)), target)
    assert row["sentence"].endswith("around 2026-04-10, 3 days after the day set for it.")
    assert row["target_date"] == pd.Timestamp(day(37))


@pytest.mark.parametrize(
    ("daily", "target", "reason", "words"),
    [
        (falling(), 55.0, "reached", "Resting heart rate has reached 55 bpm: the median of the last 7 days"),
        (falling(), 47.0, "on_course", "expected to reach 47 bpm around 2026-04-"),
        (
            falling(-0.2),
            48.0,
            "wrong_direction",
            "rises by 0.2 bpm a day, away from 48 bpm; in 30 days about",
        ),
        (
            falling(0.0),
            48.0,
            "slope_not_different_from_zero",
            "no clear trend, so there is no date for 48 bpm",
        ),
        (falling(0.2), 30.0, "too_far", "towards 30 bpm, which is too far off to give a date"),
        (falling().head(13), 48.0, "too_few_days", "known on 13 of the last 30, and it takes 14"),
    ],
)
def test_every_reason(daily: pd.DataFrame, target: float, reason: str, words: str) -> None:
    row = one(daily, ("resting_heart_rate", target))
    assert row["projected_reason"] == reason
    assert words in row["sentence"]
    assert pd.isna(row["projected_date"]) == (reason != "on_course")


def test_without_a_goal() -> None:
    row = one(falling())
    assert row["projected_reason"] == "no_goal"
    assert np.isnan(row["target_value"])
    assert "in 30 days about" in row["sentence"]
    flat = one(falling(0.0))
    assert flat["sentence"].startswith("Resting heart rate shows no clear trend; in 30 days ")


def test_too_few_days_give_no_numbers() -> None:
    row = one(falling().head(13), ("resting_heart_rate", 50.0))
    numbers = ["slope_per_day", "intercept_value", "r_squared", "residual_sd", "predicted_7d", "low_30d"]
    assert row[numbers].isna().all()
    assert row["n_days"] == 13


def test_reached_needs_the_week_and_not_one_reading() -> None:
    values = np.full(30, 55.0) + NOISE
    values[-1] = 49.0
    assert one(series(values), ("resting_heart_rate", 50.0))["projected_reason"] != "reached"
    values[-4:] = 49.0
    assert one(series(values), ("resting_heart_rate", 50.0))["projected_reason"] == "reached"


def test_near_is_not_reached_where_more_is_better() -> None:
    steps = series(8000 + 100 * NOISE, "steps")
    assert one(steps, ("steps", 8200.0))["projected_reason"] == "slope_not_different_from_zero"
    assert one(steps, ("steps", 7900.0))["projected_reason"] == "reached"


def test_a_line_past_the_target_before_the_week_is_expects_it_tomorrow() -> None:
    row = one(series(56 - 0.2 * np.arange(30)), ("resting_heart_rate", 50.5))  # week 50.8, line 50.2
    assert (row["projected_reason"], row["projected_date"]) == ("on_course", pd.Timestamp(day(30)))


def test_a_weight_goal_is_reached_from_the_side_it_started_on() -> None:
    down = series(82 - 0.1 * np.arange(30), "weight")
    assert one(down, ("weight", 81.0))["projected_reason"] == "reached"
    assert one(down, ("weight", 84.0))["projected_reason"] == "wrong_direction"
    up = series(78 + 0.1 * np.arange(30), "weight")
    assert one(up, ("weight", 79.0))["projected_reason"] == "reached"
    assert one(up, ("weight", 82.0))["projected_reason"] == "on_course"
    steady = series(80 + NOISE, "weight")
    assert one(steady, ("weight", 80.2))["projected_reason"] == "reached"


def test_a_constant_series_has_no_trend_and_no_r_squared() -> None:
    row = one(series([0.1] * 30, "weight"), ("weight", 5.0))
    assert (row["slope_per_day"], row["residual_sd"], row["autocorrelation"]) == (0.0, 0.0, 0.0)
    assert np.isnan(row["r_squared"])
    assert row["projected_reason"] == "slope_not_different_from_zero"
    assert row["low_30d"] == row["high_30d"] == 0.1


def test_a_new_device_is_no_trend() -> None:
    daily = pd.concat([series([50.0] * 15 + [np.nan] * 15), series([60.0] * 14, source="garmin", offset=15)])
    row = one(daily)
    assert (row["n_days"], row["source"]) == (14, "garmin")
    assert (row["slope_per_day"], row["intercept_value"]) == (0.0, 60.0)


def test_the_window_ends_on_each_metrics_last_day_or_as_asked() -> None:
    daily = pd.concat([falling(), series(70 + NOISE[:20], "weight")])
    result = forecasts(daily, goals()).set_index("metric_type")
    assert result["as_of_date"].to_dict() == {
        "resting_heart_rate": pd.Timestamp(day(29)),
        "weight": pd.Timestamp(day(19)),
    }
    asked = forecasts(daily, goals(), as_of=day(22)).set_index("metric_type")
    assert asked["n_days"].to_dict() == {"resting_heart_rate": 23, "weight": 20}
    assert set(asked["as_of_date"]) == {pd.Timestamp(day(22))}
    assert forecasts(daily, goals(), as_of=day(80)).empty


def test_a_goal_without_any_value_has_a_row_on_the_day_asked() -> None:
    target = ("body_fat", 18.0)
    assert forecasts(falling(), goals(target))["metric_type"].tolist() == ["resting_heart_rate"]
    result = forecasts(falling(), goals(target), as_of=day(29))
    assert result["metric_type"].tolist() == ["body_fat", "resting_heart_rate"]
    assert (result["n_days"].iloc[0], result["projected_reason"].iloc[0]) == (0, "too_few_days")
    assert pd.isna(result["source"].iloc[0])


def test_metrics_beside_the_default_ones_need_a_goal() -> None:
    daily = series(88 + NOISE, "sleep_efficiency")
    assert forecasts(daily, goals()).empty
    assert one(daily, ("sleep_efficiency", 90.0))["n_days"] == 30


def test_predictions_stay_within_what_a_body_can_do() -> None:
    limits = pd.DataFrame({"metric_type": ["resting_heart_rate"], "low": [48.0], "high": [52.0]})
    row = one(falling(), valid_ranges=limits)
    assert row["predicted_30d"] == row["low_30d"] == row["low_14d"] == 48.0
    free = one(falling())
    assert free["predicted_30d"] < 45


def test_durations_are_said_in_hours_and_minutes() -> None:
    values = 6.5 * 3600 + 120 * np.arange(30)
    row = one(series(values, "sleep_duration"), ("sleep_duration", 8 * 3600.0))
    assert row["sentence"] == (
        "Sleep duration rises by 2 min a day and is expected to reach 8 h 0 min around 2026-04-15."
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), history=st.sampled_from([0, 60, 120, 170]), fixed=st.booleans())
def test_order_other_users_repeats_and_old_history_change_nothing(
    seed: int, history: int, fixed: bool
) -> None:
    rng = np.random.default_rng(seed)
    frames = []
    for user in (1, 2, 3):
        for metric, level in (("resting_heart_rate", 55.0), ("steps", 8000.0), ("weight", 75.0)):
            values = level * (1 + 0.02 * rng.normal(size=history + 30).cumsum() / 5)
            values[rng.random(len(values)) < 0.2] = np.nan
            frames.append(series(values, metric, user=user, offset=-history))
    daily = pd.concat(frames, ignore_index=True)
    targets = pd.concat(
        goals(("resting_heart_rate", 52.0, {"user_id": u}), ("weight", 73.0, {"user_id": u}))
        for u in (1, 2, 3)
    )
    as_of = day(29) if fixed else None
    full = forecasts(daily, targets, as_of)
    # Without as_of the history of a metric that stopped early reaches further back.
    mine = daily[(daily.user_id == 2) & ((daily.local_date >= str(day(29 - 179))) | (not fixed))]
    part = forecasts(
        pd.concat([mine, mine.head(7)]).sample(frac=1, random_state=seed),
        targets[targets.user_id == 2].sample(frac=1, random_state=seed),
        as_of,
    )
    asked = full[full.user_id == 2].reset_index(drop=True)
    assert_frame_equal(part, asked, check_exact=True)


def test_two_goals_for_one_metric_are_refused() -> None:
    with pytest.raises(ValueError, match="goals has 1 rows with the user and metric of another"):
        forecasts(falling(), goals(("weight", 70.0), ("weight", 72.0)))


def test_nothing_in_gives_an_empty_frame() -> None:
    assert forecasts(series([]), goals()).empty
    assert forecasts(series([]), goals(("weight", 70.0)), as_of=day(3))["n_days"].tolist() == [0]
