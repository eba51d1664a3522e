"""Correlations: found where they are, seldom where they are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from scipy import stats

from health_pipeline.engine.correlations import PAIRS, correlations, spearman

pytestmark = pytest.mark.filterwarnings("error")

DAYS = 90
METRICS = ("steps", "sleep_duration", "resting_heart_rate", "heart_rate_variability", "glucose")


def people(values: dict[str, np.ndarray]) -> pd.DataFrame:
    """Users x days of each metric; NaN is a day without."""
    frames = []
    for metric, each in values.items():
        users, days = each.shape
        frames.append(
            pd.DataFrame(
                {
                    "user_id": np.repeat(np.arange(users), days),
                    "local_date": np.tile(
                        pd.date_range("2026-01-01", periods=days, unit="us").to_numpy(), users
                    ),
                    "metric_type": metric,
                    "value": each.ravel(),
                    "source": "oura",
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def noise(users: int, seed: int, rho: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    fresh = rng.normal(size=(users, DAYS))
    for day in range(1, DAYS):
        fresh[:, day] = rho * fresh[:, day - 1] + np.sqrt(1 - rho**2) * fresh[:, day]
    return fresh


def test_rank_correlation_is_scipys() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 9, (40, 5)).astype(float), rng.integers(0, 9, (40, 5)).astype(float)
    x[rng.random(x.shape) < 0.2] = np.nan
    rho, n = spearman(x, y)
    for column in range(5):
        both = ~np.isnan(x[:, column])
        assert n[column] == both.sum()
        assert rho[column] == pytest.approx(stats.spearmanr(x[both, column], y[both, column]).statistic)


def test_what_follows_two_days_later_is_found_and_said() -> None:
    steps = noise(1, 2)
    pulse = noise(1, 3)
    pulse[:, 2:] = 0.5 * pulse[:, 2:] - 0.85 * steps[:, :-2]
    found = correlations(people({"steps": steps, "resting_heart_rate": pulse}))
    assert found["lag_days"].tolist() == [0, 1, 2, 3]
    assert found["associated"].tolist() == [False, False, True, False]
    row = found.iloc[2]
    assert -0.95 < row["rho_low"] < row["rho"] < row["rho_high"] < -0.6
    assert row["n_pairs"] == DAYS - 2
    assert row["sentence"] == "More steps are associated with lower resting heart rate 2 days later."
    assert found["sentence"].isna().tolist() == [True, True, False, True]


def test_meals_are_held_against_glucose() -> None:
    eaten, glucose = noise(1, 6), noise(1, 7)
    found = correlations(people({"carbohydrates": eaten, "glucose": 0.4 * glucose + eaten}))
    row = found.set_index("lag_days").loc[0]
    assert (row["first_metric"], row["then_metric"]) == ("carbohydrates", "glucose")
    assert row["sentence"] == "More carbohydrates are associated with higher glucose on the same day."


def test_trends_and_weekdays_in_common_are_no_association() -> None:
    """Both rise over the months and at weekends, and have nothing else to do with each other."""
    days = np.arange(DAYS)
    shared = 0.1 * days + 3.0 * (days % 7 >= 5)
    values = {metric: noise(40, seed) + shared for seed, metric in enumerate(METRICS)}
    found = correlations(people(values))
    assert found.groupby("user_id")["associated"].any().mean() <= 0.15


def test_likeness_of_neighbouring_days_is_no_association() -> None:
    values = {metric: noise(60, seed + 50, rho=0.7) for seed, metric in enumerate(METRICS)}
    found = correlations(people(values))
    assert (found["effective_n"] < 0.6 * found["n_pairs"]).mean() > 0.8
    assert found.groupby("user_id")["associated"].any().mean() <= 0.2


def test_what_shares_data_is_not_tried() -> None:
    assert ("sleep_duration", "sleep_efficiency") not in PAIRS
    assert all(first != then for first, then in PAIRS)
    assert ("steps", "resting_heart_rate") in PAIRS


def test_too_few_pairs_say_nothing() -> None:
    steps, pulse = noise(1, 4), noise(1, 5)
    pulse[:, 19:] = np.nan
    assert correlations(people({"steps": steps, "resting_heart_rate": pulse})).empty
    assert correlations(people({"steps": steps[:, :0]})).empty


def test_order_repeats_and_other_people_change_nothing() -> None:
    values = {metric: noise(3, seed, rho=0.3) for seed, metric in enumerate(METRICS)}
    values["resting_heart_rate"] -= values["steps"]
    for each in values.values():
        each[np.random.default_rng(9).random(each.shape) < 0.15] = np.nan
    daily = people(values).dropna()
    full = correlations(daily)
    alone = daily[daily["user_id"] == 1]
    part = correlations(pd.concat([alone, alone.head(5)]).sample(frac=1, random_state=1))
    assert part["associated"].any()
    assert_frame_equal(part, full[full["user_id"] == 1].reset_index(drop=True), check_exact=True)
