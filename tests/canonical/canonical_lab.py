"""A warehouse to try the canonical layer on: objects by the raw index, staging by dlt, tables by dbt."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import sqlalchemy as sa

from health_pipeline.providers import registry
from health_pipeline.raw.index import Delivery, receive
from health_pipeline.raw.store import RawStore
from health_pipeline.staging.load import stage
from health_pipeline.staging.tables import ensure_tables
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.dbt_project import PROJECT_DIR, Views, dbt_executable
from health_pipeline.warehouse.dbt_thread import parsed_project

UTC = dt.UTC
#: The instant tests count from; receipts lie after it.
START = dt.datetime(2026, 3, 2, 6, tzinfo=UTC)
TABLES = (
    "health_metrics",
    "glucose_readings",
    "sleep_sessions",
    "workouts",
    "daily_metrics",
    "metric_quarantine",
    "metric_revisions",
)

Row = dict[str, Any]


def hours(count: float) -> dt.datetime:
    """The instant this many hours after START."""
    return START + dt.timedelta(hours=count)


@dataclass
class Dbt:
    """dbt in this process, over the manifest that runs share: parsing is most of what an invocation costs."""

    target: Path

    def arguments(self, *arguments: str) -> list[str]:
        project = str(PROJECT_DIR)
        return [
            *arguments,
            *("--project-dir", project, "--profiles-dir", project, "--target-path", str(self.target)),
            *("--log-path", str(self.target / "logs"), "--log-level", "none", "--log-level-file", "none"),
            "--no-write-json",
        ]

    def __call__(self, warehouse: Warehouse, *arguments: str) -> Any:
        from dbt.cli.main import dbtRunner

        # In a thread, as runs have it: dbt looks through its callers, and pytest's stack is deep.
        with _environment(warehouse.environment()), ThreadPoolExecutor(1) as thread:
            return thread.submit(
                dbtRunner(manifest=parsed_project()).invoke, self.arguments(*arguments)
            ).result()

    def start(self, warehouse: Warehouse, *arguments: str) -> subprocess.Popen[bytes]:
        """dbt as a process of its own."""
        return subprocess.Popen(
            [dbt_executable(), *self.arguments(*arguments)],
            env={**os.environ, **warehouse.environment()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )


@dataclass
class Lab:
    warehouse: Warehouse
    store: RawStore
    dbt: Dbt
    _users: dict[str, int] = field(default_factory=dict)

    def user(self, handle: str, time_zone: str | None = None) -> int:
        if handle not in self._users:
            self._users[handle] = self.one(
                "insert into ops.users (handle, time_zone) values (:handle, :zone) returning user_id",
                handle=handle,
                zone=time_zone,
            )["user_id"]
        return self._users[handle]

    def receive(self, *deliveries: Delivery) -> list[int]:
        """Through the raw index, all at once. Returns the raw objects' ids."""
        return [receipt.raw_object_id for receipt in receive(self.warehouse.engine, self.store, deliveries)]

    def deliver(
        self, user_id: int, entity: str, documents: Sequence[Mapping[str, Any]], received_at: dt.datetime
    ) -> int:
        """A page of Oura's answer, as the fetch door stores it. Returns the raw object's id."""
        return self.receive(page(user_id, entity, documents, received_at))[0]

    def upload(self, user_id: int, text: str, received_at: dt.datetime, time_zone: str | None = None) -> int:
        """A glucose table, as the upload door stores it. Returns the raw object's id."""
        return self.receive(glucose_file(user_id, text, received_at, time_zone))[0]

    def stage(self, *providers: str, replay: bool = False) -> None:
        for name in providers or ("oura", "glucose_csv"):
            stage(self.warehouse, self.store, registry.get(name), replay=replay)

    def build(self, *arguments: str) -> None:
        """`dbt build` without its tests, which has to succeed."""
        without = ("test", "unit_test")
        views = Views(self.warehouse.engine)
        keeps_views = views.are_current() and "--exclude" not in arguments
        if keeps_views:
            arguments += Views.KEEP
        result = self.dbt(
            self.warehouse,
            "build",
            *(part for kind in without for part in ("--exclude-resource-type", kind)),
            *arguments,
        )
        assert result.success, messages(result)
        if not keeps_views and not {"--select", "--exclude"} & set(arguments):
            views.note()

    def run(self, *providers: str) -> None:
        """Stage what was received and apply it."""
        self.stage(*providers)
        self.build()

    def drop_derived(self, *, staging: bool = True) -> None:
        with self.warehouse.engine.begin() as connection:
            schemas = ["health", "health_internal"]
            if staging:
                schemas += [f"staging_{name}" for name in registry.all_providers()]
            for schema in schemas:
                connection.execute(sa.text(f"drop schema if exists {schema} cascade"))
        self.ensure_staging()

    def ensure_staging(self) -> None:
        with self.warehouse.engine.begin() as connection:
            for provider in registry.all_providers().values():
                ensure_tables(connection, provider)

    def rows(self, query: str, **parameters: Any) -> list[Row]:
        with self.warehouse.engine.begin() as connection:
            return [dict(row) for row in connection.execute(sa.text(query), parameters).mappings()]

    def one(self, query: str, **parameters: Any) -> Row:
        (row,) = self.rows(query, **parameters)
        return row

    def execute(self, statement: str, **parameters: Any) -> None:
        with self.warehouse.engine.begin() as connection:
            connection.execute(sa.text(statement), parameters)

    def hashes_of(self, *tables: str) -> list[str]:
        """One hash a table over all rows and columns, in order."""
        return [
            self.one(
                "select md5(coalesce(string_agg(t::text, chr(10) order by t::text), '')) as hash "
                f"from health.{table} as t"
            )["hash"]
            for table in tables
        ]

    def row_versions(self) -> dict[str, set[tuple[Any, ...]]]:
        """Where each row lies and which transaction wrote it: an update that changes nothing shows, too."""
        return {
            table: {
                tuple(row.values())
                for row in self.rows(
                    f"select tableoid::regclass::text, ctid::text, xmin::text from health.{table}"
                )
            }
            for table in TABLES
        }


def page(
    user_id: int,
    entity: str,
    documents: Sequence[Mapping[str, Any]],
    received_at: dt.datetime,
    days: tuple[dt.date, dt.date] | None = None,
) -> Delivery:
    """A page of Oura's answer for a window of days."""
    content = orjson.dumps({"data": list(documents), "next_token": None})
    first, last = days or (received_at.date(), received_at.date())
    return Delivery("oura", entity, user_id, "fetch", content, received_at, first, last, "application/json")


def glucose_file(user_id: int, text: str, received_at: dt.datetime, time_zone: str | None = None) -> Delivery:
    """A glucose table as a person uploads it."""
    day = received_at.date()
    return Delivery(
        *("glucose_csv", "readings", user_id, "upload", text.encode(), received_at, day, day, "text/csv"),
        time_zone=time_zone,
    )


def messages(result: Any) -> str:
    """What went wrong in a dbt invocation, in its own words."""
    if result.exception is not None:
        return repr(result.exception)
    return "\n".join(
        f"{each.node.name}: {each.status} {each.message}"
        for each in result.result
        if each.status not in ("success", "pass", "skipped")
    )


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
