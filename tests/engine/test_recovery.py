"""Recovery: both methods by hand, when there is no score, what moves it which way, and why it says so."""

from __future__ import annotations

import datetime as dt
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from health_pipeline.engine.baselines import baselines
from health_pipeline.engine.recovery import recovery_scores
from health_pipeline.engine.training_load import training_loads

#: A division by zero that happens to come out as null is still a mistake.
pytestmark = pytest.mark.filterwarnings("error")

START = dt.date(2026, 3, 1)
TODAY = START + dt.timedelta(days=40)
HOUR = 3600.0
#: What the person of these tests is used to: centre (metric unit) and scale (transformed unit).
USUAL = {
    "stress_score": (30.0, 6.0),
    "sleep_duration": (7.5 * HOUR, HOUR),
    "sleep_efficiency": (88.0, 4.0),
    "resting_heart_rate": (50.0, 2.0),
    "heart_rate_variability": (50.0, 0.2),
}
ORDINARY = {"stress_score": 30.0, "sleep_duration": 8 * HOUR, "resting_heart_rate": 50.0}
LOADS = {"acute_load": 200.0, "chronic_load": 200.0, "days_of_history": 40, "missing_days": 0}


def marks(z: float) -> float:
    return 100 * NormalDist().cdf(0.67 - z)


def score(
    values: dict[str, float], load: dict | None = LOADS, *, n: int = 40, source="oura", known=tuple(USUAL)
) -> pd.DataFrame:
    """Both rows of one user's day, by method."""
    daily = pd.DataFrame(
        {
            "user_id": 1,
            "local_date": pd.Timestamp(TODAY),
            "metric_type": list(values),
            "value": list(values.values()),
            "source": "oura",
        }
    )
    base = pd.DataFrame(
        [
            {
                "user_id": 1,
                "local_date": pd.Timestamp(TODAY),
                "metric_type": metric,
                "source": source,
                "baseline_center": np.log(center) if metric == "heart_rate_variability" else center,
                "baseline_scale": scale,
                "center_value": center,
                "n_days": n,
                "transform": "ln" if metric == "heart_rate_variability" else "identity",
            }
            for metric, (center, scale) in USUAL.items()
            if metric in known
        ],
        columns=[
            *("user_id", "local_date", "metric_type", "source", "baseline_center"),
            *("baseline_scale", "center_value", "n_days", "transform"),
        ],
    ).astype({"local_date": "datetime64[us]"})
    yesterday = pd.Timestamp(TODAY) - pd.Timedelta(days=1)
    loads = pd.DataFrame([{"user_id": 1, "local_date": yesterday, **(load or LOADS)}])
    result = recovery_scores(daily, base, loads if load else loads.head(0), (TODAY, TODAY))
    return result.set_index("method")


def test_an_ordinary_day_is_75_in_each_calibrated_component() -> None:
    row = score(ORDINARY).loc["calibrated"]
    assert row["stress_component"] == row["heart_rate_component"] == row["load_component"]
    assert row["load_component"] == pytest.approx(marks(0)) == pytest.approx(74.857, abs=0.001)
    assert row["sleep_component"] == pytest.approx(marks(0))
    assert row["recovery_score"] == pytest.approx(marks(0))
    assert (row["present_weight"], row["baseline_days"]) == (1.0, 40)


def test_calibrated_by_hand() -> None:
    values = {
        "stress_score": 39.0,  # z 1.5
        "sleep_duration": 6 * HOUR,  # an hour short: z 1
        "sleep_efficiency": 84.0,  # z 1 in the bad direction
        "resting_heart_rate": 47.0,  # z -1.5
    }
    row = score(values, {**LOADS, "acute_load": 300.0}).loc["calibrated"]  # (300 - 200) / 50: z 2
    assert row["stress_component"] == pytest.approx(marks(1.5))
    # Without regularity 0.70 of duration and 0.15 of efficiency stand alone, both of z 1.
    assert row["sleep_component"] == pytest.approx(marks(1))
    assert row["heart_rate_component"] == pytest.approx(marks(-1.5))
    assert row["load_component"] == pytest.approx(marks(2))
    expected = 0.25 * marks(1.5) + 0.30 * marks(1) + 0.20 * marks(-1.5) + 0.25 * marks(2)
    assert row["recovery_score"] == pytest.approx(expected)


