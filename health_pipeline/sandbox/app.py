"""The sandbox as a FastAPI application: every provider's API, and the switches that only a sandbox has."""

from __future__ import annotations

import datetime as dt
import io
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, HttpUrl

from health_pipeline.sandbox.context import Clock, Sandbox, Settings, utc_now
from health_pipeline.sandbox.faults import Fault, FaultBoard, FaultMiddleware
from health_pipeline.sandbox.files import FORMATS
from health_pipeline.sandbox.people import DEFAULT_SEED, EPOCH, Person, population
from health_pipeline.sandbox.routers import ProviderApi, Revision, provider_apis
from health_pipeline.sandbox.truth import truth

#: Environment variable with the ISO time (with offset) at which the sandbox's clock stands still.
NOW_VARIABLE = "HEALTH_PIPELINE_SANDBOX_NOW"


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Revise(_Body):
    provider: str
    handle: str
    day: dt.date
    kind: Revision = "edit"


class _Revoke(_Body):
    provider: str
    handle: str


class _Webhooks(_Body):
    provider: str
    handle: str
    day: dt.date
    url: HttpUrl | None = None
    secret: str | None = None


class _Now(_Body):
    now: AwareDatetime | None


def environment_clock(environment: Mapping[str, str] = os.environ) -> Clock:
    """The clock the environment asks for: fixed by `HEALTH_PIPELINE_SANDBOX_NOW`, else the wall clock.

    Raises:
        ValueError: the variable is not an ISO time with an offset.
    """
    text = environment.get(NOW_VARIABLE)
    if not text:
        return utc_now
    try:
        fixed = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{NOW_VARIABLE} is not an ISO time: {text!r}") from error
    if fixed.tzinfo is None:
        raise ValueError(f"{NOW_VARIABLE} needs an offset, such as {text}Z")
    return lambda: fixed


def create_app(
    *,
    seed: int = DEFAULT_SEED,
    now: Clock | None = None,
    clients: Mapping[str, str] | None = None,
    access_token_seconds: int = 86_400,
    page_size: int = 1000,
    document_page_size: int = 50,
) -> FastAPI:
    """A sandbox over the population of `seed`.

    `now` gives the time (aware) after which nothing exists yet; without it the environment decides, and then
    the wall clock. `clients` maps the client ids that may ask for tokens to their secrets.
    """
    settings = Settings(
        clients=clients or {"sandbox": "sandbox-secret"},
        access_token_seconds=access_token_seconds,
        page_size=page_size,
        document_page_size=document_page_size,
    )
    sandbox = Sandbox(population(seed), seed, now or environment_clock(), settings)
    apis = provider_apis(sandbox)
    board = FaultBoard()
    app = FastAPI(title="Health Pipeline provider sandbox", openapi_url=None, docs_url=None, redoc_url=None)
    app.state.sandbox, app.state.apis, app.state.faults = sandbox, apis, board
    for api in apis.values():
        app.include_router(api.oauth.router(), prefix=f"/{api.name}")
        app.include_router(api.router(), prefix=f"/{api.name}")
    app.include_router(_switches(sandbox, apis, board))
    app.include_router(_senders(sandbox, apis))
    app.include_router(_truths(sandbox, apis))
    app.include_router(_accounts(sandbox, apis))
    app.include_router(_books(sandbox, apis, board))
    app.add_middleware(FaultMiddleware, board=board, apis=apis)
    return app


def _api(apis: Mapping[str, ProviderApi], name: str) -> ProviderApi:
    if name not in apis:
        raise HTTPException(404, f"The sandbox has no provider {name!r}; it has {', '.join(apis)}.")
    return apis[name]


def _person(sandbox: Sandbox, handle: str) -> Person:
    if handle not in sandbox.people:
        raise HTTPException(404, f"Nobody is called {handle!r}; people: {', '.join(sandbox.people)}.")
    return sandbox.people[handle]


def _span(start: dt.date, end: dt.date) -> None:
    if end < start or start < EPOCH:
        raise HTTPException(400, f"Ask for days from {EPOCH} on, start before end.")
    if end - start > dt.timedelta(days=1100):
        raise HTTPException(400, "Ask for three years at most.")


def _switches(sandbox: Sandbox, apis: Mapping[str, ProviderApi], board: FaultBoard) -> APIRouter:
    """What changes how the sandbox behaves."""
    router = APIRouter()

    @router.post("/__faults", status_code=201)
    async def add_fault(fault: Fault) -> dict[str, Any]:
        _api(apis, fault.provider)
        if fault.handle is not None:
            _person(sandbox, fault.handle)
        return board.add(fault)

    @router.get("/__faults")
    async def list_faults() -> dict[str, Any]:
        return {"faults": board.list()}

    @router.delete("/__faults", status_code=204)
    async def clear_faults() -> None:
        board.clear()

    @router.post("/__revise")
    async def revise(body: _Revise) -> dict[str, Any]:
        api = _api(apis, body.provider)
        _person(sandbox, body.handle)
        try:
            return {"revised": api.revise(body.handle, body.day, body.kind)}
        except LookupError as error:
            raise HTTPException(404, str(error)) from error

    @router.post("/__revoke", status_code=204)
    async def revoke(body: _Revoke) -> None:
        _person(sandbox, body.handle)
        _api(apis, body.provider).oauth.revoke_person(body.handle)

    @router.put("/__now")
    async def fix_time(body: _Now) -> dict[str, str]:
        sandbox.fix_time(body.now)
        return {"now": sandbox.now().isoformat()}

    return router


