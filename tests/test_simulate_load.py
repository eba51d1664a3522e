"""`simulate-load`: what it brings is what the pipeline finds, the same twice, and gone when it is taken away."""

from __future__ import annotations

import datetime as dt

import orjson
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from health_pipeline.cli import main
from health_pipeline.providers import registry
from health_pipeline.raw.store import open_store
from health_pipeline.sandbox.load import Shape, bodies, zone_of
from health_pipeline.settings import Settings
from health_pipeline.staging.load import stage
from health_pipeline.warehouse.connection import Warehouse

_COMMAND = [
    "simulate-load",
    "--users",
    "2",
    "--days",
    "3",
    "--sampling",
    "3600",
    "--glucose-share",
    "0.5",
    "--raw-only",
]
_DAY = dt.date(2026, 5, 4)


def _count(warehouse: Warehouse, table: str) -> int:
    with warehouse.engine.connect() as connection:
        return int(connection.execute(sa.text(f"select count(*) from {table}")).scalar_one())


def test_a_load_is_staged_whole_changes_nothing_twice_and_goes_without_a_trace(
    settings: Settings, warehouse: Warehouse
) -> None:
    done = CliRunner().invoke(main, _COMMAND)
    assert done.exit_code == 0, done.output
    store = open_store(settings.raw_location)
    expected = {"oura": 0, "dexcom": 0}
    last = dt.datetime.now(dt.UTC).date() - dt.timedelta(days=2)
    for person in range(2):
        for body in bodies(person, last - dt.timedelta(days=2), 3, Shape(3600, 0.5)):
            expected[body.provider] += body.rows
    for name, records in expected.items():
        report = stage(warehouse, store, registry.get(name))
        assert (report.records_loaded, report.records_quarantined) == (records, 0)
    assert _count(warehouse, "staging_dexcom.egvs") == 3 * 288

    objects = _count(warehouse, "ops.raw_objects")
    assert CliRunner().invoke(main, _COMMAND).exit_code == 0
    assert _count(warehouse, "ops.raw_objects") == objects

    with warehouse.engine.begin() as connection:
        connection.execute(sa.text("insert into ops.users (handle, time_zone) values ('ada', 'UTC')"))
    asked = CliRunner().invoke(main, _COMMAND, input="n\n")
    assert asked.exit_code == 1
    assert "1 users here that are not simulated" in asked.output

    kept = list(store.root.rglob("*.json*"))  # type: ignore[attr-defined]
    assert len(kept) == objects
    removed = CliRunner().invoke(main, ["simulate-load", "--remove", "--yes"])
    assert "2 simulated people erased" in removed.output
    for table in ("ops.raw_objects", "ops.subjects", "staging_oura.heartrate", "staging_dexcom.egvs"):
        assert _count(warehouse, table) == 0, table
    assert _count(warehouse, "ops.users") == 1
    assert not [path for path in kept if path.exists()]


@pytest.mark.parametrize("arguments", [[], ["--users", "3"], ["--users", "3", "--days", "1", "--remove"]])
def test_it_says_what_it_wants(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, ["simulate-load", *arguments])
    assert done.exit_code == 2
    assert "give --users and --days, or --remove" in done.output


def _documents(person: int, first: dt.date, days: int, *, pulse: bool = True) -> set[bytes]:
    found = set()
    for body in bodies(person, first, days, Shape(1800, 1.0)):
        if pulse or body.entity != "heartrate":
            answer = orjson.loads(body.content)
            found |= {orjson.dumps(record) for record in answer["data" if "data" in answer else "records"]}
    return found


def test_a_day_is_the_same_whatever_is_made_beside_it() -> None:
    alone = _documents(4, _DAY, 1)
    assert alone < _documents(4, _DAY - dt.timedelta(days=2), 4)
    assert not alone & _documents(4, _DAY + dt.timedelta(days=1), 1)
    assert not _documents(4, _DAY, 1, pulse=False) & _documents(5, _DAY, 1, pulse=False)


def test_the_share_with_a_sensor_is_what_was_asked_for() -> None:
    for share in (0.0, 0.1, 0.25, 1.0):
        assert sum(Shape(300, share).has_glucose(person) for person in range(1000)) == pytest.approx(
            1000 * share, abs=1
        )
    assert len({zone_of(person) for person in range(8)}) == 4