def test_seed_by_hand() -> None:
    values = {"stress_score": 40.0, "sleep_duration": 6 * HOUR, "resting_heart_rate": 52.0}
    row = score(values, {**LOADS, "acute_load": 250.0}).loc["seed"]
    assert row["stress_component"] == pytest.approx(60)
    assert row["sleep_component"] == pytest.approx(75)
    assert row["heart_rate_component"] == pytest.approx(30)  # 4 % over the usual
    assert row["load_component"] == pytest.approx(25)  # a quarter over the usual
    assert row["recovery_score"] == pytest.approx(0.25 * 60 + 0.3 * 75 + 0.2 * 30 + 0.25 * 25)


@pytest.mark.parametrize(("bpm", "expected"), [(40.0, 100), (45.0, 100), (50.0, 50), (55.0, 0), (70.0, 0)])
def test_seed_heart_rate_is_bounded(bpm: float, expected: float) -> None:
    row = score({**ORDINARY, "resting_heart_rate": bpm}).loc["seed"]
    assert row["heart_rate_component"] == pytest.approx(expected)


def test_twelve_hours_of_sleep_are_full_in_seed_and_too_long_in_calibrated() -> None:
    rows = score({**ORDINARY, "sleep_duration": 12 * HOUR})
    assert rows.loc["seed", "sleep_component"] == 100
    assert rows.loc["calibrated", "sleep_component"] == pytest.approx(marks(1.5))


@pytest.mark.parametrize(
    "absent", [[], ["stress_score"], ["resting_heart_rate"], ["sleep_duration"], ["load"]]
)
def test_weights_are_spread_over_what_is_present(absent: list[str]) -> None:
    values = {metric: value for metric, value in ORDINARY.items() if metric not in absent}
    rows = score(values, None if "load" in absent else LOADS)
    names = ["stress", "sleep", "heart_rate", "load"]
    weights = rows[[f"weight_{name}" for name in names]].to_numpy()
    parts = rows[[f"{name}_component" for name in names]].to_numpy()
    assert weights.sum(axis=1) == pytest.approx(1)
    assert ((weights == 0) == np.isnan(parts)).all()
    assert (weights * np.nan_to_num(parts)).sum(axis=1) == pytest.approx(rows["recovery_score"].to_numpy())
    assert ((weights == 0).sum(axis=1) == len(absent)).all()


@pytest.mark.parametrize(
    ("present", "load", "weight"),
    [
        (["sleep_duration"], LOADS, 0.55),
        (["stress_score", "sleep_duration"], None, 0.55),
        (["sleep_duration", "resting_heart_rate"], None, None),
        (["stress_score", "resting_heart_rate"], None, None),
        (["stress_score"], LOADS, None),
        (["stress_score", "resting_heart_rate"], LOADS, 0.70),
    ],
)
def test_no_score_under_a_present_weight_of_55_percent(
    present: list[str], load: dict | None, weight: float | None
) -> None:
    rows = score({metric: ORDINARY[metric] for metric in present}, load)
    assert rows["present_weight"].tolist() == ([weight] * 2 if weight else [])


def test_no_score_before_there_is_a_baseline() -> None:
    assert score(ORDINARY, known=()).empty
    assert score(ORDINARY, source="garmin").empty  # the baseline of another device is none
    assert score(ORDINARY, n=13).empty
    only_sleep = score(ORDINARY, known=("sleep_duration",), n=14)
    assert only_sleep["baseline_days"].tolist() == [14, 14]
    assert only_sleep["heart_rate_component"].isna().all()


