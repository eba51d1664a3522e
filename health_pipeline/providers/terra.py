"""Terra API v2: an aggregator of other makers' devices, such as Garmin's watches and Abbott's Libre sensors.

There are no tokens: the application's key signs every request, and a Terra user id names one person's
connection with one maker. Terra holds and renews the maker's own tokens. The client id is the `dev-id`, the
client secret the API key; the secret that webhooks are signed with is a third one.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import httpx

from health_pipeline.providers._glucose import READINGS_SCHEMA
from health_pipeline.providers._json import MalformedBodyError, load_object
from health_pipeline.providers._terra_columns import SAMPLE_SCHEMA, SCHEMAS
from health_pipeline.providers._terra_records import parse
from health_pipeline.providers._timed_signature import proves
from health_pipeline.providers.base import (
    Account,
    Budget,
    Credentials,
    Entity,
    Event,
    HostedLink,
    Page,
    Provider,
    Verdict,
    Webhook,
    WebhookRequest,
    Window,
)
from health_pipeline.providers.http import ApiClient, MalformedResponseError

_DAY = dt.timedelta(days=1)
#: Days of one request; with the day at either end that is asked for too, well below the month at which Terra
#: delivers to the webhook in place of an answer.
_WINDOW_DAYS = 14
#: A connection may ask for 6000 days an hour.
_REQUESTS_AN_HOUR = 6000 // (_WINDOW_DAYS + 2)
#: How old a webhook's signature may be, seconds.

_DATA_EVENTS = ("activity", "body", "daily", "sleep")
_WITHDRAWN = ("deauth", "access_revoked")


def _authorize(credentials: Credentials) -> dict[str, str]:
    return {"dev-id": credentials.client_id, "x-api-key": credentials.client_secret}


def interpret(response: httpx.Response, now: float) -> Verdict | None:
    """Limits are a connection's own; a wrong key, and a user Terra does not know, are told by the detail."""
    status = response.status_code
    if status == 429:
        names = ("Retry-After", "X-Terra-RateLimit-Reset-After")
        waits = [float(value) for name in names if (value := response.headers.get(name, "")).isdecimal()]
        return Verdict("rate_limited", next(iter(waits), None), for_all=False)
    if status == 401 and any(name in _detail(response) for name in ("dev-id", "api key", "api-key")):
        return Verdict("rejected", message="Terra refused our dev-id and API key; check the settings")
    if status == 412 or (status == 404 and "user" in _detail(response)):
        return Verdict("unauthorized", message="Terra has this connection no more; connect again")
    return None


def _detail(response: httpx.Response) -> str:
    try:
        return str(load_object(response.content).get("detail", "")).lower()
    except MalformedBodyError:
        return ""


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """The answer for the days of `window` and the day beside it at either end, samples included.

    Whether the last day is part of the answer is not documented, and a night begins on the day before.
    Raises MalformedResponseError where Terra sent the data to the webhook in place of an answer, or the body
    (which is yielded) holds none; and the errors of `ApiClient.get`.
    """
    if entity.endpoint is None:
        raise ValueError(f"terra has no endpoint for {entity.name}: it is filled from other objects")
    response = client.get(
        entity.endpoint,
        {
            "user_id": client.provider_user_id,
            "start_date": str(window.start - _DAY),
            "end_date": str(window.end + _DAY),
            "to_webhook": "false",
            "with_samples": "true",
        },
    )
    where = (client.provider, entity.endpoint, response.status_code)
    try:
        body = load_object(response.content)
    except MalformedBodyError as error:
        body, problem = {}, str(error)
    else:
        problem = "the body has no data array"
        if "data" not in body and ("reference" in body or str(body.get("type")).startswith("large_request")):
            raise MalformedResponseError(*where, "the data went to the webhook in place of the answer")
    yield Page(entity.name, response.content, window)
    if not isinstance(body.get("data"), list):
        raise MalformedResponseError(*where, problem)


def identify(client: ApiClient) -> Account:
    """The connection Terra knows: whose device it reads (`resource`) and, where told, the person's age and sex."""
    path = "/userInfo"
    response = client.get(path, {"user_id": client.provider_user_id})
    try:
        user = load_object(response.content).get("user")
    except MalformedBodyError:
        user = None
    user_id = _user_id(user)
    if not isinstance(user, dict) or not user_id:
        raise MalformedResponseError(client.provider, path, response.status_code, "no user came")
    profile: dict[str, Any] = {"resource": user.get("provider")}
    athlete = client.get("/athlete", {"user_id": user_id, "to_webhook": "false"})
    try:
        person = load_object(athlete.content).get("athlete")
    except MalformedBodyError:
        person = None
    if isinstance(person, dict):
        profile |= {name: person.get(name) for name in ("age", "sex")}
    return Account(user_id, {name: value for name, value in profile.items() if value is not None})


