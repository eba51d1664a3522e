"""From raw JSON to canonical rows: staging against COPY, the upsert against one written by hand."""

from __future__ import annotations

import datetime as dt
import io
import itertools
from collections.abc import Iterator
from typing import Any

import orjson
import sqlalchemy as sa
from canonical_lab import Lab
from measure import Bench, Figure, build, settle, stopwatch

from health_pipeline.raw.index import Delivery, receive

UTC = dt.UTC
#: The new samples are of these days, after most of what is in the table.
FIRST = dt.datetime(2026, 1, 5, tzinfo=UTC)
RECEIVED = dt.datetime(2026, 2, 1, 6, tzinfo=UTC)
USERS = 50
SECONDS_BETWEEN = 30

_FILL = """
insert into health.health_metrics (user_id, metric_type, metric_value, metric_unit, source, recorded_at,
    utc_offset_minutes, utc_offset_source, local_date, raw_object_id, first_seen_at, updated_at)
select user_id, metric_type, 40 + (user_id + extract(epoch from instant)::bigint / 60) % 100, '/min', 'oura', instant,
    0, 'user_zone', (instant at time zone 'UTC')::date, 0, instant, instant
from ops.users
cross join (values ('heart_rate'), ('heart_rate_variability'), ('respiratory_rate'), ('spo2')) as metrics (metric_type)
cross join lateral generate_series(
    cast(:start as timestamptz), cast(:end as timestamptz) - interval '1 second', make_interval(secs => :seconds)
) as instant
order by user_id, metric_type, instant
"""
_PARTITION = """
create table if not exists health.health_metrics_{name} partition of health.health_metrics
for values from ('{start} 00:00+00') to ('{end} 00:00+00')
"""
#: What one would write for this provider, this metric and this run, and nothing else.
_BY_HAND = """
with upserted as (
insert into health.health_metrics as target (user_id, metric_type, metric_value, metric_unit, source, source_device,
    recorded_at, ended_at, utc_offset_minutes, utc_offset_source, local_date, source_record_id, metadata,
    raw_object_id, first_seen_at, updated_at)
select user_id, 'heart_rate', bpm, '/min', 'oura', null, "timestamp", null, utc_offset, 'user_zone',
    (("timestamp" at time zone 'UTC') + make_interval(mins => utc_offset))::date, null, null,
    raw_object_id, received_at, received_at
from (
    select distinct on (subjects.user_id, staged."timestamp") subjects.user_id, staged."timestamp", staged.bpm,
        (extract(epoch from (staged."timestamp" at time zone users.time_zone)
            - (staged."timestamp" at time zone 'UTC')) / 60)::smallint as utc_offset,
        objects.raw_object_id, objects.received_at
    from staging_oura.heartrate as staged
    inner join ops.raw_objects as objects on objects.raw_object_id = staged._raw_object_id
    inner join ops.subjects as subjects using (subject_id)
    inner join ops.users as users using (user_id)
    where staged._load_id > :after
    order by subjects.user_id, staged."timestamp", objects.received_at desc
) as newest
order by user_id, "timestamp"
on conflict (user_id, metric_type, recorded_at, source) do update set
    metric_value = excluded.metric_value, metric_unit = excluded.metric_unit, source_device = excluded.source_device,
    ended_at = excluded.ended_at, utc_offset_minutes = excluded.utc_offset_minutes,
    utc_offset_source = excluded.utc_offset_source, local_date = excluded.local_date,
    source_record_id = excluded.source_record_id, metadata = excluded.metadata,
    raw_object_id = excluded.raw_object_id, updated_at = excluded.updated_at
where (target.metric_value, target.metric_unit, target.source_device, target.ended_at, target.utc_offset_minutes,
        target.utc_offset_source, target.local_date, target.source_record_id, target.metadata)
    is distinct from (excluded.metric_value, excluded.metric_unit, excluded.source_device, excluded.ended_at,
        excluded.utc_offset_minutes, excluded.utc_offset_source, excluded.local_date, excluded.source_record_id,
        excluded.metadata)
returning target.user_id, target.local_date
)
select count(*) from (select distinct user_id, local_date from upserted) as days
"""


