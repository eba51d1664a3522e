"""Training load: sessions counted once, rest told from missing, averages by hand and continued."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal

from health_pipeline.engine.training_load import training_loads

#: A division by zero that happens to come out as null is still a mistake.
pytestmark = pytest.mark.filterwarnings("error")

START = dt.date(2026, 3, 1)


def day(offset: int) -> dt.date:
    return START + dt.timedelta(days=offset)


def session(
    offset: int, minutes: float, intensity: str | None = "moderate", *, at=17 * 60.0, user=1, source="oura"
) -> dict:
    begin = pd.Timestamp(day(offset), tz="UTC") + pd.Timedelta(minutes=at)
    return {
        "user_id": user,
        "local_date": pd.Timestamp(day(offset)),
        "started_at": begin,
        "ended_at": begin + pd.Timedelta(minutes=minutes),
        "activity": "running",
        "intensity": intensity,
        "perceived_exertion": np.nan,
        "source": source,
    }


def workouts(*sessions: dict) -> pd.DataFrame:
    columns = list(session(0, 1))
    frame = pd.DataFrame(list(sessions), columns=columns)
    return frame.astype({"started_at": "datetime64[us, UTC]", "ended_at": "datetime64[us, UTC]"})


def worn(*offsets: int, user=1, metric="resting_heart_rate", value=55.0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user_id": user,
            "local_date": pd.to_datetime([day(offset) for offset in offsets]),
            "metric_type": metric,
            "value": value,
            "source": "oura",
        }
    )


def exactly_equal(left: pd.DataFrame, right: pd.DataFrame) -> None:
    assert_frame_equal(left.reset_index(drop=True), right.reset_index(drop=True), check_exact=True)


def test_load_is_minutes_by_intensity() -> None:
    frame = workouts(
        session(0, 60, "hard"),
        session(1, 30, "easy"),
        session(1, 20, "moderate", at=1200),
        session(2, 40, None),
    )
    result = training_loads(frame, worn(3), (day(0), day(4)))
    assert result["load"].tolist()[:4] == [480.0, 190.0, 200.0, 0.0]
    assert np.isnan(result["load"].iloc[4])
    assert result["load_method"].iloc[:4].tolist() == ["duration_intensity"] * 3 + ["none"]
    assert result["load_method"].isna().tolist() == [False] * 4 + [True]
    assert result["intensity_assumed"].tolist() == [False, False, True, False, False]
    assert result["workout_count"].tolist() == [1, 2, 1, 0, 0]
    assert result["worn"].tolist() == [False, False, False, True, False]


def test_this_week_against_the_three_before() -> None:
    """21 days of 30 minutes, then 7 of 45: 1.5 times the usual, the two not overlapping."""
    training = [session(i, 30 if i < 21 else 45) for i in range(28)]
    result = training_loads(workouts(*training), worn(*range(28)), (day(0), day(27)))
    assert result["acute_chronic_ratio"].isna().tolist() == [True] * 27 + [False]
    assert result["acute_chronic_ratio"].iloc[-1] == pytest.approx(1.5)
    resting = training_loads(workouts(), worn(*range(40)), (day(0), day(39)))
    assert resting["acute_chronic_ratio"].isna().all()
    gaps = [offset for offset in range(40) if offset not in range(34, 38)]
    sparse = training_loads(workouts(*(session(i, 30) for i in gaps)), worn(*gaps), (day(0), day(39)))
    known = sparse["acute_chronic_ratio"].notna()
    assert known.iloc[36] and not known.iloc[37] and not known.iloc[39]


def test_rest_lowers_the_averages_and_missing_days_hold_them() -> None:
    training = [session(offset, 60) for offset in range(14)]
    result = training_loads(workouts(*training), worn(14, 17), (day(0), day(18))).set_index("local_date")
    acute = result["acute_load"].to_numpy()
    assert acute[:14].tolist() == [300.0] * 14
    assert acute[14] == pytest.approx(300 * 6 / 7)
    assert acute[15] == acute[16] == acute[14]
    assert acute[17] == pytest.approx(acute[14] * 6 / 7)
    assert result["chronic_load"].iloc[17] == pytest.approx(300 * (41 / 42) ** 2)
    assert result["missing_days"].tolist() == [0] * 15 + [1, 2, 0, 1]
    assert result["days_of_history"].tolist() == [*range(1, 16), 15, 15, 16, 16]


def test_averages_start_from_the_mean_of_the_first_14_days_with_data() -> None:
    minutes = [20, 90, 0, 45, 60, 0, 30, 120, 15, 0, 75, 40, 0, 50, 80, 10]
    training = [session(i, m) for i, m in enumerate(minutes) if m]
    result = training_loads(workouts(*training), worn(*range(16)), (day(0), day(15)))
    mean = np.mean(minutes[:14]) * 5
    assert result["acute_load"].iloc[13] == result["chronic_load"].iloc[13] == pytest.approx(mean)
    acute, chronic = mean, mean
    for m in minutes[14:]:
        acute += (m * 5 - acute) / 7
        chronic += (m * 5 - chronic) / 42
    assert result["acute_load"].iloc[15] == pytest.approx(acute)
    assert result["chronic_load"].iloc[15] == pytest.approx(chronic)


def test_stress_balance_is_that_of_the_evening_before_and_null_at_first() -> None:
    frame = workouts(*(session(i, 30 + 10 * (i % 3)) for i in range(20)))
    result = training_loads(frame, worn(0), (day(0), day(19)))
    assert result["stress_balance"].isna().tolist() == [True] * 14 + [False] * 6
    difference = (result["chronic_load"] - result["acute_load"]).to_numpy()
    assert result["stress_balance"].to_numpy()[14:].tolist() == difference[13:19].tolist()


@pytest.mark.parametrize(
    ("evidence", "load"),
    [
        (worn(0, metric="steps", value=4000.0), 0.0),
        (worn(0, metric="steps", value=0.0), None),
        (worn(0, metric="heart_rate_variability", value=40.0), 0.0),
        (worn(0, metric="weight", value=70.0), None),
    ],
)
def test_rest_needs_wear_evidence(evidence: pd.DataFrame, load: float | None) -> None:
    result = training_loads(workouts(session(-1, 30)), evidence, (day(0), day(0)))
    assert result["load"].tolist() == [load] if load is not None else result["load"].isna().all()


def test_one_session_from_two_sources_counts_once_and_lends_its_intensity() -> None:
    frame = workouts(
        session(0, 61, None, source="strava", at=1000), session(0, 60, "hard", source="oura", at=1001)
    )
    row = training_loads(frame, worn(0), (day(0), day(0))).iloc[0]
    assert row["load"] == 61 * 8
    assert (row["workout_count"], row["intensity_assumed"]) == (1, False)


@pytest.mark.parametrize(("shift", "count"), [(29, 1), (30, 2), (60, 2)])
def test_more_than_half_of_the_shorter_one_must_be_shared(shift: int, count: int) -> None:
    frame = workouts(session(0, 60), session(0, 60, source="strava", at=17 * 60 + shift))
    assert training_loads(frame, worn(0), (day(0), day(0)))["workout_count"].tolist() == [count]


def test_a_session_is_dropped_for_a_kept_one_only() -> None:
    """The middle record repeats the longest; the last repeats the middle one alone, so it stays."""
    frame = workouts(
        session(0, 100, at=600), session(0, 60, at=665, source="b"), session(0, 30, at=706, source="c")
    )
    row = training_loads(frame, worn(0), (day(0), day(0))).iloc[0]
    assert (row["workout_count"], row["load"]) == (2, 130 * 5)


def test_another_users_session_at_the_same_time_is_another_session() -> None:
    frame = workouts(session(0, 60), session(0, 60, user=2))
    assert training_loads(frame, worn(0), (day(0), day(0)))["load"].tolist() == [300.0, 300.0]


def test_two_records_on_both_sides_of_midnight_are_one_session() -> None:
    late = session(0, 60, at=24 * 60 - 1)
    early = session(1, 58, at=1, source="strava")
    both = workouts(late, early)
    full = training_loads(both, worn(0, 1), (day(0), day(1)))
    assert full["load"].tolist() == [300.0, 0.0]
    again = training_loads(both, worn(1), (day(1), day(1)), previous=full.head(1))
    exactly_equal(again, full.tail(1))


def test_rows_begin_with_the_first_evidence() -> None:
    result = training_loads(workouts(session(5, 30)), worn(3, user=2), (day(0), day(6)))
    assert result.groupby("user_id")["local_date"].min().tolist() == [
        pd.Timestamp(day(5)),
        pd.Timestamp(day(3)),
    ]
    assert result.groupby("user_id").size().tolist() == [2, 4]


def random_world(seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    rng = np.random.default_rng(seed)
    sessions, evidence = [], []
    for user in (1, 2, 3):
        begin = int(rng.integers(0, 25))
        days_worn = [i for i in range(begin, 60) if rng.random() < 0.8]
        evidence.append(worn(*days_worn, user=user))
        for offset in range(begin, 60):
            if rng.random() < 0.5:
                intensity = rng.choice(["easy", "moderate", "hard", None])
                at = float(rng.integers(300, 1435))
                sessions.append(session(offset, float(rng.integers(10, 120)), intensity, at=at, user=user))
                if rng.random() < 0.4:
                    sessions.append({**sessions[-1], "source": "strava", "intensity": None})
    return workouts(*sessions), pd.concat(evidence, ignore_index=True)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), cut=st.integers(1, 58), length=st.integers(0, 20))
def test_continuing_from_the_day_before_equals_everything_at_once(seed: int, cut: int, length: int) -> None:
    frame, daily = random_world(seed)
    full = training_loads(frame, daily, (day(0), day(80)))
    before = full[full.local_date == pd.Timestamp(day(cut - 1))]
    start, end = day(cut), day(cut + length)
    nearby = frame[frame.local_date.between(str(day(cut - 1)), str(day(cut + length + 1)))]
    evidence = daily[daily.local_date.between(str(start), str(end))]
    month = full[full.local_date < str(start)]
    asked = full[full.local_date.between(str(start), str(end))]
    exactly_equal(training_loads(nearby, evidence, (start, end), before, month), asked)
    # The same with all the history there is: what lies before the state is not added to it again.
    exactly_equal(training_loads(frame, daily, (start, end), before, month), asked)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_other_users_and_repeats_change_nothing(seed: int) -> None:
    frame, daily = random_world(seed)
    full = training_loads(frame, daily, (day(0), day(60)))
    mine = frame[frame.user_id == 2]
    mine = pd.concat([mine, mine.head(5)]).sample(frac=1, random_state=seed)
    alone = training_loads(mine, daily[daily.user_id == 2].sample(frac=1, random_state=1), (day(0), day(60)))
    exactly_equal(alone, full[full.user_id == 2])


def test_a_state_of_another_day_is_refused() -> None:
    full = training_loads(workouts(session(0, 30)), worn(0, 1), (day(0), day(3)))
    with pytest.raises(ValueError, match=r"1 rows of other days .*\(2026-03-02\)"):
        training_loads(workouts(), worn(2), (day(2), day(3)), previous=full.head(1))


def test_a_word_that_is_no_intensity_is_named() -> None:
    with pytest.raises(ValueError, match="'vigorous'; known are easy, moderate, hard"):
        training_loads(workouts(session(0, 30, "vigorous")), worn(0), (day(0), day(0)))


def test_sessions_without_duration_count_for_nothing() -> None:
    frame = workouts(session(0, 0), session(0, -5, source="b"))
    assert training_loads(frame, worn(0), (day(0), day(0)))["workout_count"].tolist() == [0]


def test_nothing_in_gives_an_empty_frame() -> None:
    assert training_loads(workouts(), worn(), (day(0), day(3))).empty


# From heart rate


def pulse(
    *bpm: float, at: float = 17 * 60.0, every: int = 1, user: int = 1, source: str = "oura"
) -> pd.DataFrame:
    first = pd.Timestamp(day(0), tz="UTC") + pd.Timedelta(minutes=at)
    minutes = [first + pd.Timedelta(minutes=every * place) for place in range(len(bpm))]
    return pd.DataFrame(
        {"user_id": user, "minute": pd.to_datetime(minutes), "source": source, "bpm": list(bpm)}
    )


def profile(sex: str | None = "male", birth_year: float = np.nan, highest: float = 190.0) -> pd.DataFrame:
    return pd.DataFrame(
        {"user_id": [1], "sex": [sex], "birth_year": [birth_year], "max_heart_rate": [highest]}
    )


def by_heart(frame: pd.DataFrame, beats: pd.DataFrame, who: pd.DataFrame, rest: float = 50.0) -> pd.Series:
    result = training_loads(frame, worn(-3, value=rest), (day(0), day(0)), heart_rate=beats, profiles=who)
    return result[result["local_date"] == pd.Timestamp(day(0))].iloc[0]


def test_impulses_are_summed_minute_by_minute() -> None:
    """Half at r = 0.9, half at r = 0.3: by the session's mean, r = 0.6, it would be less."""
    beats = pulse(*[176.0] * 20, *[92.0] * 20)
    found = by_heart(workouts(session(0, 40)), beats, profile())
    expected = 20 * (0.9 * 0.64 * np.exp(1.92 * 0.9) + 0.3 * 0.64 * np.exp(1.92 * 0.3))
    assert found["banister_trimp"] == pytest.approx(expected)
    assert expected > 40 * 0.6 * 0.64 * np.exp(1.92 * 0.6)
    # 176 of 190 is zone 5, 92 is under zone 1.
    assert found["edwards_trimp"] == pytest.approx(20 * 5)
    assert (found["load_method"], found["heart_rate_share"]) == ("banister", 1.0)
    unit = 5 / (0.6 * 0.64 * np.exp(1.92 * 0.6))
    assert found["load"] == pytest.approx(expected * unit)


