"""`make demo`: the whole way, on synthetic people, through the same doors and jobs as the real thing."""

from __future__ import annotations

import datetime as dt
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from health_pipeline.connections.accounts import save_connection
from health_pipeline.connections.endpoints import endpoint_of
from health_pipeline.connections.oauth import connect_with_hint
from health_pipeline.connections.users import ensure_user, require_user
from health_pipeline.connections.vault import open_vault
from health_pipeline.ingestion.upload import upload
from health_pipeline.providers.base import Provider, Window
from health_pipeline.providers.http import ApiClient
from health_pipeline.providers.registry import get
from health_pipeline.raw.store import open_store
from health_pipeline.runtime.processes import ProcessGroup, interruptible
from health_pipeline.runtime.run_job import run_job
from health_pipeline.runtime.servers import start_sandbox
from health_pipeline.settings import Settings
from health_pipeline.warehouse.connection import Warehouse

BACKFILL_DAYS = 90
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
        handles = connect_people(settings, warehouse, get("oura"), sandbox)
        say(f"connected {', '.join(handles)} to Oura")
        _backfill(settings, warehouse, window, say, report)
        uploaded = _upload_glucose(settings, warehouse, window, say, report)
        if not report.problems:
            _read_results(warehouse, report)
            _verify(warehouse, sandbox, handles, window, uploaded, report)
    report.seconds = time.monotonic() - started
    return report


def connect_people(settings: Settings, warehouse: Warehouse, provider: Provider, sandbox: str) -> list[str]:
    import httpx

    endpoint = endpoint_of(provider, settings)
    vault = open_vault(settings)
    people = httpx.get(f"{sandbox}/__people", timeout=30).raise_for_status().json()["people"]
    for person in people:
        with warehouse.engine.begin() as connection:
            user = ensure_user(connection, person["handle"], person["zone"])
        tokens = connect_with_hint(endpoint, user.handle)
        assert provider.identify is not None
        with ApiClient(
            provider.name,
            endpoint.base_url,
            lambda _force, t=tokens: t.access_token,  # type: ignore[misc]
            provider_user_id=tokens.provider_user_id,
        ) as client:
            account = provider.identify(client)
        save_connection(
            warehouse.engine,
            vault,
            user_id=user.user_id,
            provider=provider.name,
            provider_user_id=account.provider_user_id,
            environment=endpoint.environment,
            tokens=tokens,
            profile=account.profile,
            consent_version="sandbox-1",
        )
    return [person["handle"] for person in people]


def _backfill(settings: Settings, warehouse: Warehouse, window: Window, say: Say, report: DemoReport) -> None:
    with warehouse.engine.begin() as connection:
        _set_goals(connection)
    say(f"daily_refresh, {window.start} to {window.end}, one run")
    _run("daily_refresh", window, settings, warehouse, say, report)


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
        readings += taken.parsed.records_loaded
        say(
            f"uploaded {person['handle']}'s {taken.provider.title} file: {taken.parsed.records_loaded} readings"
        )
    say("file_upload, one run")
    _run("file_upload", Window(today, today), settings, warehouse, say, report)
    return readings


def _run(
    job: str, window: Window, settings: Settings, warehouse: Warehouse, say: Say, report: DemoReport
) -> None:
    outcome = run_job(job, window, settings, warehouse, on_progress=lambda line: say(f"  {line}"))
    report.problems.extend(f"{job}: {failure}" for failure in outcome.failures)
    report.problems.extend(f"{job}: the check {check} failed" for check in outcome.failed_checks)
    if not outcome.success and not outcome.failures:
        report.problems.append(f"{job} failed; see run {outcome.run_id} in the UI")


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


#: What the sandbox says a person did on a day, and the metric it must have become.
_TRUTHS = (
    ("steps_recorded", "steps"),
    ("sleep_seconds", "sleep_duration"),
    ("hrv", "heart_rate_variability"),
    ("resting_heart_rate", "resting_heart_rate"),
)


def _verify(
    warehouse: Warehouse, sandbox: str, handles: list[str], window: Window, uploaded: int, report: DemoReport
) -> None:
    """Compare every day's values with what the sandbox's people really did, and count the rest."""
    compared = sum(_compare_person(warehouse, sandbox, handle, window, report) for handle in handles)
    report.counts["values equal to the truth"] = compared - len(report.problems)
    if compared < len(handles) * len(_TRUTHS) * 30:
        report.problems.append(f"only {compared} daily values came through")
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


def _compare_person(
    warehouse: Warehouse, sandbox: str, handle: str, window: Window, report: DemoReport
) -> int:
    """Compare a person's days with the truth; differences go to the report. Returns how many were compared."""
    import httpx

    span = {"start": str(window.start), "end": str(window.end)}
    answer = httpx.get(f"{sandbox}/__truth/{handle}", params=span, timeout=120).raise_for_status()
    with warehouse.engine.connect() as connection:
        stored = {
            (row.metric_type, row.local_date.isoformat()): row.metric_value
            for row in connection.execute(
                sa.text(
                    "select metric_type, local_date, metric_value from health.daily_metrics "
                    "inner join ops.users using (user_id) where handle = :handle and source = 'oura' "
                    "and metric_type = any(:metrics)"
                ),
                {"handle": handle, "metrics": [metric for _, metric in _TRUTHS]},
            )
        }
        two_nights = {
            day.isoformat()
            for day in connection.execute(
                sa.text(
                    "select local_date from health.sleep_sessions inner join ops.users using (user_id) "
                    "where handle = :handle and is_main_sleep group by local_date having count(*) > 1"
                ),
                {"handle": handle},
            ).scalars()
        }
    compared = 0
    for date, days in itertools.groupby(answer.json()["days"], key=lambda day: day["date"]):
        lived = list(days)
        if date in two_nights or len(lived) > 1:
            continue  # the date line gave the date two nights, or made it happen twice
        for field_name, metric in _TRUTHS:
            value = stored.get((metric, date))
            if value is None:
                continue
            compared += 1
            if abs(value - lived[0][field_name]) > 0.5:
                report.problems.append(
                    f"{handle}, {date}: {metric} is {value:g}, the person's was {lived[0][field_name]:g}"
                )
    return compared
