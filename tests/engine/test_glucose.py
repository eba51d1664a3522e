"""Glucose statistics: hand counts, published definitions, real traces, and what must not change them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from public_traces import MAGE_ELSEWHERE, last_days, traces

from health_pipeline.engine import glucose
from health_pipeline.engine.glucose import agp, glucose_daily, glucose_periods

pytestmark = pytest.mark.filterwarnings("error")

STEPS = np.arange(14 * 288)
#: Two weeks of a made-up sensor, mg/dL every 5 minutes.
WAVES = np.rint(
    130
    + 60 * np.sin(2 * np.pi * STEPS / 96)
    + 35 * np.sin(2 * np.pi * STEPS / 411)
    + 25 * np.sin(2 * np.pi * STEPS / 1733)
)


def readings(
    values, *, start="2026-03-01", every=5, user=1, offset=0, unit="mg/dL", device="", at=None
) -> pd.DataFrame:
    """One reading `every` so many minutes of local time (or `at` those minutes) from `start`; NaN is a gap."""
    values = np.asarray(values, dtype=float)
    minutes = np.arange(len(values)) * every if at is None else np.asarray(at)
    local = pd.Timestamp(start) + pd.to_timedelta(minutes, unit="min")
    frame = pd.DataFrame(
        {
            "user_id": user,
            "recorded_at": (local - pd.Timedelta(minutes=offset)).tz_localize("UTC"),
            "local_date": local.normalize(),
            "utc_offset_minutes": offset,
            "source": "dexcom",
            "source_device": device,
            "glucose_mg_dl": values if unit == "mg/dL" else values * 18.0156,
            "source_value": values,
            "source_unit": unit,
            "censored": None,
        }
    )
    return frame[~np.isnan(values)].reset_index(drop=True)


def period(frame: pd.DataFrame, days: int = 14) -> pd.Series:
    result = glucose_periods(frame).set_index("period_days")
    return result.loc[days]


def test_equals_the_published_definitions() -> None:
    """Figures computed for this made-up trace by another implementation of them (iglu-python 0.4.3)."""
    row = period(readings(WAVES))
    expected = {
        "mean_mg_dl": 132.86755952380952,
        "sd_mg_dl": 52.233392410938336,
        "cv_percent": 39.3123743659778,
        "gmi_percent": 6.488192023809524,
        "gri": 51.93452380952381,
        "lbgi": 4.490941260786022,
        "hbgi": 3.8346706497628764,
        "percent_below_54": 6.299603174603174,
        "percent_54_69": 13.120039682539684 - 6.299603174603174,
        "percent_181_250": 20.833333333333336,
        "percent_above_250": 0.0,
        "percent_in_range": 66.04662698412699,
        "percent_in_tight_range": 42.1875,
        "percent_in_pregnancy_range": 45.41170634920635,
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-9)
    # Another grid makes other pairs.
    assert row["modd"] == pytest.approx(37.512957520705314, rel=1e-3)
    assert row["conga_1h"] == pytest.approx(32.74123209038828, rel=1e-3)
    assert row["mage"] == pytest.approx(119.06616832779623, rel=0.1)
    assert row["percent_active"] == 100.0
    assert (row["n_days"], row["sufficient"], row["gri_zone"]) == (14, True, "C")


@pytest.mark.filterwarnings("ignore")
def test_equals_another_implementation_on_real_traces() -> None:
    iglu = pytest.importorskip(
        "iglu_python", reason="oracle of tests only, under the GPL: install it by hand"
    )
    if not traces():
        pytest.skip("no public traces here")
    ours = ("mean_mg_dl", "sd_mg_dl", "cv_percent", "gri", "lbgi", "hbgi")
    theirs = (iglu.mean_glu, iglu.sd_glu, iglu.cv_glu, iglu.gri, iglu.lbgi, iglu.hbgi)
    for path in traces():
        table, row = trace(path)
        for name, function in zip(ours, theirs, strict=True):
            assert row[name] == pytest.approx(float(function(table.copy()).iloc[0, 1]), rel=1e-6)
        assert MAGE_ELSEWHERE[path.stem] == pytest.approx(float(iglu.mage(table.copy()).iloc[0, 1]), abs=0.01)


def trace(path: Path) -> tuple[pd.DataFrame, pd.Series]:
    table = last_days(path)
    minutes = (table["time"] - table["time"].min().normalize()).dt.total_seconds() / 60
    return table, period(readings(table["gl"], start=table["time"].min().normalize(), at=minutes), 90)


def test_mage_is_near_another_implementation_on_real_traces() -> None:
    if not traces():
        pytest.skip("no public traces here")
    off = {path.stem: trace(path)[1]["mage"] / MAGE_ELSEWHERE[path.stem] - 1 for path in traces()}
    assert len(off) >= 10
    assert sum(abs(share) < 0.1 for share in off.values()) >= 0.9 * len(off), off


def test_mage_judges_each_stretch_by_its_own_spread() -> None:
    """Three quiet days and one stormy day, four hours without a sensor between them: the quiet days' swings are below
    the spread of all four days, and count."""
    wave = np.sin(2 * np.pi * np.arange(4 * 288) / 48)
    quiet, stormy = 120 + 10 * wave[: 3 * 288], 180 + 60 * wave[:288]
    both = np.concatenate([quiet, np.full(48, np.nan), stormy])
    calm, storm, mean = (period(readings(values))["mage"] for values in (quiet, stormy, both))
    assert (calm, storm) == (pytest.approx(20, rel=0.1), pytest.approx(120, rel=0.1))
    assert mean == pytest.approx((3 * calm + storm) / 4, rel=0.01)
    assert period(readings(both))["sd_mg_dl"] > 20


@pytest.mark.parametrize(
    ("unit", "values", "band"),
    [
        ("mg/dL", [53.9], "percent_below_54"),
        ("mg/dL", [54, 69.9], "percent_54_69"),
        ("mg/dL", [70, 180], "percent_in_range"),
        ("mg/dL", [180.1, 250], "percent_181_250"),
        ("mg/dL", [250.1], "percent_above_250"),
        ("mg/dL", [63, 140], "percent_in_pregnancy_range"),
        ("mmol/L", [2.9], "percent_below_54"),
        ("mmol/L", [3.0, 3.8], "percent_54_69"),
        ("mmol/L", [3.9, 10.0], "percent_in_range"),
        ("mmol/L", [3.9, 7.8], "percent_in_tight_range"),
        ("mmol/L", [10.1, 13.9], "percent_181_250"),
        ("mmol/L", [14.0], "percent_above_250"),
        ("mmol/L", [3.5, 7.8], "percent_in_pregnancy_range"),
    ],
)
def test_limits_are_those_of_the_unit_it_was_written_in(unit: str, values: list[float], band: str) -> None:
    """10.0 mmol/L is in range, though it is 180.16 mg/dL."""
    assert period(readings(values, unit=unit))[band] == 100.0


def test_readings_stand_for_time_where_sensors_differ() -> None:
    """A day of one at 300 every 5 minutes, a day of another at 100 every 15: half of the time each."""
    both = pd.concat(
        [readings(np.full(288, 300.0)), readings(np.full(96, 100.0), start="2026-03-02", every=15)]
    )
    row = period(both)
    assert (row["percent_above_250"], row["percent_in_range"], row["mean_mg_dl"]) == (50.0, 50.0, 200.0)
    assert row["percent_active"] == pytest.approx(100 * 2 / 14)


def test_two_wears_months_apart() -> None:
    """Only the fixed window counts, and most of it nobody measured."""
    row = period(pd.concat([readings(WAVES), readings(np.full(288, 100.0), start="2026-09-01")]))
    assert (row["mean_mg_dl"], row["n_days"], row["sufficient"]) == (100.0, 1, False)
    assert row["percent_active"] == pytest.approx(100 / 14)
    assert np.isnan(row["gmi_percent"])
    assert row["start_date"] == pd.Timestamp("2026-08-19")


def test_a_day_of_23_hours_can_be_full() -> None:
    morning = readings(np.full(24, 100.0), start="2026-03-29", offset=60)
    rest = readings(np.full(252, 100.0), start="2026-03-29 03:00", offset=120)
    assert glucose_daily(pd.concat([morning, rest]))["percent_active"].tolist() == [100.0]


def test_low_and_high_are_kept_and_counted() -> None:
    frame = readings([39, 39, 100, 401])
    frame["censored"] = ["low", "low", None, "high"]
    row = glucose_daily(frame).iloc[0]
    assert (row["n_censored_low"], row["n_censored_high"], row["n_readings"]) == (2, 1, 4)
    assert (row["percent_below_54"], row["percent_above_250"]) == (50.0, 25.0)


@pytest.mark.parametrize(
    ("values", "episodes"),
    [
        ([100, 65, 65, 100, 100, 100], 0),  # ten minutes
        ([100, 65, 65, 65, 100, 100, 100], 1),
        ([65, 65, 65, 100, 100, 65, 65, 65, 100, 100, 100], 1),  # ten minutes back do not end it
        ([65, 65, 65, 100, 100, 100, 65, 65, 65], 2),
        ([65, 65, 65, *[np.nan] * 9, 65, 65, 65], 2),  # a gap of 50 minutes does
        ([65, 65, 65, *[np.nan] * 8, 65, 65, 65], 1),
        ([65, *[np.nan] * 3, 65], 1),
    ],
)
def test_episodes_by_hand(values: list[float], episodes: int) -> None:
    row = glucose_daily(readings(values, start="2026-03-01 08:00")).iloc[0]
    assert row["hypo_episodes"] == episodes
    mirrored = glucose_daily(readings(250 - np.asarray(values), start="2026-03-01 08:00")).iloc[0]
    assert mirrored["hyper_episodes"] == episodes


def test_levels_and_length_of_episodes() -> None:
    long = [60] * 12 + [50] * 4 + [60] * 9 + [100] * 4
    row = glucose_daily(readings(long, start="2026-03-01 08:00")).iloc[0]
    assert (row["hypo_episodes"], row["hypo_episodes_level_2"], row["extended_hypo_episodes"]) == (1, 1, 1)
    # One reading every 15 minutes: two make an episode, one does not.
    sparse = readings([100, 60, 100, 100, 60, 60, 100], start="2026-03-01 08:00", every=15)
    assert glucose_daily(sparse)["hypo_episodes"].tolist() == [1]


def test_an_episode_belongs_to_the_day_it_starts_on() -> None:
    days = glucose_daily(readings([100, 65, 65, 65, 65, 100, 100, 100], start="2026-03-01 23:50"))
    assert days["hypo_episodes"].tolist() == [1, 0]


def test_modd_by_hand() -> None:
    days = glucose_daily(readings([*[100.0] * 288, *[112.0] * 288]))
    assert np.isnan(days["modd"].iloc[0])
    assert days["modd"].iloc[1] == 12.0


def test_mage_by_hand() -> None:
    """Swings between 80 and 180, with a ripple under one standard deviation that is no excursion."""
    hours = np.arange(288 * 2) / 12
    values = 130 - 50 * np.cos(2 * np.pi * hours / 6) + 4 * np.sin(2 * np.pi * hours / 0.7)
    row = period(readings(values))
    assert row["mage"] == pytest.approx(100, abs=9)
    assert 14 <= row["mage_excursions"] <= 17
    assert np.isnan(period(readings(values[:200]))["mage"])
    assert period(readings(np.full(576, 100.0)))["mage_excursions"] == 0


def test_profile_by_hand() -> None:
    """Fourteen days at 101 to 114: percentiles of the numbers 101 to 114 all around the clock."""
    profile = agp(readings(np.repeat(np.arange(101.0, 115.0), 288)))
    assert len(profile) == 96
    expected = np.percentile(np.repeat(np.arange(101.0, 115.0), 3), [5, 25, 50, 75, 95])
    for _, row in profile.iterrows():
        assert row[["p05", "p25", "p50", "p75", "p95"]].tolist() == pytest.approx(expected.tolist(), abs=1e-9)
    assert set(profile["n_days"]) == {14}


def test_profile_goes_on_over_midnight_and_never_crosses() -> None:
    profile = agp(readings(WAVES + np.random.default_rng(3).normal(0, 15, len(WAVES))))
    lines = profile[["p05", "p25", "p50", "p75", "p95"]].to_numpy()
    assert (np.diff(lines, axis=1) >= 0).all()
    jumps = np.abs(np.diff(np.vstack([lines, lines[:1]]), axis=0))
    assert jumps[-1].max() <= jumps[:-1].max()


def test_profile_says_nothing_of_hours_nobody_measured() -> None:
    values = np.where((STEPS % 288) < 72, np.nan, 100.0)
    profile = agp(readings(values))
    night = profile["minute_of_day"] < 360
    assert profile.loc[night, "p50"].isna().all()
    assert (profile.loc[~night, "p50"] == 100.0).all()
    assert agp(readings(WAVES[: 4 * 288]))["p50"].isna().all()


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10_000), zone=st.integers(-11, 12))
def test_order_repeats_other_people_and_zone_change_nothing(seed: int, zone: int) -> None:
    rng = np.random.default_rng(seed)
    people = []
    for user in (1, 2, 3):
        values = 140 + 40 * rng.normal(size=288 * 3).cumsum() / 12
        values = np.clip(np.rint(values), 40, 400)
        values[rng.random(len(values)) < 0.15] = np.nan
        people.append(readings(values, user=user, every=int(rng.choice([5, 15]))))
    everybody = pd.concat(people, ignore_index=True)
    alone = pd.concat([people[1], people[1].head(9)]).sample(frac=1, random_state=seed)
    moved = alone.assign(
        recorded_at=alone["recorded_at"] - pd.Timedelta(hours=zone), utc_offset_minutes=zone * 60
    )
    for function in (glucose_daily, glucose_periods, agp):
        full = function(everybody)
        mine = full[full["user_id"] == 2].reset_index(drop=True)
        assert_frame_equal(function(alone), mine, check_exact=True)
        assert_frame_equal(function(moved), mine, check_exact=True)


def test_more_sugar_is_more_of_everything_high() -> None:
    rows = [period(readings(WAVES + more)) for more in (0, 10, 20, 40)]
    for name in ("mean_mg_dl", "gmi_percent", "hbgi", "percent_above_250"):
        values = [row[name] for row in rows]
        assert values == sorted(values)
    lows = [row["lbgi"] for row in rows]
    assert lows == sorted(lows, reverse=True)


def test_nothing_in_gives_an_empty_frame() -> None:
    nothing = readings([])
    for function in (glucose_daily, glucose_periods, agp):
        assert function(nothing).empty
    assert len(glucose_daily(readings([100.0]))) == 1


def test_a_missing_column_is_named() -> None:
    with pytest.raises(ValueError, match="readings lacks censored"):
        glucose.glucose_daily(readings([100.0]).drop(columns="censored"))
