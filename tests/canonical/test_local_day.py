"""Which day a record is of: its own offset, else the provider's profile, else the user's zone; and which of them."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pytest
from canonical_lab import START, Lab, hours, page

UTC = dt.UTC


def sample(instant: str, bpm: int = 60) -> dict[str, object]:
    return {"timestamp": instant, "bpm": bpm, "source": "rest"}


def day_of(activity: str, day: str, steps: int) -> dict[str, object]:
    return {"id": f"activity {day}", "day": day, "timestamp": activity, "steps": steps}


@pytest.fixture(scope="module")
def canonical(lab_of_module: Lab) -> Lab:
    """One build over all cases: a person each."""
    lab = lab_of_module
    profiled, homely, lost = (
        lab.user("profiled", "America/New_York"),
        lab.user("homely", "America/New_York"),
        lab.user("lost"),
    )
    evening = [sample("2026-03-01T20:30:00Z")]
    told = page(profiled, "heartrate", evening, START)
    lab.receive(
        dataclasses.replace(told, time_zone="Asia/Tokyo", context={"zone_source": "profile"}),
        dataclasses.replace(page(homely, "heartrate", evening, hours(1)), time_zone="Asia/Tokyo"),
        page(lost, "heartrate", evening, hours(2)),
    )
    # Activity days run from 04:00; the traveller's days are as long as the flights make them.
    traveller = lab.user("traveller", "Pacific/Auckland")
    lab.deliver(
        traveller,
        "daily_activity",
        [
            day_of("2026-01-10T04:00:00+13:00", "2026-01-10", 4000),
            # Over the date line to Honolulu the 10th comes again; its documents have the same day.
            day_of("2026-01-10T04:00:00-10:00", "2026-01-10", 3000) | {"id": "again"},
            day_of("2026-01-11T04:00:00-10:00", "2026-01-11", 5000),
            # And back: the 12th is a short day.
            day_of("2026-01-13T04:00:00+13:00", "2026-01-13", 6000),
        ],
        hours(3),
    )
    # The clock of New York goes forward on 8 March and back on 1 November.
    lab.deliver(
        homely,
        "heartrate",
        [
            sample("2026-03-08T04:59:00Z", 61),
            sample("2026-03-08T05:00:00Z", 62),
            sample("2026-03-09T03:59:00Z", 63),
            sample("2026-03-09T04:00:00Z", 64),
        ],
        dt.datetime(2026, 3, 10, tzinfo=UTC),
    )
    lab.deliver(
        homely,
        "heartrate",
        [
            sample("2026-11-01T03:59:00Z", 65),
            sample("2026-11-01T04:00:00Z", 66),
            sample("2026-11-02T04:59:00Z", 67),
            sample("2026-11-02T05:00:00Z", 68),
        ],
        dt.datetime(2026, 11, 3, tzinfo=UTC),
    )
    lab.run()
    return lab


def test_the_profile_stands_before_the_users_zone(canonical: Lab) -> None:
    rows = canonical.rows(
        "select handle, utc_offset_minutes, utc_offset_source, local_date from health.health_metrics "
        "inner join ops.users using (user_id) where recorded_at = '2026-03-01T20:30:00Z' order by handle"
    )
    assert [tuple(row.values()) for row in rows] == [
        ("homely", -300, "user_zone", dt.date(2026, 3, 1)),
        ("lost", 0, "assumed_utc", dt.date(2026, 3, 1)),
        ("profiled", 540, "profile", dt.date(2026, 3, 2)),
    ]


def test_another_home_moves_the_days_of_those_who_go_by_it_only(canonical: Lab) -> None:
    canonical.execute("update ops.users set time_zone = 'Asia/Tokyo' where handle in ('profiled', 'homely')")
    canonical.build()
    rows = canonical.rows(
        "select handle, utc_offset_source, local_date from health.health_metrics inner join ops.users using (user_id) "
        "where recorded_at = '2026-03-01T20:30:00Z' and handle in ('profiled', 'homely') order by handle"
    )
    assert [tuple(row.values()) for row in rows] == [
        ("homely", "user_zone", dt.date(2026, 3, 2)),
        ("profiled", "profile", dt.date(2026, 3, 2)),
    ]
    canonical.execute(
        "update ops.users set time_zone = 'America/New_York' where handle in ('profiled', 'homely')"
    )
    canonical.build()


def test_days_with_a_changed_clock_have_23_and_25_hours(canonical: Lab) -> None:
    rows = canonical.rows(
        "select local_date, array_agg(metric_value::integer order by recorded_at) as bpm from health.health_metrics "
        "inner join ops.users using (user_id) where handle = 'homely' and recorded_at > '2026-03-05' "
        "group by 1 order by 1"
    )
    assert [(row["local_date"].isoformat(), row["bpm"]) for row in rows] == [
        ("2026-03-07", [61]),
        ("2026-03-08", [62, 63]),
        ("2026-03-09", [64]),
        ("2026-10-31", [65]),
        ("2026-11-01", [66, 67]),
        ("2026-11-02", [68]),
    ]


def test_a_date_that_came_twice_over_the_date_line_has_both_days(canonical: Lab) -> None:
    rows = canonical.rows(
        "select local_date, metric_value from health.daily_metrics inner join ops.users using (user_id) "
        "where handle = 'traveller' and metric_type = 'steps' order by local_date"
    )
    assert [(row["local_date"].isoformat(), row["metric_value"]) for row in rows] == [
        ("2026-01-10", 7000),
        ("2026-01-11", 5000),
        ("2026-01-13", 6000),
    ]
