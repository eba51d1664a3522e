"""Several sources of one day: each minute counts once, and whose word counts is what was asked for."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import dataclass

import pytest
from canonical_lab import Lab

from health_pipeline.runtime.preferences import prefer, preferences

UTC = dt.UTC
DAY = dt.date(2026, 3, 2)
MIDNIGHT = dt.datetime(2026, 3, 2, tzinfo=UTC)
#: In the order of the house's ranks.
RANKED = ("oura", "nightscout", "libreview", "glucose_csv")


@dataclass(frozen=True)
class Interval:
    """Minutes of the day, and what was counted in them."""

    source: str
    start: int
    end: int
    value: float
    device: str = ""


def store(
    lab: Lab, user_id: int, intervals: list[Interval], metric: str = "steps", unit: str = "{steps}"
) -> None:
    """Into health_metrics as the house's models write it, and into the queue."""
    for each in intervals:
        lab.execute(
            "insert into health.health_metrics (user_id, metric_type, metric_value, metric_unit, source, "
            "source_device, recorded_at, ended_at, utc_offset_minutes, utc_offset_source, local_date, "
            "raw_object_id, first_seen_at, updated_at) values (:user_id, :metric, :value, :unit, :source, "
            "nullif(:device, ''), :start, :end, 0, 'record', :day, 1, now(), now())",
            user_id=user_id,
            metric=metric,
            unit=unit,
            value=each.value,
            source=each.source,
            device=each.device,
            start=MIDNIGHT + dt.timedelta(minutes=each.start),
            end=MIDNIGHT + dt.timedelta(minutes=each.end),
            day=DAY,
        )
    lab.execute(
        "insert into health._changed_metrics (user_id, local_date, metric_type) values (:user_id, :day, :metric)",
        user_id=user_id,
        day=DAY,
        metric=metric,
    )


def build(lab: Lab) -> None:
    lab.build("--select", "daily_metrics", "int_source_priorities", "int_days_changed")


@pytest.fixture(scope="module")
def built(lab_of_module: Lab) -> Lab:
    lab_of_module.build()
    lab_of_module.execute(
        "create table health.health_metrics_2026_03 partition of health.health_metrics "
        "for values from ('2026-03-01 00:00+00') to ('2026-04-01 00:00+00')"
    )
    return lab_of_module


def random_day(chance: random.Random) -> list[Interval]:
    """One to four sources, each with intervals that do not meet, of one length or of any."""
    intervals = []
    for source in chance.sample(RANKED, chance.randint(1, 4)):
        length = chance.choice((1, 5, 15, 60, None))
        minute = chance.randint(0, 300)
        while minute < 1400:
            minutes = length or chance.randint(1, 120)
            intervals.append(Interval(source, minute, minute + minutes, float(chance.randint(0, 900))))
            minute += minutes + chance.choice((0, 0, 0, 7, 90, 400))
    chance.shuffle(intervals)
    return intervals


def counted_by_minute(intervals: list[Interval]) -> tuple[float, float]:
    """The day's total when each minute is its best ranked source's, and when it is whoever counted most's."""
    best, most = {}, {}
    for each in sorted(intervals, key=lambda each: RANKED.index(each.source)):
        for minute in range(each.start, each.end):
            share = each.value / (each.end - each.start)
            best.setdefault(minute, share)
            most[minute] = max(most.get(minute, 0.0), share)
    return sum(best.values()), sum(most.values())


def test_every_minute_counts_once(built: Lab) -> None:
    """Never above the best of each segment, never below the best source alone, whatever came first."""
    chance = random.Random(20260302)
    days = {built.user(f"minute {number}"): random_day(chance) for number in range(60)}
    mirrored = {}
    for user_id, intervals in list(days.items()):
        mirrored[user_id] = built.user(f"mirrored {user_id}")
        days[mirrored[user_id]] = intervals[::-1]
    for user_id, intervals in days.items():
        store(built, user_id, intervals)
    build(built)
    daily = {
        row["user_id"]: row
        for row in built.rows(
            "select * from health.daily_metrics where metric_type = 'steps' and local_date = :day", day=DAY
        )
    }
    several = 0
    for user_id, intervals in days.items():
        row, (best, most) = daily[user_id], counted_by_minute(intervals)
        first = min((each.source for each in intervals), key=RANKED.index)
        of_first = sum(each.value for each in intervals if each.source == first)
        assert row["metric_value"] == pytest.approx(best)
        assert of_first - 1e-6 <= row["metric_value"] <= most + 1e-6
        assert row["source"] == row["sources_seen"][0] == first
        assert set(row["sources_seen"]) == {each.source for each in intervals}
        if row["contributions"] is not None:
            several += 1
            assert sum(part["counted"] for part in row["contributions"]) == pytest.approx(row["metric_value"])
            for part in row["contributions"]:
                own = sum(each.value for each in intervals if each.source == part["source"])
                assert part["value"] == pytest.approx(own)
                assert -1e-6 <= part["counted"] <= own + 1e-6
    assert several > 50
    for user_id, other in mirrored.items():
        shown = ("metric_value", "sample_count", "coverage", "contributions", "sources_seen")
        assert [daily[user_id][name] for name in shown] == [daily[other][name] for name in shown]


