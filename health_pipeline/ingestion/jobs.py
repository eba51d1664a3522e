"""Ingestion jobs (`ops.ingestion_jobs`): what somebody asked to have fetched, and how far it is.

A job whose process died stays `running`, one that met an error is `failed`; both are taken up again by the
next call with the same arguments, which asks for nothing that is already raw. Only `done` ends a job for good.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from health_pipeline.providers.base import Window
from health_pipeline.staging.tables import schema_name
from health_pipeline.warehouse.lock import hold
from health_pipeline.warehouse.models import FetchedWindow, IngestionJob

_RESUMABLE = ("queued", "running", "failed")
_WAITING_AT_MOST = dt.timedelta(minutes=15)


class JobUnderWayError(RuntimeError):
    """Another process is at work on the same job."""


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was when read; `window` are local days. `user_id` is None for all users of the provider."""

    job_id: int
    kind: str
    provider: str
    user_id: int | None
    window: Window
    status: str
    requests_done: int
    windows_done: int
    windows_total: int | None
    objects_new: int
    last_error: str | None
    run_id: str | None
    raw_object_id: int | None
    created_at: dt.datetime
    started_at: dt.datetime | None
    finished_at: dt.datetime | None


@contextmanager
def only_worker(
    engine: sa.Engine, kind: str, provider: str, user_id: int | None, window: Window
) -> Iterator[None]:
    """Hold the right to work on the job of these arguments. Raises JobUnderWayError where somebody has it."""
    name = f"ingestion:{kind}:{provider}:{user_id}:{window.start}:{window.end}"
    with hold(engine, name) as held:
        if not held:
            raise JobUnderWayError(
                f"the {kind} of {provider} from {window.start} to {window.end} is under way in another process"
            )
        yield


def unfinished(
    engine: sa.Engine, kind: str, provider: str, user_id: int | None, window: Window
) -> Job | None:
    """The newest job of these arguments, if it is not done."""
    return _newest(engine, kind, provider, user_id, window, _RESUMABLE)


def waiting(engine: sa.Engine, kind: str, provider: str, user_id: int | None, window: Window) -> Job | None:
    """The newest job of these arguments, if it was asked for lately and no run has taken it up: once more adds nothing.

    What is older may have lost its run.
    """
    found = _newest(engine, kind, provider, user_id, window, ("requested", "queued"))
    lately = dt.datetime.now(dt.UTC) - _WAITING_AT_MOST
    return found if found is not None and found.created_at > lately else None


def _newest(
    engine: sa.Engine,
    kind: str,
    provider: str,
    user_id: int | None,
    window: Window,
    statuses: Collection[str],
) -> Job | None:
    same = sa.and_(
        IngestionJob.kind == kind,
        IngestionJob.provider == provider,
        IngestionJob.user_id.is_(None) if user_id is None else IngestionJob.user_id == user_id,
        IngestionJob.window_start == window.start,
        IngestionJob.window_end == window.end,
    )
    query = _SELECT.where(same).order_by(IngestionJob.job_id.desc()).limit(1)
    with engine.connect() as connection:
        row = connection.execute(query).one_or_none()
    return _job(row) if row is not None and row.status in statuses else None


def create(
    engine: sa.Engine,
    kind: str,
    provider: str,
    user_id: int | None,
    window: Window,
    *,
    requested: bool = False,
    raw_object_id: int | None = None,
    objects_new: int = 0,
) -> Job:
    """A new job, queued for whoever makes it, or `requested` of the sensor; `raw_object_id` is an upload's file."""
    with engine.begin() as connection:
        job_id = connection.execute(
            sa.insert(IngestionJob)
            .values(
                kind=kind,
                provider=provider,
                user_id=user_id,
                window_start=window.start,
                window_end=window.end,
                status="requested" if requested else "queued",
                raw_object_id=raw_object_id,
                objects_new=objects_new,
            )
            .returning(IngestionJob.job_id)
        ).scalar_one()
    return get(engine, job_id)


def get(engine: sa.Engine, job_id: int) -> Job:
    """Raises LookupError where there is no such job."""
    with engine.connect() as connection:
        row = connection.execute(_SELECT.where(IngestionJob.job_id == job_id)).one_or_none()
    if row is None:
        raise LookupError(f"there is no ingestion job {job_id}")
    return _job(row)