@pytest.mark.parametrize("sex", ["male", "female"])
def test_an_hour_at_the_reference_counts_five_a_minute_for_everybody(sex: str) -> None:
    found = by_heart(workouts(session(0, 60)), pulse(*[134.0] * 60), profile(sex))
    assert found["load"] == pytest.approx(300.0)
    edwards = by_heart(workouts(session(0, 60)), pulse(*[140.0] * 60), profile(None))
    assert (edwards["load_method"], edwards["load"]) == ("edwards", pytest.approx(300.0))
    assert np.isnan(edwards["banister_trimp"])


def test_the_highest_heart_rate_is_by_age_where_nobody_said_it() -> None:
    frame, beats = workouts(session(0, 30)), pulse(*[150.0] * 30)
    said = by_heart(frame, beats, profile(highest=208 - 0.7 * 40))
    assert by_heart(frame, beats, profile(birth_year=1986, highest=np.nan))["load"] == said["load"]
    unknown = by_heart(frame, beats, profile(highest=np.nan))
    assert (unknown["load_method"], unknown["load"]) == ("duration_intensity", 150.0)
    nobody = by_heart(frame, beats, profile().assign(user_id=2))
    assert nobody["load_method"] == "duration_intensity"


def test_sparse_samples_stand_for_five_minutes_and_half_a_session_is_enough() -> None:
    frame = workouts(session(0, 40))
    whole = by_heart(frame, pulse(*[134.0] * 8, every=5), profile())
    assert whole["load"] == pytest.approx(200.0)
    half = by_heart(frame, pulse(*[134.0] * 4, every=5), profile())
    assert (half["load_method"], half["load"]) == ("banister", pytest.approx(200.0))
    less = by_heart(frame, pulse(*[134.0] * 3, every=5), profile())
    assert (less["load_method"], less["load"]) == ("duration_intensity", 200.0)


