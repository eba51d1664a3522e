"""Withings Public Health Data API (v2): scale, blood pressure monitor, watch, sleep mat.

Every call is a POST of a form with an `action`, answered with HTTP 200 and a status of the vendor's own in the
body. A limit, too, is only said there.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qs

import httpx

from health_pipeline.providers._json import MalformedBodyError, load_object
from health_pipeline.providers._withings_parse import HYPNOGRAM_SCHEMA, SAMPLE_SCHEMA, parse, schema
from health_pipeline.providers._withings_subscriptions import subscriptions
from health_pipeline.providers.base import (
    Account,
    Budget,
    Credentials,
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
from health_pipeline.providers.http import ApiClient, MalformedResponseError

_MEASURE = "/measure"
_MEASURE_V2 = "/v2/measure"
_SLEEP = "/v2/sleep"
_USER = "/v2/user"
_ONE_DAY = dt.timedelta(days=1)

#: Statuses of the vendor's table by what they ask of us; all others refuse the request as it is.
_UNAUTHORIZED = frozenset({100, 101, 102, 200, 401})
_FORBIDDEN = frozenset({214, 277, 2553, 2555})
_TIMEOUT = 522
_TOO_MANY = 601
_BAD_GRANT = 503
#: The budget is counted in minutes, and the vendor does not say when the next begins.
_WAIT_SECONDS = 60.0
_STATUS = re.compile(rb'\s*\{\s*"status"\s*:\s*(\d{1,6})\s*[,}]')

#: Values come only when asked for by name.
_DATA_FIELDS: Mapping[str, tuple[str, ...]] = {
    "getactivity": (
        *("steps", "distance", "elevation", "soft", "moderate", "intense", "active", "calories"),
        *("totalcalories", "hr_average", "hr_min", "hr_max"),
        *("hr_zone_0", "hr_zone_1", "hr_zone_2", "hr_zone_3"),
    ),
    "getintradayactivity": (
        *("steps", "elevation", "calories", "distance", "stroke", "pool_lap", "duration", "heart_rate"),
        *("spo2_auto", "rmssd", "sdnn1", "hrv_quality", "core_body_temperature", "rr"),
    ),
    "getworkouts": (
        *("calories", "intensity", "manual_intensity", "manual_distance", "manual_calories"),
        *("hr_average", "hr_min", "hr_max", "hr_zone_0", "hr_zone_1", "hr_zone_2", "hr_zone_3"),
        *("pause_duration", "algo_pause_duration", "spo2_average", "core_body_temperature_avg"),
        *("core_body_temperature_min", "core_body_temperature_max", "core_body_temperature_status"),
        *("steps", "distance", "elevation", "pool_laps", "strokes", "pool_length"),
    ),
    "getsummary": (
        *("total_timeinbed", "total_sleep_time", "asleepduration", "lightsleepduration"),
        *("remsleepduration", "deepsleepduration", "sleep_efficiency", "sleep_latency"),
        *("wakeup_latency", "wakeupduration", "wakeupcount", "waso", "nb_rem_episodes"),
        *("out_of_bed_count", "hr_average", "hr_min", "hr_max", "rr_average", "rr_min", "rr_max"),
        *("breathing_disturbances_intensity", "breathing_quality_assessment", "apnea_hypopnea_index"),
        *("snoring", "snoringepisodecount", "sleep_score", "mvt_score_avg", "mvt_active_duration"),
        *("rmssd_start_avg", "rmssd_end_avg", "core_body_temperature_min"),
        *("core_body_temperature_max", "core_body_temperature_avg", "core_body_temperature_status"),
    ),
    "get": ("hr", "rr", "snoring", "sdnn_1", "rmssd", "mvt_score"),
}


# Fetching


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """The pages of an entity that hold the days of `window`.

    `sleep` gives the summaries first and then, for each of them, the parts of that sleep (its id is the
    page's context). A page whose body cannot be paged through is yielded, so that it is kept, and
    MalformedResponseError is raised after it. Raises the errors of `ApiClient.request`.
    """
    match entity.name:
        case "measure":
            # Whole local days anywhere on earth, from UTC+14 to UTC-12.
            query = _epochs(
                dt.datetime.combine(window.start - _ONE_DAY, dt.time(10), dt.UTC),
                dt.datetime.combine(window.end + _ONE_DAY, dt.time(12), dt.UTC),
            )
            yield from _pages(client, entity, window, _MEASURE, "getmeas", {**query, "category": "1"})
        case "activity":
            yield from _pages(client, entity, window, _MEASURE_V2, "getactivity", _days(window))
        case "workout":
            yield from _pages(client, entity, window, _MEASURE_V2, "getworkouts", _days(window))
        case "intraday_activity":
            yield from _intraday(client, entity, window)
        case "sleep":
            yield from _sleeps(client, entity, window)
        case _:
            raise ValueError(f"withings has no endpoint for {entity.name}: it is filled from other objects")


def _epochs(start: dt.datetime, end: dt.datetime) -> dict[str, str]:
    return {"startdate": str(int(start.timestamp())), "enddate": str(int(end.timestamp()))}


def _days(window: Window) -> dict[str, str]:
    return {"startdateymd": str(window.start), "enddateymd": str(window.end)}


def _call(client: ApiClient, path: str, action: str, query: Mapping[str, str]) -> bytes:
    fields = _DATA_FIELDS.get(action)
    named = {} if fields is None else {"data_fields": ",".join(fields)}
    return client.request("POST", path, form={"action": action, **query, **named}).content


def _pages(
    client: ApiClient, entity: Entity, window: Window, path: str, action: str, query: Mapping[str, str]
) -> Iterator[Page]:
    offset = 0
    while True:
        page = {"offset": str(offset)} if offset else {}
        content = _call(client, path, action, {**query, **page})
        yield Page(entity.name, content, window)
        following = _next_offset(client, path, content)
        if following is None:
            return
        if following <= offset:
            raise MalformedResponseError(client.provider, path, 200, "the pages go round in a circle")
        offset = following


def _next_offset(client: ApiClient, path: str, content: bytes) -> int | None:
    body = _body_of(client, path, content)
    # 0 or 1 in getmeas, a boolean elsewhere; absent on the only page.
    more, offset = body.get("more"), body.get("offset")
    if more in (None, 0):
        return None
    if more == 1 and isinstance(offset, int) and not isinstance(offset, bool):
        return offset
    raise MalformedResponseError(
        client.provider, path, 200, "the body has no usable more and offset; the rest of the pages is unknown"
    )


def _body_of(client: ApiClient, path: str, content: bytes) -> dict[str, Any]:
    try:
        body = load_object(content).get("body")
    except MalformedBodyError as error:
        problem = str(error)
    else:
        if isinstance(body, dict):
            return body
        problem = "the answer has no body"
    raise MalformedResponseError(client.provider, path, 200, f"{problem}; the rest of the pages is unknown")


def _intraday(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """A request for each UTC day that has a part in the local days: more than 24 hours are not given."""
    for day in Window(window.start - _ONE_DAY, window.end + _ONE_DAY).split(1):
        start = dt.datetime.combine(day.start, dt.time(), dt.UTC)
        query = _epochs(start, start + dt.timedelta(seconds=86_399))
        yield Page(entity.name, _call(client, _MEASURE_V2, "getintradayactivity", query), window)


def _sleeps(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    found: list[Any] = []
    for page in _pages(client, entity, window, _SLEEP, "getsummary", _days(window)):
        yield page
        series = _body_of(client, _SLEEP, page.content).get("series")
        found += series if isinstance(series, list) else []
    for night in found:
        span = [night.get(name) for name in ("id", "startdate", "enddate")] if isinstance(night, dict) else []
        # One that cannot be asked for is refused by the parser, by name.
        if len(span) == 3 and all(type(value) is int for value in span):
            sleep_id, start, end = span
            query = {"startdate": str(start), "enddate": str(end)}
            content = _call(client, _SLEEP, "get", query)
            yield Page(entity.name, content, window, context={"sleep_id": str(sleep_id)})


def interpret(response: httpx.Response, now: float) -> Verdict | None:
    """What the vendor's status in the body of a 200 means; None where there is none to read."""
    if response.status_code != 200:
        return None
    status = _status(response.content)
    if status is None or status == 0:
        return None
    if status == _TOO_MANY:
        return Verdict("rate_limited", _WAIT_SECONDS, message="status 601")
    message = f"Withings answered with status {status}"
    if status in _UNAUTHORIZED:
        return Verdict("unauthorized", message=message)
    if status in _FORBIDDEN:
        return Verdict("forbidden", message=message)
    return Verdict("unavailable" if status == _TIMEOUT else "rejected", message=message)


def _status(content: bytes) -> int | None:
    if match := _STATUS.match(content):
        return int(match[1])
    try:
        status = load_object(content).get("status")
    except MalformedBodyError:
        return None
    return status if type(status) is int else None


# Connecting


def read_token_answer(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The token answer out of `body`; an error as RFC 6749, 5.2 has it.

    Raises ValueError for an error that says nothing of the grant or of us: a limit, a failure of theirs.
    """
    status, body = answer.get("status"), answer.get("body")
    if status == 0 and isinstance(body, Mapping) and body.get("access_token"):
        return body
    if status in _UNAUTHORIZED or status == _BAD_GRANT:
        ours = "client_" in str(answer.get("error", ""))
        return {"error": "invalid_client" if ours else "invalid_grant"}
    raise ValueError(f"Withings answered with status {status}")


def identify(client: ApiClient) -> Account:
    """Whom the tokens were given for, and `time_zone`: that of the device used last.

    The user id comes with the tokens; no data service tells it.
    """
    if not client.provider_user_id:
        raise MalformedResponseError(client.provider, _USER, None, "no user id came with the tokens")
    body = _body_of(client, _USER, _call(client, _USER, "getdevice", {}))
    devices = body.get("devices")
    zoned = [
        (device.get("last_session_date") or 0, device["timezone"])
        for device in (devices if isinstance(devices, list) else [])
        if isinstance(device, dict) and isinstance(device.get("timezone"), str) and device["timezone"]
    ]
    return Account(client.provider_user_id, {"time_zone": max(zoned)[1]} if zoned else {})


def disconnect(client: ApiClient, credentials: Credentials) -> None:
    """End the person's consent, and with it the notifications. Raises the errors of `ApiClient.request`.

    Signed by the client secret over action, client id and a nonce, which is good once and asked for by a call that
    is signed over the time in its place.
    """
    said = _signed_call(client, credentials, "/v2/signature", "getnonce", "timestamp", str(int(time.time())))
    nonce = said.get("nonce")
    if not isinstance(nonce, str) or not nonce:
        raise MalformedResponseError(client.provider, "/v2/signature", 200, "no nonce came")
    _signed_call(
        client, credentials, "/v2/oauth2", "revoke", "nonce", nonce, userid=client.provider_user_id or ""
    )


def _signed_call(
    client: ApiClient,
    credentials: Credentials,
    path: str,
    action: str,
    name: str,
    value: str,
    **more: str,
) -> dict[str, Any]:
    # The values in the order of their names, by commas; `name` comes after action and client_id.
    signed = ",".join((action, credentials.client_id, value))
    signature = hmac.new(credentials.client_secret.encode(), signed.encode(), hashlib.sha256).hexdigest()
    form = {"action": action, "client_id": credentials.client_id, name: value, "signature": signature, **more}
    return _body_of(client, path, client.request("POST", path, form=form).content)


# Webhook

#: What an application number ("appli") tells the data of.
_TOLD = {
    1: ("measure",),
    2: ("measure",),
    4: ("measure",),
    16: ("activity", "intraday_activity", "workout"),
    44: ("sleep",),
}
_USER_EVENT = 46


def events(body: bytes) -> tuple[Event, ...]:
    """A form: `userid`, `appli`, and the days by `date` or by epoch seconds in `startdate` and `enddate`.

    Raises ValueError where it is none.
    """
    form = {name: values[-1] for name, values in parse_qs(body.decode("ascii"), strict_parsing=True).items()}
    if "userid" not in form or not form.get("appli", "").isdigit():
        raise ValueError("not a Withings notification: it needs userid and appli")
    appli, user = int(form["appli"]), form["userid"]
    if appli == _USER_EVENT:
        gone = form.get("action") in ("delete", "unlink")
        return (Event(f"user.{form.get('action', '')}", "deauthorized" if gone else "other", user),)
    if appli not in _TOLD:
        return (Event(f"appli.{appli}", "other", user),)
    window = _told_days(form)
    return tuple(
        Event(f"appli.{appli}", "changed", user, entity=name, window=window) for name in _TOLD[appli]
    )


def _told_days(form: Mapping[str, str]) -> Window | None:
    if date := form.get("date"):
        day = dt.date.fromisoformat(date)
        return Window(day, day)
    if "startdate" not in form:
        return None
    start = int(form["startdate"])
    end = max(start, int(form.get("enddate", start)))
    # UTC days; what is asked for by instants has room for every zone.
    first, last = (dt.datetime.fromtimestamp(second, dt.UTC).date() for second in (start, end))
    return Window(first, last)


def challenge(request: WebhookRequest, secrets: object) -> tuple[int, str, bytes] | None:
    """Before it takes a subscription, Withings asks the address with HEAD and wants a 200."""
    return (200, "text/plain", b"") if request.method in ("HEAD", "GET") else None


_ACTIVITY = "user.activity"

PROVIDER = Provider(
    name="withings",
    title="Withings",
    door="fetch",
    base_url="https://wbsapi.withings.net",
    oauth=OAuth(
        authorize_url="https://account.withings.com/oauth2_user/authorize2",
        token_url="https://wbsapi.withings.net/v2/oauth2",  # noqa: S106
        scopes=("user.info", "user.metrics", "user.activity"),
        scope_separator=",",
        token_params={"action": "requesttoken"},
        read_token_answer=read_token_answer,
        user_id_field="userid",
    ),
    budgets=(Budget(120, 60),),
    limit_signal="HTTP 200 with status 601 in the body, without a time to come back",
    interpret=interpret,
    entities=(
        Entity(
            name="measure",
            schema=schema("measure"),
            key=("group_id", "measure_type", "position"),
            description="One row a measure: weight, body composition, blood pressure, temperature and the like; "
            "its value is `value` times ten to the power of `unit`.",
            endpoint=_MEASURE,
            window="instants",
            paging="offset",
            lookback_days=14,
            scope="user.metrics",
        ),
        Entity(
            name="activity",
            schema=schema("activity"),
            key=("date", "device_id"),
            description="One row a local day and device: steps, distance, energy, active time.",
            endpoint=_MEASURE_V2,
            paging="offset",
            lookback_days=7,
            scope=_ACTIVITY,
        ),
        Entity(
            name="intraday_activity",
            schema=schema("intraday_activity"),
            key=("recorded_at", "device_id"),
            description="One row an instant at which a device recorded steps, heart rate, oxygen or HRV (UTC).",
            endpoint=_MEASURE_V2,
            window="instants",
            lookback_days=1,
            max_window_days=30,
            scope=_ACTIVITY,
        ),
        Entity(
            name="workout",
            schema=schema("workout"),
            key=("id",),
            description="One row a workout, recorded, detected or entered by hand; `category` is the sport.",
            endpoint=_MEASURE_V2,
            paging="offset",
            lookback_days=7,
            scope=_ACTIVITY,
        ),
        Entity(
            name="sleep",
            schema=schema("sleep"),
            key=("id",),
            description="One row a sleep, naps too; `date` is the local day it ended on.",
            endpoint=_SLEEP,
            paging="offset",
            lookback_days=3,
            # A request for each night follows.
            max_window_days=30,
            scope=_ACTIVITY,
        ),
        Entity(
            name="sleep_hypnogram",
            schema=HYPNOGRAM_SCHEMA,
            key=("sleep_id",),
            description="One row a sleep: its stages as JSON, `start` in seconds since `started_at`.",
        ),
        Entity(
            name="sleep_sample",
            schema=SAMPLE_SCHEMA,
            key=("sleep_id", "kind", "recorded_at"),
            description="One row a sample within a sleep: heart rate (bpm), breaths a minute, RMSSD and SDNN (ms), "
            "snoring (s), movement score.",
        ),
    ),
    parse=parse,
    fetch=fetch,
    disconnect_signed=disconnect,
    identify=identify,
    webhook=Webhook(
        carries="notice",
        scheme="secret path",
        events=events,
        secret_path=True,
        challenge=challenge,
        subscriptions=subscriptions((*_TOLD, _USER_EVENT)),
    ),
    poll_hours=6,
)
