"""Runs over what is new give what one run over everything gives, and touch nothing that did not change."""

from __future__ import annotations

import dataclasses
import datetime as dt

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from canonical_lab import TABLES, Lab, hours
from histories import DAYS, ENTITIES, FIRST_DAY, History, Sending

from health_pipeline.providers import registry
from health_pipeline.providers.base import Parsed, RawDocument
from health_pipeline.staging.load import stage


@pytest.mark.parametrize("seed", [1])
def test_runs_over_what_is_new_equal_a_rebuild(lab: Lab, seed: int) -> None:
    """Random revisions, deletions, overlaps and late objects; runs cut short; people who move house."""
    runs = 4
    history = History(seed, people=12, steps=48, runs=runs)
    standings: set[str] = set()
    for run in range(runs):
        history.send(lab, run)
        lab.stage()
        if run == 1:
            lab.build("--select", "+health_metrics")
            lab.execute(
                "update ops.users set time_zone = 'Asia/Tokyo' where handle in ('person-0', 'person-3')"
            )
        if run == 2:
            # It does not come to its end: what it began is begun again with what came meanwhile.
            lab.build("--select", "+sleep_sessions", "+glucose_readings")
        else:
            lab.build()
        standings |= {row["standing"] for row in lab.rows("select standing from health._pending_objects")}
    incremental = contents(lab)

    lab.drop_derived()
    lab.run()

    assert standings == {"new", "late", "context", "replayed"}
    assert all(len(incremental[table]) > 10 for table in TABLES)
    assert contents(lab) == incremental


def test_what_is_said_again_touches_no_row(lab: Lab) -> None:
    history = History(3, people=6, steps=16, runs=1)
    first, last = FIRST_DAY - dt.timedelta(days=2), FIRST_DAY + dt.timedelta(days=DAYS + 1)
    middle = FIRST_DAY + dt.timedelta(days=2)

    def answers(hour: float, *windows: tuple[dt.date, dt.date]) -> list[Sending]:
        return [
            Sending(person.number, entity, content, hour, (since, until), 0)
            for person in history.providers_hold
            for entity in ENTITIES
            for since, until in windows
            if (content := person.held(entity, since, until))
        ]

    history.receive(lab, answers(0, (first, last)))
    lab.run()
    before = lab.row_versions()
    lab.execute("truncate health._changed_daily")

    # In pages that overlap, so the bytes are others.
    history.receive(lab, answers(100, (first, middle), (middle, last)))
    lab.run()

    applied = lab.one(
        "select count(*) filter (where standing = 'new') as new, count(*) from health._pending_objects"
    )
    assert applied["new"] == applied["count"] > 20
    assert all(len(before[table]) > 5 for table in TABLES if table != "metric_revisions")
    assert not before["metric_revisions"]
    after = lab.row_versions()
    # What is refused is refused once for each object.
    assert before["metric_quarantine"] <= after.pop("metric_quarantine")
    assert {table: rows - before[table] for table, rows in after.items()} == {table: set() for table in after}
    assert lab.one("select count(*) from health._changed_metrics")["count"] == 0
    assert lab.one("select count(*) from health._changed_daily")["count"] == 0


def test_replay_with_a_mended_parser_equals_a_rebuild(lab: Lab) -> None:
    """What a parser misread goes, wherever it had put it, and what it overwrote comes back."""
    user = lab.user("ann")
    morning = {"timestamp": "2026-03-01T08:00:00Z", "bpm": 60, "source": "rest"}
    lab.deliver(user, "heartrate", [morning], hours(1))
    lab.deliver(
        user,
        "heartrate",
        [{**morning, "bpm": 61}, {**morning, "timestamp": "2026-03-01T09:00:00Z"}],
        hours(2),
    )
    oura = registry.get("oura")

    def misread(document: RawDocument) -> Parsed:
        parsed = oura.parse(document)
        table = parsed.tables["heartrate"]
        shifted = pc.add(table["timestamp"], pa.scalar(dt.timedelta(hours=1)))
        return dataclasses.replace(
            parsed, tables={"heartrate": table.set_column(0, table.schema[0], shifted)}
        )

    stage(lab.warehouse, lab.store, dataclasses.replace(oura, parse=misread))
    lab.build()
    wrong = lab.rows("select recorded_at from health.health_metrics order by 1")
    lab.stage("oura", replay=True)
    lab.build()
    mended = contents(lab)

    lab.drop_derived()
    lab.run("oura")

    assert [row["recorded_at"].hour for row in wrong] == [9, 10]
    rows = lab.rows("select recorded_at, metric_value, raw_object_id from health.health_metrics order by 1")
    assert [(row["recorded_at"].hour, row["metric_value"], row["raw_object_id"]) for row in rows] == [
        (8, 61.0, 2),
        (9, 60.0, 2),
    ]
    assert contents(lab) == mended


def contents(lab: Lab) -> dict[str, set[str]]:
    """All rows of all tables with all their columns, as text."""
    return {
        table: {row["row"] for row in lab.rows(f"select t::text as row from health.{table} as t")}
        for table in TABLES
    }


def test_an_index_the_model_has_gained_is_made_where_the_table_is_there(lab: Lab) -> None:
    name = "daily_metrics_user_id_local_date_idx"
    known = f"select to_regclass('health.{name}') is not null as is_there"
    lab.build()
    assert lab.one(known) == {"is_there": True}
    lab.execute(f"drop index health.{name}")
    lab.build()
    assert lab.one(known) == {"is_there": True}


def test_a_check_the_model_has_gained_holds_where_the_table_is_there(lab: Lab) -> None:
    name = "daily_metrics_coverage_check"
    known = f"select pg_get_constraintdef(oid) as rule from pg_constraint where conname = '{name}'"
    lab.build()
    made = lab.one(known)
    assert "coverage" in made["rule"]
    lab.execute(f"alter table health.daily_metrics drop constraint {name}")
    lab.build()
    assert lab.one(known) == made


def test_a_seed_is_loaded_where_its_file_or_the_table_is_another(lab: Lab) -> None:
    rows = "select xmin::text as writer, metric_type, unit from health.metric_types order by metric_type"
    lab.build()
    before = lab.rows(rows)
    assert len(before) > 50
    lab.build()
    assert lab.rows(rows) == before

    def built_again() -> None:
        lab.build()
        after = lab.rows(rows)
        assert [row["writer"] for row in after] != [row["writer"] for row in before]
        assert [(row["metric_type"], row["unit"]) for row in after] == [
            (row["metric_type"], row["unit"]) for row in before
        ]

    lab.execute("update health.metric_types set unit = 'lb' where metric_type = 'weight'")
    built_again()
    lab.execute("update health_internal._loaded_seeds set file = 'of before' where name = 'metric_types'")
    built_again()
