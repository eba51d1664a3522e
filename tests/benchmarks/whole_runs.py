"""Whole runs, from staging to the engine's last table: over little history and over much."""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "canonical"), str(TESTS / "benchmarks")]

from canonical_lab import Lab  # noqa: E402
from measure import Bench, Figure, settle  # noqa: E402

from health_pipeline.warehouse.connection import Warehouse  # noqa: E402
from health_pipeline.warehouse.engine_tables import ensure_engine_tables  # noqa: E402

#: The first day that is run; what lies before is filled by SQL.
DAY = dt.date(2026, 6, 1)
#: Days of history: `much` is day 700 and more.
LITTLE, MUCH = 30, 700
_ROUNDS = 2
#: Seconds between two heart rates of the days that are run.
_SAMPLING = 3600
SILENT: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

_PARTITION = """
create table if not exists health.health_metrics_{name} partition of health.health_metrics
for values from ('{start} 00:00+00') to ('{end} 00:00+00')
"""


def figures(bench: Bench) -> Iterator[Figure]:
    if bench.quick:
        bench.say("whole runs are left out: a run takes seconds, however small")
        return
    people = bench.size(1_000, 0)
    with bench.lab() as lab:
        one = [lab.user("person-0", "UTC")]
        bench.say("runs over an empty warehouse")
        empty = run(bench, lab, "webhook", one, DAY)
        for number in range(1, people):
            lab.user(f"person-{number}", "UTC")
        everybody = [row["user_id"] for row in lab.rows("select user_id from ops.users order by 1")]
        bench.say(f"{people} people's {LITTLE} days before")
        fill(lab, DAY - dt.timedelta(days=LITTLE), DAY - dt.timedelta(days=1))
        little = run(bench, lab, "daily", everybody, DAY + dt.timedelta(days=_ROUNDS + 1))
        bench.say(f"{MUCH} days before")
        fill(lab, DAY - dt.timedelta(days=MUCH), DAY - dt.timedelta(days=LITTLE + 1))
        much = run(bench, lab, "daily", everybody, DAY + dt.timedelta(days=2 * (_ROUNDS + 1)))
        full = run(bench, lab, "webhook", one, DAY + dt.timedelta(days=3 * (_ROUNDS + 1)))
    yield Figure(
        f"webhook run, one user's day, over {MUCH} days of {people} people", "over an empty warehouse", "seconds",
        full["all"], empty["all"], 1.25, False, _steps(full, empty),
    )  # fmt: skip
    yield Figure(
        f"daily run of {people} people, day {MUCH}", f"day {LITTLE}", "seconds",
        much["all"], little["all"], 1.15, False, _steps(much, little),
    )  # fmt: skip


def fill(lab: Lab, first: dt.date, last: dt.date) -> None:
    """What runs of these days would have left of everybody: raw index, staging, canonical, daily and engine's rows."""
    ensure_engine_tables(lab.warehouse)
    month = first.replace(day=1)
    while month <= last:
        following = (month + dt.timedelta(days=31)).replace(day=1)
        lab.execute(_PARTITION.format(name=f"{month:%Y_%m}", start=month, end=following))
        month = following
    history = (Path(__file__).parent / "history.sql").read_text()
    for name, day in (("first", first), ("last", last)):
        history = history.replace(f":{name}", f"'{day}'")
    for statement in history.strip().split(";\n"):
        lab.execute(statement.replace(":", "\\:"))
    tables = (
        "ops.raw_objects",
        "staging_oura.staged_objects",
        "staging_oura.heartrate",
        "health._applied_objects",
    )
    marts = ("health_metrics", "daily_metrics", "sleep_sessions", "workouts", "baselines", "training_loads",
             "recovery_scores")  # fmt: skip
    settle(lab, *tables, *(f"health.{table}" for table in marts))


