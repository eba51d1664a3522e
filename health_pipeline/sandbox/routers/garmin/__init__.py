"""Garmin Health API: consent without scopes, pulls by time of upload, backfill, pushes and pings."""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import hashlib
import hmac
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import urlencode

import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox import body
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
from health_pipeline.sandbox.routers.garmin.summaries import STEPS_A_FLOOR, Payload, Summaries
from health_pipeline.sandbox.routers.garmin.watch import STRESS_STEP

_WELLNESS = "/wellness-api/rest"
_USER = "/partner-gateway/rest/user"
_DAY = 86_400
_ONE_DAY = dt.timedelta(days=1)
#: Longest backfill request in days, and how far back one may reach.
_LONGEST_BACKFILL = {"HEALTH_EXPORT": 90, "ACTIVITY_EXPORT": 30}
_DEEPEST_BACKFILL = 730 * _DAY

#: The last step of a summary's address, and the key of its bodies where that is another.
_PATHS = {"pulseOx": "pulseox", "respiration": "allDayRespiration"}
_ACTIVITY_KINDS = ("activities", "activityDetails")

#: Kinds that the partner has chosen to be pinged of; all others are pushed.
PINGED = ("activities", "activityDetails", "healthSnapshot")


class _ApiError(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


def _json(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


def _error(status: int, message: str) -> Response:
    return _json({"errorMessage": message}, status)


def _without_scope(answer: dict[str, Any], grant: Grant) -> dict[str, Any]:
    """People choose permissions on a page of their own, so the token's answer names no scope."""
    del answer["scope"]
    return answer | {"refresh_token_expires_in": 90 * _DAY}


def _samples() -> dict[str, SampleRequest]:
    """What the syncs of one day brought; of days also what the next sync did, when they are whole."""
    files = {
        "activities": "activities",
        "activity_details": "activityDetails",
        "blood_pressures": "bloodPressures",
        "body_comps": "bodyComps",
        "health_snapshots": "healthSnapshot",
        "hrv": "hrv",
        "pulse_ox": "pulseOx",
        "respiration": "respiration",
        "skin_temp": "skinTemp",
        "stress_details": "stressDetails",
        "user_metrics": "userMetrics",
    }
    day = dt.datetime(2026, 8, 15, tzinfo=dt.UTC)

    def asked(path: str, start: dt.datetime, end: dt.datetime) -> SampleRequest:
        names = ("uploadStartTimeInSeconds", "uploadEndTimeInSeconds")
        return SampleRequest(
            f"{_WELLNESS}/{path}",
            dict(zip(names, (str(int(time.timestamp())) for time in (start, end)), strict=True)),
        )

    noon = day + 0.5 * _ONE_DAY
    return {
        **{f"{name}.json": asked(path, day, day + _ONE_DAY) for name, path in files.items()},
        # The quarter of an hour and the night under way in the morning, and both again in the evening.
        **{
            f"{name}.{number}.json": asked(name, start, start + 0.5 * _ONE_DAY)
            for name in ("epochs", "sleeps")
            for number, start in ((1, day), (2, noon))
        },
        # No sync on the next day.
        "dailies.1.json": asked("dailies", day, day + _ONE_DAY),
        "dailies.2.json": asked("dailies", day + 2 * _ONE_DAY, day + 2.5 * _ONE_DAY),
    }


class API(ProviderApi):
    """Garmin."""

    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(_samples())

    name: ClassVar[str] = "garmin"
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(
        # Permissions, which here stand for scopes: asked for or not, they are what the person has switched on.
        scopes=(
            "HEALTH_EXPORT",
            "ACTIVITY_EXPORT",
            "HISTORICAL_DATA_EXPORT",
            "WORKOUT_IMPORT",
            "COURSE_IMPORT",
        ),
        rotates=True,
        authorize_path="/oauth2Confirm",
        token_path="/di-oauth2-service/oauth/token",  # noqa: S106
        revoke_path=None,
        requires_pkce=True,
        write_answer=_without_scope,
    )

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self.summaries = {handle: Summaries(life_of(person)) for handle, person in sandbox.people.items()}
        #: Whether a pull is refused without the token of a ping, as it is of applications in production.
        self.requires_pull_token = False
        #: Spans of data that were asked to be posted again: (person, kind, start, end) in epoch seconds.
        self.backfills: list[tuple[str, str, int, int]] = []
        self._key = hashlib.sha256(f"garmin pull tokens {sandbox.seed}".encode()).digest()
        self._address = "https://apis.garmin.com"

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route(f"{_USER}/id", self._user_id, methods=["GET"])
        router.add_api_route(f"{_USER}/permissions", self._permissions, methods=["GET"])
        router.add_api_route(f"{_USER}/registration", self._deregister, methods=["DELETE"])
        router.add_api_route(f"{_WELLNESS}/backfill/{{path}}", self._backfill, methods=["GET"])
        router.add_api_route(f"{_WELLNESS}/{{path}}", self._pull, methods=["GET"])
        return router

    def unauthorized(self, reason: str) -> Response:
        return _error(401, f"Unauthorized: {reason}")

    def rate_limited(self, retry_after: int) -> Response:
        return _error(429, "Too many requests")

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        """An edit moves the night's bedtime, and is uploaded at once; what is deleted in the app is never told."""
        if kind == "delete":
            raise LookupError("Garmin tells nobody of deleted records")
        summaries = self.summaries[handle]
        lived = summaries.life.day(day)
        if lived is None or not lived.night_worn:
            raise LookupError(f"{handle} has no night on {day}")
        count, _ = summaries.edits.get(day, (0, 0))
        now = self._now()
        summaries.edits[day] = (count + 1, now)
        changed = summaries.edited_sleeps(now, now + 1)
        date = summaries.life.timeline.local(lived.wake).date().isoformat()
        return [payload["summaryId"] for payload in changed if payload["calendarDate"] == date]

    # Truth

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        summaries = self.summaries[handle]
        life, now = summaries.life, self._now()
        first = int(dt.datetime.combine(start - _ONE_DAY, dt.time(), dt.UTC).timestamp())
        last = int(dt.datetime.combine(end + 2 * _ONE_DAY, dt.time(), dt.UTC).timestamp())
        values: list[TrueValue] = []
        stretches: dict[dt.date, list[Any]] = {}
        for stretch in summaries.stretches(first, last):
            stretches.setdefault(stretch.date, []).append(stretch)
        sleeps: dict[dt.date, list[Night]] = {}
        for day in life.days(start - 2 * _ONE_DAY, end + _ONE_DAY):
            for night in nights(life, day):
                if night.kind in ("main", "flight") and summaries.seen(day, night):
                    edits, when = summaries.edits.get(day.date, (0, 0)) if night.kind == "main" else (0, 0)
                    seen = night.edited(25 * edits) if when <= now else night
                    sleeps.setdefault(life.timeline.local(night.wake).date(), []).append(seen)
        for date in (start + n * _ONE_DAY for n in range((end - start).days + 1)):
            if date not in stretches or summaries.synced(stretches[date][-1].end) > now:
                continue
            values += self._day_truth(summaries, date, stretches[date])
            slept = sleeps.get(date)
            # A night is final at the second sync after it.
            if slept and all(summaries.synced(summaries.synced(night.wake) + 1) <= now for night in slept):
                values += night_values(date, slept)
        return values

    def _day_truth(self, summaries: Summaries, date: dt.date, stretches: list[Any]) -> list[TrueValue]:
        steps, active, moving, rest = 0, 0.0, 0, 0.0
        pulse: list[int] = []
        stress: list[int] = []
        floors: list[int] = []
        values = []
        for stretch in stretches:
            seen = summaries.minutes(stretch.start, stretch.end)
            part = seen.part(stretch.start, stretch.end)
            worn = seen.worn[part]
            steps += int(seen.steps[part][worn].sum())
            floors.append(int(seen.steps[part][worn].sum()) // STEPS_A_FLOOR)
            active += float(seen.kcal[part][worn].sum())
            moving += int((seen.met[part][worn] >= 3.0).sum())
            rest += body.basal_kcal(summaries.person, date) * worn.size / 1440
            pulse += [bpm for _, bpm in summaries.pulse(stretch.start, stretch.end)]
            stress += [level for level in summaries.stress(stretch.start, stretch.end).tolist() if level >= 0]
            for one in summaries.weigh_ins(stretch.start - 1, stretch.end - 1):
                pulse.append(one.pulse)
                values += [
                    TrueValue("weight", date, one.weight, 0.001),
                    TrueValue("body_fat", date, one.fat_percent, 0.01),
                    TrueValue("muscle_mass", date, one.muscle, 0.001),
                    TrueValue("bone_mass", date, one.bone, 0.001),
                    TrueValue("body_water", date, one.water, 0.06),
                    TrueValue("bmi", date, one.weight / summaries.person.height_m**2, 0.05),
                    TrueValue("blood_pressure_systolic", date, one.systolic, 0),
                    TrueValue("blood_pressure_diastolic", date, one.diastolic, 0),
                ]
        # Of each quarter of an hour and kind of movement, two decimals of metres are kept.
        values.append(TrueValue("distance", date, steps * body.step_length(summaries.person), 1.0))
        values += [
            TrueValue("steps", date, steps, 0),
            TrueValue("calories_burned", date, active, 1.0),
            TrueValue("basal_calories", date, rest, 0.5 * len(stretches)),
            TrueValue("total_calories", date, active + rest, 1.0 * len(stretches)),
            TrueValue("active_minutes", date, moving, 0),
            TrueValue("floors", date, sum(floors), 0),
        ]
        if pulse:
            # The cuff's pulse may take the place of one that the watch measured in the same second.
            values.append(TrueValue("heart_rate", date, sum(pulse) / len(pulse), 0.1))
        if stress:
            values.append(TrueValue("stress_score", date, sum(stress) / len(stress), 1e-6))
            high = STRESS_STEP * sum(level > 75 for level in stress)
            values.append(TrueValue("stress_high_time", date, high, 0))
        day = summaries.life.day(date)
        if day is not None and day.index % 3 == 0:
            values.append(TrueValue("vo2_max", date, body.fitness(summaries.life, date), 0.05))
            values.append(TrueValue("fitness_age", date, summaries.fitness_age(date), 0))
        if day is not None and day.night_worn:
            values.append(TrueValue("body_temperature_deviation", date, day.temperature, 0.006))
        return values

    # Webhooks

    def webhooks(self, handle: str, day: dt.date, secret: str) -> list[WebhookCall]:
        """A push and a ping for each sync of the UTC day; nothing is signed, `secret` is the client id named."""
        start = int(dt.datetime.combine(day, dt.time(), dt.UTC).timestamp())
        calls = []
        for sync, _ in self.summaries[handle].syncs(start, min(start + _DAY, self._now())):
            bodies = (self.push([handle], sync, sync + 1), self.ping([handle], sync, sync + 1))
            calls += [self.call(content, secret) for content in bodies if content]
        return calls

    @staticmethod
    def call(content: Mapping[str, Any], client_id: str) -> WebhookCall:
        """A body as it is posted."""
        headers = {"content-type": "application/json", "garmin-client-id": client_id}
        return WebhookCall(headers, orjson.dumps(content))

    def push(
        self, handles: Iterable[str], start: int, end: int, kinds: Iterable[str] | None = None
    ) -> dict[str, list[Payload]]:
        """What was uploaded from `start` on and before `end`, of several people and kinds (those pushed)."""
        content: dict[str, list[Payload]] = {}
        for handle in handles:
            summaries = self.summaries[handle]
            for kind in kinds or [kind for kind in summaries.kinds() if kind not in PINGED]:
                whose = {"userId": summaries.user_id}
                found = [whose | payload for payload in summaries.uploaded(kind, start, end)]
                if found:
                    content.setdefault(kind, []).extend(found)
        return content

    def ping(
        self, handles: Iterable[str], start: int, end: int, kinds: Iterable[str] = PINGED
    ) -> dict[str, list[Payload]]:
        """Addresses, good for 24 hours, of what was uploaded from `start` on and before `end`."""
        content: dict[str, list[Payload]] = {}
        paths = {key: path for path, key in _PATHS.items()}
        for handle in handles:
            for kind in kinds:
                if not self.summaries[handle].uploaded(kind, start, end):
                    continue
                query = {
                    "uploadStartTimeInSeconds": start,
                    "uploadEndTimeInSeconds": end,
                    "token": self._pull_token(handle, kind, start, end),
                }
                address = f"{self._address}{_WELLNESS}/{paths.get(kind, kind)}?{urlencode(query)}"
                item = {"userId": self.summaries[handle].user_id, "callbackURL": address}
                content.setdefault(kind, []).append(item)
        return content

    def backfill_pushes(self, handle: str) -> dict[str, list[Payload]]:
        """What Garmin posts for the backfills that were asked for of a person."""
        content: dict[str, list[Payload]] = {}
        summaries = self.summaries[handle]
        for whose, kind, start, end in self.backfills:
            if whose != handle:
                continue
            # What is of these days came within three days of them.
            for payload in summaries.uploaded(kind, start, min(end + 3 * _DAY, self._now())):
                if start <= _data_time(payload) < end:
                    content.setdefault(kind, []).append({"userId": summaries.user_id} | payload)
        return content

    # Routes

    async def _user_id(self, request: Request) -> Response:
        try:
            grant = self._grant(request)
        except _ApiError as error:
            return error.response
        return _json({"userId": self.summaries[grant.handle].user_id})

    async def _permissions(self, request: Request) -> Response:
        try:
            return _json(sorted(self._grant(request).scopes))
        except _ApiError as error:
            return error.response

    async def _deregister(self, request: Request) -> Response:
        try:
            self.oauth.revoke_person(self._grant(request).handle)
        except _ApiError as error:
            return error.response
        return Response(status_code=204)

    async def _pull(self, request: Request, path: str) -> Response:
        try:
            grant = self._grant(request)
            kind = self._kind(grant, path)
            start, end = self._span(request, "uploadStartTimeInSeconds", "uploadEndTimeInSeconds")
            if end - start > _DAY:
                raise _ApiError(_error(400, f"timerange {start}-{end} exceeds 86400 seconds"))
            self._check_pull_token(request, grant.handle, kind, start, end)
        except _ApiError as error:
            return error.response
        found = self.summaries[grant.handle].uploaded(kind, start, min(end, self._now()))
        return _json(found)

    async def _backfill(self, request: Request, path: str) -> Response:
        try:
            grant = self._grant(request)
            if "HISTORICAL_DATA_EXPORT" not in grant.scopes:
                raise _ApiError(_error(403, "User has not granted HISTORICAL_DATA_EXPORT"))
            kind = self._kind(grant, path)
            start, end = self._span(request, "summaryStartTimeInSeconds", "summaryEndTimeInSeconds")
            longest = _LONGEST_BACKFILL[_permission(kind)]
            if end - start > longest * _DAY:
                raise _ApiError(_error(400, f"timerange exceeds {longest} days"))
            if start < self._now() - _DEEPEST_BACKFILL:
                raise _ApiError(_error(400, "summaryStartTimeInSeconds is before the minimum start time"))
        except _ApiError as error:
            return error.response
        asked = (grant.handle, kind, start, end)
        if any(
            (handle, of) == (grant.handle, kind) and first <= start and end <= last
            for handle, of, first, last in self.backfills
        ):
            return _error(409, "duplicate backfill processed")
        self.backfills.append(asked)
        return Response(status_code=202)

    # Parts

    def _now(self) -> int:
        return int(self.sandbox.now().timestamp())

    def _grant(self, request: Request) -> Grant:
        self._address = str(request.base_url).rstrip("/") + f"/{self.name}"
        try:
            return self.oauth.grant(request)
        except TokenError as error:
            raise _ApiError(self.unauthorized(str(error))) from error

    def _kind(self, grant: Grant, path: str) -> str:
        kind = _PATHS.get(path, path)
        if kind not in self.summaries[grant.handle].kinds() or path in _PATHS.values():
            raise _ApiError(_error(404, "Not Found"))
        if _permission(kind) not in grant.scopes:
            raise _ApiError(_error(412, f"User has not granted {_permission(kind)}"))
        return kind

    @staticmethod
    def _span(request: Request, *names: str) -> tuple[int, int]:
        try:
            start, end = (int(request.query_params[name]) for name in names)
        except KeyError:
            raise _ApiError(_error(400, "Missing time range parameters.")) from None
        except ValueError:
            raise _ApiError(_error(400, "Time range parameters are not numbers.")) from None
        if end <= start or start < dt.datetime.combine(EPOCH - 90 * _ONE_DAY, dt.time(), dt.UTC).timestamp():
            raise _ApiError(_error(400, f"Invalid time range {start}-{end}."))
        return start, end

    def _pull_token(self, handle: str, kind: str, start: int, end: int) -> str:
        expires = self._now() + _DAY
        return base64.urlsafe_b64encode(
            f"{expires}.{self._sign(handle, kind, start, end, expires)}".encode()
        ).decode()

    def _sign(self, *parts: object) -> str:
        return hmac.new(self._key, repr(parts).encode(), hashlib.sha256).hexdigest()[:24]

    def _check_pull_token(self, request: Request, handle: str, kind: str, start: int, end: int) -> None:
        token = request.query_params.get("token")
        if token is None and not self.requires_pull_token:
            return
        try:
            expires, _, signature = base64.urlsafe_b64decode(token or "").decode().partition(".")
            good = self._now() < int(expires) and hmac.compare_digest(
                signature.encode(), self._sign(handle, kind, start, end, int(expires)).encode()
            )
        except (ValueError, binascii.Error):
            good = False
        if not good:
            raise _ApiError(_error(400, "InvalidPullTokenException failure"))


def _permission(kind: str) -> str:
    return "ACTIVITY_EXPORT" if kind in _ACTIVITY_KINDS else "HEALTH_EXPORT"


def _data_time(payload: Payload) -> int:
    """When a summary is of, in epoch seconds; of a day alone its midnight in UTC."""
    where = payload.get("summary", payload)
    for name in ("startTimeInSeconds", "measurementTimeInSeconds"):
        if name in where:
            return int(where[name])
    day = dt.date.fromisoformat(payload["calendarDate"])
    return int(dt.datetime.combine(day, dt.time(), dt.UTC).timestamp())