def _start(client: ApiClient, redirect_uri: str, state: str) -> str:
    """The address of a widget session, good for 15 minutes; the state comes back as `reference_id`."""
    path = "/auth/generateWidgetSession"
    asked = {
        "reference_id": state,
        "language": "en",
        "auth_success_redirect_url": redirect_uri,
        "auth_failure_redirect_url": redirect_uri,
    }
    response = client.request("POST", path, json=asked)
    try:
        url = load_object(response.content).get("url")
    except MalformedBodyError:
        url = None
    if not isinstance(url, str) or not url:
        raise MalformedResponseError(client.provider, path, response.status_code, "no address came")
    return url


def _finish(query: Mapping[str, str]) -> Account:
    user_id = query.get("user_id")
    if not user_id or "reason" in query:
        raise ValueError(query.get("reason") or "no user_id")
    resource = query.get("resource")
    return Account(user_id, {} if resource is None else {"resource": resource.upper()})


# Webhooks


def verify(request: WebhookRequest, secrets: Sequence[str]) -> bool:
    """HMAC-SHA256 of "t.body" (see `_timed_signature`); a call older than five minutes is refused.

    Terra sends the header under two names and says that the newer will stay.
    """
    said = request.header("x-terra-signature") or request.header("terra-signature") or ""
    return proves(said, request, secrets)


def disconnect(client: ApiClient) -> None:
    """End the connection; Terra tells it to the webhook, too."""
    client.request("DELETE", "/auth/deauthenticateUser", {"user_id": client.provider_user_id})


def events(body: bytes) -> tuple[Event, ...]:
    """What a webhook says. An event of a kind we do not know is `other`. Raises ValueError for no event at all.

    `user_reauth` names the user id that goes as its person and the one that comes in `record_ids`.
    """
    said = load_object(body)
    kind = said.get("type")
    if not isinstance(kind, str) or not kind:
        raise ValueError("the event has no type")
    user_id = _user_id(said.get("old_user") if kind == "user_reauth" else said.get("user"))
    if kind in _DATA_EVENTS and isinstance(said.get("data"), list):
        return (Event(kind, "data", user_id, entity=kind, window=_window(said["data"])),)
    if kind in _WITHDRAWN:
        return (Event(kind, "deauthorized", user_id),)
    new_id = _user_id(said.get("new_user"))
    event_id = said.get("event_id")
    return (
        Event(
            kind,
            "moved" if kind == "user_reauth" and new_id is not None else "other",
            user_id,
            event_id=event_id if isinstance(event_id, str) else None,
            record_ids=() if new_id is None else (new_id,),
        ),
    )


def _user_id(user: Any) -> str | None:
    user_id = user.get("user_id") if isinstance(user, dict) else None
    return user_id if isinstance(user_id, str) else None


def _window(records: Sequence[Any]) -> Window | None:
    """The local days on which the records begin and end, as they are printed."""
    days = []
    for record in records:
        metadata = record.get("metadata") if isinstance(record, dict) else None
        for name in ("start_time", "end_time"):
            text = metadata.get(name) if isinstance(metadata, dict) else None
            try:
                days.append(dt.date.fromisoformat(str(text)[:10]))
            except ValueError:
                continue
    return Window(min(days), max(days)) if days else None


def _records(name: str, description: str) -> Entity:
    return Entity(
        name=name,
        schema=SCHEMAS[name],
        key=("id",),
        description=description,
        endpoint=f"/{name}",
        lookback_days=7,
        max_window_days=_WINDOW_DAYS,
    )


PROVIDER = Provider(
    name="terra",
    title="Terra",
    door="fetch",
    base_url="https://access.tryterra.co/api/v2",
    hosted_link=HostedLink(start=_start, finish=_finish, state_parameter="reference_id"),
    authorize=_authorize,
    budgets=(Budget(_REQUESTS_AN_HOUR, 3600, per="account"),),
    limit_signal="429 for the connection; Retry-After or X-Terra-RateLimit-Reset-After, seconds",
    interpret=interpret,
    entities=(
        _records("daily", "One row a local day and connection: steps, energy, active time, heart, scores."),
        _records(
            "sleep", "One row a sleep, naps too; `stages` is its hypnogram as JSON, seconds from its start."
        ),
        _records("activity", "One row a workout; upload_type 4 says that it was deleted."),
        _records(
            "body", "One row a local day and connection; what was measured is in `sample` and `readings`."
        ),
        Entity(
            name="sample",
            schema=SAMPLE_SCHEMA,
            key=("kind", "recorded_at"),
            description="One row a sample within a day, sleep, workout or body: `kind` says of what, in which "
            "unit: bpm, ms, %, °C, mm[Hg], kg and g, cm.",
        ),
        Entity(
            name="readings",
            schema=READINGS_SCHEMA,
            key=("recorded_at", "reading_type"),
            description="Glucose readings of bodies, one row each, in the shape of glucose files.",
        ),
    ),
    webhook=Webhook(
        carries="data",
        scheme="HMAC-SHA256 of `t.body` in X-Terra-Signature, at most five minutes old",
        events=events,
        verify=verify,
        dashboard="add it as a webhook destination on the dashboard",
    ),
    parse=parse,
    fetch=fetch,
    identify=identify,
    disconnect=disconnect,
)
