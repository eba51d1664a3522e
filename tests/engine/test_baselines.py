"""Baselines: values by hand and against a plain reference, and what must not change them."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from health_pipeline.engine import forecast, recovery, training_load, wording
from health_pipeline.engine.baselines import METRICS, baselines

#: A division by zero that happens to come out as null is still a mistake.
pytestmark = pytest.mark.filterwarnings("error")

START = dt.date(2026, 3, 1)


def day(offset: int) -> dt.date:
    return START + dt.timedelta(days=offset)


def series(values, metric="resting_heart_rate", *, user=1, source="oura", offset=0) -> pd.DataFrame:
    """One value a day from `START`; NaN is left in as a day without a value."""
    return pd.DataFrame(
        {
            "user_id": user,
            "local_date": pd.to_datetime([day(offset + i) for i in range(len(values))]),
            "metric_type": metric,
            "value": np.asarray(values, dtype=float),
            "source": source,
        }
    )


def random_daily(seed: int, users=(1, 2, 3), n_days=90) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for user in users:
        for metric, usual, spread in (
            ("resting_heart_rate", 55, 3),
            ("heart_rate_variability", 45, 10),
            ("steps", 8000, 3000),
        ):
            values = rng.normal(usual, spread, n_days).round(1)
            values[rng.random(n_days) < rng.choice([0.1, 0.6])] = np.nan
            change = int(rng.integers(20, n_days))
            parts.append(series(values[:change], metric, user=user))
            parts.append(series(values[change:], metric, user=user, source="garmin", offset=change))
    return pd.concat(parts, ignore_index=True)


def exactly_equal(left: pd.DataFrame, right: pd.DataFrame) -> None:
    assert_frame_equal(left.reset_index(drop=True), right.reset_index(drop=True), check_exact=True)


def test_median_and_mad_by_hand() -> None:
    result = baselines(series(range(50, 64)), (day(14), day(14)))
    (row,) = result.to_dict("records")
    assert row["baseline_center"] == row["center_value"] == 56.5
    assert row["baseline_scale"] == pytest.approx(1.4826 * 3.5)
    assert (row["n_days"], row["staleness_days"], row["transform"]) == (14, 1, "identity")
    assert (row["first_day"], row["last_day"]) == (pd.Timestamp(day(0)), pd.Timestamp(day(13)))


def test_thirteen_days_are_too_few() -> None:
    assert baselines(series(range(50, 63)), (day(0), day(30))).empty


def test_a_day_does_not_pull_its_own_baseline() -> None:
    ill = series([50, 52] * 10 + [95])
    row = baselines(ill, (day(20), day(20))).iloc[0]
    assert row["baseline_center"] == 51
    assert row["n_days"] == 20
    assert row["recent_mean"] == pytest.approx((50 * 3 + 52 * 3 + 95) / 7)


def test_scale_never_falls_under_the_floor() -> None:
    daily = pd.concat([series([50.0] * 20), series([40.0] * 20, "heart_rate_variability")])
    scale = baselines(daily, (day(20), day(20))).set_index("metric_type")["baseline_scale"]
    assert scale["resting_heart_rate"] == METRICS["resting_heart_rate"].floor == 1.0
    assert scale["heart_rate_variability"] == 0.05


def test_heart_rate_variability_is_judged_in_logarithms_and_zero_is_absent() -> None:
    values = [20.0, 40.0, 80.0] * 5 + [0.0]
    row = baselines(series(values, "heart_rate_variability"), (day(16), day(16))).iloc[0]
    assert row["baseline_center"] == pytest.approx(np.log(40))
    assert row["center_value"] == pytest.approx(40)
    assert row["baseline_scale"] == pytest.approx(1.4826 * np.log(2))
    assert (row["n_days"], row["staleness_days"], row["transform"]) == (15, 2, "ln")


def test_a_new_device_starts_a_new_baseline() -> None:
    daily = pd.concat([series([50.0] * 30), series([60.0] * 20, source="garmin", offset=30)])
    result = baselines(daily, (day(43), day(45))).set_index(["local_date", "source"])["center_value"]
    assert result[pd.Timestamp(day(43))].to_dict() == {"oura": 50.0}
    assert result[pd.Timestamp(day(44))].to_dict() == {"oura": 50.0, "garmin": 60.0}


def test_an_old_baseline_grows_stale_and_ends() -> None:
    result = baselines(series([50.0] * 30), (day(30), day(120)))
    assert result["staleness_days"].tolist() == list(range(1, 47 + 1))
    assert result["n_days"].iloc[-1] == 14


def test_recent_state_needs_three_days() -> None:
    daily = pd.concat([series([50.0] * 20), series([60.0, np.nan, 62.0], offset=30)])
    result = baselines(daily, (day(22), day(32))).set_index("local_date")
    assert result.loc[pd.Timestamp(day(23)), ["recent_mean", "recent_n_days"]].tolist() == [50.0, 3]
    assert np.isnan(result.loc[pd.Timestamp(day(24)), "recent_mean"])
    assert result.loc[pd.Timestamp(day(32)), "recent_n_days"] == 2


def test_equals_a_plain_reference() -> None:
    daily = random_daily(7)
    result = baselines(daily, (day(0), day(95)))
    valid = daily.dropna()
    expected = 0
    by_key = result.set_index(["user_id", "metric_type", "source", "local_date"]).sort_index()
    for key, group in valid.groupby(["user_id", "metric_type", "source"]):
        for offset in range(96):
            at = pd.Timestamp(day(offset))
            window = group[
                (group.local_date < at) & (group.local_date >= at - pd.Timedelta(days=60))
            ].value.to_numpy()
            if key[1] == "heart_rate_variability":
                window = np.log(window)
            if len(window) < 14:
                continue
            expected += 1
            center = np.median(window)
            row = by_key.loc[(*key, at)]
            assert row["baseline_center"] == center
            mad = np.median(np.abs(window - center))
            assert row["baseline_scale"] == max(1.4826 * mad, METRICS[key[1]].floor)
            assert row["n_days"] == len(window)
    assert expected == len(result) > 500


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), first=st.integers(0, 89), length=st.integers(1, 30))
def test_a_part_computed_again_is_the_part_of_the_whole(seed: int, first: int, length: int) -> None:
    """Any range of days, from just enough history, shuffled, beside other users, with rows twice."""
    everybody = random_daily(seed)
    full = baselines(everybody, (day(0), day(120)))
    start, end = day(first), day(first + length)
    enough = everybody[
        (everybody.user_id == 2)
        & (everybody.local_date >= pd.Timestamp(start) - pd.Timedelta(days=60))
        & (everybody.local_date <= pd.Timestamp(end))
    ]
    part = baselines(pd.concat([enough, enough.head(9)]).sample(frac=1, random_state=seed), (start, end))
    exactly_equal(part, full[(full.user_id == 2) & full.local_date.between(str(start), str(end))])


def test_output_is_sorted_by_its_grain() -> None:
    result = baselines(random_daily(3).sample(frac=1, random_state=3), (day(60), day(70)))
    keys = ["user_id", "local_date", "metric_type", "source"]
    assert not result.duplicated(keys).any()
    exactly_equal(result, result.sort_values(keys))


def test_nothing_in_gives_an_empty_frame_with_the_same_columns() -> None:
    empty = baselines(series([]), (day(0), day(5)))
    assert empty.empty
    assert list(empty.columns) == list(baselines(series([50.0] * 20), (day(20), day(20))).columns)


def test_two_values_for_one_day_are_refused() -> None:
    daily = pd.concat([series([50.0] * 20), series([55.0])])
    with pytest.raises(
        ValueError, match=r"1 rows that contradict .*\(resting_heart_rate\); elect one source"
    ):
        baselines(daily, (day(20), day(20)))


def test_two_sources_for_one_day_are_refused_even_if_they_agree() -> None:
    daily = pd.concat([series([50.0] * 20), series([50.0], source="garmin")])
    with pytest.raises(ValueError, match="elect one source a day first"):
        baselines(daily, (day(20), day(20)))


@pytest.mark.parametrize(
    ("dates", "message"),
    [
        (pd.to_datetime(["2026-03-01 07:30"]), "time of day in 1 rows"),
        (pd.to_datetime(["2026-03-01"]).tz_localize("UTC"), "has a time zone"),
        (pd.to_datetime([None]), "null in 1 rows"),
    ],
)
def test_an_instant_is_not_taken_for_a_local_day(dates: pd.DatetimeIndex, message: str) -> None:
    daily = series([50.0]).assign(local_date=dates)
    with pytest.raises(ValueError, match=rf"daily\.local_date .*{message}|{message}"):
        baselines(daily, (day(20), day(20)))


def test_every_metric_is_in_the_catalogue() -> None:
    """A name the catalogue does not know would never have a baseline, in silence."""
    catalogue = Path(__file__).parents[2] / "dbt_project" / "seeds" / "metric_types.csv"
    known = set(pd.read_csv(catalogue)["metric_type"])
    used = {*METRICS, *recovery.METRICS, *training_load.WEAR_METRICS}
    used |= {*forecast.DEFAULT_METRICS, *forecast.BETTER, *wording.DISPLAYS}
    assert used - known == {"training_load"}  # made by the engine itself


def test_missing_columns_and_backward_ranges_are_named() -> None:
    with pytest.raises(ValueError, match="daily lacks source"):
        baselines(series([50.0]).drop(columns="source"), (day(0), day(1)))
    with pytest.raises(ValueError, match="before it starts"):
        baselines(series([50.0]), (day(1), day(0)))