def run(bench: Bench, lab: Lab, kind: str, users: list[int], first: dt.date) -> dict[str, float]:
    """Seconds by step, and of `all`, of the quickest of some runs of a day each.

    In a process that has run one before.
    """
    environment = {
        **os.environ,
        "HEALTH_PIPELINE_HOME": str(bench.folder / "home-of-runs"),
        "HEALTH_PIPELINE_DATABASE_URL": lab.warehouse.libpq_url(),
        "HEALTH_PIPELINE_RAW_URL": str(lab.store.root),
    }
    given = json.dumps({"kind": kind, "users": users, "first": str(first)})
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__], input=given, env=environment, check=True, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    runs: list[dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return min(runs[1:], key=lambda steps: steps["all"])


def _steps(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Pages looked at, and the steps that took longest."""
    slowest = sorted(set(ours) - {"all", "blocks"}, key=lambda name: -ours[name])[:7]
    pages = f"{ours['blocks']:,.0f} pages against {theirs['blocks']:,.0f}; "
    return pages + ", ".join(
        f"{name} {ours[name]:.2f} s against {theirs.get(name, 0):.2f} s" for name in slowest
    )


def _blocks(warehouse: Warehouse) -> int:
    """Pages of 8 kB that the database has looked at so far: what a run costs on a machine that is busy, too."""
    with warehouse.engine.connect() as connection:
        statistics = "select blks_hit + blks_read from pg_stat_database where datname = current_database()"
        return int(connection.exec_driver_sql(statistics).scalar_one())


def _child() -> None:
    import dagster as dg

    from health_pipeline.definitions import defs
    from health_pipeline.defs.events import _run_request
    from health_pipeline.raw.index import Delivery, receive
    from health_pipeline.raw.store import open_store
    from health_pipeline.runtime.dagster_home import prepare
    from health_pipeline.sandbox.load import Shape, bodies
    from health_pipeline.settings import load_settings
    from health_pipeline.warehouse.connection import open_warehouse

    logging.getLogger("dagster").setLevel(logging.CRITICAL)
    given = json.loads(sys.stdin.read())
    settings = load_settings()
    warehouse = open_warehouse(settings)
    os.environ.update(prepare(settings, warehouse))
    store = open_store(settings.raw_location)
    name = {"webhook": "webhook_events", "daily": "daily_refresh"}[given["kind"]]
    job = defs.resolve_job_def(name)
    keys = sorted(job.asset_layer.executable_asset_keys)
    checks = sorted(job.asset_layer.asset_graph.asset_check_keys, key=str)
    runs = []
    for number in range(_ROUNDS + 1):
        day = dt.date.fromisoformat(given["first"]) + dt.timedelta(days=number)
        received_at = dt.datetime.combine(day + dt.timedelta(days=1), dt.time(6), dt.UTC)
        receive(
            warehouse.engine,
            store,
            [
                Delivery(body.provider, body.entity, user, "fetch", body.content, received_at, day, day,
                         "application/json")
                for user in given["users"]
                for body in bodies(user, day, 1, Shape(_SAMPLING, 0.0))
            ],
        )  # fmt: skip
        config = dict(SILENT)
        if (
            given["kind"] == "webhook"
        ):  # as the sensor asks for it: the tests of the tables are the daily run's
            request = _run_request(day, {"oura"}, keys, checks)
            config |= request.run_config
            part = job.get_subset(
                asset_selection=frozenset(request.asset_selection or ()),
                asset_check_selection=frozenset(request.asset_check_keys or ()),
            )
        else:
            part = job.get_subset(asset_selection=frozenset(key for key in keys if key.path[0] != "raw"))
        with dg.DagsterInstance.get() as instance:
            blocks = _blocks(warehouse)
            began = time.perf_counter()
            result = part.execute_in_process(
                instance=instance, partition_key=day.isoformat(), run_config=config
            )
            results = [result]
            if given["kind"] == "webhook":
                scores = defs.resolve_job_def("webhook_scores")
                results.append(scores.execute_in_process(instance=instance, run_config=SILENT))
            steps = {"all": time.perf_counter() - began, "blocks": _blocks(warehouse) - blocks}
            for each in results:
                for event in each.filter_events(lambda event: event.is_step_success):
                    steps[str(event.step_key)] = event.step_success_data.duration_ms / 1000
        runs.append(steps)
        print(f"  {given['kind']} of {day}: {steps['all']:.1f} s", file=sys.stderr, flush=True)
    print(json.dumps(runs))


if __name__ == "__main__":
    _child()
