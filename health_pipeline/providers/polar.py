"""Polar AccessLink v3: days, steps, nights, recovery, heart rate and training of watches.

The routes that select by date are used, not the deprecated transactions, which give what they were asked for
only once. Nothing from before a person's registration (`identify`) ever comes.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
from collections.abc import Iterator, Mapping, Sequence

import httpx
import orjson

from health_pipeline.providers._json import MalformedBodyError, load_object
from health_pipeline.providers._polar_parse import (
    RECHARGE_SAMPLE_SCHEMA,
    SLEEP_SAMPLE_SCHEMA,
    STEP_SAMPLE_SCHEMA,
    parse,
    schema,
)
from health_pipeline.providers._polar_subscriptions import subscriptions
from health_pipeline.providers.base import (
    Account,
    Budget,
    Entity,
    Event,
    OAuth,
    Page,
    Provider,
    Verdict,
    Webhook,
    WebhookRequest,
    Window,
)
from health_pipeline.providers.http import ApiClient, MalformedResponseError, RequestRejectedError

_USERS = "/v3/users"
_HEART_RATE = f"{_USERS}/continuous-heart-rate"
#: Where days are asked for by `from` and `to`, both included.
_BY_DAYS = {
    "activity": f"{_USERS}/activities",
    "activity_samples": f"{_USERS}/activities/samples",
    "cardio_load": f"{_USERS}/cardio-load/date",
    "skin_temperature": f"{_USERS}/biosensing/skintemperature",
    "body_temperature": f"{_USERS}/biosensing/bodytemperature",
    "spo2": f"{_USERS}/biosensing/spo2",
}
#: What gives its last weeks, or its newest state, whatever day is asked about.
_WHOLE = {
    "exercise": "/v3/exercises",
    "sleep": f"{_USERS}/sleep",
    "nightly_recharge": f"{_USERS}/nightly-recharge",
    "physical_info": f"{_USERS}/physical-info",
}
_LONGEST_SPAN = 28
_WAIT_SECONDS = 900.0


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """The bodies that hold the days of `window`; 204 is nothing. Raises the errors of `ApiClient.get`."""
    if entity.name in _BY_DAYS:
        query = {"from": str(window.start), "to": str(window.end)}
        yield from _page(client, entity, window, _BY_DAYS[entity.name], query)
    elif entity.name in _WHOLE:
        yield from _page(client, entity, window, _WHOLE[entity.name], {})
    elif entity.name == "continuous_heart_rate":
        for day in window.split(1):
            yield from _page(client, entity, day, f"{_HEART_RATE}/{day.start}", {})
    else:
        raise ValueError(f"polar has no endpoint for {entity.name}: it is filled from other objects")


def _page(
    client: ApiClient, entity: Entity, window: Window, path: str, query: Mapping[str, str]
) -> Iterator[Page]:
    try:
        content = client.get(path, query).content
    except RequestRejectedError as error:
        # 404: a state or a day that was never recorded.
        if error.status != 404:
            raise
        return
    if content:
        yield Page(entity.name, content, window)


def interpret(response: httpx.Response, now: float) -> Verdict | None:
    """What the headers say of the windows of the budget: a number for each, separated by commas.

    `RateLimit-Usage` counts up. `RateLimit-Reset` has the seconds that are left of each window.
    """
    usage, limits, resets = (
        _numbers(response.headers.get(f"RateLimit-{name}")) for name in ("Usage", "Limit", "Reset")
    )
    known = len(usage) == len(limits) == len(resets)
    waits = [
        reset for used, limit, reset in zip(usage, limits, resets, strict=known) if known and used >= limit
    ]
    if response.status_code == 429:
        return Verdict("rate_limited", max(waits or resets or [_WAIT_SECONDS]))
    if response.is_success and waits:
        return Verdict("good", max(waits))
    return None


def _numbers(header: str | None) -> list[float]:
    parts = [part.strip() for part in (header or "").split(",")]
    return [float(part) for part in parts] if all(part.isdigit() for part in parts) else []


def identify(client: ApiClient) -> Account:
    """Register the person with this application, without which there are no data; who they are.

    The user id comes with the tokens. Being registered already is no error.
    """
    user_id = client.provider_user_id
    if not user_id:
        raise MalformedResponseError(client.provider, _USERS, None, "no user id came with the tokens")
    try:
        client.request("POST", _USERS, json={"member-id": f"polar-{user_id}"})
    except RequestRejectedError as error:
        if error.status != 409:
            raise
    return Account(user_id)


def disconnect(client: ApiClient) -> None:
    """End the person's registration with this application, and with it the tokens."""
    client.request("DELETE", f"{_USERS}/{client.provider_user_id}")


_TOLD = {
    "EXERCISE": ("exercise",),
    # Of the recovery of a night nothing is told.
    "SLEEP": ("sleep", "nightly_recharge"),
    "CONTINUOUS_HEART_RATE": ("continuous_heart_rate",),
    "ACTIVITY_SUMMARY": ("activity", "activity_samples"),
    "PHYSICAL_INFORMATION": ("physical_info",),
}


def verify(request: WebhookRequest, secrets: Sequence[str]) -> bool:
    """`Polar-Webhook-Signature` is the HMAC-SHA256 of the body, in hex. There is no time in it."""
    given = request.header("polar-webhook-signature")
    if given is None:
        return False
    proofs = [hmac.new(secret.encode(), request.body, hashlib.sha256).hexdigest() for secret in secrets]
    # All are compared, so that the time taken does not say which one fits.
    return any([hmac.compare_digest(proof.encode(), given.encode()) for proof in proofs])  # noqa: C419


