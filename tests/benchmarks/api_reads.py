"""How long a page takes over HTTP, from a warehouse with years of many people.

    python tests/benchmarks/api_reads.py --people 20 --requests 300

A house of its own, filled by SQL: three years of 40 daily metrics, a year of glucose every five minutes, nights and
workouts for each. The receiver is a process of its own, as users have it. Prints a line of JSON by route: median and
95th percentile of the milliseconds a page took, one client after the other (`alone`) and eight at once (`eight`).
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from socket import socket

import httpx
import numpy as np
import sqlalchemy as sa

_FILL = (
    "insert into ops.users (handle, time_zone) select 'p' || n, 'Europe/Berlin' from generate_series(1, :people) as n",
    "insert into health.daily_metrics (user_id, local_date, metric_type, metric_value, metric_unit, source, "
    "sources_seen, sample_count, coverage) select user_id, date '2026-11-20' - n, metric_type, n, unit, 'oura', "
    "array['oura'], 1, 1 from ops.users cross join (select * from health.metric_types order by 1 limit 40) as m "
    "cross join generate_series(0, 1094) as n",
    "insert into health.glucose_readings (user_id, recorded_at, glucose_mg_dl, reading_type, source, source_device, "
    "utc_offset_minutes, utc_offset_source, local_date, raw_object_id, first_seen_at, updated_at) "
    "select user_id, at, 100, 'cgm', 'dexcom', '', 60, 'record', at::date, 1, at, at from ops.users cross join "
    "generate_series(timestamptz '2025-11-21', '2026-11-20', interval '5 minutes') as at",
    "insert into health.sleep_sessions (user_id, source, source_record_id, started_at, ended_at, local_date, "
    "raw_object_id, first_seen_at, updated_at) select user_id, 'oura', 's' || n, now(), now(), date '2026-11-20' - n, "
    "1, now(), now() from ops.users cross join generate_series(0, 1094) as n",
    "insert into health.workouts (user_id, source, source_record_id, started_at, ended_at, local_date, activity, "
    "duration_seconds, raw_object_id, first_seen_at, updated_at) select user_id, 'oura', 'w' || n, now(), now(), "
    "date '2026-11-20' - n, 'run', 60, 1, now(), now() from ops.users cross join generate_series(0, 1094) as n",
    "analyze",
)
_DAYS = "?start=2026-10-21&end=2026-11-20"


def fill(home: str, people: int) -> str:
    """A filled house; gives a token of one of its people."""
    os.environ["HEALTH_PIPELINE_HOME"] = home
    from health_pipeline.connections.api_tokens import create
    from health_pipeline.providers.base import Window
    from health_pipeline.runtime.run_job import run_job
    from health_pipeline.settings import load_settings
    from health_pipeline.warehouse.connection import open_warehouse

    settings = load_settings()
    warehouse = open_warehouse(settings)
    today = dt.datetime.now(dt.UTC).date()
    assert run_job("daily_refresh", Window(today, today), settings, warehouse).success
    with warehouse.engine.begin() as connection:
        for statement in _FILL[:-1]:
            connection.execute(sa.text(statement), {"people": people} if ":people" in statement else {})
    with warehouse.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text(_FILL[-1]))
        user_id = connection.execute(
            sa.text("select user_id from ops.users where handle = 'p7'")
        ).scalar_one()
    return create(warehouse.engine, user_id, ["read"]).token


def measure(client: httpx.Client, path: str, requests: int, at_once: int) -> tuple[float, float]:
    def once(_: int) -> float:
        started = time.perf_counter()
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        return (time.perf_counter() - started) * 1000

    once(0)
    with ThreadPoolExecutor(at_once) as pool:
        took = list(pool.map(once, range(requests)))
    return round(float(np.percentile(took, 50)), 1), round(float(np.percentile(took, 95)), 1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=20)
    parser.add_argument("--requests", type=int, default=300)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        token = fill(home, given.people)
        with closing(socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        receiver = subprocess.Popen(
            [sys.executable, "-m", "health_pipeline.cli", "receiver", "--port", str(port)],
            stdout=subprocess.DEVNULL,
        )
        try:
            base = f"http://127.0.0.1:{port}"
            with httpx.Client(
                base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=60
            ) as client:
                while True:
                    try:
                        client.get("/healthz")
                        break
                    except httpx.ConnectError:
                        time.sleep(0.2)
                for what, query in (
                    ("daily", _DAYS),
                    ("daily", f"{_DAYS}&metric=steps"),
                    ("glucose", _DAYS),
                    ("sleep", _DAYS),
                    ("workouts", _DAYS),
                    ("recovery", _DAYS),
                    ("forecasts", ""),
                    ("summary", ""),
                ):
                    path = f"/v1/health/p7/{what}{query}"
                    alone = measure(client, path, given.requests, 1)
                    eight = measure(client, path, given.requests, 8)
                    print(json.dumps({"path": path, "alone": alone, "eight": eight}), flush=True)
        finally:
            receiver.terminate()
            receiver.wait(30)


if __name__ == "__main__":
    main()
