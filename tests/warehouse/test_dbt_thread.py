"""dbt within this process: what it says, how it ends, and that it can be broken off."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from health_pipeline.providers.registry import all_providers
from health_pipeline.staging.tables import ensure_tables
from health_pipeline.warehouse import dbt_project, dbt_thread
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.dbt_project import KeptParse
from health_pipeline.warehouse.dbt_thread import DbtThread


@pytest.fixture
def warehouse(
    dbt_warehouse: Callable[[str], Warehouse], migrated_template: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Warehouse]:
    """Of the name that dbt has parsed for; the views of the project are to come."""
    warehouse = dbt_warehouse(migrated_template)
    for name, value in warehouse.environment().items():
        monkeypatch.setenv(name, value)
    # The project's hooks look at what is staged.
    with warehouse.engine.begin() as connection:
        for provider in all_providers().values():
            ensure_tables(connection, provider)
    yield warehouse
    warehouse.engine.dispose()


def events(thread: DbtThread) -> list[dict[str, Any]]:
    with thread.stdout:
        return [orjson.loads(line) for line in thread.stdout]


def test_a_model_is_built_and_told_of(tmp_path: Path, warehouse: Warehouse) -> None:
    thread = DbtThread(["seed", "--select", "metric_types"], tmp_path)
    (result,) = [event for event in events(thread) if event["info"]["name"] == "LogSeedResult"]
    assert thread.wait() == 0
    assert result["data"]["node_info"]["unique_id"] == "seed.health.metric_types"
    with warehouse.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from health.metric_types").scalar_one() > 50


def test_what_cannot_be_done_is_said(
    tmp_path: Path, warehouse: Warehouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = DbtThread(["seed", "--no-such-option"], tmp_path)
    assert any("no-such-option" in event["info"]["msg"] for event in events(thread))
    assert thread.wait() == 1

    def broken() -> None:
        raise RuntimeError("the dbt project does not parse: a comma in models/x.sql")

    monkeypatch.setattr(dbt_thread, "parsed_project", broken)
    thread = DbtThread(["seed"], tmp_path)
    (said,) = events(thread)
    assert (said["info"]["level"], said["info"]["msg"]) == (
        "error",
        "the dbt project does not parse: a comma in models/x.sql",
    )
    assert thread.wait() == 1


def test_it_can_be_broken_off_in_the_middle_of_a_statement(tmp_path: Path, warehouse: Warehouse) -> None:
    DbtThread(["seed", "--select", "metric_types"], tmp_path).wait()
    waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    with warehouse.engine.connect() as holder, warehouse.engine.connect() as other:
        holder.exec_driver_sql("lock table health.metric_types in access exclusive mode")
        thread = DbtThread(["seed", "--select", "metric_types"], tmp_path)
        deadline = time.monotonic() + 60
        while other.exec_driver_sql(waiting).scalar_one() == 0:
            assert time.monotonic() < deadline, "dbt waits for no lock"
            other.rollback()
            time.sleep(0.1)
        thread.send_signal(signal.SIGINT)
        assert thread.wait(timeout=30) == 1
    with warehouse.engine.connect() as connection:
        assert connection.exec_driver_sql("select count(*) from health.metric_types").scalar_one() > 50


def test_what_was_parsed_is_kept_for_a_few_warehouses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dbt_project, "MANIFEST", tmp_path / "manifest.json")
    made, asked = tmp_path / "made", tmp_path / "asked"
    for folder in (made, asked):
        folder.mkdir()
    for number in range(KeptParse.MOST + 2):
        monkeypatch.setenv("HEALTH_PIPELINE_DBT_DATABASE", f"warehouse_{number}")
        (made / "partial_parse.msgpack").write_text(str(number))
        KeptParse().take(made)
        os.utime(max(tmp_path.glob("kept-*"), key=lambda each: each.stat().st_mtime_ns), (number, number))
    # Each process of a warehouse finds its own; a password is not part of what it is.
    monkeypatch.setenv("HEALTH_PIPELINE_DBT_DATABASE", "warehouse_3")
    monkeypatch.setenv("HEALTH_PIPELINE_DBT_PASSWORD", "changed")
    KeptParse().give(asked)
    assert (asked / "partial_parse.msgpack").read_text() == "3"
    (asked / "partial_parse.msgpack").unlink()
    monkeypatch.setenv("HEALTH_PIPELINE_DBT_DATABASE", "warehouse_0")
    KeptParse().give(asked)
    assert not list(asked.iterdir()), "the oldest were forgotten"
    assert len(list(tmp_path.glob("kept-*"))) == KeptParse.MOST