def requested(engine: sa.Engine, limit: int, kinds: Collection[str]) -> list[Job]:
    """The oldest jobs of these kinds that wait for a run to be asked for."""
    waits = sa.and_(IngestionJob.status == "requested", IngestionJob.kind.in_(kinds))
    query = _SELECT.where(waits).order_by(IngestionJob.job_id).limit(limit)
    with engine.connect() as connection:
        return [_job(row) for row in connection.execute(query)]


def under_way(engine: sa.Engine) -> list[Job]:
    """The jobs that a run is said to work on."""
    query = _SELECT.where(IngestionJob.status == "running", IngestionJob.run_id.is_not(None))
    with engine.connect() as connection:
        return [_job(row) for row in connection.execute(query.order_by(IngestionJob.job_id))]


def queue(engine: sa.Engine, job_id: int) -> None:
    """A run was asked for."""
    _update(engine, job_id, status="queued")


def finish_run(engine: sa.Engine, run_id: str) -> int:
    """A run came to its end: the jobs that it worked on are done, or failed where one met an error; how many.

    A file whose rows are not there after that has failed, too.
    """
    with engine.begin() as connection:
        uploads = connection.execute(
            sa.select(IngestionJob.job_id, IngestionJob.provider, IngestionJob.raw_object_id).where(
                IngestionJob.run_id == run_id,
                IngestionJob.status == "running",
                IngestionJob.kind == "upload",
            )
        ).all()
        for upload in uploads:
            staged = connection.execute(
                sa.text(
                    f"select exists (select from {schema_name(upload.provider)}.staged_objects "  # noqa: S608
                    "where raw_object_id = :object)"
                ),
                {"object": upload.raw_object_id},
            ).scalar_one()
            if not staged:
                connection.execute(
                    sa.update(IngestionJob)
                    .where(IngestionJob.job_id == upload.job_id)
                    .values(last_error="the file is not staged; upload it again")
                )
        return connection.execute(
            sa.update(IngestionJob)
            .where(IngestionJob.run_id == run_id, IngestionJob.status == "running")
            .values(
                status=sa.case((IngestionJob.last_error.is_(None), "done"), else_="failed"),
                finished_at=sa.func.now(),
                updated_at=sa.func.now(),
            )
        ).rowcount


def begin(engine: sa.Engine, job_id: int, run_id: str) -> None:
    """The job is taken up, for the first time or again, by a Dagster run."""
    _update(
        engine,
        job_id,
        status="running",
        run_id=run_id,
        started_at=sa.func.coalesce(IngestionJob.started_at, sa.func.now()),
        finished_at=None,
        last_error=None,
    )


def set_plan(engine: sa.Engine, job_id: int, windows_done: int, windows_total: int) -> None:
    """What there is to fetch, of which some may be raw already."""
    _update(engine, job_id, windows_done=windows_done, windows_total=windows_total)


def note_error(engine: sa.Engine, job_id: int, message: str) -> None:
    """Something went wrong. `message` is for people: no payload, no token, nobody's name."""
    _update(engine, job_id, last_error=message)


def finish(engine: sa.Engine, job_id: int, error: str | None) -> None:
    """The job is done, or failed with `error`, and then waits to be taken up again."""
    _update(
        engine,
        job_id,
        status="done" if error is None else "failed",
        last_error=error,
        finished_at=sa.func.now(),
    )


def note_progress(engine: sa.Engine, job_id: int, *, windows: int, requests: int, objects_new: int) -> None:
    """Add to a job's counts."""
    with engine.begin() as connection:
        _add_progress(connection, job_id, windows, requests, objects_new)


def note_fetched(
    engine: sa.Engine,
    account_id: int,
    entity: str,
    window: Window,
    asked_at: dt.datetime,
    *,
    job_id: int | None = None,
    requests: int = 0,
    objects_new: int = 0,
) -> None:
    """All that the provider had of a window at `asked_at` is raw. With a job, that is its progress too."""
    with engine.begin() as connection:
        connection.execute(
            insert(FetchedWindow)
            .values(
                account_id=account_id,
                entity=entity,
                window_start=window.start,
                window_end=window.end,
                fetched_at=asked_at,
            )
            .on_conflict_do_update(
                index_elements=list(FetchedWindow.__table__.primary_key), set_={"fetched_at": asked_at}
            )
        )
        if job_id is not None:
            _add_progress(connection, job_id, 1, requests, objects_new)