def test_no_score_in_the_first_14_days_and_one_after_from_real_baselines() -> None:
    days = pd.to_datetime([START + dt.timedelta(days=i) for i in range(20)])
    daily = pd.concat(
        pd.DataFrame(
            {"user_id": 1, "local_date": days, "metric_type": metric, "value": value, "source": "oura"}
        )
        for metric, value in ORDINARY.items()
    )
    span = (START, START + dt.timedelta(days=19))
    loads = training_loads(no_workouts(), daily, span)
    result = recovery_scores(daily, baselines(daily, span), loads, span)
    assert result.groupby("method")["local_date"].min().tolist() == [pd.Timestamp("2026-03-15")] * 2
    assert result["load_component"].isna().all()  # never a session: none reaches us


def test_stress_is_taken_from_heart_rate_variability_without_a_vendors_score() -> None:
    values = {"sleep_duration": 8 * HOUR, "heart_rate_variability": 50 * np.exp(-0.3)}
    rows = score(values)
    assert rows.loc["calibrated", "stress_component"] == pytest.approx(marks(1.5))
    assert np.isnan(rows.loc["seed", "stress_component"])
    both = score({**values, "stress_score": 30.0}).loc["calibrated"]
    assert both["stress_component"] == pytest.approx(marks(0))


@pytest.mark.parametrize(
    "change", [{"days_of_history": 13}, {"missing_days": 8}, {"chronic_load": 0.5, "acute_load": 0.0}]
)
def test_no_load_component_without_enough_to_stand_on(change: dict) -> None:
    assert score(ORDINARY, {**LOADS, **change})["load_component"].isna().all()


def test_a_deviation_counts_no_further_than_four() -> None:
    row = score({**ORDINARY, "resting_heart_rate": 58.0}).loc["calibrated"]
    wild = score({**ORDINARY, "resting_heart_rate": 110.0}).loc["calibrated"]
    assert row["heart_rate_component"] == wild["heart_rate_component"] == pytest.approx(marks(4))
    assert row["score_high"] == wild["score_high"]


def test_load_counts_from_the_evening_before() -> None:
    today = score(ORDINARY)
    assert today["load_component"].notna().all()
    base = START + dt.timedelta(days=41)
    assert score(ORDINARY, {**LOADS, "local_date": pd.Timestamp(base)})["load_component"].isna().all()


def test_one_walk_is_no_overload_for_who_does_not_train() -> None:
    row = score(ORDINARY, {**LOADS, "acute_load": 26.0, "chronic_load": 6.0}).loc["calibrated"]
    assert row["load_component"] == pytest.approx(marks(0.8))


def test_detraining_counts_mildly() -> None:
    fresh = score(ORDINARY, {**LOADS, "acute_load": 150.0}).loc["calibrated", "load_component"]
    idle = score(ORDINARY, {**LOADS, "acute_load": 50.0}).loc["calibrated", "load_component"]
    assert fresh == pytest.approx(marks(-1))
    assert idle == pytest.approx(marks(-0.5))


def test_range_of_one_component_by_hand_and_narrower_with_more_days() -> None:
    values = {"sleep_duration": 8 * HOUR, "stress_score": 39.0}
    row = score(values, None, n=20).loc["calibrated"]
    error = 1.25 * np.sqrt(1 / 20 + 1.5**2 / (2 * 19)) * NormalDist().inv_cdf(0.9)
    share = 25 / 55
    assert row["score_low"] == pytest.approx(
        row["recovery_score"] - share * (marks(1.5) - marks(1.5 + error))
    )
    assert row["score_high"] == pytest.approx(
        row["recovery_score"] + share * (marks(1.5 - error) - marks(1.5))
    )
    longer = score(values, None, n=60).loc["calibrated"]
    assert longer["score_high"] - longer["score_low"] < row["score_high"] - row["score_low"]


