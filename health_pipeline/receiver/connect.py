"""Hosted connecting: `/connect/{provider}` and `/oauth/callback` for people, `/v1/connections/…` for programs."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import logging
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, Body, Query
from pydantic import Field
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from health_pipeline.connections.consent import Consent, consent_to
from health_pipeline.connections.disconnect import disconnect as end_connection
from health_pipeline.connections.endpoints import ProviderNotConfiguredError, endpoint_of
from health_pipeline.connections.flow import STATE_LIFETIME, begin, complete, state_in
from health_pipeline.connections.pages import CALLBACK_PATH, PAGE_HEADERS, page, told
from health_pipeline.ingestion.erasure import erase_source
from health_pipeline.providers.base import Provider
from health_pipeline.providers.registry import get
from health_pipeline.receiver import answers
from health_pipeline.receiver.auth import Connector
from health_pipeline.receiver.errors import RefusedError
from health_pipeline.receiver.house import House, house_of
from health_pipeline.receiver.links import LINK_LIFETIME, ConnectLink, LinkError, read, sign
from health_pipeline.receiver.work import FIRST_SYNC_DAYS, ProviderName, provider_of, request_sync
from health_pipeline.warehouse.models import User

logger = logging.getLogger(__name__)

router = APIRouter()


def _pages(*statuses: int, **meanings: str) -> dict[int | str, dict[str, Any]]:
    """Pages by status, as `on_200`, and refusals in JSON."""
    pages: dict[int | str, dict[str, Any]] = {
        int(status.removeprefix("on_")): {
            "description": meaning,
            "content": {"text/html": {"schema": {"type": "string"}}},
        }
        for status, meaning in meanings.items()
    }
    return {**pages, **{status: answers.refusal(status) for status in statuses}}


Signed = Annotated[str, Query(alias="link", max_length=2000, description="What signs the link.")]


@router.get(
    "/connect/{provider}",
    response_class=Response,
    responses=_pages(422, 503, on_200="What will be read.", on_400="The link is not good."),
    tags=["connect"],
    summary="What a person is asked to agree to",
)
def consent_page(request: Request, provider: ProviderName, link: Signed = "") -> Response:
    """The page that a signed link opens; its button posts to the same address."""
    try:
        found, consent, _ = _asked(house_of(request), provider, link)
    except LinkError as error:
        return _page(400, "This link is not good", str(error))
    return _page(200, f"Connect {found.title}", consent.text, f"Go on to {found.title}")


@router.post(
    "/connect/{provider}",
    response_class=Response,
    responses={
        303: {"description": "To the provider's own page."},
        **_pages(422, 503, on_400="The link is not good, or has no page to go to.", on_500="It failed."),
    },
    tags=["connect"],
    summary="Go on to the provider's page",
)
def set_out(request: Request, provider: ProviderName, link: Signed = "") -> Response:
    """The person has read what will be read, and goes on to the provider to allow it."""
    house = house_of(request)
    try:
        found, consent, user_id = _asked(house, provider, link)
    except LinkError as error:
        return _page(400, "This link is not good", str(error))
    try:
        endpoint = endpoint_of(found, house.settings)
        back = f"{house.public_url}{CALLBACK_PATH}"
        begun = begin(house.warehouse, house.vault, found, endpoint, user_id, back, consent)
    except RefusedError:
        raise
    except Exception as error:
        return _told(error, found.title)
    response = RedirectResponse(
        begun.url, 303, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    )
    response.set_cookie(
        _cookie_name(begun.state),
        _cookie_of(house, found.name, begun.state),
        max_age=int(STATE_LIFETIME.total_seconds()),
        path=CALLBACK_PATH,
        secure=back.startswith("https:"),
        httponly=True,
        samesite="lax",
    )
    return response


@router.get(
    CALLBACK_PATH,
    response_class=Response,
    responses=_pages(503, on_200="The account is connected.", on_400="It is not.", on_500="It failed."),
    tags=["connect"],
    summary="Where the provider sends the person back to",
)
def callback(request: Request) -> Response:
    """Good once, within ten minutes, in the browser that set out. Nothing is stored where anything is wrong."""
    house = house_of(request)
    query = request.url.query
    state = state_in(query)
    title = "The account"
    if state is not None:
        said = request.cookies.get(_cookie_name(state), "")
        provider = said.partition(".")[0]
        # Else somebody could have another person's consent sent to an account of their own.
        if not hmac.compare_digest(said.encode(), _cookie_of(house, provider, state).encode()):
            return _page(
                400,
                "This is not an answer to a request of ours",
                "It has to come to the browser that set out, within ten minutes. Open the link again.",
            )
        title = get(provider).title
    try:
        completed = complete(
            house.warehouse, house.vault, house.settings, f"{house.public_url}{CALLBACK_PATH}?{query}"
        )
    except RefusedError:
        raise
    except Exception as error:
        return _told(error, title)
    request_sync(house, get(completed.provider), completed.user_id, FIRST_SYNC_DAYS)
    return _page(200, f"{title} is connected", "Your last days are being fetched. You can close this page.")


class LinkRequest(answers.Answer):
    consent_days: int | None = Field(
        default=None, ge=1, le=36_500, description="The consent ends after so many days; else when withdrawn."
    )


@router.post(
    "/v1/connections/{provider}/link",
    response_model=answers.Link,
    responses=answers.refusals(404, 409, *answers.BODY),
    tags=["connect"],
    summary="A link with which the person connects the account",
)
def link(
    request: Request,
    response: Response,
    who: Connector,
    provider: ProviderName,
    wanted: Annotated[LinkRequest | None, Body()] = None,
) -> answers.Link:
    """Good for a day. Whoever opens it connects an account of theirs to this user."""
    house, found = house_of(request), provider_of(provider)
    if found.password is not None:
        raise RefusedError(409, "no_page", f"{found.title} has no page to consent on")
    try:
        endpoint_of(found, house.settings)
    except ProviderNotConfiguredError as error:
        raise RefusedError(409, "not_configured", str(error)) from None
    expires_at = dt.datetime.now(dt.UTC).replace(microsecond=0) + LINK_LIFETIME
    days = None if wanted is None else wanted.consent_days
    response.headers["Cache-Control"] = "no-store"
    return answers.Link(
        url=sign(house.secrets, house.public_url, ConnectLink(who.user_id, found.name, expires_at, days)),
        expires_at=expires_at,
    )


class DisconnectRequest(answers.Answer):
    delete_data: bool = Field(default=False, description="Erase all that came of it, for good.")


@router.post(
    "/v1/connections/{provider}/disconnect",
    response_model=answers.Disconnected,
    responses=answers.refusals(404, *answers.BODY),
    tags=["connect"],
    summary="End a connection",
)
def disconnect(
    request: Request,
    who: Connector,
    provider: ProviderName,
    wanted: Annotated[DisconnectRequest | None, Body()] = None,
) -> answers.Disconnected:
    """The consent is withdrawn, the provider told, the tokens deleted; with `delete_data` the data as well."""
    house = house_of(request)
    try:
        found = get(provider)
        left = end_connection(house.warehouse, house.vault, house.settings, found, who.user_id)
    except LookupError:
        raise RefusedError(404, "not_connected", "there is no such account to disconnect") from None
    erased = job = None
    if wanted is not None and wanted.delete_data:
        gone = erase_source(house.warehouse, house.store, found, who.user_id)
        erased = answers.Erased(objects=gone.objects, staged_rows=gone.staged, derived_rows=gone.derived)
        if gone.derived and found.successor is None:
            # There is nobody left to fetch for: the run computes what is left.
            job = request_sync(house, found, who.user_id, 1)
    return answers.Disconnected(
        provider=found.name, left=left, erased=erased, job_id=None if job is None else job.job_id
    )


def _asked(house: House, provider: str, token: str) -> tuple[Provider, Consent, int]:
    """What a link is for. Raises LinkError."""
    link = read(house.secrets, provider, token)
    found = get(link.provider)
    with house.warehouse.engine.connect() as connection:
        handle = connection.execute(
            sa.select(User.handle).where(User.user_id == link.user_id)
        ).scalar_one_or_none()
    if handle is None:
        raise LinkError("There is no such user any more.")
    return found, consent_to(found, handle, link.consent_days), link.user_id


def _cookie_name(state: str) -> str:
    return f"connect_{hashlib.sha256(state.encode()).hexdigest()[:12]}"


def _cookie_of(house: House, provider: str, state: str) -> str:
    """What a browser that set out has: where to, and a signature of that and of the state."""
    secret = house.secrets.derived("connect cookie")[0]
    signature = hmac.new(secret.encode(), f"{provider} {state}".encode(), hashlib.sha256).hexdigest()
    return f"{provider}.{signature}"


def _told(error: Exception, title: str) -> Response:
    status, headline, words = told(error, title)
    if status == 500:
        logger.error("connecting failed: %s", type(error).__name__)
    return _page(status, headline, words)


def _page(status: int, headline: str, words: str, button: str | None = None) -> Response:
    return Response(page(headline, words, button), status, PAGE_HEADERS)