def figures(bench: Bench) -> Iterator[Figure]:
    rows = bench.size(1_000_000, 200_000)
    stored = bench.size(20_000_000, 500_000)
    with bench.lab() as lab:
        users = [lab.user(f"person-{number}", "Europe/Berlin") for number in range(USERS)]
        rounds = 2 if bench.quick else 3
        on_empty = small_run(lab, users[0], 0, rounds)
        bench.say(f"filling health_metrics with {stored:,} rows")
        fill(lab, stored)
        settle(lab, "health.health_metrics")

        samples = rows // USERS
        deliver(lab, users, samples, samples // 4, RECEIVED)
        with stopwatch() as staging:
            lab.stage("oura")
        copying = copied(lab)
        yield Figure(
            "raw JSON to staging", "COPY of the same rows as CSV from memory", "rows/s",
            rows / staging(), rows / copying, 0.40, True,
        )  # fmt: skip

        hand = by_hand(lab, 0, keep=False)
        settle(lab, "health.health_metrics")
        before = row_versions(lab)
        ours = build(lab)
        added = row_versions(lab)[0] - before[0]
        if added != rows:
            raise RuntimeError(f"{added} of {rows} rows arrived")
        yield Figure(
            f"staging to health_metrics, new rows into {stored:,}", "the same by one INSERT by hand", "rows/s",
            rows / ours["health_metrics"], rows / hand, 0.7, True,
        )  # fmt: skip
        yield Figure(
            "raw JSON to all canonical and daily tables", "100,000 rows a second of wall time", "rows/s",
            rows / (staging() + ours["all"]), 100_000, 1, True,
            f"staging {staging():.1f} s, dbt {ours['all']:.1f} s, of that health_metrics "
            f"{ours['health_metrics']:.1f} s, daily_metrics {ours['daily_metrics']:.1f} s, "
            f"metric_quarantine {ours['metric_quarantine']:.1f} s",
        )  # fmt: skip

        settle(lab, "health.health_metrics")
        loads = lab.one("select max(load_id) as last from staging_oura.loads")["last"]
        deliver(lab, users, samples, samples // 3, RECEIVED + dt.timedelta(hours=1))
        lab.stage("oura")
        settle(lab)
        hand = by_hand(lab, loads, keep=True)
        before = row_versions(lab)
        ours = build(lab)
        yield Figure(
            "the same rows delivered again", "the same by one INSERT by hand", "rows/s",
            rows / ours["health_metrics"], rows / hand, 0.7, True,
        )  # fmt: skip
        yield Figure(
            "row versions written by that", "the rows delivered", "rows",
            sum(row_versions(lab)) - sum(before), rows, 0, False,
        )  # fmt: skip
        yield Figure(
            f"run for a day of one user, over {stored + rows:,} rows", "the same over an empty warehouse", "seconds",
            small_run(lab, users[0], 10, rounds), on_empty, 1.25, False,
        )  # fmt: skip
        size = lab.one(
            "select sum(pg_total_relation_size(inhrelid)) as bytes, sum(reltuples)::bigint as rows from pg_inherits "
            r"inner join pg_class on oid = inhrelid where inhparent = 'health.health_metrics'\:\:regclass"
        )
        yield Figure(
            "bytes of a canonical sample, indexes included", "150 bytes", "bytes",
            float(size["bytes"]) / size["rows"], 150, 1, False,
        )  # fmt: skip


def small_run(lab: Lab, user: int, day: int, rounds: int) -> float:
    """Seconds to stage and apply a day of one user, the best of some days."""
    best = float("inf")
    for number in range(day, day + rounds):
        first = RECEIVED + dt.timedelta(days=number)
        moments = (first + dt.timedelta(minutes=5 * step) for step in range(288))
        told = [{"timestamp": moment.isoformat(), "bpm": 60, "source": "rest"} for moment in moments]
        lab.deliver(user, "heartrate", told, first + dt.timedelta(days=1))
        with stopwatch() as seconds:
            lab.stage("oura")
            build(lab)
        best = min(best, seconds())
    return best


def fill(lab: Lab, rows: int) -> None:
    """Two years of four metrics before the new samples, month by month."""
    months = [dt.date(2024 + number // 12, number % 12 + 1, 1) for number in range(26)]
    days = (months[-2] - months[0]).days
    seconds = days * 86_400 * 4 * USERS / rows
    for start, end in itertools.pairwise(months):
        with lab.warehouse.engine.begin() as connection:
            connection.execute(sa.text("set local work_mem = '256MB'"))
            connection.exec_driver_sql(_PARTITION.format(name=f"{start:%Y_%m}", start=start, end=end))
            if start < FIRST.date().replace(day=1):
                times = {"start": f"{start} 00:00+00", "end": f"{end} 00:00+00", "seconds": seconds}
                connection.execute(sa.text(_FILL), times)


def deliver(lab: Lab, users: list[int], samples: int, a_page: int, received: dt.datetime) -> None:
    """The users' samples as the provider's answers, in the raw store."""
    for user in users:
        told = list(samples_of(user, samples))
        receive(
            lab.warehouse.engine,
            lab.store,
            [
                Delivery(
                    *("oura", "heartrate", user, "fetch"),
                    orjson.dumps({"data": told[start : start + a_page], "next_token": None}),
                    received,
                    *(dt.date.fromisoformat(told[start]["timestamp"][:10]),) * 2,
                    "application/json",
                )
                for start in range(0, samples, a_page)
            ],
        )


def samples_of(user: int, samples: int) -> Iterator[dict[str, Any]]:
    for number in range(samples):
        moment = FIRST + dt.timedelta(seconds=SECONDS_BETWEEN * number)
        yield {
            "timestamp": moment.strftime("%Y-%m-%dT%H:%M:%S+00:00"),
            "bpm": 45 + (user * 7 + number * 13) % 90,
            "source": "rest" if number % 3 else "awake",
        }


def copied(lab: Lab) -> float:
    """Seconds that COPY takes to put the same rows from memory into a table like the staging table."""
    lab.execute("create table copied (like staging_oura.heartrate including all)")
    columns = '_raw_object_id, _load_id, "timestamp", utc_offset_minutes, bpm, source'
    with lab.warehouse.engine.begin() as connection:
        cursor = connection.connection.cursor()
        text = io.StringIO()
        cursor.copy_expert(f"copy (select {columns} from staging_oura.heartrate) to stdout csv", text)
        text.seek(0)
        with stopwatch() as seconds:
            cursor.copy_expert(f"copy copied ({columns}) from stdin csv", text)
    lab.execute("drop table copied")
    return seconds()


def by_hand(lab: Lab, after: int, *, keep: bool) -> float:
    """Seconds that the statement written by hand takes; what it did is taken back, unless it did nothing."""
    with lab.warehouse.engine.connect() as connection:
        connection.execute(sa.text("set local work_mem = '256MB'"))
        with stopwatch() as seconds:
            connection.execute(sa.text(_BY_HAND), {"after": after})
            if keep:
                connection.commit()
        connection.rollback()
    return seconds()


def row_versions(lab: Lab) -> tuple[int, int]:
    """Rows inserted into, and updated or deleted in, health_metrics so far."""
    lab.execute("select pg_stat_force_next_flush()")
    row = lab.one(
        "select sum(n_tup_ins)::bigint as added, sum(n_tup_upd + n_tup_del)::bigint as changed "
        "from pg_stat_user_tables where schemaname = 'health' and relname ~ '^health_metrics_[0-9]'"
    )
    return row["added"], row["changed"]
