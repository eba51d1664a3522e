"""What Garmin posts to us: pushes (the data itself), pings (an address to fetch it from), ends of consent.

A body is `{"<kind>": [item, …], …}`, and its items may belong to many people. Nothing is signed: the receiver's
path has to be a secret, and an address in a ping has to be checked before it is followed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from health_pipeline.providers._garmin_records import SUMMARIES
from health_pipeline.providers._json import MalformedBodyError, load_object
from health_pipeline.providers.base import Event, Window

#: Every name a kind of summary has in bodies, and our entity.
ENTITY_OF_KEY = {key: name for name, summary in SUMMARIES.items() for key in summary.keys}

_DEREGISTRATIONS = "deregistrations"
_UPLOAD_LIMITS = ("uploadStartTimeInSeconds", "uploadEndTimeInSeconds")


def is_ping(item: dict[str, Any]) -> bool:
    """Whether an item only says where the data is."""
    return "callbackURL" in item and "summaryId" not in item


def events(body: bytes) -> tuple[Event, ...]:
    """An event a person and kind of summary pushed, a ping, a deregistration; in the order of the body.

    Items that name nobody, and kinds we do not know, are `other`: one of them does not spoil the rest. The days of a
    ping are those of the upload. Raises ValueError for a body that is no object of arrays.
    """
    try:
        kinds = load_object(body)
    except MalformedBodyError as error:
        raise ValueError(str(error)) from None
    if not all(isinstance(items, list) for items in kinds.values()):
        raise ValueError("the body is not an object of arrays")
    found: list[Event] = []
    for key, items in kinds.items():
        pushed: dict[str | None, list[dict[str, Any]]] = {}
        for item in items:
            user = item.get("userId") if isinstance(item, dict) else None
            person = user if isinstance(user, str) and user else None
            entity = ENTITY_OF_KEY.get(key)
            if person is not None and key == _DEREGISTRATIONS:
                found.append(Event(key, "deauthorized", person))
            elif person is not None and entity is not None and is_ping(item):
                found.append(_ping(key, entity, person, item["callbackURL"]))
            else:
                pushed.setdefault(person, []).append(item)
        found += (_push(key, person, of_person) for person, of_person in pushed.items())
    return tuple(found)


def _ping(key: str, entity: str, person: str, url: object) -> Event:
    if not isinstance(url, str):
        return Event(key, "other", person, entity=entity)
    days = []
    try:
        query = parse_qs(urlsplit(url).query)
        days = [_day(float(query[name][0])) for name in _UPLOAD_LIMITS]
    except (KeyError, ValueError, OverflowError):
        days = []
    return Event(key, "changed", person, entity=entity, window=_window(days), callback_url=url)


def _push(key: str, person: str | None, items: list[dict[str, Any]]) -> Event:
    entity = ENTITY_OF_KEY.get(key)
    if person is None or entity is None:
        return Event(key, "other", person, entity=entity)
    ids = (item.get("summaryId") for item in items)
    return Event(
        key,
        "data",
        person,
        entity=entity,
        window=_window(day for item in items for day in _days_of(item)),
        record_ids=tuple(identity for identity in ids if isinstance(identity, str)),
    )


def _days_of(item: dict[str, Any]) -> list[dt.date]:
    """The local day a summary is of, as near as it says; nothing where it says nothing readable."""
    summary = item.get("summary")
    where = summary if isinstance(summary, dict) else item
    try:
        if "calendarDate" in where:
            return [dt.date.fromisoformat(where["calendarDate"])]
        for name in ("startTime", "measurementTime"):
            if f"{name}InSeconds" in where:
                return [_day(where[f"{name}InSeconds"] + (where.get(f"{name}OffsetInSeconds") or 0))]
    except (TypeError, ValueError, OverflowError):
        pass
    return []


def _day(seconds: float) -> dt.date:
    return (dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)).date()


def _window(days: Iterable[dt.date]) -> Window | None:
    known = sorted(days)
    return Window(known[0], known[-1]) if known else None