def fetched_for(engine: sa.Engine, job: Job, account_ids: list[int]) -> set[tuple[int, str, Window]]:
    """The windows (account, entity, days) that were fetched since the job was made and need no second asking.

    A window that reaches into a day which was not over everywhere on earth when it was asked for counts for
    an hour: the day has gone on since.
    """
    query = sa.text(
        "select account_id, entity, window_start, window_end from ops.fetched_windows "
        "where account_id = any(:accounts) and fetched_at >= :since "
        "and (window_end < (fetched_at at time zone 'UTC')::date - 1 or fetched_at > now() - interval '1 hour')"
    )
    with engine.connect() as connection:
        rows = connection.execute(query, {"accounts": account_ids, "since": job.created_at})
        return {(row.account_id, row.entity, Window(row.window_start, row.window_end)) for row in rows}


def find_gaps(
    engine: sa.Engine, account_ids: list[int], last: dt.date
) -> dict[tuple[int, str], list[Window]]:
    """The days by (account, entity) that should be raw and are not, from the first ever fetched up to `last`.

    A day is fetched where a window that covers it was asked for after the day was over in the person's zone
    (UTC where it is unknown); a day that is not over yet is no gap.
    """
    query = sa.text(
        """
        with windows as (
            select
                fetched.account_id,
                fetched.entity,
                fetched.window_start,
                least(fetched.window_end, (fetched.fetched_at at time zone zone.name)::date - 1) as covered_to,
                least(cast(:last as date), (now() at time zone zone.name)::date - 1) as last
            from ops.fetched_windows as fetched
            inner join ops.provider_accounts as accounts using (account_id)
            inner join ops.users using (user_id)
            cross join lateral (
                select coalesce(accounts.metadata #>> '{profile,time_zone}', users.time_zone, 'UTC') as name
            ) as zone
            where fetched.account_id = any(:accounts)
        ),

        missing as (
            select
                account_id,
                entity,
                unnest(
                    datemultirange(daterange(min(window_start), min(last), '[]'))
                    - coalesce(
                        range_agg(daterange(window_start, covered_to, '[]'))
                            filter (where covered_to >= window_start),
                        '{}'
                    )
                ) as days
            from windows
            where window_start <= last
            group by account_id, entity
        )

        select account_id, entity, lower(days) as first_day, upper(days) - 1 as last_day
        from missing
        order by account_id, entity, first_day
        """
    )
    found: dict[tuple[int, str], list[Window]] = {}
    with engine.connect() as connection:
        for row in connection.execute(query, {"accounts": account_ids, "last": last}):
            found.setdefault((row.account_id, row.entity), []).append(Window(row.first_day, row.last_day))
    return found


def _add_progress(
    connection: sa.Connection, job_id: int, windows: int, requests: int, objects_new: int
) -> None:
    connection.execute(
        sa.update(IngestionJob)
        .where(IngestionJob.job_id == job_id)
        .values(
            windows_done=IngestionJob.windows_done + windows,
            requests_done=IngestionJob.requests_done + requests,
            objects_new=IngestionJob.objects_new + objects_new,
            updated_at=sa.func.now(),
        )
    )


def _update(engine: sa.Engine, job_id: int, **values: object) -> None:
    with engine.begin() as connection:
        connection.execute(
            sa.update(IngestionJob)
            .where(IngestionJob.job_id == job_id)
            .values(updated_at=sa.func.now(), **values)
        )


_SELECT = sa.select(IngestionJob.__table__)


def _job(row: sa.Row[tuple[object, ...]]) -> Job:
    return Job(
        job_id=row.job_id,
        kind=row.kind,
        provider=row.provider,
        user_id=row.user_id,
        window=Window(row.window_start, row.window_end),
        status=row.status,
        requests_done=row.requests_done,
        windows_done=row.windows_done,
        windows_total=row.windows_total,
        objects_new=row.objects_new,
        last_error=row.last_error,
        run_id=row.run_id,
        raw_object_id=row.raw_object_id,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
    )
