"""Disconnecting with the data: no bytes, no row and no rebuild of them are left, and other sources stay."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from canonical_lab import TABLES, Lab
from histories import History

from health_pipeline.ingestion.erasure import erase_source
from health_pipeline.providers.registry import get
from health_pipeline.warehouse.engine_tables import ensure_engine_tables


def contents(lab: Lab) -> dict[str, list[dict[str, Any]]]:
    return {
        table: sorted(
            lab.rows(f"select to_jsonb(t) - 'raw_object_id' as row from health.{table} as t"), key=repr
        )
        for table in TABLES
    }


def everything_of(lab: Lab, user_id: int, needle: str) -> list[str]:
    """Tables of the database with a row of the user that holds the word."""
    with lab.warehouse.engine.connect() as connection:
        tables = connection.execute(
            sa.text(
                "select format('%I.%I', table_schema, table_name) from information_schema.columns "
                "inner join information_schema.tables using (table_schema, table_name) "
                "where column_name = 'user_id' and table_type = 'BASE TABLE' and table_schema in ('health', 'ops')"
            )
        ).scalars()
        return [
            table
            for table in list(tables)
            if connection.execute(
                sa.text(
                    f"select exists (select from {table} as t where user_id = :user and t::text like :needle)"
                ),
                {"user": user_id, "needle": f"%{needle}%"},
            ).scalar_one()
        ]


@pytest.mark.slow
def test_what_is_erased_does_not_come_back_and_the_rest_stays(lab: Lab) -> None:
    history = History(3, people=4, steps=24, runs=1)
    history.send(lab, 0)
    lab.run()
    ensure_engine_tables(lab.warehouse)
    person = lab.user("person-0")
    lab.execute(
        "insert into health.training_loads (user_id, local_date, load_method, intensity_assumed, workout_count, worn, "
        "days_of_history, missing_days) select user_id, date '2026-03-01', 'none', false, 0, true, 1, 0 "
        "from ops.users"
    )
    objects = lab.rows(
        "select object_key from ops.raw_objects inner join ops.subjects using (subject_id) "
        "where provider = 'oura' and user_id = :person",
        person=person,
    )
    assert len(objects) > 3
    assert "health.health_metrics" in everything_of(lab, person, "oura")
    before = contents(lab)

    erased = erase_source(lab.warehouse, lab.store, get("oura"), person)

    assert erased.objects == len(objects)
    assert erased.staged > 10
    assert erased.derived > 10
    assert [row for row in objects if lab.store.exists(row["object_key"])] == []
    # At once, before anything is computed.
    assert everything_of(lab, person, "oura") == []
    loads = lab.rows("select user_id from health.training_loads order by user_id")
    assert len(loads) == 3
    assert person not in {row["user_id"] for row in loads}
    lab.run()
    after = contents(lab)
    for table in TABLES:
        others = [row for row in before[table] if row["row"].get("user_id") != person]
        assert [row for row in after[table] if row["row"].get("user_id") != person] == others
    assert everything_of(lab, person, "oura") == []
    mine = [row for row in after["glucose_readings"] if row["row"]["user_id"] == person]
    assert mine == [
        row
        for row in before["glucose_readings"]
        if row["row"]["user_id"] == person and row["row"]["source"] != "oura"
    ]
    lab.drop_derived()
    lab.run()
    assert contents(lab) == after
    assert (
        erase_source(lab.warehouse, lab.store, get("oura"), person).words().startswith("erased 0 raw objects")
    )
