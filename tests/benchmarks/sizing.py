"""The constants of docs/sizing.md: bytes a row in each place, and what a run takes a run, a record and a person.

    python tests/benchmarks/sizing.py [--users 50] [--days 60]

A house of its own, filled by `simulate-load` thirty days at a time, then by two single days; removed at the end.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "canonical"), str(TESTS / "benchmarks")]
os.environ["PYTHONPATH"] = str(TESTS.parent)

import sqlalchemy as sa  # noqa: E402
from measure import machine  # noqa: E402

#: What of a schema's relations is one thing: its name, the relations (a regular expression), and what is counted.
_PLACES = (
    ("staged row", r"^staging_(oura|dexcom)\.(heartrate|egvs|sleep|daily_activity|daily_spo2|workout)$"),
    ("canonical row", r"^health\.(health_metrics_[0-9_]+|glucose_readings)$"),
    ("daily row", r"^health\.daily_metrics$"),
    ("engine row", r"^health\.(baselines|training_loads|recovery_scores|glucose_daily|narratives|correlations|agp"
     r"|glucose_periods|forecasts|alerts)$"),
    ("raw object's index row", r"^ops\.raw_objects$"),
)  # fmt: skip
_SIZES = """
select sum(pg_total_relation_size(pg_class.oid))::bigint as bytes, sum(greatest(reltuples, 0))::bigint as rows
from pg_class inner join pg_namespace on pg_namespace.oid = relnamespace
where relkind = 'r' and nspname || '.' || relname ~ :which
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--days", type=int, default=60)
    given = parser.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory(prefix="sizing-") as home:
        os.environ["HEALTH_PIPELINE_HOME"] = home
        from health_pipeline.providers.base import Window
        from health_pipeline.runtime.simulate_load import simulate_load
        from health_pipeline.sandbox.load import Shape
        from health_pipeline.settings import load_settings
        from health_pipeline.warehouse.connection import close_warehouse, open_warehouse
        from health_pipeline.warehouse.embedded import EmbeddedPostgres

        settings = load_settings()
        warehouse = open_warehouse(settings)
        first = dt.date(2026, 6, 1)
        last = first + dt.timedelta(days=given.days - 1)
        found: dict[str, object] = {"machine": before, "users": given.users, "days": given.days}
        try:
            parts = []
            for window, at_once in ((Window(first, last), 30), (_after(last, 2), 1)):
                for part in simulate_load(
                    settings, warehouse, given.users, window, Shape(), lambda *_: None, days_at_once=at_once
                ):
                    print(part.words(), file=sys.stderr, flush=True)
                    parts.append(part)
            found["bytes"] = _bytes(warehouse.engine, sum(part.rows for part in parts))
            long, day = parts[-3], parts[-1]
            found["seconds"] = {
                "raw a million records": long.raw_seconds / long.rows * 1e6,
                "staging a million records": long.staging_seconds / long.rows * 1e6,
                "tables and engine, 30 days": long.run_seconds,
                "tables and engine, one day": day.run_seconds,
                "records of a person's day": day.rows / given.users,
            }
        finally:
            close_warehouse()
            EmbeddedPostgres(Path(home)).destroy()
    print(json.dumps({**found, "load_after": machine()["load"]}, indent=2))


def _after(last: dt.date, days: int):  # type: ignore[no-untyped-def]
    from health_pipeline.providers.base import Window

    return Window(last + dt.timedelta(days=1), last + dt.timedelta(days=days))


def _bytes(engine: sa.Engine, records: int) -> dict[str, float]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("vacuum analyze"))
        stored, objects = connection.execute(
            sa.text("select sum(stored_bytes), count(*) from ops.raw_objects")
        ).one()
        found = {"raw, a record": float(stored) / records, "raw, an object": float(stored) / objects}
        for name, which in _PLACES:
            row = connection.execute(sa.text(_SIZES), {"which": which}).one()
            found[name] = row.bytes / max(row.rows, 1)
            found[f"{name}s a record"] = row.rows / records
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    main()
