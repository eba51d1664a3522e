"""A house with everything in it, as the end-to-end tests use it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from health_pipeline.providers.base import Window
from health_pipeline.runtime.run_job import RunOutcome, run_job
from health_pipeline.sandbox.server import RunningSandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse


@dataclass
class House:
    settings: Settings
    warehouse: Warehouse
    sandbox: RunningSandbox
    home: Path

    def run(self, job: str, window: Window) -> RunOutcome:
        return run_job(job, window, self.settings, self.warehouse)

    def command(self, *arguments: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
        """The command line as a user has it: a process of its own."""
        return subprocess.run(
            [sys.executable, "-m", "health_pipeline.cli", *arguments],
            env=dict(os.environ),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def kill(self, *arguments: str, when: Callable[[], object], seconds: float = 200) -> None:
        """The command line on a machine that dies as soon as `when` says so; it must not have ended before."""
        process = subprocess.Popen(
            [sys.executable, "-m", "health_pipeline.cli", *arguments],
            env=dict(os.environ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + seconds
            while not when():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()

    def scalar(self, query: str, **parameters: object) -> object:
        with self.warehouse.engine.connect() as connection:
            return connection.execute(sa.text(query), parameters).scalar_one()

    def rows(self, query: str, **parameters: object) -> list[tuple[object, ...]]:
        with self.warehouse.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(sa.text(query), parameters)]

    def table_hashes(self) -> dict[str, tuple[int, str]]:
        """Row count and hash of every derived table: all rows in order, all columns."""
        tables = self.rows(
            "select relname from pg_class inner join pg_namespace on pg_namespace.oid = relnamespace "
            "where nspname = 'health' and relkind in ('r', 'p') and not relispartition "
            "and relname not like '\\_%' order by relname"
        )
        found = {}
        for (name,) in tables:
            counted = self.rows(
                f"select count(*), md5(coalesce(string_agg(t::text, e'\\n' order by t::text), '')) from health.{name} as t"  # noqa: E501
            )[0]
            found[str(name)] = (int(str(counted[0])), str(counted[1]))
        return found

    def drop_everything_derived(self) -> None:
        with self.warehouse.engine.begin() as connection:
            schemas = connection.execute(
                sa.text(
                    "select nspname from pg_namespace where nspname like 'staging\\_%' or nspname like 'health%'"
                )
            ).scalars()
            for schema in list(schemas):
                connection.execute(sa.text(f'drop schema "{schema}" cascade'))
