"""A run that dies, a model that fails, tables that are lost: the next run makes everything right."""

from __future__ import annotations

import time

import pytest
from canonical_lab import Lab, hours, messages
from histories import History
from test_rebuild import contents

from health_pipeline.warehouse.dbt_project import Views


@pytest.mark.slow
def test_killed_run_is_made_good_by_the_next(lab: Lab) -> None:
    history = History(5, people=6, steps=16, runs=2)
    history.send(lab, 0)
    lab.run()
    history.send(lab, 1)
    lab.stage()
    # The run stops at this lock, with some tables written and others not.
    with lab.warehouse.engine.connect() as holder:
        holder.exec_driver_sql("lock table health.workouts in access exclusive mode")
        before = lab.hashes_of("health_metrics", "glucose_readings")
        process = lab.dbt.start(
            lab.warehouse, "build", "--exclude-resource-type", "test", "unit_test", *Views.KEEP
        )
        try:
            deadline = time.monotonic() + 200
            while lab.hashes_of("health_metrics", "glucose_readings") == before:
                assert process.poll() is None, "dbt ended before it was killed"
                assert time.monotonic() < deadline, "dbt wrote nothing"
                time.sleep(0.1)
        finally:
            process.kill()
            process.wait()
    assert lab.one("select count(*) from health._begun_objects")["count"] > 0

    lab.build()
    after = contents(lab)

    lab.drop_derived()
    lab.run()
    assert contents(lab) == after


def test_failing_model_leaves_objects_pending(lab: Lab) -> None:
    user = lab.user("ann")
    lab.build()
    lab.deliver(user, "workout", [_workout(300)], hours(1))
    lab.stage()
    lab.execute("alter table health.workouts add constraint broken check (calories_kcal < 200)")

    without_tests = ("--exclude-resource-type", "test", "unit_test")
    failed = lab.dbt(lab.warehouse, "build", *without_tests, *Views.KEEP)

    assert not failed.success
    assert "workouts: error" in messages(failed)
    assert lab.rows("select * from health._applied_objects") == []
    lab.execute("alter table health.workouts drop constraint broken")
    lab.build()
    assert lab.one("select calories_kcal from health.workouts") == {"calories_kcal": 300}
    assert lab.one("select count(*) from health._applied_objects") == {"count": 1}
    assert lab.rows("select * from health._begun_objects") == []


def test_one_table_alone_is_not_made_anew(lab: Lab) -> None:
    lab.deliver(lab.user("ann"), "workout", [_workout(300)], hours(1))
    lab.run()

    refused = lab.dbt(lab.warehouse, "run", "--full-refresh", "--select", "workouts")

    assert not refused.success
    assert "a full refresh needs all canonical tables in the selection" in messages(refused)
    assert "run dbt build --full-refresh without --select" in messages(refused)
    assert lab.one("select count(*) from health.workouts") == {"count": 1}


def test_lost_tables_come_back(lab: Lab) -> None:
    """The whole schema, one table, the daily table; and all of them by a full refresh."""
    history = History(6, people=4, steps=16, runs=1)
    history.send(lab, 0)
    lab.run()
    whole = contents(lab)

    lab.drop_derived(staging=False)
    lab.build()
    assert contents(lab) == whole

    lab.execute("drop table health.sleep_sessions, health.daily_metrics cascade")
    lab.build()
    assert contents(lab) == whole

    lab.build("--full-refresh", "--select", "daily_metrics")
    assert contents(lab) == whole

    lab.build("--full-refresh")
    assert contents(lab) == whole


def _workout(calories: float) -> dict[str, object]:
    return {
        "id": "workout",
        "day": "2026-03-01",
        "start_datetime": "2026-03-01T18:00:00+01:00",
        "end_datetime": "2026-03-01T19:00:00+01:00",
        "activity": "running",
        "calories": calories,
    }


def test_a_view_takes_the_place_of_a_table_of_its_name(lab: Lab) -> None:
    lab.execute(
        "drop view health_internal.int_metric_units cascade; create table health_internal.int_metric_units (a integer)"
    )

    result = lab.dbt(lab.warehouse, "run", "--select", "int_metric_units")

    assert result.success, messages(result)
    kind = "select relkind from pg_class where oid = to_regclass('health_internal.int_metric_units')"
    assert lab.one(kind)["relkind"] == "v"