def test_errors_of_stress_and_heart_rate_add_up() -> None:
    n, p = 30, NormalDist().inv_cdf(0.9)
    row = score(ORDINARY, n=n).loc["calibrated"]
    below = marks(0) - marks(p * 1.25 * np.sqrt(1 / n))
    load = marks(0) - marks(p * 1.25 * np.sqrt(1 / 40))
    expected = np.hypot(0.45 * below, 0.25 * load)
    assert row["recovery_score"] - row["score_low"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "load", "method", "sentence"),
    [
        (
            {"stress_score": 33.0, "sleep_duration": 7 * HOUR + 2400, "resting_heart_rate": 48.0},
            {**LOADS, "acute_load": 260.0},
            "calibrated",
            "63: slept 7 h 40 min; resting heart rate 2 bpm under your usual 50; "
            "stress 3 above your usual 30; training load above your usual.",
        ),
        (
            {"stress_score": 33.0, "sleep_duration": 8 * HOUR, "resting_heart_rate": 50.0},
            None,
            "seed",
            "76: slept 8 h 0 min; resting heart rate at your usual 50; stress 33 of 100 "
            "(not known: training load).",
        ),
        (
            {"sleep_duration": 8 * HOUR, "heart_rate_variability": 44.0},
            LOADS,
            "calibrated",
            "67: slept 8 h 0 min; heart rate variability 12 % under your usual 50 ms; "
            "training load near your usual (not known: resting heart rate).",
        ),
    ],
)
def test_the_sentence_says_why(values: dict, load: dict | None, method: str, sentence: str) -> None:
    assert score(values, load).loc[method, "explanation"] == sentence


hours = st.floats(0, 16)
day_values = st.fixed_dictionaries(
    {
        "stress_score": st.floats(0, 100),
        "sleep_duration": hours.map(lambda h: h * HOUR),
        "sleep_efficiency": st.floats(40, 100),
        "resting_heart_rate": st.floats(30, 120),
        "heart_rate_variability": st.floats(5, 250),
    }
)


@settings(max_examples=25, deadline=None)
@given(values=day_values, n=st.integers(14, 60), acute=st.floats(0, 800))
def test_score_and_range_stay_on_the_scale(values: dict, n: int, acute: float) -> None:
    rows = score(values, {**LOADS, "acute_load": acute}, n=n)
    assert len(rows) == 2
    assert (rows["score_low"] >= 0).all()
    assert (rows["score_low"] <= rows["recovery_score"]).all()
    assert (rows["recovery_score"] <= rows["score_high"]).all()
    assert (rows["score_high"] <= 100).all()


@settings(max_examples=25, deadline=None)
@given(
    values=day_values,
    metric=st.sampled_from(
        ["resting_heart_rate", "stress_score", "heart_rate_variability", "sleep_duration"]
    ),
    other=st.floats(0, 1),
)
def test_each_part_moves_the_score_its_way_only(values: dict, metric: str, other: float) -> None:
    """More of what is bad never raises it; more sleep, up to the plateau, never lowers it."""
    limits = {
        "resting_heart_rate": (30.0, 120.0),
        "stress_score": (0.0, 100.0),
        "heart_rate_variability": (5.0, 250.0),
        "sleep_duration": (0.0, 9 * HOUR),
    }
    low, high = limits[metric]
    if metric == "heart_rate_variability":
        values = {name: value for name, value in values.items() if name != "stress_score"}
    first, second = sorted([min(values[metric], high), low + other * (high - low)])
    less = score({**values, metric: first})["recovery_score"]
    more = score({**values, metric: second})["recovery_score"]
    sign = -1 if metric in ("resting_heart_rate", "stress_score") else 1
    assert (sign * (more - less) >= -1e-9).all()


@settings(max_examples=15, deadline=None)
@given(one=st.floats(150, 800), other=st.floats(150, 800))
def test_more_load_than_usual_never_raises_the_score(one: float, other: float) -> None:
    less, more = sorted([one, other])
    rested = score(ORDINARY, {**LOADS, "acute_load": less})["recovery_score"]
    tired = score(ORDINARY, {**LOADS, "acute_load": more})["recovery_score"]
    assert (tired <= rested).all()


