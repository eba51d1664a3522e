"""How the queries of analysts run over tables as large as years of data make them. Run by hand:

    python tests/benchmarks/explain_large.py [rows, default 20,000,000] [--home FOLDER]

Fills a scratch database on an embedded server of its own, prints each query's plan with what it read and how
long it took (the first time, and again with warm memory), and removes the database. Exit code 1 where a query
reads more than a month of health_metrics, or all of daily_metrics, from end to end.
"""

from __future__ import annotations

import argparse
import datetime as dt
import itertools
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "canonical")]

from analyst_queries import QUERIES, bound, buffers, partitions_read, read_whole  # noqa: E402
from canonical_lab import Dbt, Lab  # noqa: E402

from health_pipeline.raw.store import open_store  # noqa: E402
from health_pipeline.warehouse.connection import Warehouse  # noqa: E402
from health_pipeline.warehouse.embedded import EmbeddedPostgres  # noqa: E402
from health_pipeline.warehouse.migrate import migrate  # noqa: E402

MONTHS = 24
FIRST_MONTH = dt.date(2024, 11, 1)
#: The months that came day by day, as from daily runs; those before came in one go, as from a backfill.
DAILY_MONTHS = 3
#: Metric and minutes between two samples: 274 rows a user and day.
METRICS = {
    "heart_rate": 10,
    "steps": 15,
    "heart_rate_variability": 60,
    **dict.fromkeys(
        (
            *("resting_heart_rate", "weight", "sleep_duration", "deep_sleep", "rem_sleep", "light_sleep"),
            *("sleep_score", "readiness_score", "vo2_max", "total_calories"),
        ),
        1440,
    ),
}
ROWS_A_USER = sum(1440 // minutes for minutes in METRICS.values()) * 730

_PARTITION = """
create table if not exists health.health_metrics_{name} partition of health.health_metrics
for values from ('{start} 00:00+00') to ('{end} 00:00+00')
"""
_FILL = """
insert into health.health_metrics (user_id, metric_type, metric_value, metric_unit, source, recorded_at,
    utc_offset_minutes, utc_offset_source, local_date, source_record_id, raw_object_id, first_seen_at, updated_at)
select users.user_id, metrics.metric_type, 40 + (users.user_id * 7 + extract(epoch from instant)::bigint / 60) % 60,
    catalogue.unit, 'oura', instant, 0, 'assumed_utc', (instant at time zone 'UTC')::date,
    case when metrics.minutes = 1440 then metrics.metric_type || (instant at time zone 'UTC')::date end,
    0, instant, instant
from ops.users
cross join unnest(cast(:metrics as text[]), cast(:minutes as integer[])) as metrics (metric_type, minutes)
inner join health.metric_types as catalogue on catalogue.metric_type = metrics.metric_type
cross join lateral generate_series(
    timestamptz '{start} 00:00+00', timestamptz '{end} 00:00+00' - interval '1 second',
    make_interval(mins => metrics.minutes)
) as instant
order by {order}
"""
_BY_KEY = "users.user_id, metrics.metric_type, instant"
_BY_DAY = f"(instant at time zone 'UTC')::date, {_BY_KEY}"
_FILL_DAYS = """
insert into health.daily_metrics (user_id, local_date, metric_type, metric_value, metric_unit, source, sources_seen,
    sample_count, coverage)
select user_id, local_date, metric_type, avg(metric_value), min(metric_unit), 'oura', array['oura'], count(*), 1
from health.health_metrics
group by user_id, local_date, metric_type
order by local_date, user_id, metric_type
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("rows", type=lambda text: int(text.replace(",", "")), nargs="?", default=20_000_000)
    parser.add_argument(
        "--home", type=Path, help="an empty folder for the server; by default a temporary one"
    )
    arguments = parser.parse_args()
    home = arguments.home or Path(tempfile.mkdtemp(prefix="explain-"))
    if home.exists() and any(home.iterdir()):
        parser.error(f"{home} is not empty")
    server = EmbeddedPostgres(home)
    address = server.acquire()
    try:
        admin = sa.create_engine(address.url("postgres"), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with admin.connect() as connection:
            connection.execute(sa.text("create database explain"))
        url = sa.make_url(address.url("explain"))
        lab = Lab(Warehouse(url, url), open_store(str(home / "raw")), Dbt(home / "dbt-target"))
        migrate(lab.warehouse.engine)
        users = fill(lab, max(1, round(arguments.rows / ROWS_A_USER)))
        bad = sum([explain(lab, name, query, users[len(users) // 2]) for name, query in QUERIES.items()])
        lab.warehouse.dispose()
    finally:
        server.destroy()
        shutil.rmtree(home, ignore_errors=True)
    return 1 if bad else 0


def fill(lab: Lab, number_of_users: int) -> list[int]:
    """The tables as dbt makes them, with so many users' rows. Returns the users' ids."""
    lab.ensure_staging()
    users = [lab.user(f"person-{number}", "UTC") for number in range(number_of_users)]
    lab.build()
    months = [_month(number) for number in range(MONTHS + 1)]
    for number, (start, end) in enumerate(itertools.pairwise(months)):
        began = time.monotonic()
        order = _BY_DAY if number >= MONTHS - DAILY_MONTHS else _BY_KEY
        with lab.warehouse.engine.begin() as connection:
            connection.execute(sa.text("set local work_mem = '512MB'"))
            connection.exec_driver_sql(_PARTITION.format(name=f"{start:%Y_%m}", start=start, end=end))
            rows = connection.execute(
                sa.text(_FILL.format(start=start, end=end, order=order).replace(" 00:00+00", r" 00\:00+00")),
                {"metrics": list(METRICS), "minutes": list(METRICS.values())},
            ).rowcount
        print(f"{start:%Y-%m}: {rows:,} rows in {time.monotonic() - began:.1f} s", flush=True)
    with lab.warehouse.engine.begin() as connection:
        connection.execute(sa.text("set local work_mem = '512MB'"))
        connection.execute(sa.text(_FILL_DAYS))
    with lab.warehouse.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("vacuum (analyze) health.health_metrics"))
        connection.execute(sa.text("vacuum (analyze) health.daily_metrics"))
    for row in lab.rows(
        """
        select relname, sum(reltuples)::bigint as rows, sum(pg_table_size(oid))::bigint / 1048576 as table_mb,
            sum(pg_indexes_size(oid))::bigint / 1048576 as index_mb
        from (
            select oid, reltuples, regexp_replace(relname, '_[0-9]{4}_[0-9]{2}$', '') as relname
            from pg_class where relnamespace = 'health'\\:\\:regnamespace and relkind = 'r'
        ) as tables
        where relname in ('health_metrics', 'daily_metrics') group by relname
        """
    ):
        print("{relname}: {rows:,} rows, {table_mb:,} MB and {index_mb:,} MB of indexes".format(**row))
    return users


def explain(lab: Lab, name: str, query: str, user_id: int) -> bool:
    """Print the query's plan, on a day that came with a daily run and on one of a backfill. True if it is bad."""
    bad = False
    for day in (_month(MONTHS) - dt.timedelta(days=12), _month(MONTHS // 2) + dt.timedelta(days=12)):
        statement = bound(query, user_id, "heart_rate", day)
        timed = [run(lab, statement) for _ in range(2)]
        answer, plan = timed[-1], timed[-1]["Plan"]
        whole, partitions = read_whole(plan), partitions_read(plan)
        bad |= len(whole) > 1 or "daily_metrics" in whole
        print(
            f"\n== {name} ({day}): {answer['Execution Time']:.1f} ms, {timed[0]['Execution Time']:.1f} ms the first "
            f"time, planned in {answer['Planning Time']:.1f} ms; {plan['Actual Rows']:,.0f} rows, "
            f"{buffers(plan):,} blocks, {len(partitions)} of {MONTHS} months; "
            f"read whole: {', '.join(whole) or 'nothing'}"
        )
        with lab.warehouse.engine.begin() as connection:
            for (line,) in connection.exec_driver_sql(f"explain (analyze, buffers) {statement}"):
                print(f"   {line}")
        if ":day" not in query:
            break
    return bad


def run(lab: Lab, statement: str) -> dict[str, Any]:
    with lab.warehouse.engine.begin() as connection:
        answer = connection.exec_driver_sql(
            f"explain (analyze, buffers, format json) {statement}"
        ).scalar_one()
    found: dict[str, Any] = (json.loads(answer) if isinstance(answer, str) else answer)[0]
    return found


def _month(number: int) -> dt.date:
    months = FIRST_MONTH.year * 12 + FIRST_MONTH.month - 1 + number
    return dt.date(months // 12, months % 12 + 1, 1)


if __name__ == "__main__":
    sys.exit(main())