def events(body: bytes) -> tuple[Event, ...]:
    """A JSON object with `event`, `user_id` and `date`, or `from` and `to`. Raises ValueError where it is none."""
    try:
        told = load_object(body)
    except MalformedBodyError as error:
        raise ValueError(str(error)) from None
    kind, user = told.get("event"), told.get("user_id")
    if not isinstance(kind, str):
        raise ValueError("not a Polar notification: it has no event")
    user_id = None if user is None else str(user)
    if kind not in _TOLD:
        return (Event(kind, "other", user_id),)
    first = told.get("date") or told.get("from")
    window = None
    if first is not None:
        start = dt.date.fromisoformat(str(first))
        window = Window(start, max(start, dt.date.fromisoformat(str(told.get("to") or first))))
    ids = (str(told["entity_id"]),) if told.get("entity_id") else ()
    return tuple(
        Event(kind, "changed", user_id, entity=name, window=window, record_ids=ids) for name in _TOLD[kind]
    )


def challenge(request: WebhookRequest, secrets: Sequence[str]) -> tuple[int, str, bytes] | None:
    """The ping that comes when a webhook is made, without a signature."""
    try:
        told = orjson.loads(request.body)
    except orjson.JSONDecodeError:
        return None
    is_ping = isinstance(told, dict) and told.get("event") == "PING"
    return (200, "text/plain", b"") if request.method == "POST" and is_ping else None


_SCOPE = "accesslink.read_all"


def _entity(name: str, key: tuple[str, ...], description: str) -> Entity:
    by_days = name in _BY_DAYS or name == "continuous_heart_rate"
    return Entity(
        name=name,
        schema=schema(name),
        key=key,
        description=description,
        endpoint=_BY_DAYS.get(name) or _WHOLE.get(name) or _HEART_RATE,
        window="local_days" if by_days else "everything",
        # A day grows until the watch is read the last time, and nights can be edited.
        lookback_days=(2 if name == "continuous_heart_rate" else 7) if by_days else 0,
        max_window_days=_LONGEST_SPAN if by_days else None,
        scope=_SCOPE,
    )


PROVIDER = Provider(
    name="polar",
    title="Polar",
    door="fetch",
    base_url="https://www.polaraccesslink.com",
    oauth=OAuth(
        authorize_url="https://flow.polar.com/oauth2/authorization",
        token_url="https://polarremote.com/v2/oauth2/token",  # noqa: S106
        scopes=(_SCOPE,),
        rotates_refresh_token=False,
        client_authentication="client_secret_basic",
        user_id_field="x_user_id",
    ),
    # More with every registered person; this much there is with one.
    budgets=(Budget(520, 900), Budget(5100, 86_400)),
    limit_signal="429; RateLimit-Usage, RateLimit-Limit and RateLimit-Reset, a number for each window",
    interpret=interpret,
    entities=(
        _entity("activity", ("date",), "One row a local day: steps, distance, energy."),
        _entity(
            "activity_samples", ("date",), "One row a local day: its steps and how long its samples are."
        ),
        _entity("exercise", ("id",), "One row a training session of the last 30 days."),
        _entity("sleep", ("date",), "One row a night of the last 28, by the day it ended on."),
        _entity(
            "nightly_recharge",
            ("date",),
            "One row a night: HRV (RMSSD), breathing and recovery of its first hours.",
        ),
        _entity(
            "continuous_heart_rate",
            ("recorded_at_local",),
            "One row a heart rate, every five minutes; local time.",
        ),
        _entity("cardio_load", ("date",), "One row a day: training load, strain and tolerance."),
        _entity(
            "physical_info",
            ("modified_at",),
            "One row a state of weight, height, VO2max and heart rate limits.",
        ),
        _entity("skin_temperature", ("date",), "One row a night: skin temperature and its deviation, °C."),
        _entity(
            "body_temperature",
            ("started_at", "recording_time_delta_milliseconds"),
            "One row a temperature sample.",
        ),
        _entity("spo2", ("recorded_at",), "One row a test of blood oxygen, %."),
        Entity(
            name="sleep_sample",
            schema=SLEEP_SAMPLE_SCHEMA,
            key=("date", "recorded_at"),
            description="One row a heart rate within a night, every five minutes.",
        ),
        Entity(
            name="recharge_sample",
            schema=RECHARGE_SAMPLE_SCHEMA,
            key=("date", "kind", "recorded_at_local"),
            description="One row an HRV (RMSSD, ms) or breathing (a minute) sample of a night; local time.",
        ),
        Entity(
            name="step_sample",
            schema=STEP_SAMPLE_SCHEMA,
            key=("date", "sequence"),
            description="One row a change of the steps an interval, in order of the day; local time.",
        ),
    ),
    parse=parse,
    fetch=fetch,
    identify=identify,
    disconnect=disconnect,
    webhook=Webhook(
        carries="notice",
        scheme="HMAC-SHA256",
        events=events,
        verify=verify,
        challenge=challenge,
        subscriptions=subscriptions(tuple(_TOLD)),
    ),
    poll_hours=6,
    parser_version=2,
)
