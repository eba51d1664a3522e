"""Nights and workouts that cannot have been: in quarantine with a reason, and not in their tables."""

from __future__ import annotations

from typing import Any

from canonical_lab import Lab, hours

_QUARANTINE = (
    "select entity, reason, location, original ->> 'started_at' as started_at from health.metric_quarantine "
    "where entity in ('sleep_sessions', 'workouts') order by location"
)


def test_what_cannot_have_been_is_refused_and_takes_the_place_of_what_was_said_before(lab: Lab) -> None:
    user = lab.user("ann", "UTC")
    good = [
        _workout("good", "2026-03-01T10:00:00+00:00", "2026-03-01T11:00:00+00:00"),
        _workout("revised", "2026-03-01T12:00:00+00:00", "2026-03-01T13:00:00+00:00"),
    ]
    lab.deliver(user, "workout", good, hours(1))
    lab.run()
    assert _ids(lab, "workouts") == ["good", "revised"]

    bad = [
        _workout("revised", "2026-03-01T12:00:00+00:00", "2026-03-01T11:00:00+00:00"),
        _workout("to come", "2027-01-01T10:00:00+00:00", "2027-01-01T11:00:00+00:00"),
        _workout("long ago", "1899-01-01T10:00:00+00:00", "1899-01-01T11:00:00+00:00"),
        _workout("no time", "2026-03-01T15:00:00+00:00", "2026-03-01T15:00:00+00:00"),
    ]
    lab.deliver(user, "workout", bad, hours(2))
    night = {
        "id": "backwards",
        "day": "2026-03-02",
        "bedtime_start": "2026-03-02T06:00:00+00:00",
        "bedtime_end": "2026-03-01T22:00:00+00:00",
        "type": "long_sleep",
        "total_sleep_duration": 25200,
    }
    lab.deliver(user, "sleep", [night], hours(2))
    lab.run()

    assert _ids(lab, "workouts") == ["good", "no time"]
    assert _ids(lab, "sleep_sessions") == []
    assert lab.rows(_QUARANTINE) == [
        _refused("sleep_sessions", "ends_before_it_begins", "backwards", "2026-03-02T06:00:00"),
        _refused("workouts", "before_1900", "long ago", "1899-01-01T10:00:00"),
        _refused("workouts", "ends_before_it_begins", "revised", "2026-03-01T12:00:00"),
        _refused("workouts", "in_the_future", "to come", "2027-01-01T10:00:00"),
    ]
    # What was measured in such a night has no time, either.
    assert (
        lab.rows("select metric_type from health.health_metrics where source_record_id = 'backwards'") == []
    )

    lab.deliver(user, "workout", [good[1]], hours(3))
    lab.run()
    assert _ids(lab, "workouts") == ["good", "no time", "revised"]


def _ids(lab: Lab, table: str) -> list[str]:
    return [row["id"] for row in lab.rows(f"select source_record_id as id from health.{table} order by 1")]


def _refused(entity: str, reason: str, document: str, started_at: str) -> dict[str, str]:
    return {
        "entity": entity,
        "reason": reason,
        "location": f"document {document}",
        "started_at": f"{started_at}.000000Z",
    }


def _workout(name: str, start: str, end: str) -> dict[str, Any]:
    return {
        "id": name,
        "day": start[:10],
        "start_datetime": start,
        "end_datetime": end,
        "activity": "running",
        "intensity": "moderate",
        "calories": 300,
        "distance": 5000,
    }
