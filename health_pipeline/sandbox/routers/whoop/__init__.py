"""WHOOP API v2: OAuth, the list and single routes, paging, scores that come late, and signed notices."""

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

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox import body
from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.life import life_of
from health_pipeline.sandbox.oauth import Grant, OAuthRules, TokenError
from health_pipeline.sandbox.people import EPOCH, person
from health_pipeline.sandbox.routers import (
    ProviderApi,
    Revision,
    SampleRequest,
    TrueValue,
    WebhookCall,
    night_values,
)
from health_pipeline.sandbox.routers.whoop.documents import SCORE_DELAY, Documents, Record

_ONE_DAY = dt.timedelta(days=1)
_LARGEST_PAGE = 25
_RECORDS: dict[str, Callable[[Documents, dt.date, float], list[Record]]] = {
    "sleep": Documents.sleeps,
    "recovery": Documents.recoveries,
    "cycle": Documents.cycles,
    "workout": Documents.workouts,
}
_SCOPES = {
    "sleep": "read:sleep",
    "recovery": "read:recovery",
    "cycle": "read:cycles",
    "workout": "read:workout",
    "body": "read:body_measurement",
    "profile": "read:profile",
}
_SAMPLE_PERSON = "ben"


class _ApiError(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


@dataclass(frozen=True, slots=True)
class _Query:
    """Records that overlap [start, end) and begin before `before`, in epoch seconds."""

    start: float
    end: float
    before: float


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def _no_refresh_token_unasked(answer: dict[str, Any], grant: Grant) -> dict[str, Any]:
    """A refresh token is for those who asked for `offline`."""
    if "offline" in grant.scopes:
        return answer
    return {name: value for name, value in answer.items() if name != "refresh_token"}


def _samples() -> dict[str, SampleRequest]:
    """A night without the strap, and the flight home from New York to Berlin in the night to the 30th."""
    window = {"start": "2026-08-26T10:00:00.000Z", "end": "2026-09-01T10:00:00.000Z", "limit": "25"}
    documents = Documents(life_of(person(_SAMPLE_PERSON)))
    times = {}
    for date in (dt.date(2026, 8, 25) + n * _ONE_DAY for n in range(9)):
        for record in documents.sleeps(date, dt.datetime(2026, 9, 5, tzinfo=dt.UTC).timestamp()):
            said = record.payload
            times[said["id"]] = f"{said['start']} {said['end']} {said['timezone_offset']}"
    return {
        "sleep.json": SampleRequest("/v2/activity/sleep", window),
        "recovery.json": SampleRequest("/v2/recovery", window, context=times),
        "cycle.json": SampleRequest("/v2/cycle", window),
        "workout.json": SampleRequest("/v2/activity/workout", window),
        "body_measurement.json": SampleRequest("/v2/user/measurement/body"),
        "profile.json": SampleRequest("/v2/user/profile/basic"),
    }


class API(ProviderApi):
    """WHOOP."""

    name: ClassVar[str] = "whoop"
    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(_samples())
    sample_person: ClassVar[str] = _SAMPLE_PERSON
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(
        scopes=(*_SCOPES.values(), "offline"),
        rotates=True,
        authorize_path="/oauth/oauth2/auth",
        token_path="/oauth/oauth2/token",  # noqa: S106 - a path
        revoke_path=None,
        access_seconds=3600,
        write_answer=_no_refresh_token_unasked,
    )

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._documents = {handle: Documents(life_of(person)) for handle, person in sandbox.people.items()}

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v2")
        for path, endpoint in (
            ("/cycle", self._list("cycle")),
            ("/recovery", self._list("recovery")),
            ("/activity/sleep", self._list("sleep")),
            ("/activity/workout", self._list("workout")),
            ("/cycle/{record_id}", self._of_cycle("cycle")),
            ("/cycle/{record_id}/sleep", self._of_cycle("sleep")),
            ("/cycle/{record_id}/recovery", self._of_cycle("recovery")),
            ("/activity/sleep/{record_id}", self._one("sleep")),
            ("/activity/workout/{record_id}", self._one("workout")),
            ("/user/measurement/body", self._body),
            ("/user/profile/basic", self._profile),
        ):
            router.add_api_route(path, endpoint, methods=["GET"])
        router.add_api_route("/user/access", self._revoke, methods=["DELETE"])
        return router

    def unauthorized(self, reason: str) -> Response:
        return _json({"error": "unauthorized", "message": f"Authorization was not valid: {reason}."}, 401)

    def rate_limited(self, retry_after: int) -> Response:
        headers = {
            "X-RateLimit-Limit": "100, 100;window=60, 10000;window=86400",
            "X-RateLimit-Remaining": "0",
            "X-RateLimit-Reset": str(retry_after),
        }
        return _json({"error": "too_many_requests"}, 429, headers)

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        documents = self._documents[handle]
        lived = documents.life.day(day)
        if lived is None or documents.main_sleep(lived) is None:
            raise LookupError(f"{handle} has no night on {day}")
        if kind == "delete":
            documents.deleted.add(day)
        else:
            documents.edits[day] = (documents.edits.get(day, (0, 0.0))[0] + 1, self._now())
        return [documents.uuid("sleep", day, "main")]

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        documents = self._documents[handle]
        life, now = documents.life, self._now()
        values: list[TrueValue] = []
        for day in life.days(start - _ONE_DAY, end + _ONE_DAY):
            date = life.timeline.local(day.wake).date()
            if not start <= date <= end:
                continue
            strain = documents.strain(day, now)
            if strain is not None and documents.cycle_end(day, now) is not None:
                values += [
                    TrueValue("strain_score", date, strain.strain, 0.001),
                    TrueValue("total_calories", date, strain.kcal, 0.01),
                    TrueValue("average_heart_rate", date, strain.average_heart_rate, 0.5),
                    TrueValue("max_heart_rate", date, strain.max_heart_rate, 0),
                ]
            night = documents.main_sleep(day)
            if night is None or not documents.scorable(day) or night.wake + SCORE_DELAY > now:
                continue
            values += night_values(date, [night])
            values.append(TrueValue("recovery_score", date, documents.recovery_percent(day), 0))
            efficiency = 100 * night.total_sleep / night.time_in_bed
            values.append(TrueValue("sleep_efficiency", date, efficiency, 0.001))
            if documents.has_oxygen:
                values += [
                    TrueValue("skin_temperature", date, documents.skin_temperature(day), 0.001),
                    TrueValue("spo2", date, body.spo2(life, day), 0.001),
                ]
        return values

    def webhooks(self, handle: str, day: dt.date, secret: str) -> list[WebhookCall]:
        documents, now = self._documents[handle], self._now()
        change = "deleted" if day in documents.deleted else "updated"
        told = [("workout.updated", record.payload["id"]) for record in documents.workouts(day, now)]
        if documents.recoveries(day, now) or change == "deleted":
            sleep_id = documents.uuid("sleep", day, "main")
            told += [(f"sleep.{change}", sleep_id), (f"recovery.{change}", sleep_id)]
        if not told:
            raise LookupError(f"nothing happened to {handle} on {day}")
        return [self._call(documents, kind, record_id, secret) for kind, record_id in told]

    def _call(self, documents: Documents, kind: str, record_id: str, secret: str) -> WebhookCall:
        trace_id = documents.person.uuid("whoop", "trace", record_id)
        notice = {"user_id": documents.user_id, "id": record_id, "type": kind, "trace_id": trace_id}
        content = orjson.dumps(notice)
        timestamp = str(int(1000 * self._now()))
        proof = hmac.digest(secret.encode(), timestamp.encode() + content, hashlib.sha256)
        headers = {
            "Content-Type": "application/json",
            "X-WHOOP-Signature": base64.b64encode(proof).decode(),
            "X-WHOOP-Signature-Timestamp": timestamp,
        }
        return WebhookCall(headers, content)

    # Routes

    def _list(self, kind: str) -> Callable[[Request], Response]:
        def answer(request: Request) -> Response:
            try:
                documents = self._granted(request, kind)
                query, limit = self._query(request), _limit(request)
            except _ApiError as error:
                return error.response
            found: list[Record] = []
            for record in self._records(documents, kind, query):
                found.append(record)
                if len(found) > limit:
                    break
            page: dict[str, Any] = {"records": [record.payload for record in found[:limit]]}
            if len(found) > limit:
                page["next_token"] = _token(query, found[limit - 1].start)
            return _json(page)

        return answer

    def _of_cycle(self, kind: str) -> Callable[[Request, int], Response]:
        def answer(request: Request, record_id: int) -> Response:
            try:
                documents = self._granted(request, kind)
            except _ApiError as error:
                return error.response
            date = documents.date_of_cycle(record_id)
            found = _RECORDS[kind](documents, date, self._now()) if date is not None else []
            # The naps of a cycle stand before its sleep.
            return _json(found[-1].payload) if found and not found[-1].payload.get("nap") else _missing()

        return answer

    def _one(self, kind: str) -> Callable[[Request, str], Response]:
        def answer(request: Request, record_id: str) -> Response:
            try:
                documents = self._granted(request, kind)
            except _ApiError as error:
                return error.response
            date = self.sandbox.now().date() + _ONE_DAY
            parts: tuple[object, ...] = ("main", "nap", "flight") if kind == "sleep" else (0, 1, 2)
            while date >= EPOCH:
                if any(documents.uuid(kind, date, part) == record_id for part in parts):
                    for record in _RECORDS[kind](documents, date, self._now()):
                        if record.payload["id"] == record_id:
                            return _json(record.payload)
                date -= _ONE_DAY
            return _missing()

        return answer

    def _body(self, request: Request) -> Response:
        try:
            documents = self._granted(request, "body")
        except _ApiError as error:
            return error.response
        return _json(documents.body_measurement(self.sandbox.now().date()))

    def _profile(self, request: Request) -> Response:
        try:
            documents = self._granted(request, "profile")
        except _ApiError as error:
            return error.response
        first_name, _, last_name = documents.person.name.partition(" ")
        return _json(
            {
                "user_id": documents.user_id,
                "email": documents.person.email,
                "first_name": first_name,
                "last_name": last_name,
            }
        )

    def _revoke(self, request: Request) -> Response:
        try:
            grant = self.oauth.grant(request)
        except TokenError as error:
            return self.unauthorized(str(error))
        self.oauth.counts["revoke"] += 1
        self.oauth.revoke_person(grant.handle)
        return Response(status_code=204)

    # Parts

    def _now(self) -> float:
        return self.sandbox.now().timestamp()

    def _granted(self, request: Request, kind: str) -> Documents:
        try:
            grant = self.oauth.grant(request)
        except TokenError as error:
            raise _ApiError(self.unauthorized(str(error))) from error
        if _SCOPES[kind] not in grant.scopes:
            raise _ApiError(self.unauthorized(f"the scope {_SCOPES[kind]} was not granted"))
        return self._documents[grant.handle]

    def _query(self, request: Request) -> _Query:
        given = request.query_params
        if given.get("nextToken"):
            return _read_token(given["nextToken"])
        end = _instant(given.get("end"), "end")
        start = _instant(given.get("start"), "start")
        now = self._now()
        query = _Query(start or 0.0, now if end is None else end, float("inf"))
        if query.start > query.end:
            raise _ApiError(_bad("start is after end"))
        return query

    def _records(self, documents: Documents, kind: str, query: _Query) -> Iterator[Record]:
        now = self._now()
        last = min(query.end, query.before, now)
        date = documents.life.timeline.local(last).date() + 2 * _ONE_DAY
        first = max(EPOCH, dt.datetime.fromtimestamp(query.start, dt.UTC).date() - 3 * _ONE_DAY)
        while date >= first:
            for record in _RECORDS[kind](documents, date, now):
                if record.start < min(query.end, query.before) and record.end > query.start:
                    yield record
            date -= _ONE_DAY


def _missing() -> Response:
    return _json({"error": "not_found"}, 404)


def _bad(message: str) -> Response:
    return _json({"error": "bad_request", "message": message}, 400)


def _limit(request: Request) -> int:
    text = request.query_params.get("limit", "10")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= _LARGEST_PAGE:
        raise _ApiError(_bad(f"limit must be from 1 to {_LARGEST_PAGE}"))
    return int(text)


def _instant(text: str | None, name: str) -> float | None:
    if not text:
        return None
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError as error:
        raise _ApiError(_bad(f"{name} is not a date-time")) from error
    if moment.tzinfo is None:
        raise _ApiError(_bad(f"{name} needs an offset"))
    return moment.timestamp()


def _token(query: _Query, before: float) -> str:
    text = orjson.dumps([query.start, query.end, before])
    return base64.urlsafe_b64encode(text).decode().rstrip("=")


def _read_token(token: str) -> _Query:
    try:
        start, end, before = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        return _Query(float(start), float(end), float(before))
    except (ValueError, TypeError, binascii.Error) as error:
        raise _ApiError(_bad("nextToken is not valid")) from error
