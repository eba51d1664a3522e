"""Which version of a record counts, and how it is dated: the same however receipts are grouped and ordered."""

from __future__ import annotations

import dataclasses
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import pytest
from canonical_lab import START, Lab, glucose_file, hours, page

from health_pipeline.providers.base import ANNOUNCES_DELETION
from health_pipeline.raw.index import Delivery

Step = Callable[[int, dt.datetime], Delivery]
#: What is in health_metrics in the end: metric, time of day, value, receipt first seen, receipt of the value.
Expected = Sequence[tuple[str, str, float, int, int]]


def activity(steps: int | None, *, day: str = "2026-03-01") -> Step:
    document = {"id": "activity", "day": day, "timestamp": f"{day}T04:00:00+00:00", "steps": steps}
    return lambda user, at: page(user, "daily_activity", [document], at, _days(day))


def oxygen(average: float | None) -> Step:
    document = {"id": "oxygen", "day": "2026-03-01", "spo2_percentage": {"average": average}}
    return lambda user, at: page(user, "daily_spo2", [document], at)


def night(
    bedtime: str = "22:00", kind: str | None = "long_sleep", hrv: Sequence[float | None] = (), **more: Any
) -> Step:
    return lambda user, at: page(user, "sleep", [_night(bedtime, kind, hrv, **more)], at)


def nights(*documents: Mapping[str, Any]) -> Step:
    return lambda user, at: page(user, "sleep", documents, at)


def gone(entity: str, document: str) -> Step:
    """A notice of the vendor's that a document was deleted."""
    notice = {"event_type": "delete", "data_type": entity, "object_id": document, "user_id": "somebody"}
    return lambda user, at: Delivery(
        *("oura", entity, user, "webhook", orjson.dumps(notice), at, at.date(), at.date()),
        "application/json",
        context={"provider_user_id": "somebody", **ANNOUNCES_DELETION},
    )


def pulse(*bpm: int) -> Step:
    samples = [{"timestamp": "2026-03-01T12:00:00Z", "bpm": each, "source": "rest"} for each in bpm]
    return lambda user, at: page(user, "heartrate", samples, at)


def glucose(*lines: str) -> Step:
    text = "id,timestamp,glucose (mg/dL)\n" + "\n".join(lines) + "\n"
    return lambda user, at: glucose_file(user, text, at)


def _night(
    bedtime: str, kind: str | None, hrv: Sequence[float | None], name: str = "night"
) -> dict[str, Any]:
    start = f"2026-03-01T{bedtime}:00+00:00"
    document = {
        "id": name,
        "day": "2026-03-02",
        "bedtime_start": start,
        "bedtime_end": "2026-03-02T06:00:00+00:00",
        "type": kind,
        "efficiency": 90,
    }
    return document | ({"hrv": {"timestamp": start, "interval": 300.0, "items": list(hrv)}} if hrv else {})


def _days(day: str) -> tuple[dt.date, dt.date]:
    return dt.date.fromisoformat(day), dt.date.fromisoformat(day)