def test_phone_and_watch_of_one_source_count_once(built: Lab) -> None:
    user = built.user("two devices")
    watch = [Interval("oura", 60 * hour, 60 * hour + 60, 100, "watch") for hour in range(8, 12)]
    phone = [Interval("oura", 60 * hour + 30, 60 * hour + 90, 60, "phone") for hour in (9, 11)]
    store(built, user, watch + phone)
    build(built)
    # The watch saw more; of the phone's, half an hour after the watch was taken off is left.
    row = built.one("select * from health.daily_metrics where user_id = :user", user=user)
    assert (row["metric_value"], row["contributions"]) == (430, None)
    assert row["coverage"] == pytest.approx(4.5 / 24)


def test_a_total_of_the_day_is_not_merged(built: Lab) -> None:
    """A day from 04:00 to 04:00 says nothing of when; the same steps must not be there twice."""
    first, second = built.user("total first"), built.user("total second")
    hours = [Interval("nightscout", 60 * hour, 60 * hour + 60, 500) for hour in range(8, 18)]
    store(built, first, [Interval("oura", 240, 240 + 1440, 9000), *hours])
    store(built, second, [Interval("libreview", 240, 240 + 1440, 9000), *hours])
    build(built)
    assert [
        (row["metric_value"], row["source"], [part["counted"] for part in row["contributions"]])
        for row in built.rows(
            "select * from health.daily_metrics where user_id in (:first, :second) order by user_id",
            first=first,
            second=second,
        )
    ] == [(9000, "oura", [9000, 0]), (5000, "nightscout", [5000, 0])]


def test_a_night_two_devices_saw_is_one_night(built: Lab) -> None:
    """Sleeps do not divide: the second device's version of the night goes, its nap in the afternoon stays."""
    user = built.user("two beds")
    night = Interval("oura", 10, 440, 24_000)
    store(
        built,
        user,
        [night, Interval("nightscout", 0, 470, 26_000), Interval("nightscout", 800, 830, 1_500)],
        "sleep_duration",
        "s",
    )
    build(built)
    row = built.one("select * from health.daily_metrics where user_id = :user", user=user)
    assert row["metric_value"] == 25_500
    assert [part["counted"] for part in row["contributions"]] == [24_000, 1_500]


def test_a_choice_makes_the_days_anew_that_had_one(built: Lab) -> None:
    user, other, single = built.user("chooser"), built.user("other"), built.user("single")
    both = [Interval("oura", 240, 240 + 1440, 9000), Interval("libreview", 0, 1439, 8000)]
    for one in (user, other):
        store(built, one, both)
    store(built, single, both[:1])
    build(built)
    values = (
        "select user_id, metric_value from health.daily_metrics where user_id = any(:users) order by user_id"
    )
    users = sorted((user, other, single))
    before = built.rows(
        "select user_id, xmin::text as version from health.daily_metrics where user_id = any(:users)",
        users=users,
    )
    assert [row["metric_value"] for row in built.rows(values, users=users)] == [9000, 9000, 9000]
    handle = built.one("select handle from ops.users where user_id = :user", user=user)["handle"]
    assert "libreview, then any other" in prefer(built.warehouse, handle, ["libreview"], "steps")
    assert preferences(built.warehouse, handle) == [("steps", ["libreview"])]
    build(built)
    assert {row["user_id"]: row["metric_value"] for row in built.rows(values, users=users)} == {
        user: 8000,
        other: 9000,
        single: 9000,
    }
    after = built.rows(
        "select user_id, xmin::text as version from health.daily_metrics where user_id = any(:users)",
        users=users,
    )
    assert {row["user_id"] for row in after if row not in before} == {user}
    prefer(built.warehouse, handle, [], "steps")
    assert preferences(built.warehouse, handle) == []
    build(built)
    assert [row["metric_value"] for row in built.rows(values, users=users)] == [9000, 9000, 9000]


@pytest.mark.parametrize(
    ("sources", "metric", "said"),
    [
        (["fitbits"], "steps", "no source 'fitbits'; there are .*oura"),
        (["oura"], "step", "no metric 'step'; there are .*steps"),
        (["oura", "oura"], "steps", "named twice"),
    ],
)
def test_preference_that_means_nothing_is_refused(
    built: Lab, sources: list[str], metric: str, said: str
) -> None:
    built.user("prefers")
    prefer(built.warehouse, "prefers", ["whoop"], metric="steps")
    with pytest.raises(ValueError, match=said):
        prefer(built.warehouse, "prefers", sources, metric)
    assert preferences(built.warehouse, "prefers") == [("steps", ["whoop"])]
