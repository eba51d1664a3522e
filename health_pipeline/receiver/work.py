"""`POST /v1/health/{provider}/sync` and `GET /v1/jobs/{job_id}`: ask for work, and see how far it is."""

from __future__ import annotations

import datetime as dt
from typing import Annotated

import orjson
import sqlalchemy as sa
from fastapi import APIRouter, Body, Path
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from health_pipeline.connections.accounts import active_accounts
from health_pipeline.connections.endpoints import ProviderNotConfiguredError, endpoint_of
from health_pipeline.ingestion import jobs
from health_pipeline.ingestion.outcome import UploadSummary, read_outcome
from health_pipeline.providers.base import Provider, Window
from health_pipeline.providers.registry import connectable, get
from health_pipeline.receiver import answers
from health_pipeline.receiver.auth import Anyone, Syncer
from health_pipeline.receiver.errors import RefusedError
from health_pipeline.receiver.house import House, house_of
from health_pipeline.settings import FIRST_DAY

#: Days of the first sync of a new connection.
FIRST_SYNC_DAYS = 30
_PLACES = 10
_ENDED = ("done", "failed")

router = APIRouter(prefix="/v1", tags=["work"])

ProviderName = Annotated[str, Path(description="A provider's name, like `oura`.", max_length=64)]


class SyncRequest(answers.Answer):
    """What to fetch."""

    days: int = Field(default=7, ge=1, le=90, description="So many days up to today (UTC).")


@router.post(
    "/health/{provider}/sync",
    status_code=202,
    response_model=answers.Accepted,
    responses=answers.refusals(404, 409, *answers.BODY),
    summary="Fetch the last days now",
)
def sync(
    request: Request,
    response: Response,
    who: Syncer,
    provider: ProviderName,
    wanted: Annotated[SyncRequest | None, Body()] = None,
) -> answers.Accepted:
    """A run is asked for within seconds. A request for what is waiting already is the same job."""
    house, found = house_of(request), provider_of(provider)
    try:
        endpoint_of(found, house.settings)
    except ProviderNotConfiguredError as error:
        raise RefusedError(409, "not_configured", str(error)) from None
    engine = house.warehouse.engine
    if not active_accounts(engine, found.name, [who.user_id]):
        raise RefusedError(409, "not_connected", f"there is no active {found.title} account to ask")
    return accepted(
        response, request_sync(house, found, who.user_id, (wanted or SyncRequest()).days, again=False)
    )


def provider_of(name: str) -> Provider:
    """A provider that people can connect. RefusedError 404 where it is none."""
    found = next((each for each in connectable() if each.name == name), None)
    if found is None:
        raise RefusedError(404, "unknown_provider", "no such provider can be connected")
    return found


def request_sync(
    house: House, provider: Provider, user_id: int, days: int, *, again: bool = True
) -> jobs.Job:
    """Ask for a sync of the last days; `again` also where the same is waiting."""
    today = dt.datetime.now(dt.UTC).date()
    window = Window(max(today - dt.timedelta(days=days - 1), FIRST_DAY), today)
    engine = house.warehouse.engine
    waiting = None if again else jobs.waiting(engine, "sync", provider.name, user_id, window)
    return waiting or jobs.create(engine, "sync", provider.name, user_id, window, requested=True)


def accepted(response: Response, job: jobs.Job) -> answers.Accepted:
    """What to say of a job that waits, with its address."""
    location = f"/v1/jobs/{job.job_id}"
    response.headers["Location"] = location
    return answers.Accepted(job_id=job.job_id, status=job.status, location=location)


@router.get(
    "/jobs/{job_id}",
    responses={200: {"model": answers.Job}, **answers.refusals(404, 422)},
    summary="How far a job is",
)
def job(
    request: Request,
    who: Anyone,
    job_id: Annotated[
        int, Path(ge=1, le=2**63 - 1, description="As it was given when the job was asked for.")
    ],
) -> Response:
    """The caller's own jobs. That of an upload says what became of the file, once it has ended."""
    house = house_of(request)
    try:
        found = jobs.get(house.warehouse.engine, job_id)
    except LookupError:
        found = None
    if found is None or found.user_id != who.user_id:
        raise RefusedError(404, "unknown_job", "this token opens no such job")
    body = {
        "job_id": found.job_id,
        "kind": found.kind,
        "provider": found.provider,
        "status": found.status,
        "start": found.window.start,
        "end": found.window.end,
        "windows_done": found.windows_done,
        "windows_total": found.windows_total,
        "objects_new": found.objects_new,
        "last_error": found.last_error,
        "created_at": found.created_at.astimezone(dt.UTC),
        "started_at": found.started_at and found.started_at.astimezone(dt.UTC),
        "finished_at": found.finished_at and found.finished_at.astimezone(dt.UTC),
        "file": _report(house, found),
    }
    return Response(
        orjson.dumps(body, option=orjson.OPT_UTC_Z),
        headers={"Cache-Control": "no-store"},
        media_type="application/json",
    )


def _report(house: House, job: jobs.Job) -> dict[str, object] | None:
    if job.kind != "upload" or job.raw_object_id is None or job.status not in _ENDED:
        return None
    provider = get(job.provider)
    found = UploadSummary(provider.title, known=job.objects_new == 0)
    try:
        read_outcome(house.warehouse, provider, job.raw_object_id, found)
    except sa.exc.ProgrammingError:
        return None  # it failed before there was anything to read
    return {
        "kind": provider.name,
        "known": found.known,
        "records_read": found.records_in,
        "records_loaded": found.records_loaded,
        "in_warehouse": found.canonical,
        "loaded": found.added,
        "duplicates": found.duplicates,
        "skipped": found.skipped,
        "quarantined": [
            {"reason": reason, "count": len(places), "places": places[:_PLACES]}
            for reason, places in found.refused.items()
        ],
        "sources": found.sources,
        "zone_rules": found.zones,
        "first_at": found.first and found.first.astimezone(dt.UTC),
        "last_at": found.last and found.last.astimezone(dt.UTC),
        "notes": found.notes,
    }
