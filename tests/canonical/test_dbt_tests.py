"""The project's own tests: dbt unit tests of the hard cases, and data tests over a small warehouse."""

from __future__ import annotations

from collections import Counter

from canonical_lab import Lab, hours, messages

NIGHT = {
    "id": "night",
    "day": "2026-03-02",
    "bedtime_start": "2026-03-01T22:30:00+01:00",
    "bedtime_end": "2026-03-02T06:30:00+01:00",
    "type": "long_sleep",
    "total_sleep_duration": 25200,
    "lowest_heart_rate": 48,
}


def test_dbt_tests_pass(lab: Lab) -> None:
    user = lab.user("ann", "Europe/Berlin")
    lab.deliver(user, "sleep", [NIGHT], hours(1))
    lab.deliver(
        user, "heartrate", [{"timestamp": "2026-03-02T05:00:00Z", "bpm": 50, "source": "rest"}], hours(1)
    )
    lab.upload(
        user, "timestamp,glucose (mmol/L)\n2026-03-02 06:00,5.5\n2026-03-02 06:05,Low\n", hours(1), "UTC"
    )
    lab.run()

    result = lab.dbt(lab.warehouse, "test")

    assert result.success, messages(result)
    kinds = Counter(each.node.resource_type for each in result.result)
    assert kinds["unit_test"] >= 15
    assert kinds["test"] >= 15