def no_workouts() -> pd.DataFrame:
    columns = [
        "user_id",
        "local_date",
        "started_at",
        "ended_at",
        "activity",
        "intensity",
        "source",
        "perceived_exertion",
    ]
    return pd.DataFrame({column: [] for column in columns}).astype(
        {
            "local_date": "datetime64[us]",
            "started_at": "datetime64[us, UTC]",
            "ended_at": "datetime64[us, UTC]",
        }
    )


def random_world(seed: int, n_days: int = 60) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    days = pd.date_range(START, periods=n_days, unit="us")
    parts, sessions = [], []
    for user in (1, 2, 3):
        for metric, (center, scale) in USUAL.items():
            scale = scale * center if metric == "heart_rate_variability" else scale
            there = rng.random(n_days) > rng.choice([0.05, 0.5])
            parts.append(
                pd.DataFrame(
                    {
                        "user_id": user,
                        "local_date": days[there],
                        "metric_type": metric,
                        "value": np.abs(rng.normal(center, scale, int(there.sum()))),
                        "source": np.where(np.arange(n_days)[there] < 35 + user, "oura", "garmin"),
                    }
                )
            )
        trained = days[rng.random(n_days) < 0.5]
        begin = (trained + pd.Timedelta(hours=17)).tz_localize("UTC")
        length = pd.to_timedelta(rng.integers(20, 100, len(trained)), unit="min")
        sessions.append(
            pd.DataFrame(
                {
                    "user_id": user,
                    "local_date": trained,
                    "started_at": begin,
                    "ended_at": begin + length,
                    "activity": "running",
                    "intensity": "hard",
                    "perceived_exertion": None,
                    "source": "oura",
                }
            )
        )
    return pd.concat(parts, ignore_index=True), pd.concat(sessions, ignore_index=True)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), first=st.integers(0, 59), length=st.integers(0, 15))
def test_a_part_computed_again_is_the_part_of_the_whole(seed: int, first: int, length: int) -> None:
    daily, sessions = random_world(seed)
    span = (START, START + dt.timedelta(days=75))
    loads, base = training_loads(sessions, daily, span), baselines(daily, span)
    full = recovery_scores(daily, base, loads, span)
    start, end = START + dt.timedelta(days=first), START + dt.timedelta(days=first + length)
    mine = daily[(daily.user_id == 2) & daily.local_date.between(str(start), str(end))]
    part = recovery_scores(
        mine.sample(frac=1, random_state=seed),
        base[base.user_id == 2].sample(frac=1, random_state=seed),
        loads[loads.user_id == 2].sample(frac=1, random_state=seed),
        (start, end),
    )
    asked = full[(full.user_id == 2) & full.local_date.between(str(start), str(end))]
    assert_frame_equal(part.reset_index(drop=True), asked.reset_index(drop=True), check_exact=True)


def test_baselines_of_devices_that_are_not_worn_any_more_do_not_matter() -> None:
    daily, sessions = random_world(2)
    span = (START, START + dt.timedelta(days=59))
    base, loads = baselines(daily, span), training_loads(sessions, daily, span)
    old = pd.concat([base, base.assign(source="old watch"), base.assign(source="older watch")])
    assert_frame_equal(recovery_scores(daily, old, loads, span), recovery_scores(daily, base, loads, span))


def test_a_baseline_given_twice_is_refused() -> None:
    daily, sessions = random_world(1)
    span = (START, START + dt.timedelta(days=59))
    base = baselines(daily, span)
    with pytest.raises(ValueError, match="baselines has 3 rows with the user_id, day, metric, source"):
        recovery_scores(daily, pd.concat([base, base.head(3)]), training_loads(sessions, daily, span), span)


def nights(*minutes: float | None, user: int = 1) -> pd.DataFrame:
    """The middles of sleeps of the days up to today, the last of them today's."""
    first = TODAY - dt.timedelta(days=len(minutes) - 1)
    known = [(first + dt.timedelta(days=place), at) for place, at in enumerate(minutes) if at is not None]
    return pd.DataFrame(
        {
            "user_id": user,
            "local_date": pd.to_datetime([day for day, _ in known]),
            "midpoint_minute": [at for _, at in known],
        }
    )