def test_a_session_listens_to_its_own_source_first() -> None:
    frame = workouts(session(0, 30, source="strava"))
    beats = pd.concat([pulse(*[100.0] * 30), pulse(*[134.0] * 20, source="strava")], ignore_index=True)
    assert by_heart(frame, beats, profile())["load"] == pytest.approx(150.0)
    few = pd.concat([pulse(*[134.0] * 30), pulse(*[180.0] * 5, source="strava")], ignore_index=True)
    assert by_heart(frame, few, profile())["load"] == pytest.approx(150.0)


def test_own_rating_comes_before_a_word_and_after_the_heart() -> None:
    rated = session(0, 30, "easy") | {"perceived_exertion": 7.0}
    found = by_heart(workouts(rated), pulse(), profile())
    assert (found["load_method"], found["load"], found["intensity_assumed"]) == ("session_rpe", 210.0, False)
    assert by_heart(workouts(rated), pulse(*[134.0] * 30), profile())["load"] == pytest.approx(150.0)
    both = workouts(rated, session(0, 20, "easy", at=600))
    mixed = by_heart(both, pulse(), profile())
    assert (mixed["load_method"], mixed["load"]) == ("mixed", 270.0)
    # One session of two records: the longer one takes the other's rating.
    lent = workouts(session(0, 31, "hard", at=1019, source="strava"), rated)
    assert by_heart(lent, pulse(), profile())["load"] == 31 * 7.0


