"""The synthetic people: chance that does not depend on the asking, and a physiology that hangs together."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from health_pipeline.sandbox import noise
from health_pipeline.sandbox.activity import SOURCES, activity, heart_rate
from health_pipeline.sandbox.glucose import meals, readings
from health_pipeline.sandbox.life import Day, Life, life_of
from health_pipeline.sandbox.night import nights
from health_pipeline.sandbox.people import EPOCH, person, population
from health_pipeline.sandbox.truth import truth

ROOT = Path(__file__).parents[2]
YEAR = dt.date(2025, 1, 1), dt.date(2025, 12, 31)
HANDLES = [p.handle for p in population()]


def year(handle: str) -> list[Day]:
    return life_of(person(handle)).days(*YEAR)


def test_the_sandbox_imports_nothing_else_of_the_package() -> None:
    code = (
        "import sys, health_pipeline.sandbox.server, health_pipeline.sandbox.samples\n"
        "print([m for m in sys.modules if m.startswith('health_pipeline.') "
        "and not m.startswith('health_pipeline.sandbox')])\n"
        "print([m for m in ('pandas', 'pyarrow', 'dagster', 'dlt') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


@given(st.integers(0, 2**63), st.integers(-1000, 1000), st.integers(1, 200), st.integers(0, 50))
def test_noise_is_a_function_of_its_index(stream: int, start: int, count: int, skip: int) -> None:
    for draw in (
        noise.uniform,
        noise.normal,
        lambda *a: noise.smooth(*a, 5),
        lambda *a: noise.smooth(*a, 5, rounded=True),
    ):
        whole = draw(stream, start, count + skip)
        np.testing.assert_allclose(draw(stream, start + skip, count), whole[skip:], rtol=0, atol=1e-12)


def test_noise_has_the_moments_it_promises() -> None:
    drawn = noise.normal(noise.key("moments"), 0, 100_000)
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.02
    assert abs(noise.smooth(noise.key("m"), 0, 100_000, 10, rounded=True).std() - 1) < 0.05


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(HANDLES), st.dates(EPOCH, dt.date(2027, 6, 1)), st.integers(0, 400))
def test_a_day_does_not_depend_on_what_was_asked_before(handle: str, date: dt.date, later: int) -> None:
    direct, around = Life(person(handle)), Life(person(handle))
    around.day(date + dt.timedelta(days=later))
    assert direct.day(date) == around.day(date)


def test_another_seed_is_another_life() -> None:
    ours, other = person("ada"), person("ada", seed=7)
    assert truth(ours, EPOCH, dt.date(2024, 1, 5)) != truth(other, EPOCH, dt.date(2024, 1, 5))
    assert ours.uuid("x") != other.uuid("x")


def test_nothing_before_the_epoch() -> None:
    assert Life(person("ben")).days(EPOCH - dt.timedelta(days=9), EPOCH)[0].date == EPOCH


def test_five_people_two_with_a_sensor() -> None:
    assert HANDLES == ["ada", "ben", "chen", "dana", "eli"]
    assert {p.handle: p.cgm for p in population() if p.cgm} == {"ada": "healthy", "dana": "type_1"}
    with pytest.raises(KeyError, match="nobody in the sandbox is called 'zoe'"):
        person("zoe")
    with pytest.raises(ValueError, match="eli wears no glucose sensor"):
        readings(person("eli"), *YEAR)


@pytest.mark.parametrize("handle", ["ada", "ben", "chen"])
def test_hard_training_lowers_the_next_nights_hrv_and_raises_its_heart_rate(handle: str) -> None:
    days = [d for d in year(handle) if d.illness == 0]
    pairs = [(a, b) for a, b in pairwise(days) if (b.date - a.date).days == 1]
    hard = [b for a, b in pairs if a.load > 85]
    easy = [b for a, b in pairs if a.load == 0]
    assert min(len(hard), len(easy)) > 30
    assert fmean(d.hrv for d in hard) < 0.9 * fmean(d.hrv for d in easy)
    assert fmean(d.resting_heart_rate for d in hard) > 1.5 + fmean(d.resting_heart_rate for d in easy)


@pytest.mark.parametrize("handle", HANDLES)
def test_illness_raises_heart_rate_and_temperature_and_lowers_hrv_for_days(handle: str) -> None:
    days = year(handle)
    ill = [d for d in days if d.illness > 0.6]
    well = [d for d in days if d.illness == 0]
    assert 6 <= len(ill) <= 30
    assert fmean(d.resting_heart_rate for d in ill) > 4 + fmean(d.resting_heart_rate for d in well)
    assert fmean(d.temperature for d in ill) > 0.5 + fmean(d.temperature for d in well)
    assert fmean(d.hrv for d in ill) < 0.85 * fmean(d.hrv for d in well)
    assert fmean(d.load for d in ill) < 0.3 * fmean(d.load for d in well)
    run = longest = 0
    for day in days:
        run = run + 1 if day.illness > 0 else 0
        longest = max(longest, run)
    assert 4 <= longest <= 7


def test_resting_heart_rate_falls_over_adas_season() -> None:
    days = [d for d in year("ada") if d.illness == 0]
    spring = fmean(d.resting_heart_rate for d in days if d.date.month == 3)
    winter = fmean(d.resting_heart_rate for d in days if d.date.month == 12)
    assert spring - winter > 5
    flat = [d for d in year("dana") if d.illness == 0]
    change = fmean(d.resting_heart_rate for d in flat if d.date.month == 3) - fmean(
        d.resting_heart_rate for d in flat if d.date.month == 12
    )
    assert abs(change) < 1.5


def test_one_day_is_like_the_last_and_weekends_are_not_like_weekdays() -> None:
    days = [d for d in year("eli") if d.illness == 0]
    heart = np.array([d.resting_heart_rate for d in days])
    assert np.corrcoef(heart[:-1], heart[1:])[0, 1] > 0.25
    waking = {
        end: fmean(d.wake - d.start for d in days if (d.date.weekday() >= 5) is end) for end in (True, False)
    }
    assert waking[True] > waking[False] + 40 * 60


@pytest.mark.parametrize("handle", HANDLES)
def test_some_nights_and_some_parts_of_days_are_missing(handle: str) -> None:
    days = year(handle)
    missing = sum(not d.night_worn for d in days) / len(days)
    assert 0.015 < missing < 0.2
    life = life_of(person(handle))
    worn = [activity(life, d).worn.mean() for d in days[:90]]
    assert sum(0.3 < share < 0.97 for share in worn) > 15


def test_flying_to_new_york_and_back_changes_offsets_and_the_length_of_days() -> None:
    life = life_of(person("ben"))
    days = life.days(dt.date(2026, 8, 20), dt.date(2026, 9, 1))
    offsets = {str(d.date): life.timeline.offset_seconds(d.start) / 3600 for d in days}
    assert offsets["2026-08-24"] == 2
    assert offsets["2026-08-25"] == offsets["2026-08-29"] == -4
    assert offsets["2026-08-30"] == 2
    hours = {str(d.date): (d.end - d.start) / 3600 for d in days if d.end - d.start != 86_400}
    assert hours == {"2026-08-24": 30, "2026-08-29": 18}
    night = next(d for d in days if d.date == dt.date(2026, 8, 30))
    assert life.timeline.local(night.bed).utcoffset() == dt.timedelta(hours=-4)
    assert life.timeline.local(night.wake).utcoffset() == dt.timedelta(hours=2)


def test_the_date_line_stretches_one_date_and_skips_another() -> None:
    life = life_of(person("chen"))
    dates = [d.date for d in life.days(dt.date(2026, 10, 20), dt.date(2026, 11, 15))]
    asked = {dt.date(2026, 10, 20) + dt.timedelta(days=n) for n in range(27)}
    skipped = asked - set(dates)
    assert len(skipped) == 1
    assert life.day(skipped.pop()) is None
    away = next(d for d in life.days(dates[0], dates[-1]) if d.end - d.start > 40 * 3600)
    assert away.flight_sleep is not None
    assert [n.kind for n in nights(life, away)].count("flight") == 1


@pytest.mark.parametrize("handle", HANDLES)
def test_days_follow_each_other_without_gap_or_overlap(handle: str) -> None:
    life = life_of(person(handle))
    days = life.days(dt.date(2024, 1, 1), dt.date(2026, 12, 31))
    for day, following in pairwise(days):
        assert day.end == following.start
        assert day.bed < day.wake < following.bed < following.wake
        assert 3 * 3600 < day.wake - day.bed < 12 * 3600, day
        assert life.timeline.local(day.wake).date() == day.date
        assert life.timeline.local(day.start).hour == 4


@pytest.mark.parametrize("handle", HANDLES)
def test_a_nights_numbers_agree_with_each_other(handle: str) -> None:
    life = life_of(person(handle))
    for day in life.days(dt.date(2026, 3, 1), dt.date(2026, 4, 30)):
        for night in nights(life, day):
            stages = sum(night.seconds_of(stage) for stage in (1, 2, 3))
            assert stages == night.total_sleep <= night.time_in_bed
            assert len(night.stages_5_min) == -(-night.time_in_bed // 300)
            assert night.stages.size == night.movement.size == -(-night.time_in_bed // 30)
            if night.kind != "rest":
                assert night.lowest_heart_rate <= np.nanmin(night.heart_rate)
                assert night.average_hrv == round(float(np.nanmean(night.hrv)))
        main = next(n for n in nights(life, day) if n.kind == "main")
        assert main.lowest_heart_rate == round(day.resting_heart_rate)
        assert main.average_hrv == pytest.approx(day.hrv, abs=1.5)


def test_heart_rate_is_in_order_and_high_in_training() -> None:
    life = life_of(person("chen"))
    samples = [heart_rate(life, d) for d in life.days(dt.date(2026, 5, 1), dt.date(2026, 6, 30))]
    time, bpm, source = (np.concatenate([getattr(s, n) for s in samples]) for n in ("time", "bpm", "source"))
    assert (np.diff(time) > 0).all()
    mean = {name: bpm[source == n].mean() for n, name in enumerate(SOURCES)}
    assert mean["workout"] > mean["awake"] + 35
    assert mean["sleep"] < mean["awake"]
    assert 30 < bpm.min() < bpm.max() < 200


def test_glucose_rises_after_meals() -> None:
    for handle, rise in (("ada", 15), ("dana", 35)):
        someone = person(handle)
        life = life_of(someone)
        seen = readings(someone, dt.date(2026, 5, 1), dt.date(2026, 5, 31))
        before, after = [], []
        for day in life.days(dt.date(2026, 5, 1), dt.date(2026, 5, 31)):
            for meal in meals(life, day):
                minutes = (seen.time - meal.time) / 60
                start, peak = (minutes > -10) & (minutes <= 5), (minutes > 35) & (minutes <= 75)
                if meal.carbs > 40 and start.any() and peak.any():
                    before.append(seen.mg_dl[start].mean())
                    after.append(seen.mg_dl[peak].mean())
        assert len(before) > 40
        assert fmean(after) - fmean(before) > rise


def test_glucose_is_that_of_a_healthy_person_and_of_one_with_type_1() -> None:
    healthy = readings(person("ada"), *YEAR).mg_dl
    assert 90 < healthy.mean() < 106
    assert ((healthy >= 70) & (healthy <= 180)).mean() > 0.995
    type_1 = readings(person("dana"), *YEAR)
    assert 140 < type_1.mg_dl.mean() < 180
    assert 0.5 < ((type_1.mg_dl >= 70) & (type_1.mg_dl <= 180)).mean() < 0.8
    assert type_1.low.any()
    assert type_1.high.any()


def test_a_sensor_reads_every_five_minutes_but_for_gaps() -> None:
    whole = readings(person("dana"), *YEAR, gaps=False)
    assert whole.time.size == 365 * 288
    assert set(np.diff(whole.time)) == {300}
    seen = readings(person("dana"), *YEAR)
    gaps = np.diff(seen.time) - 300
    assert 0.97 < seen.time.size / whole.time.size < 0.995
    assert (gaps >= 2 * 3600 - 300).sum() >= 30  # a new sensor each ten days
    assert np.isin(seen.time, whole.time).all()


def test_truth_tells_a_record_a_day_with_local_times() -> None:
    days = truth(person("dana"), dt.date(2026, 3, 7), dt.date(2026, 3, 9))
    assert [d["date"] for d in days] == ["2026-03-07", "2026-03-08", "2026-03-09"]
    assert [d["utc_offset_seconds"] for d in days] == [-21_600, -18_000, -18_000]
    assert [d["day_seconds"] for d in days] == [82_800, 86_400, 86_400]
    for day in days:
        assert day["sleep_seconds"] == sum(day[f"{s}_sleep_seconds"] for s in ("deep", "light", "rem"))
        assert day["time_in_bed_seconds"] == day["sleep_seconds"] + day["awake_seconds"]
        assert day["steps_recorded"] <= day["steps"]
        assert 60 < day["glucose_mean_mg_dl"] < 300