HISTORIES: Mapping[str, tuple[Sequence[Step], Expected]] = {
    "revised": ([activity(100), activity(200)], [("steps", "03-01 04:00", 200, 0, 1)]),
    "said-again": ([activity(100), activity(100), activity(100)], [("steps", "03-01 04:00", 100, 0, 0)]),
    "there-and-back": (
        [activity(100), activity(200), activity(100)],
        [("steps", "03-01 04:00", 100, 0, 2)],
    ),
    "left-out": ([activity(100), activity(None)], []),
    "left-out-for-a-while": (
        [activity(100), activity(None), activity(100)],
        [("steps", "03-01 04:00", 100, 2, 2)],
    ),
    "refused-later": ([oxygen(97), oxygen(20)], []),
    "moved-to-a-day-of-another-page": (
        [activity(100), activity(100, day="2026-02-20")],
        [("steps", "02-20 04:00", 100, 1, 1)],
    ),
    "bedtime-moved": (
        [night("22:00"), night("23:00"), night("23:00")],
        [("sleep_efficiency", "03-01 23:00", 90, 1, 1)],
    ),
    "deleted": ([night(), night(kind="deleted")], []),
    "deleted-and-restored": (
        [night(), night(kind="deleted"), night()],
        [("sleep_efficiency", "03-01 22:00", 90, 2, 2)],
    ),
    "deletion-announced": ([night(), gone("sleep", "night")], []),
    "deletion-announced-of-another": (
        [night(), gone("sleep", "another")],
        [("sleep_efficiency", "03-01 22:00", 90, 0, 0)],
    ),
    "deletion-wins-over-what-comes-late": ([gone("sleep", "night"), night(), night()], []),
    "deletion-of-a-day": (
        [activity(100), gone("daily_activity", "activity"), activity(300)],
        [],
    ),
    "turned-into-a-nap": ([night(), night(kind="late_nap")], []),
    "samples-revised": (
        [night(hrv=[30, 40, 50]), night(hrv=[30, None, 55])],
        [
            ("heart_rate_variability_sample", "03-01 22:00", 30, 0, 0),
            ("heart_rate_variability_sample", "03-01 22:10", 55, 0, 1),
            ("sleep_efficiency", "03-01 22:00", 90, 0, 0),
        ],
    ),
    "new-document-in-the-place-of-another": (
        [night(), nights(_night("22:00", "deleted", ()), _night("22:00", "long_sleep", (), "again"))],
        [("sleep_efficiency", "03-01 22:00", 90, 1, 1)],
    ),
    "place-taken-and-given-up": (
        [night(), night(name="again"), nights(_night("22:00", "deleted", (), "again"))],
        [],
    ),
    "sample-revised": ([pulse(60), pulse(62), pulse(62)], [("heart_rate", "03-01 12:00", 62, 0, 1)]),
    "sample-refused-later": ([pulse(60), pulse(5)], [("heart_rate", "03-01 12:00", 60, 0, 0)]),
    "two-samples-of-one-instant": ([pulse(60, 61), pulse(61, 60)], [("heart_rate", "03-01 12:00", 60, 0, 0)]),
    "files-numbered-alike": (
        [
            glucose("1,2026-03-01 08:00Z,100", "2,2026-03-01 08:05Z,101"),
            glucose("1,2026-03-01 09:00Z,110", "2,2026-03-01 08:05Z,102"),
        ],
        [
            ("glucose", "03-01 08:00", 100, 0, 0),
            ("glucose", "03-01 08:05", 102, 0, 1),
            ("glucose", "03-01 09:00", 110, 1, 1),
        ],
    ),
}
RUNS = 3
#: In which run each receipt is applied.
GROUPINGS: Mapping[str, Sequence[int]] = {
    "one-a-run": (0, 1, 2),
    "all-at-once": (0, 0, 0),
    "backwards": (2, 1, 0),
    "first-one-late": (2, 0, 0),
    "middle-one-late": (0, 2, 0),
}


@pytest.fixture(scope="module")
def found(lab_of_module: Lab) -> dict[tuple[str, str], list[tuple[Any, ...]]]:
    """What each history gave in each grouping. All are applied in the same few runs."""
    lab = lab_of_module
    users = {(name, grouping): lab.user(f"{name}.{grouping}") for name in HISTORIES for grouping in GROUPINGS}
    for run in range(RUNS):
        lab.receive(
            *(
                # Blanks at the end: no two receipts are of the same bytes.
                _padded(step(user, hours(24 + number)), number)
                for (name, grouping), user in users.items()
                for number, step in enumerate(HISTORIES[name][0])
                if GROUPINGS[grouping][number] == run
            )
        )
        lab.run()
    rows = lab.rows(
        """
        select user_id, metric_type, to_char(recorded_at at time zone 'UTC', 'MM-DD HH24:MI') as recorded_at,
            metric_value, first_seen_at, metrics.updated_at, raw.received_at
        from health.health_metrics as metrics
        inner join ops.raw_objects as raw using (raw_object_id)
        order by user_id, metric_type, recorded_at
        """
    )
    names = {user: key for key, user in users.items()}
    result: dict[tuple[str, str], list[tuple[Any, ...]]] = {key: [] for key in users}
    for row in rows:
        assert row["updated_at"] == row["received_at"], (
            "updated_at is not the receipt of the row's raw object"
        )
        receipts = [
            (row[name] - START) // dt.timedelta(hours=1) - 24 for name in ("first_seen_at", "updated_at")
        ]
        result[names[row["user_id"]]].append(
            (row["metric_type"], row["recorded_at"], row["metric_value"], *receipts)
        )
    return result


