"""Figures and how they are taken: every one is a ratio to a reference of the same run, on the same machine."""

from __future__ import annotations

import gc
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from canonical_lab import Dbt, Lab, messages

from health_pipeline.raw.store import open_store
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.embedded import EmbeddedPostgres, ServerAddress
from health_pipeline.warehouse.migrate import migrate


@dataclass(frozen=True, slots=True)
class Figure:
    """`ratio` has to be at least (`at_least`) or at most `reach`; ours and the reference in `unit`."""

    name: str
    reference: str
    unit: str
    ours: float
    theirs: float
    reach: float
    at_least: bool
    note: str = ""

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs

    @property
    def reached(self) -> bool:
        return self.ratio >= self.reach if self.at_least else self.ratio <= self.reach

    def as_row(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": round(self.ratio, 3), "reached": self.reached}


@dataclass(slots=True)
class Bench:
    """What benchmarks share: a server of their own, a folder that goes, and how large they may be."""

    quick: bool
    folder: Path
    address: ServerAddress
    say: Callable[[str], None]
    scale: float = 1.0
    _dbt: Dbt = field(init=False)
    _is_built: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._dbt = Dbt(self.folder / "dbt-target")

    def size(self, full: int, quick: int) -> int:
        return quick if self.quick else max(int(full * self.scale), 1)

    @contextmanager
    def lab(self) -> Iterator[Lab]:
        """An empty warehouse with all tables and views: a copy of the first, but of its name.

        One at a time: a manifest names its database.
        """
        if self._is_built:
            self._admin(
                "drop database if exists bench with (force)", "create database bench template bench_built"
            )
        else:
            self._admin("create database bench")
        url = sa.make_url(self.address.url("bench"))
        raw = Path(tempfile.mkdtemp(prefix="raw-", dir=self.folder))
        lab = Lab(Warehouse(url, url), open_store(str(raw)), self._dbt)
        try:
            if not self._is_built:
                migrate(lab.warehouse.engine)
                lab.ensure_staging()
                lab.build()
                lab.warehouse.engine.dispose()
                self._admin("create database bench_built template bench")
                self._is_built = True
            yield lab
        finally:
            lab.warehouse.dispose()
            shutil.rmtree(raw, ignore_errors=True)

    def _admin(self, *statements: str) -> None:
        engine = sa.create_engine(
            self.address.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
        )
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))


@contextmanager
def bench(quick: bool, say: Callable[[str], None], scale: float = 1.0) -> Iterator[Bench]:
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    server = EmbeddedPostgres(folder / "home")
    try:
        yield Bench(quick, folder, server.acquire(), say, scale)
    finally:
        server.destroy()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Seconds since the block began, and after it those that it took."""
    gc.collect()
    began, ended = time.perf_counter(), 0.0

    def seconds() -> float:
        return (ended or time.perf_counter()) - began

    yield seconds
    ended = time.perf_counter()


def settle(lab: Lab, *tables: str) -> None:
    """What others left behind is done before the clock starts: dead rows removed, pages written."""
    with lab.warehouse.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for table in tables:
            connection.execute(sa.text(f"vacuum (analyze) {table}"))
        connection.execute(sa.text("checkpoint"))


def build(lab: Lab) -> dict[str, float]:
    """`dbt build` as a run does it; seconds by model, and of `all`."""
    with stopwatch() as seconds:
        views = ("--exclude", "config.materialized:view config.materialized:lasting_view")
        kinds = ("--exclude-resource-type", "test", "--exclude-resource-type", "unit_test")
        result = lab.dbt(lab.warehouse, "build", *kinds, *views)
    if not result.success:
        raise RuntimeError(messages(result))
    return {"all": seconds(), **{each.node.name: each.execution_time for each in result.result}}


def peak_megabytes() -> float:
    """Of this process alone: what `getrusage` says begins with that of the process that started it."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def machine() -> dict[str, Any]:
    """Where the figures come from, and how busy it was."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(memory),
        "system": platform.system(),
        "python": platform.python_version(),
        "load": [round(each, 1) for each in os.getloadavg()],
    }
