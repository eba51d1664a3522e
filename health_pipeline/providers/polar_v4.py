"""Polar's Dynamic API (AccessLink v4): steps, nights, recovery, heart rate and training, with their history.

A grant of its own beside that of v3, with tokens of twelve hours. Where an answer holds more than its dates is
told by `features`, and then it holds one day: days are asked for one by one, up to a `to` that is not included.
The vendor's own description is not to be had; what it leaves open is read in each way that clients have seen.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from health_pipeline.providers._json import MalformedBodyError, load_object
from health_pipeline.providers._polar_v4_parse import SCHEMAS, parse, reference
from health_pipeline.providers.base import (
    Account,
    Budget,
    Entity,
    OAuth,
    Page,
    Provider,
    Window,
)
from health_pipeline.providers.http import ApiClient, PermissionMissingError, RequestRejectedError
from health_pipeline.providers.polar import interpret

_DATA = "/v4/data"
_SPORTS = f"{_DATA}/sports/list"
_ONE_DAY = dt.timedelta(days=1)
#: What is asked for with a day; the answer has its dates alone without.
_FEATURES: Mapping[str, tuple[str, ...]] = {
    "activity": ("samples",),
    "sleep": ("sleep-result", "sleep-evaluation", "sleep-score"),
    "nightly_recharge": ("samples",),
    "continuous_heart_rate": ("heart-rate-samples",),
}
_PATHS = {
    "activity": f"{_DATA}/activity/list",
    "sleep": f"{_DATA}/sleeps",
    "nightly_recharge": f"{_DATA}/nightly-recharge-results",
    "continuous_heart_rate": f"{_DATA}/continuous-samples",
    "training_session": f"{_DATA}/training-sessions/list",
}
_SCOPES = {
    "activity": "activity:read",
    "sleep": "sleep:read",
    "nightly_recharge": "nightly_recharge:read",
    "continuous_heart_rate": "continuous_samples:read",
    "training_session": "training_sessions:read",
}
_SPORTS_SCOPE = "sports:read"


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """The bodies that hold the days of `window`, one each; of training one for all. 204 and 404 are nothing.

    A session names its sport by a number: the page's context says what they are called. Raises the errors of
    `ApiClient.get`, ValueError for an entity that is filled from others' pages.
    """
    if entity.name == "training_session":
        yield from _training(client, entity, window)
        return
    features = _FEATURES.get(entity.name)
    if features is None:
        raise ValueError(f"polar_v4 has no endpoint for {entity.name}: it is filled from other objects")
    for day in window.split(1):
        query = {"from": str(day.start), "to": str(day.end + _ONE_DAY), "features": list(features)}
        content = _get(client, _PATHS[entity.name], query)
        if content:
            yield Page(entity.name, content, day)


def _training(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    # Local times without an offset: anything else is refused.
    query = {"from": f"{window.start}T00:00:00", "to": f"{window.end + _ONE_DAY}T00:00:00"}
    content = _get(client, _PATHS[entity.name], query)
    if not content:
        return
    named = _sport_names(client) if _sports_of(content) else {}
    used = {sport: named[sport] for sport in sorted(_sports_of(content)) if sport in named}
    context = {"sports": orjson.dumps(used).decode()} if used else {}
    yield Page(entity.name, content, window, context=context)


def _get(client: ApiClient, path: str, query: Mapping[str, Any]) -> bytes:
    try:
        return client.get(path, query).content
    except RequestRejectedError as error:
        if error.status != 404:
            raise
        return b""


def _sport_names(client: ApiClient) -> dict[str, str]:
    """Names by number. Without the right to read them, or in another shape, there are none."""
    try:
        listed = load_object(client.get(_SPORTS).content).get("sports")
    except (PermissionMissingError, RequestRejectedError, MalformedBodyError):
        return {}
    sports = [sport for sport in listed if isinstance(sport, dict)] if isinstance(listed, list) else []
    return {
        number: name
        for sport in sports
        if (number := reference(sport.get("id"))) and isinstance(name := sport.get("name"), str)
    }


def _sports_of(content: bytes) -> set[str]:
    try:
        sessions = load_object(content).get("trainingSessions")
    except MalformedBodyError:
        return set()
    sessions = [one for one in sessions if isinstance(one, dict)] if isinstance(sessions, list) else []
    return {number for one in sessions if (number := reference(one.get("sport")))}


def identify(client: ApiClient) -> Account:
    """Nothing says whose account it is without the right to read names and addresses: not asked for.

    That the tokens are good is asked. Raises the errors of `ApiClient.get`.
    """
    today = dt.datetime.now(dt.UTC).date()
    _get(client, _PATHS["activity"], {"from": str(today - _ONE_DAY), "to": str(today)})
    return Account(client.provider_user_id)


def _entity(name: str, key: tuple[str, ...], description: str) -> Entity:
    return Entity(
        name=name,
        schema=SCHEMAS[name],
        key=key,
        description=description,
        endpoint=_PATHS[name],
        # A day grows until the watch is read the last time, and nights can be edited.
        lookback_days=2 if name == "continuous_heart_rate" else 7,
        max_window_days=90 if name == "training_session" else 28,
        scope=_SCOPES[name],
    )


PROVIDER = Provider(
    name="polar_v4",
    title="Polar (Dynamic API v4)",
    door="fetch",
    base_url="https://www.polaraccesslink.com",
    oauth=OAuth(
        authorize_url="https://auth.polar.com/oauth/authorize",
        token_url="https://auth.polar.com/oauth/token",  # noqa: S106
        scopes=(*_SCOPES.values(), _SPORTS_SCOPE),
        client_authentication="client_secret_basic",
        user_id_field="x_user_id",
    ),
    budgets=(Budget(3000, 900), Budget(100_000, 86_400)),
    limit_signal="429; RateLimit-Usage (counts up), RateLimit-Limit and RateLimit-Reset",
    interpret=interpret,
    entities=(
        _entity(
            *("activity", ("date", "device")),
            "One row a local day and device: the sum of its steps.",
        ),
        _entity("sleep", ("date",), "One row a night, by the day it ended on."),
        _entity(
            "nightly_recharge",
            ("date",),
            "One row a night: HRV (RMSSD), breathing and recovery of its first hours.",
        ),
        _entity(
            "continuous_heart_rate",
            ("date", "device", "offset_milliseconds"),
            "One row a heart rate: so long after the midnight of its date, local time.",
        ),
        _entity("training_session", ("id",), "One row a training session."),
        Entity(
            name="step_sample",
            schema=SCHEMAS["step_sample"],
            key=("date", "device", "started_at_local", "offset_milliseconds"),
            description="One row an interval with steps: so long after its series began; local time.",
        ),
        Entity(
            name="recharge_sample",
            schema=SCHEMAS["recharge_sample"],
            key=("date", "kind", "started_at_local", "offset_milliseconds"),
            description="One row an HRV (RMSSD, ms) or breathing (a minute) sample of a night; local time.",
        ),
    ),
    parse=parse,
    fetch=fetch,
    identify=identify,
    poll_hours=4,
)