@pytest.mark.parametrize("history", HISTORIES)
def test_history_gives_the_same_however_it_is_applied(
    found: dict[tuple[str, str], list[tuple[Any, ...]]], history: str
) -> None:
    expected = list(HISTORIES[history][1])

    assert {grouping: found[history, grouping] for grouping in GROUPINGS} == dict.fromkeys(
        GROUPINGS, expected
    )


def test_deleted_night_leaves_no_session(lab_of_module: Lab, found: object) -> None:
    sessions = lab_of_module.rows(
        """
        select split_part(handle, '.', 1) as history, count(*), min(sleep_type) as sleep_type
        from health.sleep_sessions inner join ops.users using (user_id) group by 1 order by 1
        """
    )

    each = len(GROUPINGS)
    assert [tuple(row.values()) for row in sessions] == [
        ("bedtime-moved", each, "long_sleep"),
        ("deleted-and-restored", each, "long_sleep"),
        ("deletion-announced-of-another", each, "long_sleep"),
        ("new-document-in-the-place-of-another", each, "long_sleep"),
        ("place-taken-and-given-up", each, "long_sleep"),
        ("samples-revised", each, "long_sleep"),
        ("turned-into-a-nap", each, "late_nap"),
    ]


def test_refused_values_are_in_quarantine(lab_of_module: Lab, found: object) -> None:
    refused = lab_of_module.rows(
        """
        select split_part(handle, '.', 1) as history, field, reason, original ->> 'value' as value, count(*)
        from health.metric_quarantine inner join ops.users using (user_id) group by 1, 2, 3, 4 order by 1
        """
    )

    assert [tuple(row.values()) for row in refused] == [
        ("refused-later", "spo2", "out_of_range", "20", len(GROUPINGS)),
        ("sample-refused-later", "heart_rate", "out_of_range", "5", len(GROUPINGS)),
    ]


def test_days_follow_their_rows(lab_of_module: Lab, found: object) -> None:
    lab = lab_of_module
    differing = lab.rows(
        """
        with days as (
            select user_id, local_date, metric_type, count(*) as samples
            from health.health_metrics group by 1, 2, 3
        )
        select * from days full join health.daily_metrics as daily using (user_id, local_date, metric_type)
        where days.samples is distinct from daily.sample_count
        """
    )

    assert differing == []


def _padded(delivery: Delivery, blanks: int) -> Delivery:
    ending = b" " * blanks if delivery.door == "fetch" else b"\n" * blanks
    return dataclasses.replace(delivery, content=delivery.content + ending)


def test_revisions_say_what_was_before_and_who_changed_it(lab: Lab) -> None:
    """Changed, changed back, taken away, back again: each change once, by the object that brought it."""
    user = lab.user("revised", "UTC")

    def day(steps: int | None) -> list[dict[str, object]]:
        document = {"id": "a", "day": "2026-03-01", "timestamp": "2026-03-01T04:00:00Z", "steps": steps}
        return [
            document,
            {**document, "id": "b", "day": "2026-02-28", "timestamp": "2026-02-28T04:00:00Z", "steps": 7},
        ]

    said = (4000, 5000, 4000, None, 6000)
    objects = []
    for number, steps in enumerate(said):
        objects.append(lab.deliver(user, "daily_activity", day(steps), hours(number)))
        if number != 1:  # the second and third come in one run
            lab.run("oura")

    revisions = lab.rows("select * from health.metric_revisions order by revised_at")
    assert [(row["raw_object_id"], row["old_value"], row["new_value"]) for row in revisions] == [
        (objects[1], 4000, 5000),
        (objects[2], 5000, 4000),
        (objects[3], 4000, None),
    ]
    assert [row["revised_at"] for row in revisions] == [hours(number) for number in (1, 2, 3)]
    assert {(row["user_id"], row["metric_type"], row["source"]) for row in revisions} == {
        (user, "steps", "oura")
    }
