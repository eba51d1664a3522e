"""Oura API v2: OAuth, the `usercollection` routes, paging, date rules and error bodies of the vendor."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox.activity import HeartRate, activity
from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.life import life_of
from health_pipeline.sandbox.night import Night, nights
from health_pipeline.sandbox.oauth import Grant, OAuthRules, TokenError
from health_pipeline.sandbox.people import EPOCH
from health_pipeline.sandbox.routers import (
    ProviderApi,
    Revision,
    SampleRequest,
    TrueValue,
    WebhookCall,
    night_values,
)
from health_pipeline.sandbox.routers.oura.documents import (
    SYNC_DELAY,
    Document,
    Documents,
    heart_rate_rows,
)
from health_pipeline.sandbox.routers.oura.subscriptions import SubscriptionRoutes

_ONE_DAY = dt.timedelta(days=1)
_LONGEST_HEART_RATE_SPAN = dt.timedelta(days=30)

#: Any one of these scopes opens the route.
_SCOPES: dict[str, frozenset[str]] = {
    "daily_activity": frozenset({"daily"}),
    "daily_readiness": frozenset({"daily"}),
    "daily_sleep": frozenset({"daily"}),
    "sleep": frozenset({"daily"}),
    "daily_spo2": frozenset({"spo2", "spo2Daily"}),
    "daily_stress": frozenset({"stress", "daily"}),
    "daily_resilience": frozenset({"stress", "daily"}),
    "daily_cardiovascular_age": frozenset({"heart_health"}),
    "vO2_max": frozenset({"heart_health"}),
    "workout": frozenset({"workout"}),
    "heartrate": frozenset({"heartrate"}),
}

#: Kinds that a revision of a night changes.
_OF_THE_NIGHT = ("sleep", "daily_sleep", "daily_readiness")


class _ApiError(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


@dataclass(frozen=True, slots=True)
class _Query:
    """What a page is asked for, in wall-clock time; `cursor` is where the page begins."""

    start: dt.datetime
    end: dt.datetime
    cursor: int | str | None = None


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def _problem(status: int, title: str, detail: str, headers: dict[str, str] | None = None) -> Response:
    return _json({"status": status, "title": title, "detail": detail}, status, headers)


def _samples() -> dict[str, SampleRequest]:
    """A night without the ring, an evening rest taken for sleep, and the flight home from New York to Berlin."""
    start, end = dt.date(2026, 8, 27), dt.date(2026, 8, 31)
    days = {"start_date": str(start), "end_date": f"{end}T23:59:59"}
    of_month = days | {"start_date": str(start.replace(day=1))}
    queries = dict.fromkeys(sorted(set(_SCOPES) - {"heartrate"}), days) | {
        "sleep": days | {"start_date": str(start - _ONE_DAY)},
        "vO2_max": of_month,
        "workout": of_month,
        "personal_info": {},
        "heartrate": {
            "start_datetime": f"{start}T00:00:00Z",
            "end_datetime": f"{start + 3 * _ONE_DAY}T00:00:00Z",
        },
    }
    return {
        f"{name}.json": SampleRequest(f"/v2/usercollection/{name}", query) for name, query in queries.items()
    }


class API(ProviderApi):
    """Oura."""

    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(_samples())

    name: ClassVar[str] = "oura"
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(
        scopes=(
            "email",
            "personal",
            "daily",
            "heartrate",
            "workout",
            "tag",
            "session",
            "spo2Daily",
            "spo2",
            "stress",
            "ring_configuration",
            "heart_health",
        ),
        rotates=True,
        revoke_with="access_token",
    )

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._documents = {handle: Documents(life_of(person)) for handle, person in sandbox.people.items()}

    def router(self) -> APIRouter:
        data = APIRouter(prefix="/v2/usercollection")
        data.add_api_route("/personal_info", self._personal_info, methods=["GET"])
        data.add_api_route("/heartrate", self._heart_rate, methods=["GET"])
        data.add_api_route("/{kind}", self._many, methods=["GET"])
        data.add_api_route("/{kind}/{document_id}", self._one, methods=["GET"])
        router = APIRouter()
        router.include_router(data)
        router.include_router(SubscriptionRoutes(self.sandbox, self.oauth, self.subscribers).router())
        return router

    def kind_of(self, call: WebhookCall) -> str:
        told = orjson.loads(call.body)
        return f"{told['data_type']}.{told['event_type']}"

    def unauthorized(self, reason: str) -> Response:
        return _problem(401, "Unauthorized", f"The access token is not valid: {reason}.")

    def rate_limited(self, retry_after: int) -> Response:
        reset = int(self.sandbox.now().timestamp()) + retry_after
        headers = {
            "Retry-After": str(retry_after),
            "X-RateLimit-Limit": "5000",
            "X-RateLimit-Window": "300",
            "X-RateLimit-Reset": str(reset),
            "X-RateLimit-Tier": "access_token",
        }
        return _problem(429, "Too Many Requests", "Request rate limit exceeded.", headers)

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        documents = self._documents[handle]
        before = [d.payload["id"] for name in _OF_THE_NIGHT for d in documents.kinds()[name](day)]
        if not documents.daily_sleep(day):
            raise LookupError(f"{handle} has no night on {day}")
        if kind == "delete":
            documents.deleted.add(day)
        else:
            documents.edits[day] = documents.edits.get(day, 0) + 1
        return before

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        documents = self._documents[handle]
        life, now = documents.life, self.sandbox.now().timestamp()
        values: list[TrueValue] = []
        sleeps: dict[dt.date, list[Night]] = {}
        for day in life.days(start - _ONE_DAY, end):
            lived = activity(life, day)
            if start <= day.date and lived.worn.any() and day.end <= now:
                values.append(TrueValue("steps", day.date, lived.recorded_steps, 0))
            for night in nights(life, day):
                # The ring calls the naps of a flight a night, too.
                if night.kind in ("main", "flight") and (night.kind == "flight" or day.night_worn):
                    sleeps.setdefault(life.timeline.local(night.wake).date(), []).append(night)
        for date, slept in sleeps.items():
            if start <= date <= end and all(night.wake + SYNC_DELAY <= now for night in slept):
                values += night_values(date, slept)
        return values

    def webhooks(self, handle: str, day: dt.date, secret: str) -> list[WebhookCall]:
        documents, now = self._documents[handle], self.sandbox.now().timestamp()
        change = "delete" if day in documents.deleted else "update" if day in documents.edits else "create"
        told = [
            (kind.lower(), change if kind in _OF_THE_NIGHT else "create", document.payload["id"])
            for kind, of_day in documents.kinds().items()
            for document in self._announced(documents, kind, of_day, day)
            if document.available_at <= now
        ]
        if not told:
            raise LookupError(f"nothing happened to {handle} on {day}")
        return [self._call(handle, *each, secret) for each in told]

    def _announced(
        self, documents: Documents, kind: str, of_day: Callable[[dt.date], list[Document]], day: dt.date
    ) -> list[Document]:
        """The documents of a day; of a night that was deleted those that are gone."""
        if kind not in _OF_THE_NIGHT or day not in documents.deleted:
            return of_day(day)
        documents.deleted.remove(day)
        try:
            return of_day(day)
        finally:
            documents.deleted.add(day)

    def _call(self, handle: str, kind: str, change: str, document_id: str, secret: str) -> WebhookCall:
        now = self.sandbox.now()
        notice = {
            "event_type": change,
            "data_type": kind,
            "object_id": document_id,
            "event_time": now.isoformat(),
            "user_id": self.sandbox.people[handle].uuid("oura", "user"),
        }
        content = orjson.dumps(notice)
        timestamp = str(int(now.timestamp()))
        proof = hmac.digest(secret.encode(), timestamp.encode() + content, hashlib.sha256)
        headers = {
            "Content-Type": "application/json",
            "x-oura-signature": proof.hex().upper(),
            "x-oura-timestamp": timestamp,
        }
        return WebhookCall(headers, content)

    # Routes

    async def _personal_info(self, request: Request) -> Response:
        try:
            grant = self._grant(request)
        except _ApiError as error:
            return error.response
        person = self.sandbox.people[grant.handle]
        open_ = "personal" in grant.scopes
        return _json(
            {
                "id": person.uuid("oura", "user"),
                "age": person.age(self.sandbox.now().date()) if open_ else None,
                "weight": person.weight_kg if open_ else None,
                "height": person.height_m if open_ else None,
                "biological_sex": person.sex if open_ else None,
                "email": person.email if "email" in grant.scopes else None,
            }
        )

    async def _many(self, request: Request, kind: str) -> Response:
        try:
            grant = self._grant(request, kind)
            documents = self._documents[grant.handle]
            query = self._query(request, documents, "start_date", "end_date")
        except _ApiError as error:
            return error.response
        found: list[Document] = []
        size = self.sandbox.settings.document_page_size
        token: str | None = None
        for date in self._dates(query):
            of_day = [d for d in documents.kinds()[kind](date) if self._asked_for(kind, d, query)]
            if found and len(found) + len(of_day) > size:
                token = _token(query, date.isoformat())
                break
            found += of_day
        return _json({"data": [_only(d.payload, request) for d in found], "next_token": token})

    async def _one(self, request: Request, kind: str, document_id: str) -> Response:
        try:
            grant = self._grant(request, kind)
        except _ApiError as error:
            return error.response
        documents = self._documents[grant.handle]
        now = self.sandbox.now().timestamp()
        date = self._today(documents) + _ONE_DAY
        while date >= EPOCH:
            for document in (
                documents.kinds()[kind](date) if self._may_hold(documents, kind, date, document_id) else ()
            ):
                if document.payload["id"] == document_id and document.available_at <= now:
                    return _json(document.payload)
            date -= _ONE_DAY
        return _json({"detail": "Document not found."}, 404)

    @staticmethod
    def _may_hold(documents: Documents, kind: str, date: dt.date, document_id: str) -> bool:
        parts = {"sleep": ("main", "nap", "flight", "rest"), "workout": (0, 1, 2)}.get(kind, (0,))
        return any(documents.document_id(kind, date, part) == document_id for part in parts)

    async def _heart_rate(self, request: Request) -> Response:
        try:
            grant = self._grant(request, "heartrate")
            documents = self._documents[grant.handle]
            query = self._query(request, documents, "start_datetime", "end_datetime")
            if query.end - query.start > _LONGEST_HEART_RATE_SPAN:
                detail = "The range between start_datetime and end_datetime may not exceed 30 days."
                raise _ApiError(_problem(400, "Bad Request", detail))
        except _ApiError as error:
            return error.response
        first = self._instant(documents, query.start) if query.cursor is None else int(query.cursor)
        last = min(self._instant(documents, query.end), int(self.sandbox.now().timestamp()))
        size = self.sandbox.settings.page_size
        rows: list[dict[str, Any]] = []
        for samples in self._series(documents, first, last):
            begin = int(np.searchsorted(samples.time, first))
            end = int(np.searchsorted(samples.time, last, side="right"))
            rows += heart_rate_rows(samples, slice(begin, min(end, begin + size + 1 - len(rows))))
            if len(rows) > size:
                break
        if request.query_params.get("latest", "").lower() == "true":
            return _json({"data": [_only(row, request) for row in rows[-1:]], "next_token": None})
        token = _token(query, rows[size]["timestamp_unix"] // 1000) if len(rows) > size else None
        return _json({"data": [_only(row, request) for row in rows[:size]], "next_token": token})

    # Parts

    def _grant(self, request: Request, kind: str | None = None) -> Grant:
        try:
            grant = self.oauth.grant(request)
        except TokenError as error:
            raise _ApiError(self.unauthorized(str(error))) from error
        if kind is None:
            return grant
        wanted = _SCOPES.get(kind)
        if wanted is None:
            raise _ApiError(_json({"detail": "Not Found"}, 404))
        if not wanted & grant.scopes:
            # A missing heart_health is answered like a bad token.
            if "heart_health" in wanted:
                raise _ApiError(self.unauthorized("it lacks the scope heart_health"))
            detail = f"The token lacks the scope {' or '.join(sorted(wanted))}."
            raise _ApiError(_problem(403, "Forbidden", detail))
        return grant

    def _today(self, documents: Documents) -> dt.date:
        return documents.life.timeline.local(self.sandbox.now().timestamp()).date()

    def _query(self, request: Request, documents: Documents, start_name: str, end_name: str) -> _Query:
        given = request.query_params
        if given.get("next_token"):
            return _read_token(given["next_token"])
        now = documents.life.timeline.local(self.sandbox.now().timestamp()).replace(tzinfo=None)
        end = _moment(given.get(end_name), end_name, documents) or now.replace(microsecond=0)
        start = _moment(given.get(start_name), start_name, documents) or end - _ONE_DAY
        if start > end:
            detail = f"Start time is greater than end time: [{start_name}: {start}; {end_name}: {end}]"
            raise _ApiError(_problem(400, "Bad Request", detail))
        return _Query(start, end)

    def _dates(self, query: _Query) -> Iterator[dt.date]:
        date = max(EPOCH, query.start.date())
        if isinstance(query.cursor, str):
            date = max(date, dt.date.fromisoformat(query.cursor))
        last = min(query.end.date(), self.sandbox.now().date() + 2 * _ONE_DAY)
        while date <= last:
            yield date
            date += _ONE_DAY

    def _asked_for(self, kind: str, document: Document, query: _Query) -> bool:
        if document.available_at > self.sandbox.now().timestamp() or document.stamp > query.end:
            return False
        if kind == "sleep":
            # The vendor leaves out the sleeps of the start day itself.
            return dt.datetime.combine(document.stamp, dt.time()) > query.start
        return document.stamp >= query.start

    @staticmethod
    def _instant(documents: Documents, moment: dt.datetime) -> int:
        guess = moment.replace(tzinfo=dt.UTC).timestamp()
        offset = documents.life.timeline.offset_seconds(guess)
        return int(guess - documents.life.timeline.offset_seconds(guess - offset))

    def _series(self, documents: Documents, first: int, last: int) -> Iterator[HeartRate]:
        date = documents.life.timeline.local(first).date() - 2 * _ONE_DAY
        end = documents.life.timeline.local(last).date() + 2 * _ONE_DAY
        while date <= end:
            samples = documents.heart_rate(date)
            if samples is not None and samples.time.size:
                yield samples
            date += _ONE_DAY


def _only(payload: dict[str, Any], request: Request) -> dict[str, Any]:
    """A projection by `fields`; the id always stays."""
    fields = request.query_params.get("fields")
    if not fields:
        return payload
    wanted = {"id", *fields.split(",")}
    return {name: value for name, value in payload.items() if name in wanted}


def _moment(text: str | None, name: str, documents: Documents) -> dt.datetime | None:
    """A date or date-time of a query as wall-clock time where the person is; a date is its midnight."""
    if not text:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        item = {
            "loc": ["query", name],
            "msg": "Input should be a valid date or datetime",
            "type": "datetime_from_date_parsing",
        }
        raise _ApiError(_json({"detail": [item]}, 422)) from error
    if moment.tzinfo is None:
        return moment
    return documents.life.timeline.local(moment.timestamp()).replace(tzinfo=None)


def _token(query: _Query, cursor: int | str) -> str:
    text = orjson.dumps([query.start.isoformat(), query.end.isoformat(), cursor])
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def _read_token(token: str) -> _Query:
    try:
        start, end, cursor = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return _Query(dt.datetime.fromisoformat(start), dt.datetime.fromisoformat(end), cursor)
    except (ValueError, TypeError, binascii.Error) as error:
        raise _ApiError(_problem(400, "Bad Request", "next_token is not valid.")) from error