def test_what_others_did_and_the_order_of_rows_change_nothing() -> None:
    rng = np.random.default_rng(3)
    frame = workouts(*(session(i, 45, at=600 + 7 * i) for i in range(6)))
    beats = pd.concat(
        [pulse(*rng.uniform(90, 180, 45), at=1440 * i + 600 + 7 * i) for i in range(6)], ignore_index=True
    )
    rest = worn(*range(6), value=52.0)
    alone = training_loads(frame, rest, (day(0), day(5)), heart_rate=beats, profiles=profile())
    assert set(alone["load_method"]) == {"banister"}
    other = {"user_id": 2}
    everybody = training_loads(
        pd.concat([frame.assign(**other), frame.iloc[::-1]], ignore_index=True),
        pd.concat([rest, rest.assign(**other)], ignore_index=True),
        (day(0), day(5)),
        heart_rate=pd.concat([beats.sample(frac=1, random_state=1), beats.assign(bpm=99.0, **other)]),
        profiles=pd.concat([profile("female").assign(**other), profile()], ignore_index=True),
    )
    exactly_equal(everybody[everybody["user_id"] == 1], alone)
    harder = beats.assign(bpm=beats["bpm"] + 5)
    more = training_loads(frame, rest, (day(0), day(5)), heart_rate=harder, profiles=profile())
    assert (more["load"] > alone["load"]).all()


@pytest.mark.parametrize("zone", ["Asia/Kathmandu", "America/St_Johns"])
def test_instants_are_the_same_in_any_zone(zone: str) -> None:
    frame = workouts(session(0, 45), session(1, 30, source="strava"))
    beats, rest = pulse(*np.linspace(90, 170, 45)), worn(*range(2), value=52.0)
    span = (day(0), day(1))
    expected = training_loads(frame, rest, span, heart_rate=beats, profiles=profile())
    for column in ("started_at", "ended_at"):
        frame[column] = frame[column].dt.tz_convert(zone)
    beats["minute"] = beats["minute"].dt.tz_convert(zone)
    exactly_equal(training_loads(frame, rest, span, heart_rate=beats, profiles=profile()), expected)