def _senders(sandbox: Sandbox, apis: Mapping[str, ProviderApi]) -> APIRouter:
    """The vendors' calls to a receiver."""
    router = APIRouter()

    @router.post("/__webhooks")
    async def send_webhooks(body: _Webhooks) -> dict[str, Any]:
        """Call `url` as the vendor would for the person's day, signed by `secret`; the answers' statuses.

        Without these, call whoever subscribed.
        """
        api = _api(apis, body.provider)
        _person(sandbox, body.handle)
        if (body.url is None) != (body.secret is None):
            raise HTTPException(400, "Give both url and secret, or neither to call those who subscribed.")
        try:
            if body.url is None or body.secret is None:
                calls = api.subscribed_calls(body.handle, body.day)
            else:
                calls = [(str(body.url), call) for call in api.webhooks(body.handle, body.day, body.secret)]
        except LookupError as error:
            raise HTTPException(404, str(error)) from error
        statuses = []
        async with httpx.AsyncClient(timeout=30) as client:
            for address, call in calls:
                try:
                    answer = await client.request(
                        call.method,
                        address,
                        params=dict(call.query) or None,
                        content=call.body,
                        headers=dict(call.headers),
                    )
                except httpx.HTTPError as error:
                    raise HTTPException(502, f"{address} does not answer: {type(error).__name__}") from error
                statuses.append(answer.status_code)
        return {"statuses": statuses}

    return router


def _truths(sandbox: Sandbox, apis: Mapping[str, ProviderApi]) -> APIRouter:
    """What to hold the pipeline's answers against."""
    router = APIRouter()

    @router.get("/__truth/{handle}")
    async def true_days(handle: str, start: dt.date, end: dt.date) -> dict[str, Any]:
        _span(start, end)
        return {"handle": handle, "days": truth(_person(sandbox, handle), start, end)}

    @router.get("/__truth/{provider}/{handle}")
    async def true_values(provider: str, handle: str, start: dt.date, end: dt.date) -> dict[str, Any]:
        _span(start, end)
        _person(sandbox, handle)
        values = _api(apis, provider).truth(handle, start, end)
        return {"handle": handle, "provider": provider, "values": [asdict(value) for value in values]}

    return router


def _accounts(sandbox: Sandbox, apis: Mapping[str, ProviderApi]) -> APIRouter:
    """What people would type themselves."""
    router = APIRouter()

    @router.get("/__accounts/{provider}/{handle}")
    async def account(provider: str, handle: str) -> dict[str, Any]:
        _person(sandbox, handle)
        try:
            return dict(_api(apis, provider).account(handle))
        except LookupError as error:
            raise HTTPException(404, str(error)) from error

    @router.get("/__service_accounts/{provider}")
    async def service_account(provider: str, request: Request) -> dict[str, Any]:
        root = str(request.base_url).rstrip("/")
        try:
            return dict(_api(apis, provider).service_account(f"{root}/{provider}"))
        except LookupError as error:
            raise HTTPException(404, str(error)) from error

    return router


def _books(sandbox: Sandbox, apis: Mapping[str, ProviderApi], board: FaultBoard) -> APIRouter:
    """What can be read of the sandbox itself."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, Any]:
        return {
            "status": "ok",
            "now": sandbox.now().isoformat(),
            "since": EPOCH.isoformat(),
            "providers": list(apis),
        }

    @router.get("/__stats")
    async def stats() -> dict[str, Any]:
        return {name: dict(api.oauth.counts) for name, api in apis.items()}

    @router.get("/__requests")
    async def requests() -> dict[str, Any]:
        rows = [
            {"provider": provider, "method": method, "path": path, "status": status, "count": count}
            for (provider, method, path, status), count in sorted(board.requests.items())
        ]
        return {"requests": rows}

    @router.delete("/__requests", status_code=204)
    async def forget_requests() -> None:
        board.requests.clear()

    @router.get("/__people")
    async def people() -> dict[str, Any]:
        rows = [
            {name: getattr(p, name) for name in ("handle", "name", "zone", "cgm", "sex", "birth_year")}
            for p in sandbox.people.values()
        ]
        return {"people": rows}

    @router.get("/__files/{kind}/{handle}")
    async def file(kind: str, handle: str, start: dt.date, end: dt.date) -> Response:
        if kind not in FORMATS:
            raise HTTPException(404, f"No file format {kind!r}; there are {', '.join(FORMATS)}.")
        person = _person(sandbox, handle)
        if person.cgm is None:
            raise HTTPException(404, f"{handle} wears no glucose sensor.")
        _span(start, end)
        write, ending = FORMATS[kind]
        buffer = io.StringIO(newline="")
        write(person, start, end, buffer, until=sandbox.now())
        media_type = "application/json" if ending == "json" else "text/csv"
        return PlainTextResponse(buffer.getvalue(), media_type=media_type)

    return router
