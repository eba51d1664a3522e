"""How long a page takes over HTTP, from a warehouse with years of many people, at a steady rate of requests."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from socket import socket

import httpx
import numpy as np
from canonical_lab import Lab
from measure import Bench, Figure, settle

from health_pipeline.connections.api_tokens import create
from health_pipeline.warehouse.engine_tables import ensure_engine_tables

#: Asked for in turn: what one asks for again is in every cache.
_ASKING = 20
_METRICS = 40
_PER_SECOND = 20
_REACH_MS = 30.0

_FILL = (
    "insert into ops.users (handle, time_zone) select 'p' || n, 'Europe/Berlin' from generate_series(1, :people) as n",
    # As runs write it: everybody's day after everybody's day.
    "insert into health.daily_metrics (user_id, local_date, metric_type, metric_value, metric_unit, source, "
    "sources_seen, sample_count, coverage) select user_id, date '2026-11-20' - n, metric_type, n, unit, 'oura', "
    "array['oura'], 1, 1 from generate_series(:days - 1, 0, -1) as n cross join ops.users cross join "
    f"(select * from health.metric_types order by metric_type <> 'heart_rate', 1 limit {_METRICS}) as m",
    "insert into health.glucose_readings (user_id, recorded_at, glucose_mg_dl, reading_type, source, source_device, "
    "utc_offset_minutes, utc_offset_source, local_date, raw_object_id, first_seen_at, updated_at) "
    "select user_id, at, 100, 'cgm', 'dexcom', '', 60, 'record', at::date, 1, at, at from generate_series("
    "timestamptz '2026-11-20' - make_interval(days => least(:days, 180)), '2026-11-20', interval '5 minutes') as at "
    f"cross join (select user_id from ops.users order by 1 limit {_ASKING}) as users",
    "insert into health.sleep_sessions (user_id, source, source_record_id, started_at, ended_at, local_date, "
    "raw_object_id, first_seen_at, updated_at) select user_id, 'oura', 's' || n, now(), now(), date '2026-11-20' - n, "
    "1, now(), now() from generate_series(:days - 1, 0, -1) as n cross join ops.users",
    "insert into health.workouts (user_id, source, source_record_id, started_at, ended_at, local_date, activity, "
    "duration_seconds, raw_object_id, first_seen_at, updated_at) select user_id, 'oura', 'w' || n, now(), now(), "
    "date '2026-11-20' - n, 'run', 60, 1, now(), now() from generate_series(:days - 1, 0, -1) as n "
    "cross join ops.users",
    "insert into health.recovery_scores (user_id, local_date, method, recovery_score, score_low, score_high, "
    "weight_stress, weight_sleep, weight_heart_rate, weight_load, present_weight, baseline_days, explanation) "
    "select user_id, date '2026-11-20' - n, method, 75, 70, 80, 0.25, 0.3, 0.2, 0.25, 1, 60, 'as usual' from "
    "generate_series(:days - 1, 0, -1) as n cross join ops.users "
    "cross join (values ('calibrated'), ('seed')) as m (method)",
)
_DAYS = "start=2026-08-23&end=2026-11-20"
_ROUTES = {
    "a page of 90 days of daily metrics": f"daily?{_DAYS}",
    "90 days of one metric": f"daily?{_DAYS}&metric=heart_rate",
    "a page of 90 days of glucose": f"glucose?{_DAYS}",
    "90 nights": f"sleep?{_DAYS}",
    "90 days of workouts": f"workouts?{_DAYS}",
    "90 days of recovery": f"recovery?{_DAYS}",
    "a summary of every metric": "summary",
}


def figures(bench: Bench) -> Iterator[Figure]:
    rows, days = bench.size(20_000_000, 400_000), 365 if bench.quick else 1095
    people = max(rows // (days * _METRICS), _ASKING)
    seconds = 2 if bench.quick else 20
    with bench.lab() as lab:
        bench.say(f"{days} days of {people} people, {people * days * _METRICS:,} daily values")
        tokens = fill(lab, people, days)
        with receiver(bench, lab) as address:
            for what, route in _ROUTES.items():
                took = at_a_rate(address, tokens, route, seconds)
                note = (
                    f"median {np.percentile(took, 50):.1f} ms of {len(took)} requests, {_PER_SECOND} a second"
                )
                yield Figure(
                    f"API, {what} of {people} people's, 95th percentile", f"{_REACH_MS:.0f} ms", "ms",
                    float(np.percentile(took, 95)), _REACH_MS, 1, False, note,
                )  # fmt: skip


def fill(lab: Lab, people: int, days: int) -> dict[str, str]:
    """Tokens of some of the people, by handle."""
    ensure_engine_tables(lab.warehouse)
    for statement in _FILL:
        known = {"people": people, "days": days}
        lab.execute(statement, **{name: value for name, value in known.items() if f":{name}" in statement})
    tables = ("daily_metrics", "glucose_readings", "sleep_sessions", "workouts", "recovery_scores")
    settle(lab, *(f"health.{table}" for table in tables))
    asking = lab.rows(f"select handle, user_id from ops.users order by user_id limit {_ASKING}")
    return {row["handle"]: create(lab.warehouse.engine, row["user_id"], ["read"]).token for row in asking}


@contextmanager
def receiver(bench: Bench, lab: Lab) -> Iterator[str]:
    """The receiver as a process of its own, as users have it; gives its address."""
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "HEALTH_PIPELINE_HOME": str(bench.folder / "receiver"),
        "HEALTH_PIPELINE_DATABASE_URL": lab.warehouse.libpq_url(),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "health_pipeline.cli", "receiver", "--port", str(port)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        address = f"http://127.0.0.1:{port}"
        while process.poll() is None:
            try:
                httpx.get(f"{address}/healthz")
                break
            except httpx.ConnectError:
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def at_a_rate(address: str, tokens: dict[str, str], route: str, seconds: int) -> list[float]:
    """Milliseconds that each request took from the moment it was due, whatever became of those before it."""
    handles = list(tokens)
    with (
        httpx.Client(base_url=address, timeout=60, limits=httpx.Limits(max_connections=8)) as client,
        ThreadPoolExecutor(8) as pool,
    ):

        def ask(number: int, due: float) -> float:
            time.sleep(max(due - time.perf_counter(), 0))
            handle = handles[number % len(handles)]
            answer = client.get(
                f"/v1/health/{handle}/{route}", headers={"Authorization": f"Bearer {tokens[handle]}"}
            )
            if answer.status_code != 200 or not (answer.json()["data"] or route == "summary"):
                raise RuntimeError(f"{route}: {answer.status_code} {answer.text[:200]}")
            return (time.perf_counter() - due) * 1000

        began = time.perf_counter() + 0.1
        for number in range(len(handles)):  # connections and caches of the process
            ask(number, began)
        began = time.perf_counter() + 0.1
        due = [began + number / _PER_SECOND for number in range(seconds * _PER_SECOND)]
        return list(pool.map(ask, range(len(due)), due))
