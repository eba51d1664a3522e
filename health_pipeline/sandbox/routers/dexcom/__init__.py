"""Dexcom API v3: OAuth, the `/v3/users/self` routes, the rules of their windows and the hours of delay."""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.life import life_of
from health_pipeline.sandbox.oauth import OAuthRules, TokenError
from health_pipeline.sandbox.people import EPOCH
from health_pipeline.sandbox.routers import ProviderApi, Revision, SampleRequest, TrueValue
from health_pipeline.sandbox.routers.dexcom.records import Record, Records

_LONGEST_RANGE = dt.timedelta(days=30)
_TIME_FORMAT = "%Y-%m-%dT%H:%M:%S"
_RECORD_TYPES = {"egvs": "egv", "events": "event", "calibrations": "calibration", "alerts": "alert"}


class _RefusedError(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


def _json(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def _problem(status: int, code: str, message: str) -> Response:
    return _json({"errors": [{"code": code, "message": message}]}, status)


def _window(start: str, end: str) -> Mapping[str, str]:
    return {"startDate": start, "endDate": end}


class API(ProviderApi):
    """Dexcom."""

    name: ClassVar[str] = "dexcom"
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(
        scopes=("offline_access",),
        rotates=True,
        authorize_path="/v2/oauth2/login",
        token_path="/v2/oauth2/token",  # noqa: S106 - a path
        revoke_path=None,
        access_seconds=7200,
    )
    #: Low, the end of summer time on a day with the receiver, High, and what was entered in two days.
    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(
        {
            "egvs.1.json": SampleRequest(
                "/v3/users/self/egvs", _window("2025-10-28T20:20:00", "2025-10-28T20:50:00")
            ),
            "egvs.2.json": SampleRequest(
                "/v3/users/self/egvs", _window("2025-11-02T06:40:00", "2025-11-02T07:15:00")
            ),
            "egvs.3.json": SampleRequest(
                "/v3/users/self/egvs", _window("2026-08-22T00:15:00", "2026-08-22T00:45:00")
            ),
            "events.json": SampleRequest(
                "/v3/users/self/events", _window("2026-09-01T00:00:00", "2026-09-03T00:00:00")
            ),
            "calibrations.json": SampleRequest(
                "/v3/users/self/calibrations", _window("2026-08-28T00:00:00", "2026-09-05T00:00:00")
            ),
            "alerts.json": SampleRequest(
                "/v3/users/self/alerts", _window("2026-09-01T00:00:00", "2026-09-03T00:00:00")
            ),
            "devices.json": SampleRequest("/v3/users/self/devices"),
            "data_range.json": SampleRequest("/v3/users/self/dataRange"),
        }
    )
    sample_person: ClassVar[str] = "dana"

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._records = {handle: Records(life_of(person)) for handle, person in sandbox.people.items()}

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v3/users/self")
        router.add_api_route("/devices", self._devices, methods=["GET"])
        router.add_api_route("/dataRange", self._data_range, methods=["GET"])
        router.add_api_route("/{kind}", self._many, methods=["GET"])
        return router

    def unauthorized(self, reason: str) -> Response:
        return _problem(401, "unauthorized", f"The access token is not valid: {reason}.")

    def rate_limited(self, retry_after: int) -> Response:
        # Neither a time nor a quota comes with it.
        return _problem(429, "too_many_requests", "The hourly limit of calls is used up.")

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        records = self._records[handle]
        lived = records.life.day(day) if records.person.cgm is not None else None
        before = {} if lived is None else {r["recordId"]: r for _, _, r in records.events(lived)}
        if lived is None or not before:
            raise LookupError(f"{handle} entered nothing on {day}")
        records.revisions[day] = kind
        now = {r["recordId"]: r for _, _, r in records.events(lived)}
        return [name for name, record in now.items() if before[name] != record]

    def account(self, handle: str) -> Mapping[str, str]:
        if self.sandbox.people[handle].cgm is None:
            raise LookupError(f"{handle} wears no glucose sensor")
        return {}

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        days = self._records[handle].local_days(start, end, self.sandbox.now().timestamp())
        eaten = self._records[handle].eaten(start, end, self.sandbox.now().timestamp())
        return [
            *(TrueValue("glucose", date, float(values.mean()), 1e-6) for date, values in days),
            *(TrueValue("carbohydrates", date, float(grams), 1e-6) for date, grams in eaten.items()),
        ]

    # Routes

    async def _many(self, request: Request, kind: str) -> Response:
        if kind not in _RECORD_TYPES:
            return _problem(404, "not_found", "There is no such resource.")
        try:
            records, envelope = self._whose(request, _RECORD_TYPES[kind])
            start, end = (self._moment(request, name) for name in ("startDate", "endDate"))
            if not start <= end <= start + _LONGEST_RANGE:
                message = "endDate must not be before startDate, nor more than 30 days after it."
                raise _RefusedError(_problem(400, "bad_request", message))
        except _RefusedError as error:
            return error.response
        first, last, now = start.timestamp(), end.timestamp(), self.sandbox.now().timestamp()
        find = {
            "egvs": records.egvs,
            "events": records.events,
            "calibrations": records.calibrations,
            "alerts": records.alerts,
        }[kind]
        found = [
            (time, record)
            for day in records.days(first, min(last, now))
            for time, available_at, record in find(day)
            if first <= time <= last and available_at <= now
        ]
        found.sort(key=lambda item: item[0], reverse=True)
        return _json({**envelope, "records": [record for _, record in found]})

    async def _devices(self, request: Request) -> Response:
        try:
            records, envelope = self._whose(request, "device")
        except _RefusedError as error:
            return error.response
        return _json({**envelope, "records": records.devices(self.sandbox.now().timestamp())})

    async def _data_range(self, request: Request) -> Response:
        try:
            records, envelope = self._whose(request, "dataRange")
        except _RefusedError as error:
            return error.response
        now = self.sandbox.now().timestamp()
        epoch = dt.datetime.combine(EPOCH, dt.time(), dt.UTC).timestamp()
        first_days, last_days = records.days(epoch, epoch + 20 * 86_400), records.days(now - 20 * 86_400, now)
        body: dict[str, Any] = dict(envelope)
        for name, find in (
            ("calibrations", records.calibrations),
            ("egvs", records.egvs),
            ("events", records.events),
        ):
            told = [
                (time, record)
                for day in (*first_days, *last_days)
                for time, available_at, record in find(day)
                if available_at <= now
            ]
            told.sort(key=lambda item: item[0])
            body[name] = {"start": _stamp(told[0][1]), "end": _stamp(told[-1][1])} if told else None
        return _json(body)

    # Parts

    def _whose(self, request: Request, record_type: str) -> tuple[Records, Record]:
        """Whose records are asked for, and the envelope they come in."""
        try:
            grant = self.oauth.grant(request)
        except TokenError as error:
            raise _RefusedError(self.unauthorized(str(error))) from error
        records = self._records[grant.handle]
        # The same person is somebody else to another client.
        user = f"{records.person.uuid('dexcom', 'user')} {grant.client_id}"
        user_id = hashlib.sha256(user.encode()).hexdigest()
        return records, {"recordType": record_type, "recordVersion": "3.0", "userId": user_id}

    @staticmethod
    def _moment(request: Request, name: str) -> dt.datetime:
        """A time of the query: without an offset, and read as UTC."""
        try:
            return dt.datetime.strptime(request.query_params.get(name, ""), _TIME_FORMAT).replace(
                tzinfo=dt.UTC
            )
        except ValueError as error:
            message = f"{name} must be a time like 2026-01-31T23:59:59, without an offset."
            raise _RefusedError(_problem(400, "bad_request", message)) from error


def _stamp(record: Record) -> Record:
    return {name: record[name] for name in ("systemTime", "displayTime")}
