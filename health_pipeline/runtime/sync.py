"""`health-pipeline sync` and `health-pipeline backfill`: one person's days of one provider, through Dagster."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import sqlalchemy as sa

from health_pipeline.connections.endpoints import endpoint_of
from health_pipeline.connections.users import UserRecord, require_user
from health_pipeline.ingestion import jobs
from health_pipeline.providers.base import Provider, Window
from health_pipeline.providers.registry import get
from health_pipeline.runtime.run_job import RunOutcome, run_job
from health_pipeline.settings import FIRST_DAY, Settings
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.models import ProviderAccount

Kind = Literal["sync", "backfill"]
_LOOK_SECONDS = 0.5


class SyncInterruptedError(RuntimeError):
    """Ctrl-C: what is raw is raw, and the same command goes on from there."""


@dataclass(slots=True)
class SyncSummary:
    """What a sync brought. `windows` are of the whole job, objects and rows of this run."""

    title: str
    handle: str
    window: Window
    windows_done: int
    windows_total: int
    windows_skipped: int
    objects_new: int
    objects_known: int
    rows: int
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def words(self) -> str:
        """The report for the terminal."""
        windows = f"{self.windows_done} of {self.windows_total} windows"
        if self.windows_skipped:
            windows += f" ({self.windows_skipped} were raw already)"
        return (
            f"{self.title}, {self.handle}, {self.window.start} to {self.window.end}: {windows}, "
            f"{self.objects_new} objects new, {self.objects_known} known, {self.rows:,} rows staged"
        )


def last_days(days: int) -> Window:
    """The days up to today, UTC. Raises ValueError where they are none."""
    if days < 1:
        raise ValueError("--days has to be 1 or more")
    today = dt.datetime.now(dt.UTC).date()
    return _in_range(max(today - dt.timedelta(days=days - 1), FIRST_DAY), today)


def days_between(first: dt.date, last: dt.date) -> Window:
    """Raises ValueError, with the way out, for days in disorder, too old, or to come."""
    if last < first:
        raise ValueError(f"--from {first} is after --to {last}")
    return _in_range(first, last)


def _in_range(first: dt.date, last: dt.date) -> Window:
    today = dt.datetime.now(dt.UTC).date()
    if first < FIRST_DAY or last > today:
        raise ValueError(f"days go from {FIRST_DAY} to today, {today} (UTC), not from {first} to {last}")
    return Window(first, last)


def run_sync(
    settings: Settings,
    warehouse: Warehouse,
    kind: Kind,
    provider_name: str,
    handle: str,
    window: Window,
    say: Callable[[str], None],
    on_windows: Callable[[int, int], None],
) -> SyncSummary:
    """Fetch, stage and compute the days; take up the job of the same arguments if there is one that is not done.

    `on_windows` gets the windows done and all there are, whenever that changes, from another thread.

    Raises LookupError for an unknown provider or user, ValueError for one that is not fetched,
    ProviderNotConfiguredError, NotConnectedError, JobUnderWayError, SyncInterruptedError.
    """
    provider = get(provider_name)
    endpoint_of(provider, settings)
    user = _connected(warehouse.engine, provider, handle)
    engine = warehouse.engine
    with jobs.only_worker(engine, kind, provider.name, user.user_id, window):
        job = jobs.unfinished(engine, kind, provider.name, user.user_id, window)
        if job is None:
            job = jobs.create(engine, kind, provider.name, user.user_id, window)
        else:
            state = "failed" if job.status == "failed" else "was interrupted"
            progress = f"{job.windows_done} of {job.windows_total or '?'} windows were raw"
            say(
                f"resuming job {job.job_id} of {job.created_at:%Y-%m-%d %H:%M} UTC, which {state}: {progress}"
            )
        run_id = str(uuid.uuid4())
        jobs.begin(engine, job.job_id, run_id)
        config = {"user_ids": [user.user_id], "job_id": job.job_id}
        try:
            with _watch(engine, job.job_id, on_windows):
                outcome = run_job(
                    f"sync_{provider.name}",
                    window,
                    settings,
                    warehouse,
                    run_id=run_id,
                    run_config={"ops": {f"raw__{provider.name}": {"config": config}}},
                    on_progress=say,
                )
        except BaseException as error:
            if isinstance(error, Exception):
                jobs.finish(engine, job.job_id, type(error).__name__)
                raise
            raise SyncInterruptedError(
                f"interrupted; what came is kept. The same command goes on from there (job {job.job_id})"
            ) from None
        return _summary(engine, provider, user, job, outcome)


class NotConnectedError(RuntimeError):
    """The user has no account of the provider that could be fetched; the message says why."""


def _connected(engine: sa.Engine, provider: Provider, handle: str) -> UserRecord:
    with engine.connect() as connection:
        user = require_user(connection, handle)
        account = connection.execute(
            sa.select(ProviderAccount.status, ProviderAccount.last_error).where(
                ProviderAccount.user_id == user.user_id, ProviderAccount.provider == provider.name
            )
        ).one_or_none()
    if account is None:
        raise NotConnectedError(f"{handle} has not connected {provider.title}")
    if account.status != "active":
        why = account.last_error or f"connect {provider.title} again"
        raise NotConnectedError(
            f"{handle}'s {provider.title} account is not active ({account.status}): {why}"
        )
    return user


@contextlib.contextmanager
def _watch(engine: sa.Engine, job_id: int, on_windows: Callable[[int, int], None]) -> Iterator[None]:
    """Tell of the job's progress, as ops.ingestion_jobs has it, while the block runs and at its end."""
    ended = threading.Event()
    shown: tuple[int, int] | None = None

    def look() -> None:
        nonlocal shown
        job = jobs.get(engine, job_id)
        if job.windows_total is not None and shown != (job.windows_done, job.windows_total):
            shown = (job.windows_done, job.windows_total)
            on_windows(*shown)

    def watch() -> None:
        while not ended.wait(_LOOK_SECONDS):
            look()

    thread = threading.Thread(target=watch, name="sync-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()


def _summary(
    engine: sa.Engine, provider: Provider, user: UserRecord, job: jobs.Job, outcome: RunOutcome
) -> SyncSummary:
    """Close the job and say how it went."""
    reached = jobs.get(engine, job.job_id)
    problems = list(outcome.failures)
    if reached.last_error is not None and not any(reached.last_error in each for each in problems):
        problems.insert(0, reached.last_error)
    if not outcome.success and not problems:
        problems.append(f"run {outcome.run_id} failed; see the UI")
    jobs.finish(engine, job.job_id, "; ".join(problems) or None)
    notes = [f"check failed: {check}" for check in outcome.failed_checks]
    with engine.connect() as connection:
        told = connection.execute(
            sa.select(ProviderAccount.last_error).where(
                ProviderAccount.user_id == user.user_id, ProviderAccount.provider == provider.name
            )
        ).scalar_one_or_none()
    if told is not None and not problems:
        notes.append(told)
    raw = outcome.metadata.get(f"raw/{provider.name}", {})
    rows = sum(
        int(its.get("dagster/partition_row_count", 0))
        for key, its in outcome.metadata.items()
        if key.startswith(f"staging_{provider.name}/")
    )
    return SyncSummary(
        title=provider.title,
        handle=user.handle,
        window=job.window,
        windows_done=reached.windows_done,
        windows_total=reached.windows_total or 0,
        windows_skipped=int(raw.get("windows_skipped", 0)),
        objects_new=int(raw.get("objects_new", 0)),
        objects_known=int(raw.get("objects_known", 0)),
        rows=rows,
        notes=notes,
        problems=problems,
    )
