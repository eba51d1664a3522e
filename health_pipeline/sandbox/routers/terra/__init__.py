"""Terra API v2: the aggregator's routes over a watch and a glucose sensor, its refusals, limits and webhooks."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox import body
from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.glucose import HIGHEST, LOWEST, readings
from health_pipeline.sandbox.life import life_of
from health_pipeline.sandbox.oauth import OAuthRules
from health_pipeline.sandbox.people import DEFAULT_SEED, EPOCH, person
from health_pipeline.sandbox.routers import (
    ProviderApi,
    Revision,
    SampleRequest,
    TrueValue,
    WebhookCall,
    night_values,
)
from health_pipeline.sandbox.routers.terra.access import (
    SENSOR,
    WATCH,
    Access,
    Connection,
    RefusedError,
    answer,
    problem,
)
from health_pipeline.sandbox.routers.terra.documents import Documents, calendar, heart_samples

_ONE_DAY = dt.timedelta(days=1)
_KINDS = ("activity", "body", "daily", "sleep")
_VERSION = "2022-03-16"
_LONGEST_DAYS = 1825
#: Beyond this, an answer goes to the webhook in parts.
_LARGE_DAYS = 31
_DAYS_AN_HOUR = 6000


def _samples() -> dict[str, SampleRequest]:
    """Two days in short, and half a day (the samples' time is noon) with all samples, of watch and sensor."""
    ada = person("ada", DEFAULT_SEED)
    asked = {"to_webhook": "false", "start_date": "2026-09-03", "end_date": "2026-09-05"}
    watch = asked | {"user_id": ada.uuid("terra", WATCH)}
    half = {"start_date": "2026-09-05", "end_date": "2026-09-06", "with_samples": "true"}
    sensor = asked | half | {"user_id": ada.uuid("terra", SENSOR)}
    return {
        "daily.1.json": SampleRequest("/daily", watch),
        "daily.2.json": SampleRequest("/daily", watch | half),
        "sleep.json": SampleRequest("/sleep", watch | half | {"start_date": "2026-09-04"}),
        "activity.json": SampleRequest("/activity", watch | {"start_date": "2026-09-01"}),
        "body.1.json": SampleRequest("/body", watch),
        "body.2.json": SampleRequest("/body", sensor),
        "athlete.json": SampleRequest("/athlete", {name: watch[name] for name in ("user_id", "to_webhook")}),
    }


class API(ProviderApi):
    """Terra. Everybody has a Garmin watch, and who wears a glucose sensor may connect it as FREESTYLELIBRE."""

    name: ClassVar[str] = "terra"
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(scopes=())
    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(_samples())
    sample_person: ClassVar[str] = "ada"

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self.oauth = self.access = Access(self.name, self.oauth_rules, sandbox)
        self._documents = {handle: Documents(life_of(person)) for handle, person in sandbox.people.items()}
        #: Days asked for, by connection, with the time of asking.
        self._asked: dict[str, deque[tuple[float, int]]] = defaultdict(deque)

    def router(self) -> APIRouter:
        router = APIRouter()
        for kind in _KINDS:
            router.add_api_route(f"/{kind}", self._records, methods=["GET"])
        router.add_api_route("/athlete", self._athlete, methods=["GET"])
        return router

    def sample_headers(self, handle: str) -> Mapping[str, str]:
        name, key = next(iter(self.sandbox.settings.clients.items()))
        return {"dev-id": name, "x-api-key": key}

    def unauthorized(self, reason: str) -> Response:
        return problem(401, "unauthorized", reason, "/")

    def rate_limited(self, retry_after: int) -> Response:
        headers = {
            "X-Terra-RateLimit-Rule": "r2",
            "Retry-After": str(retry_after),
            "X-Terra-RateLimit-Limit": str(_DAYS_AN_HOUR),
            "X-Terra-RateLimit-Remaining": "0",
            "X-Terra-RateLimit-Reset-After": str(retry_after),
        }
        return answer({"detail": "rate limit exceeded"}, 429, headers)

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        """An edit moves the night's bedtime, a deletion takes the day's workouts."""
        documents, now = self._documents[handle], self._now()
        if kind == "delete":
            found = documents.of(WATCH, "activity", day, now, False)
            if not found:
                raise LookupError(f"{handle} has no workout on {day}")
            documents.deleted.add(day)
            return [record["metadata"]["summary_id"] for record in found]
        slept = [night for night in documents.slept(day, now) if night.kind == "main"]
        if not slept:
            raise LookupError(f"{handle} has no night on {day}")
        documents.edits[day] = documents.edits.get(day, 0) + 1
        return [documents.life.person.uuid("terra", "sleep", day, "main")]

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        """Of the devices that the person connected; of the watch where there is none yet."""
        dates = [start + n * _ONE_DAY for n in range((end - start).days + 1)]
        resources = self.access.resources(handle)
        values: list[TrueValue] = []
        for date in dates:
            if WATCH in resources:
                values += self._true_day(handle, date)
            if SENSOR in resources:
                values += self._true_glucose(handle, date)
        return values

    def _true_day(self, handle: str, date: dt.date) -> list[TrueValue]:
        documents, now = self._documents[handle], self._now()
        life, who = documents.life, documents.life.person
        found: list[TrueValue] = []
        lived = calendar(life, date)
        if lived is not None and lived.worn.any() and lived.instant[-1] + 60 <= now:
            steps = int(lived.steps[lived.worn].sum())
            active = float(lived.active_kcal[lived.worn].sum())
            _, bpm = heart_samples(life, date, now)
            found += [
                TrueValue("steps", date, steps, 0),
                TrueValue("distance", date, steps * body.step_length(who), 0.1),
                TrueValue("calories_burned", date, active, 0.1),
                TrueValue("total_calories", date, active + float(lived.basal_kcal.sum()), 0.1),
                TrueValue("active_minutes", date, int((lived.worn & (lived.met >= 3)).sum()), 0.001),
                TrueValue("heart_rate", date, float(bpm.mean()), 0.001),
                TrueValue("max_heart_rate", date, int(bpm.max()), 0),
            ]
        if slept := documents.nights(date, now):
            found += night_values(date, slept)
            day = life.day(date)
            if day is not None:
                found.append(TrueValue("spo2", date, body.spo2(life, day), 0.06))
        weighed = documents.weighed(date, now)
        if weighed is not None:
            found += [
                TrueValue("weight", date, weighed.weight, 0.001),
                TrueValue("body_fat", date, weighed.fat_percent, 0.001),
                TrueValue("blood_pressure_systolic", date, weighed.systolic, 0),
                TrueValue("blood_pressure_diastolic", date, weighed.diastolic, 0),
                TrueValue("vo2_max", date, body.fitness(life, date), 0.06),
            ]
        return found

    def _true_glucose(self, handle: str, date: dt.date) -> list[TrueValue]:
        seen = readings(self.sandbox.people[handle], date, date)
        if not seen.time.size or seen.time[-1] + 3600 > self._now():
            return []
        mean = float(np.clip(seen.mg_dl, LOWEST, HIGHEST).mean())
        return [TrueValue("glucose", date, mean, 0.001)]

    def webhooks(self, handle: str, day: dt.date, secret: str) -> list[WebhookCall]:
        """The day's records of every device connected, one call a kind."""
        calls = []
        for resource in sorted(self.access.resources(handle)):
            connection = self.access.connection(handle, resource)
            for kind in _KINDS:
                records = self._documents[handle].of(resource, kind, day, self._now(), True)
                if records:
                    calls.append(self.signed(orjson.dumps(self._envelope(connection, kind, records)), secret))
        return calls

    def signed(self, body: bytes, secret: str) -> WebhookCall:
        """A call with this body, signed now."""
        at = str(int(self._now()))
        signature = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
        trace = hashlib.sha256(body).hexdigest()[:32]
        header = f"t={at},v1={signature},v0={'0' * 64}"
        return WebhookCall(
            {
                "Content-Type": "application/json",
                "Terra-Signature": header,
                "X-Terra-Signature": header,
                "X-Terra-Trace-Id": trace,
                "Terra-Reference": trace,
                "X-Terra-Ordering-Timestamp": str(int(self._now() * 1000)),
            },
            body,
        )

    # Routes

    async def _records(self, request: Request) -> Response:
        kind = request.url.path.rsplit("/", 1)[-1]
        try:
            connection = self.access.known(request)
            start, end = self._days(request, connection)
        except RefusedError as error:
            return self.access.refusal(request, error)
        days = (end - start).days
        limited = self._limit(connection, days)
        if limited is not None:
            return limited
        if _flag(request, "to_webhook", True) or days > _LARGE_DAYS:
            return self._sent_to_webhook(connection, kind, days)
        samples = _flag(request, "with_samples", False)
        documents, now = self._documents[connection.handle], self._now()
        records: list[dict[str, Any]] = []
        date = max(start, EPOCH)
        while date < min(end, self.sandbox.now().date() + 2 * _ONE_DAY):
            records += documents.of(connection.resource, kind, date, now, samples)
            date += _ONE_DAY
        return answer(self._envelope(connection, kind, records))

    async def _athlete(self, request: Request) -> Response:
        try:
            connection = self.access.known(request)
        except RefusedError as error:
            return self.access.refusal(request, error)
        if _flag(request, "to_webhook", True):
            return self._sent_to_webhook(connection, "athlete", 0)
        who = self.sandbox.people[connection.handle]
        athlete = {
            "first_name": who.name.split()[0],
            "last_name": who.name.split()[-1],
            "age": who.age(self.sandbox.now().date()),
            "sex": who.sex,
            "email": who.email,
        }
        return answer(
            {"type": "athlete", "version": _VERSION, "user": self.access.user(connection), "athlete": athlete}
        )

    # Parts

    def _now(self) -> float:
        return self.sandbox.now().timestamp()

    def _envelope(self, connection: Connection, kind: str, records: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "type": kind,
            "status": "success",
            "version": _VERSION,
            "user": self.access.user(connection),
            "data": records,
        }

    def _sent_to_webhook(self, connection: Connection, kind: str, days: int) -> Response:
        user = self.access.user(connection)
        reference = self.sandbox.people[connection.handle].uuid("terra", "request", kind, days)
        said = {"status": "success", "type": kind, "reference": reference, "trace_id": reference}
        known = {name: value for name, value in user.items() if name != "created_at" and value is not None}
        if days > _LARGE_DAYS:
            said["message"] = "Large request is being processed; payloads will be delivered when ready"
        return answer({**said, "user": known})

    def _days(self, request: Request, connection: Connection) -> tuple[dt.date, dt.date]:
        """From the first day to before the second. Raises RefusedError."""
        start = self._day(request, connection, "start_date")
        if start is None:
            raise RefusedError(400, "start_date is required")
        end = self._day(request, connection, "end_date") or start + _ONE_DAY
        if end < start:
            raise RefusedError(400, "end_date is before start_date")
        return start, end

    def _day(self, request: Request, connection: Connection, name: str) -> dt.date | None:
        text = request.query_params.get(name)
        if not text:
            return None
        if len(text) == 10 and text.isdecimal():
            return self._documents[connection.handle].life.timeline.local(int(text)).date()
        try:
            return dt.date.fromisoformat(text)
        except ValueError:
            raise RefusedError(400, f"invalid {name}") from None

    def _limit(self, connection: Connection, days: int) -> Response | None:
        """The vendor's two rules: days of one request, and days requested in an hour (of the wall clock)."""
        if days > _LONGEST_DAYS:
            return answer({"detail": "rate limit exceeded"}, 429, {"X-Terra-RateLimit-Rule": "r1"})
        asked, now = self._asked[connection.user_id], time.monotonic()
        while asked and asked[0][0] <= now - 3600:
            asked.popleft()
        if sum(count for _, count in asked) + days > _DAYS_AN_HOUR:
            return self.rate_limited(max(1, round(asked[0][0] + 3600 - now)))
        asked.append((now, days))
        return None


def _flag(request: Request, name: str, default: bool) -> bool:
    return {"true": True, "false": False}.get(request.query_params.get(name, "").lower(), default)
