"""`make demo`: the whole way, on synthetic people, through the same doors and jobs as the real thing."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from health_pipeline.connections.connect import connect_sandbox_person
from health_pipeline.connections.oauth import ConsentError
from health_pipeline.connections.users import ensure_user, require_user
from health_pipeline.connections.vault import open_vault
from health_pipeline.ingestion.upload import upload
from health_pipeline.providers.base import Provider, Window
from health_pipeline.providers.registry import connectable, get
from health_pipeline.raw.store import open_store
from health_pipeline.runtime.comparison import Comparison, compare_with_truth
from health_pipeline.runtime.processes import ProcessGroup, interruptible
from health_pipeline.runtime.run_job import run_job
from health_pipeline.runtime.servers import start_sandbox
from health_pipeline.runtime.users import set_profile
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

BACKFILL_DAYS = 90
ALL_PROVIDERS_DAYS = 30
CGM_DAYS = 14
Say = Callable[[str], None]


@dataclass(slots=True)
class DemoReport:
    """`problems` are numbers that are not what the sandbox's people did; empty if all is right."""

    counts: dict[str, int] = field(default_factory=dict)
    recovery: list[tuple[str, dt.date, float, str]] = field(default_factory=list)
    forecasts: list[tuple[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class AllProvidersReport:
    """`counts` are rows, person-days and people of each provider's metrics, by (provider, metric).

    `skipped` says who could not be connected to what, and why; `problems` as in DemoReport.
    """

    counts: dict[tuple[str, str], tuple[int, int, int]] = field(default_factory=dict)
    comparisons: list[Comparison] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def run_demo(settings: Settings, warehouse: Warehouse, say: Say, *, days: int = BACKFILL_DAYS) -> DemoReport:
    """Connect the sandbox's people, backfill their days, upload a glucose file, and check what came out.

    The sandbox's clock stands at the last midnight UTC, so that the same day's demo gives the same bytes.
    """
    started = time.monotonic()
    midnight = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    window = Window(midnight.date() - dt.timedelta(days=days + 1), midnight.date() - dt.timedelta(days=2))
    report = DemoReport()
    with interruptible(), ProcessGroup(settings.home_path / "logs") as group:
        sandbox = start_sandbox(group, now=midnight.isoformat())
        settings = settings.model_copy(update={"sandbox_url": sandbox})
        say(f"sandbox answers at {sandbox}")
        handles, _ = connect_people(settings, warehouse, get("oura"), sandbox)
        say(f"connected {', '.join(handles)} to Oura")
        describe_people(warehouse, sandbox)
        _backfill(settings, warehouse, window, say, report)
        uploaded = _upload_glucose(settings, warehouse, window, say, report)
        if not report.problems:
            _read_results(warehouse, report)
            _verify(warehouse, sandbox, handles, window, uploaded, report)
    report.seconds = time.monotonic() - started
    return report


def run_all_providers(
    settings: Settings, warehouse: Warehouse, say: Say, *, days: int = ALL_PROVIDERS_DAYS
) -> AllProvidersReport:
    """Connect the sandbox's people to every provider, fetch the days in one run, and check every value of them.

    The sandbox's clock stands at the last midnight UTC. The window ends the day before, because a provider
    that keeps only the last hours has nothing of earlier days.
    """
    started = time.monotonic()
    midnight = dt.datetime.now(dt.UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    window = Window(midnight.date() - dt.timedelta(days=days), midnight.date() - dt.timedelta(days=1))
    report = AllProvidersReport()
    with interruptible(), ProcessGroup(settings.home_path / "logs") as group:
        sandbox = start_sandbox(group, now=midnight.isoformat())
        settings = settings.model_copy(update={"sandbox_url": sandbox})
        say(f"sandbox answers at {sandbox}")
        providers = connectable()
        for provider in providers:
            connected, refused = connect_people(settings, warehouse, provider, sandbox)
            say(f"connected {', '.join(connected) or 'nobody'} to {provider.title}")
            report.skipped += refused
        describe_people(warehouse, sandbox)
        say(f"daily_refresh, {window.start} to {window.end}, one run")
        _run("daily_refresh", window, settings, warehouse, say, report.problems)
        report.problems += _account_errors(warehouse)
        report.counts = _count_metrics(warehouse)
        say("comparing with what the people did")
        report.comparisons = compare_with_truth(warehouse, sandbox, providers, window)
    for comparison in report.comparisons:
        report.problems += [difference.words() for difference in comparison.wrong]
        if not comparison.equal:
            report.problems.append(f"{comparison.provider}: not one value came through")
    report.seconds = time.monotonic() - started
    return report


def connect_people(
    settings: Settings, warehouse: Warehouse, provider: Provider, sandbox: str
) -> tuple[list[str], list[str]]:
    """Connect everybody in the sandbox. Returns who is connected, and of the others why they are not."""
    import httpx

    settings = settings.model_copy(update={"sandbox_url": sandbox})
    vault = open_vault(settings)
    connected, refused = [], []
    people = httpx.get(f"{sandbox}/__people", timeout=30).raise_for_status().json()["people"]
    for person in people:
        with warehouse.engine.begin() as connection:
            user = ensure_user(connection, person["handle"], person["zone"])
        try:
            connect_sandbox_person(settings, warehouse, vault, provider, user.handle)
        except ConsentError as error:
            refused.append(f"{provider.title} was not connected for {user.handle}: {error}")
        else:
            connected.append(user.handle)
    return connected, refused


def describe_people(warehouse: Warehouse, sandbox: str) -> None:
    """Say of everybody what `user set` asks for, so that training loads are of the heart rate."""
    import httpx

    people = httpx.get(f"{sandbox}/__people", timeout=30).raise_for_status().json()["people"]
    with warehouse.engine.connect() as connection:
        here = set(connection.execute(sa.text("select handle from ops.users")).scalars())
    for person in people:
        if person["handle"] in here:
            set_profile(warehouse, person["handle"], sex=person["sex"], birth_year=person["birth_year"])


def _account_errors(warehouse: Warehouse) -> list[str]:
    """What each account's sync says went wrong."""
    query = (
        "select provider, handle, last_error from ops.provider_accounts inner join ops.users using (user_id) "
        "where last_error is not null order by provider, handle"
    )
    with warehouse.engine.connect() as connection:
        return [
            f"{row.provider}, {row.handle}: {row.last_error}" for row in connection.execute(sa.text(query))
        ]


def _count_metrics(warehouse: Warehouse) -> dict[tuple[str, str], tuple[int, int, int]]:
    query = (
        "select source, metric_type, count(*), count(distinct (user_id, local_date)), count(distinct user_id) "
        "from health.health_metrics group by source, metric_type order by source, metric_type"
    )
    with warehouse.engine.connect() as connection:
        return {
            (source, metric): (rows, days, people)
            for source, metric, rows, days, people in connection.execute(sa.text(query))
        }


def _backfill(settings: Settings, warehouse: Warehouse, window: Window, say: Say, report: DemoReport) -> None:
    with warehouse.engine.begin() as connection:
        _set_goals(connection)
    say(f"sync_oura, {window.start} to {window.end}, one run")
    _run("sync_oura", window, settings, warehouse, say, report.problems)


def _upload_glucose(
    settings: Settings, warehouse: Warehouse, window: Window, say: Say, report: DemoReport
) -> int:
    """Upload each sensor wearer's last two weeks as the file their vendor would give. Returns the readings."""
    import httpx

    store = open_store(settings.raw_location)
    first = window.end - dt.timedelta(days=CGM_DAYS - 1)
    readings = 0
    today = dt.datetime.now(dt.UTC).date()
    people = httpx.get(f"{settings.sandbox_url}/__people", timeout=30).raise_for_status().json()["people"]
    for person in people:
        if person["cgm"] is None:
            continue
        answer = httpx.get(
            f"{settings.sandbox_url}/__files/dexcom_clarity/{person['handle']}",
            params={"start": str(first), "end": str(window.end)},
            timeout=60,
        ).raise_for_status()
        with warehouse.engine.connect() as connection:
            user = require_user(connection, person["handle"])
        taken = upload(warehouse, store, user, answer.content)
        rows = {entity: table.num_rows for entity, table in taken.parsed.tables.items()}
        readings += rows["readings"]
        said = ", ".join(f"{number} {entity}" for entity, number in rows.items() if number)
        say(f"uploaded {person['handle']}'s {taken.provider.title} file: {said}")
    say("file_upload, one run")
    _run("file_upload", Window(today, today), settings, warehouse, say, report.problems)
    return readings


def _run(
    job: str, window: Window, settings: Settings, warehouse: Warehouse, say: Say, problems: list[str]
) -> None:
    outcome = run_job(job, window, settings, warehouse, on_progress=lambda line: say(f"  {line}"))
    problems.extend(f"{job}: {failure}" for failure in outcome.failures)
    problems.extend(f"{job}: the check {check} failed" for check in outcome.failed_checks)
    if not outcome.success and not outcome.failures:
        problems.append(f"{job} failed; see run {outcome.run_id} in the UI")


def _set_goals(connection: sa.Connection) -> None:
    """A goal for everybody, so that there is something to forecast towards."""
    connection.execute(
        sa.text(
            "insert into ops.goals (user_id, metric_type, target_value) "
            "select user_id, 'resting_heart_rate', 48 from ops.provider_accounts where provider = 'oura' "
            "on conflict do nothing"
        )
    )


_COUNTS = {
    "raw objects": "select count(*) from ops.raw_objects",
    "canonical metrics": "select count(*) from health.health_metrics",
    "glucose readings": "select count(*) from health.glucose_readings",
    "nights and naps": "select count(*) from health.sleep_sessions",
    "workouts": "select count(*) from health.workouts",
    "quarantined": "select count(*) from health.metric_quarantine",
    "daily values": "select count(*) from health.daily_metrics",
    "person-days": "select count(*) from (select distinct user_id, local_date from health.daily_metrics) as days",
    "training days by heart rate": "select count(*) from health.training_loads where banister_trimp is not null",
    "recovery scores": "select count(*) from health.recovery_scores",
    "forecasts": "select count(*) from health.forecasts where slope_per_day is not null",
}


def _read_results(warehouse: Warehouse, report: DemoReport) -> None:
    from health_pipeline.staging.tables import schema_name, table_schemas

    with warehouse.engine.connect() as connection:
        staged = 0
        for name in ("oura", "dexcom_clarity"):
            schema = schema_name(name)
            for table in table_schemas(get(name)):
                if table != "quarantine":
                    query = f'select count(*) from {schema}."{table}"'  # noqa: S608
                    staged += int(connection.execute(sa.text(query)).scalar_one())
        for label, query in _COUNTS.items():
            report.counts[label] = int(connection.execute(sa.text(query)).scalar_one())
            if label == "raw objects":
                report.counts["staged rows"] = staged
        report.recovery = [
            tuple(row)
            for row in connection.execute(
                sa.text(
                    "select distinct on (users.handle) users.handle, scores.local_date, scores.recovery_score, "
                    "scores.explanation from health.recovery_scores as scores inner join ops.users using (user_id) "
                    "where scores.method = 'calibrated' order by users.handle, scores.local_date desc"
                )
            )
        ]
        report.forecasts = [
            tuple(row)
            for row in connection.execute(
                sa.text(
                    "select users.handle, forecasts.sentence from health.forecasts "
                    "inner join ops.users using (user_id) "
                    "where forecasts.target_value is not null order by users.handle, forecasts.metric_type"
                )
            )
        ]


def _verify(
    warehouse: Warehouse, sandbox: str, handles: list[str], window: Window, uploaded: int, report: DemoReport
) -> None:
    """Compare every day's values with what the sandbox's people really did, and count the rest."""
    (oura,) = compare_with_truth(warehouse, sandbox, [get("oura")], window)
    report.counts["values equal to the truth"] = oura.equal
    report.problems.extend(difference.words() for difference in oura.wrong)
    if not oura.equal:
        report.problems.append("not one daily value came through")
    if report.counts["glucose readings"] < uploaded:
        report.problems.append(
            f"{uploaded} glucose readings were uploaded, {report.counts['glucose readings']} are in the warehouse"
        )
    if report.counts["quarantined"]:
        report.problems.append(f"{report.counts['quarantined']} values are in quarantine; none should be")
    if len(report.recovery) < len(handles):
        report.problems.append("somebody has no recovery score")
    if not report.forecasts:
        report.problems.append("there is no forecast")
    if not report.counts["training days by heart rate"]:
        report.problems.append("no training load is of the heart rate")