def slept(*frames: pd.DataFrame) -> float:
    """The sleep component of a night of eight hours; NaN regularity leaves it at an ordinary one's."""
    daily = pd.DataFrame(
        {
            "user_id": 1,
            "local_date": pd.Timestamp(TODAY),
            "metric_type": ["sleep_duration", "resting_heart_rate", "stress_score"],
            "value": [8 * HOUR, 50.0, 30.0],
            "source": "oura",
        }
    )
    days = pd.date_range(START, TODAY - dt.timedelta(days=1), unit="us")
    past = pd.concat(
        [daily.assign(local_date=day, value=daily["value"] + number % 3) for number, day in enumerate(days)]
    )
    whole = pd.concat([past, daily], ignore_index=True)
    base = baselines(whole, (TODAY, TODAY))
    loads = pd.DataFrame([{"user_id": 1, "local_date": pd.Timestamp(TODAY), **LOADS}]).head(0)
    found = recovery_scores(daily, base, loads, (TODAY, TODAY), pd.concat(frames) if frames else None)
    return float(found.set_index("method").loc["calibrated", "sleep_component"])


def test_a_night_at_an_unusual_hour_counts_less_across_midnight_too() -> None:
    around = [1430.0, 10.0] * 10  # ten minutes either side of midnight: held at a spread of 30
    assert slept() == pytest.approx(marks(0))
    assert slept(nights(*around, 0.0)) == pytest.approx(marks(-0.67 * 0.15 / 0.85))
    assert slept(nights(*around, 90.0)) == pytest.approx(marks((3 - 0.67) * 0.15 / 0.85))
    assert slept(nights(*around, 1350.0)) == pytest.approx(marks((3 - 0.67) * 0.15 / 0.85))
    assert slept(nights(*around, 720.0)) == pytest.approx(marks(4 * 0.15 / 0.85))


def test_regularity_needs_a_week_of_nights_and_looks_at_four() -> None:
    assert slept(nights(*[0.0] * 6, 300.0)) == pytest.approx(marks(0))
    assert slept(nights(*[0.0] * 7, 300.0)) < marks(0)
    # Nights of more than four weeks ago, at other hours, are forgotten; so is another person's.
    assert slept(nights(*[600.0] * 20, *[0.0] * 28, 0.0)) == slept(nights(*[0.0] * 28, 0.0))
    assert slept(nights(*[0.0] * 28, 0.0), nights(*[300.0] * 29, user=2)) == slept(nights(*[0.0] * 28, 0.0))


def test_who_goes_to_bed_at_all_hours_is_not_excused_by_it() -> None:
    wild = [0.0, 240.0] * 14  # a spread of two hours is held at one
    assert slept(nights(*wild, 240.0)) == pytest.approx(marks((2 - 0.67) * 0.15 / 0.85), abs=0.5)


@given(st.lists(st.floats(0, 1439), min_size=9, max_size=40), st.integers(0, 1439), st.randoms())
@settings(max_examples=40, deadline=None)
def test_a_shifted_clock_and_the_order_of_nights_change_nothing(
    middles: list[float], shift: int, random
) -> None:
    here = nights(*middles)
    moved = here.assign(midpoint_minute=(here["midpoint_minute"] + shift) % 1440)
    order = list(range(len(here)))
    random.shuffle(order)
    assert slept(moved.iloc[order]) == pytest.approx(slept(here), abs=1e-6)


@given(st.lists(st.floats(0, 60), min_size=10, max_size=28), st.floats(0, 300), st.floats(0, 300))
@settings(max_examples=40, deadline=None)
def test_a_night_farther_from_the_usual_never_counts_more(
    past: list[float], one: float, other: float
) -> None:
    near, far = sorted((one, other))
    # From the latest of the usual middles on: farther is later.
    assert slept(nights(*past, 60 + far)) <= slept(nights(*past, 60 + near)) + 1e-9
