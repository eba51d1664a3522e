"""Polar AccessLink v3: registration, the routes by date, headers of two budgets at once, webhooks."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import zlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox import body
from health_pipeline.sandbox.activity import heart_rate
from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.life import Day, Life, life_of
from health_pipeline.sandbox.night import (
    AWAKE,
    DEEP,
    EPOCH_SECONDS,
    LIGHT,
    REM,
    SAMPLE_SECONDS,
    Night,
    nights,
)
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
from health_pipeline.sandbox.routers.polar.subscriptions import SubscriptionRoutes
from health_pipeline.sandbox.watch import Watched, calendar_day, pulses_awake

#: Seconds until the phone has sent what the watch recorded.
SYNC_DELAY = 600

_ONE_DAY = dt.timedelta(days=1)
_SPAN_DAYS = 28
_EXERCISE_DAYS = 30
_SCOPE = "accesslink.read_all"
_DEVICE = "C0FFEE01"
_STAGES = {AWAKE: 0, REM: 1, LIGHT: 3, DEEP: 4}
_ZONES = ("SEDENTARY", "LIGHT", "MODERATE")
_EPOCHS_A_MINUTE = 60 // EPOCH_SECONDS
_SPEED = {"running": 0.29, "walking": 0.36, "cycling": 0.62, "hiking": 0.22}


class _ApiError(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def _user_id(handle: str) -> int:
    return 10_000_000 + zlib.crc32(handle.encode()) % 90_000_000


def _write_answer(answer: dict[str, Any], grant: Grant) -> dict[str, Any]:
    """Without a refresh token, and with the user's id."""
    kept = {name: answer[name] for name in ("access_token", "token_type", "expires_in")}
    return kept | {"x_user_id": _user_id(grant.handle)}


def _samples() -> dict[str, SampleRequest]:
    """The last days in New York and the flight home to Berlin."""
    days = {"from": "2026-08-27", "to": "2026-08-30"}
    by_days = {
        "activity": "/v3/users/activities",
        "cardio_load": "/v3/users/cardio-load/date",
        "skin_temperature": "/v3/users/biosensing/skintemperature",
        "spo2": "/v3/users/biosensing/spo2",
    }
    return {
        **{f"{name}.json": SampleRequest(path, days) for name, path in by_days.items()},
        "activity_samples.json": SampleRequest("/v3/users/activities/samples/2026-08-29"),
        "continuous_heart_rate.json": SampleRequest("/v3/users/continuous-heart-rate/2026-08-28"),
        "exercise.json": SampleRequest("/v3/exercises"),
        "nightly_recharge.json": SampleRequest("/v3/users/nightly-recharge/2026-08-30"),
        "physical_info.json": SampleRequest("/v3/users/physical-info"),
        "sleep.json": SampleRequest("/v3/users/sleep/2026-08-30"),
    }


class API(ProviderApi):
    """Polar."""

    name: ClassVar[str] = "polar"
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(
        scopes=(_SCOPE,),
        rotates=False,
        authorize_path="/oauth2/authorization",
        token_path="/v2/oauth2/token",  # noqa: S106 - a path
        revoke_path=None,
        access_seconds=315_359_999,
        write_answer=_write_answer,
    )
    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(_samples())

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._lives = {handle: life_of(person) for handle, person in sandbox.people.items()}
        self._edits: dict[tuple[str, dt.date], int] = {}
        self._registered: set[str] = set()
        self._requests = 0

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v3")
        router.add_api_route("/users", self._register, methods=["POST"])
        router.add_api_route("/exercises", self._whole(self._exercises), methods=["GET"])
        router.add_api_route("/users/sleep", self._whole(self._sleep_list), methods=["GET"])
        router.add_api_route("/users/nightly-recharge", self._whole(self._recharge_list), methods=["GET"])
        router.add_api_route("/users/sleep/{date}", self._one_night(self._sleep), methods=["GET"])
        router.add_api_route(
            "/users/nightly-recharge/{date}", self._one_night(self._recharge), methods=["GET"]
        )
        router.add_api_route("/users/physical-info", self._whole(self._physical_info), methods=["GET"])
        router.add_api_route("/users/continuous-heart-rate/{date}", self._heart_rate, methods=["GET"])
        for path, of_day in (
            ("/users/activities", self._activity),
            ("/users/activities/samples", self._activity_samples),
            ("/users/cardio-load/date", self._cardio_load),
            ("/users/biosensing/skintemperature", self._skin_temperature),
            ("/users/biosensing/spo2", self._spo2),
            ("/users/biosensing/bodytemperature", lambda handle, day: None),
        ):
            router.add_api_route(path, self._by_days(of_day), methods=["GET"])
        router.add_api_route("/users/activities/samples/{date}", self._samples_of_day, methods=["GET"])
        router.add_api_route("/users/{user_id}", self._user, methods=["GET", "DELETE"])
        router.include_router(SubscriptionRoutes(self.sandbox, self.oauth, self.subscribers).router())
        return router

    def kind_of(self, call: WebhookCall) -> str:
        return call.headers["Polar-Webhook-Event"]

    def sample_headers(self, handle: str) -> Mapping[str, str]:
        self._registered.add(handle)
        return super().sample_headers(handle)

    def unauthorized(self, reason: str) -> Response:
        return _json({"error": "invalid_token", "error_description": reason}, 401)

    def rate_limited(self, retry_after: int) -> Response:
        headers = {
            "RateLimit-Usage": "600, 1200",
            "RateLimit-Limit": "600, 5500",
            "RateLimit-Reset": f"{retry_after}, 43200",
        }
        return _json({"error": "too_many_requests"}, 429, headers)

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        lived = self._lives[handle].day(day)
        if kind == "delete":
            raise LookupError("Polar does not tell of what was deleted")
        if lived is None or self._night(handle, lived) is None:
            raise LookupError(f"{handle} has no night on {day}")
        self._edits[handle, day] = self._edits.get((handle, day), 0) + 1
        return [day.isoformat()]

    def webhooks(self, handle: str, day: dt.date, secret: str) -> list[WebhookCall]:
        calls = []
        for event in ("ACTIVITY_SUMMARY", "SLEEP", "CONTINUOUS_HEART_RATE"):
            told = {
                "event": event,
                "user_id": _user_id(handle),
                "timestamp": f"{day}T12:00:00Z",
                "date": day.isoformat(),
                "url": f"https://www.polaraccesslink.com/v3/users/{event.lower()}/{day}",
            }
            content = orjson.dumps(told)
            signature = hmac.new(secret.encode(), content, hashlib.sha256).hexdigest()
            headers = {
                "content-type": "application/json",
                "Polar-Webhook-Event": event,
                "Polar-Webhook-Signature": signature,
            }
            calls.append(WebhookCall(headers, content))
        return calls

    # What is true

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        life, now = self._lives[handle], int(self.sandbox.now().timestamp())
        today = life.timeline.local(now).date()
        values: list[TrueValue] = []
        for day in life.days(start, end):
            watched = self._watched(handle, day)
            if watched is not None:
                active = _active_kcal(watched)
                values += [
                    TrueValue("steps", day.date, watched.total_steps, 0),
                    TrueValue("distance", day.date, _walked(life, watched), 0.001),
                    TrueValue("calories_burned", day.date, active, 0),
                    TrueValue("total_calories", day.date, active + _basal_kcal(life, day, watched), 0),
                ]
            night = self._night(handle, day)
            if night is None or night.wake + SYNC_DELAY > now:
                continue
            values.append(TrueValue("skin_temperature", day.date, _skin(day), 0.001))
            # Of sleeps the last nights are all there is; temperatures can be asked for by their dates.
            if today - day.date >= _SPAN_DAYS * _ONE_DAY:
                continue
            lowest = float(np.nanmin(night.heart_rate))
            values += [
                value
                for value in night_values(day.date, [night])
                if value.metric_type != "resting_heart_rate"
            ]
            values.append(TrueValue("resting_heart_rate", day.date, lowest, 0))
        return values

    # The days of a person

    def _watched(self, handle: str, day: Day) -> Watched | None:
        """The calendar day, once it is over and synced; None where the watch was not worn."""
        watched = calendar_day(self._lives[handle], day.date)
        is_over = watched.time.size and watched.end + SYNC_DELAY <= self.sandbox.now().timestamp()
        return watched if is_over and watched.worn.any() else None

    def _night(self, handle: str, day: Day) -> Night | None:
        """The night of a day as it now stands; Polar keeps one a date."""
        if not day.night_worn:
            return None
        main = next(night for night in nights(self._lives[handle], day) if night.kind == "main")
        return main.edited(25 * self._edits.get((handle, day.date), 0))

    def _last_nights(self, handle: str) -> list[tuple[Day, Night]]:
        life, now = self._lives[handle], int(self.sandbox.now().timestamp())
        today = life.timeline.local(now).date()
        days = life.days(max(EPOCH, today - (_SPAN_DAYS - 1) * _ONE_DAY), today)
        found = [(day, self._night(handle, day)) for day in days]
        return [(day, night) for day, night in found if night is not None and night.wake + SYNC_DELAY <= now]

    def _polar_user(self, handle: str) -> str:
        return f"https://www.polaraccesslink.com/v3/users/{_user_id(handle)}"

    def _sleep_list(self, handle: str) -> Response:
        return _json({"nights": [self._sleep(handle, *night) for night in self._last_nights(handle)]})

    def _sleep(self, handle: str, day: Day, night: Night) -> dict[str, Any]:
        local = self._lives[handle].timeline.local
        clock = _clock(local(night.bed))
        minutes = night.stages[::_EPOCHS_A_MINUTE]
        changes = np.concatenate([[0], np.flatnonzero(np.diff(minutes)) + 1])
        return {
            "polar_user": self._polar_user(handle),
            "date": day.date.isoformat(),
            "sleep_start_time": local(night.bed).isoformat(),
            "sleep_end_time": local(night.wake).isoformat(),
            "device_id": _DEVICE,
            "continuity": round(1 + 4 * night.efficiency / 100, 1),
            "continuity_class": min(5, 1 + night.efficiency // 20),
            "light_sleep": night.seconds_of(LIGHT),
            "deep_sleep": night.seconds_of(DEEP),
            "rem_sleep": night.seconds_of(REM),
            "unrecognized_sleep_stage": 0,
            "sleep_score": max(1, min(100, night.efficiency)),
            "total_interruption_duration": night.awake_time,
            "sleep_charge": 3,
            "sleep_goal": 28_800,
            "sleep_rating": 3,
            "short_interruption_duration": night.awake_time // 2,
            "long_interruption_duration": night.awake_time - night.awake_time // 2,
            "sleep_cycles": 5,
            "group_duration_score": 80.0,
            "group_solidity_score": 75.0,
            "group_regeneration_score": 70.0,
            "hypnogram": {clock(int(minute)): _STAGES[int(minutes[minute])] for minute in changes},
            "heart_rate_samples": _by_clock(clock, night.heart_rate, night.heart_rate.size),
        }

    def _recharge_list(self, handle: str) -> Response:
        return _json({"recharges": [self._recharge(handle, *night) for night in self._last_nights(handle)]})

    def _recharge(self, handle: str, day: Day, night: Night) -> dict[str, Any]:
        life = self._lives[handle]
        clock = _clock(life.timeline.local(night.bed))
        pulse = float(np.nanmean(night.heart_rate))
        return {
            "polar_user": self._polar_user(handle),
            "date": day.date.isoformat(),
            "heart_rate_avg": round(pulse),
            "beat_to_beat_avg": round(60_000 / pulse),
            "heart_rate_variability_avg": night.average_hrv,
            "breathing_rate_avg": round(night.breath, 1),
            "nightly_recharge_status": 1 + min(5, max(0, round(3 + 5 * (day.hrv / life.person.hrv_ms - 1)))),
            "ans_charge": round(max(-10.0, min(10.0, 12 * (day.hrv / life.person.hrv_ms - 1))), 1),
            "ans_charge_status": 3,
            # Of the four hours from falling asleep.
            "hrv_samples": _by_clock(clock, night.hrv, 48),
            "breathing_samples": {
                clock(5 * n): round(night.breath, 1) for n in range(min(48, night.hrv.size))
            },
        }

    def _physical_info(self, handle: str) -> Response:
        life, now = self._lives[handle], self.sandbox.now()
        day = life.day((now - 2 * _ONE_DAY).date()) or life.days(EPOCH, EPOCH + 7 * _ONE_DAY)[0]
        person = life.person
        modified = dt.datetime.fromtimestamp(day.wake + 1800, dt.UTC)
        return _json(
            {
                "weight": person.weight_kg,
                "height": round(100 * person.height_m, 1),
                "created": f"{EPOCH}T12:00:00.000Z",
                "modified": modified.strftime("%Y-%m-%dT%H:%M:%S.000Z"),
                "birthday": f"{person.birth_year}-07-01",
                "gender": person.sex.upper(),
                "maximum_heart_rate": round(208 - 0.7 * person.age(day.date)),
                "resting_heart_rate": round(person.resting_heart_rate),
                "vo2_max": round(body.fitness(life, day.date)),
                "weight_source": "SOURCE_USER",
            }
        )

    def _exercises(self, handle: str) -> Response:
        life, now = self._lives[handle], int(self.sandbox.now().timestamp())
        today = life.timeline.local(now).date()
        found = []
        for day in life.days(max(EPOCH, today - _EXERCISE_DAYS * _ONE_DAY), today):
            samples = heart_rate(life, day)
            for number, done in enumerate(day.workouts):
                if done.end + SYNC_DELAY > now:
                    continue
                pulse = samples.bpm[(samples.time >= done.start) & (samples.time < done.end)]
                speed = _SPEED.get(done.activity)
                local = life.timeline.local(done.start)
                exercise = {
                    "id": life.person.uuid("polar", day.date, number)[:8],
                    "upload_time": dt.datetime.fromtimestamp(done.end + SYNC_DELAY, dt.UTC).strftime(
                        "%FT%TZ"
                    ),
                    "polar_user": self._polar_user(handle),
                    "device": "Polar Vantage V3",
                    "device_id": _DEVICE,
                    "start_time": local.replace(tzinfo=None).isoformat(),
                    "start_time_utc_offset": life.timeline.offset_seconds(done.start) // 60,
                    "duration": f"PT{done.minutes // 60}H{done.minutes % 60}M",
                    "calories": round(done.met * life.person.weight_kg * done.minutes / 60),
                    "training_load": round(done.load, 2),
                    "sport": done.activity.upper(),
                    "has_route": speed is not None,
                    "detailed_sport_info": done.activity.upper(),
                }
                if speed is not None:
                    exercise["distance"] = round(speed * done.met * done.minutes * 60, 1)
                if pulse.size:
                    exercise["heart_rate"] = {
                        "average": round(float(pulse.mean())),
                        "maximum": int(pulse.max()),
                    }
                found.append(exercise)
        return _json(found)

    def _activity(self, handle: str, day: Day) -> dict[str, Any] | None:
        life, watched = self._lives[handle], self._watched(handle, day)
        if watched is None:
            return None
        active, moving = _active_kcal(watched), int(watched.moving.sum())
        return {
            "start_time": f"{day.date}T00:00:00",
            "end_time": f"{day.date}T23:59:59",
            "active_duration": f"PT{moving // 60}H{moving % 60}M",
            "inactive_duration": f"PT{int(watched.worn.sum()) - moving}M",
            "daily_activity": round(100 * watched.total_steps / life.person.daily_steps, 1),
            "calories": active + _basal_kcal(life, day, watched),
            "active_calories": active,
            "steps": watched.total_steps,
            "inactivity_alert_count": day.index % 4,
            "distance_from_steps": _walked(life, watched),
        }

    def _activity_samples(self, handle: str, day: Day) -> dict[str, Any] | None:
        watched = self._watched(handle, day)
        if watched is None:
            return None
        # A count that repeats is written once; after the clock was set, anew.
        changes = (np.diff(watched.steps) != 0) | (np.diff(watched.clock) != 60)
        written = np.concatenate([[True], changes])
        levels = np.where(watched.moving, 2, np.where(watched.steps > 0, 1, 0))
        zones = np.concatenate([[0], np.flatnonzero(np.diff(levels)) + 1])
        return {
            "date": day.date.isoformat(),
            "steps": {
                "interval_ms": 60_000,
                "total_steps": watched.total_steps,
                "samples": [
                    {"steps": steps, "timestamp": _clock_text(clock)[:16]}
                    for steps, clock in zip(
                        watched.steps[written].tolist(), watched.clock[written].tolist(), strict=True
                    )
                ],
            },
            "activity_zones": {
                "samples": [
                    {"zone": _ZONES[level], "timestamp": _clock_text(clock)}
                    for level, clock in zip(
                        levels[zones].tolist(), watched.clock[zones].tolist(), strict=True
                    )
                ]
            },
            "inactivity_stamps": [],
        }

    def _cardio_load(self, handle: str, day: Day) -> dict[str, Any] | None:
        life = self._lives[handle]
        before = life.days(max(EPOCH, day.date - 27 * _ONE_DAY), day.date)
        loads = [past.load for past in before]
        strain, tolerance = sum(loads[-7:]) / 7, sum(loads) / 28
        return {
            "date": day.date.isoformat(),
            "cardio_load_status": "MAINTAINING" if strain <= 1.3 * tolerance else "OVERREACHING",
            "cardio_load": round(day.load, 2),
            "strain": round(strain, 2),
            "tolerance": round(tolerance, 2),
            "cardio_load_ratio": round(strain / tolerance, 2) if tolerance else 0.0,
            "cardio_load_level": {
                "very_low": 20.0,
                "low": 40.0,
                "medium": 80.0,
                "high": 120.0,
                "very-high": 160.0,
            },
        }

    def _skin_temperature(self, handle: str, day: Day) -> dict[str, Any] | None:
        night = self._night(handle, day)
        if night is None or night.wake + SYNC_DELAY > self.sandbox.now().timestamp():
            return None
        return {
            "sleep_time_skin_temperature_celsius": _skin(day),
            "deviation_from_baseline_celsius": round(day.temperature, 2),
            "sleep_date": day.date.isoformat(),
        }

    def _spo2(self, handle: str, day: Day) -> dict[str, Any] | None:
        life = self._lives[handle]
        at = day.wake + 1200
        if not day.night_worn or day.index % 3 or at + SYNC_DELAY > self.sandbox.now().timestamp():
            return None
        percent = round(body.spo2(life, day))
        return {
            "source_device_id": _DEVICE,
            "test_time": at,
            "time_zone_offset": life.timeline.offset_seconds(at) // 60,
            "test_status": "SPO2_TEST_PASSED",
            "blood_oxygen_percent": percent,
            "spo2_class": "SPO2_CLASS_NORMAL" if percent >= 95 else "SPO2_CLASS_LOW",
            "average_heart_rate_bpm": round(day.resting_heart_rate) + 8,
            "heart_rate_variability_ms": round(day.hrv, 1),
        }

    # Routes

    async def _register(self, request: Request) -> Response:
        try:
            grant = self.oauth.grant(request)
            told = orjson.loads(await request.body())
        except TokenError as error:
            return self.unauthorized(str(error))
        except orjson.JSONDecodeError:
            told = None
        if not isinstance(told, dict) or not told.get("member-id"):
            return _json({"error": "member-id is missing"}, 400)
        if grant.handle in self._registered:
            return _json({"error": "already registered"}, 409)
        self._registered.add(grant.handle)
        return _json(self._of_user(grant.handle) | {"member-id": told["member-id"]})

    def _of_user(self, handle: str) -> dict[str, Any]:
        person = self.sandbox.people[handle]
        return {
            "polar-user-id": _user_id(handle),
            "member-id": f"polar-{_user_id(handle)}",
            "registration-date": f"{EPOCH}T12:00:00.000Z",
            "first-name": person.name.split()[0],
            "last-name": person.name.split()[-1],
            "birthdate": f"{person.birth_year}-07-01",
            "gender": person.sex.upper(),
            "weight": person.weight_kg,
            "height": round(100 * person.height_m, 1),
            "extra-info": [],
        }

    async def _user(self, request: Request, user_id: str) -> Response:
        try:
            handle = self._handle(request)
        except _ApiError as error:
            return error.response
        if user_id != str(_user_id(handle)):
            return _json({"error": "not your user"}, 403)
        if request.method == "DELETE":
            self._registered.discard(handle)
            self.oauth.revoke_person(handle)
            return Response(status_code=204)
        return _json(self._of_user(handle))

    def _handle(self, request: Request) -> str:
        """Whose token it is. One who is not registered has no data."""
        try:
            grant = self.oauth.grant(request)
        except TokenError as error:
            raise _ApiError(self.unauthorized(str(error))) from error
        if grant.handle not in self._registered:
            raise _ApiError(_json({"error": "the user is not registered with this client"}, 403))
        self._requests += 1
        return grant.handle

    def _headers(self, response: Response) -> Response:
        used = self._requests % 500
        response.headers["RateLimit-Usage"] = f"{used}, {used}"
        response.headers["RateLimit-Limit"] = "600, 5500"
        response.headers["RateLimit-Reset"] = "900, 86400"
        return response

    def _whole(self, answer: Callable[[str], Response]) -> Callable[..., Any]:
        async def route(request: Request) -> Response:
            try:
                return self._headers(answer(self._handle(request)))
            except _ApiError as error:
                return error.response

        return route

    def _one_night(self, answer: Callable[[str, Day, Night], dict[str, Any]]) -> Callable[..., Any]:
        async def route(request: Request, date: str) -> Response:
            try:
                handle = self._handle(request)
                wanted = _date(date, None)
            except _ApiError as error:
                return error.response
            for day, night in self._last_nights(handle):
                if day.date == wanted:
                    return self._headers(_json(answer(handle, day, night)))
            return _json({"error": "no such night"}, 404)

        return route

    def _by_days(self, of_day: Callable[[str, Day], dict[str, Any] | None]) -> Callable[..., Any]:
        async def route(request: Request) -> Response:
            try:
                handle = self._handle(request)
                days = self._days(request, handle)
            except _ApiError as error:
                return error.response
            found = [record for day in days if (record := of_day(handle, day)) is not None]
            return self._headers(_json(found))

        return route

    def _days(self, request: Request, handle: str) -> list[Day]:
        life, now = self._lives[handle], self.sandbox.now().timestamp()
        today = life.timeline.local(now).date()
        given = request.query_params
        end = _date(given.get("to"), today)
        start = _date(given.get("from"), end - (_SPAN_DAYS - 1) * _ONE_DAY)
        if start > end or end - start >= _SPAN_DAYS * _ONE_DAY:
            raise _ApiError(_json({"error": f"ask for at most {_SPAN_DAYS} days"}, 400))
        return [day for day in life.days(max(EPOCH, start), min(end, today)) if day.start <= now]

    async def _samples_of_day(self, request: Request, date: str) -> Response:
        try:
            handle = self._handle(request)
            wanted = _date(date, None)
        except _ApiError as error:
            return error.response
        day = self._lives[handle].day(wanted)
        found = self._activity_samples(handle, day) if day is not None else None
        return self._headers(_json(found)) if found else Response(status_code=204)

    async def _heart_rate(self, request: Request, date: str) -> Response:
        try:
            handle = self._handle(request)
            day = _date(date, None)
        except _ApiError as error:
            return error.response
        life, now = self._lives[handle], self.sandbox.now().timestamp()
        rows = [
            {"heart_rate": bpm, "sample_time": local.strftime("%H:%M:%S")}
            for lived in life.days(max(EPOCH, day - _ONE_DAY), day + _ONE_DAY)
            for time, bpm in pulses_awake(heart_rate(life, lived))
            if time <= now and (local := life.timeline.local(time)).date() == day
        ]
        if not rows:
            return Response(status_code=204)
        answer = {"polar_user": self._polar_user(handle), "date": str(day), "heart_rate_samples": rows}
        return self._headers(_json(answer))


def _clock(start: dt.datetime) -> Callable[[int], str]:
    """The clock time a number of minutes after a start."""
    return lambda minutes: (start + dt.timedelta(minutes=minutes)).strftime("%H:%M")


def _by_clock(clock: Callable[[int], str], series: np.ndarray, count: int) -> dict[str, int]:
    step = SAMPLE_SECONDS // 60
    return {clock(step * n): int(value) for n, value in enumerate(series[:count].tolist()) if value == value}


def _date(text: str | None, default: dt.date | None) -> dt.date:
    if text is None and default is not None:
        return default
    try:
        return dt.date.fromisoformat(text or "")
    except ValueError as error:
        raise _ApiError(_json({"error": "not a date"}, 400)) from error


def _clock_text(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _active_kcal(watched: Watched) -> int:
    return round(float(watched.kcal.sum()))


def _basal_kcal(life: Life, day: Day, watched: Watched) -> int:
    return round(body.basal_kcal(life.person, day.date) * watched.time.size / 1440)


def _walked(life: Life, watched: Watched) -> float:
    return round(watched.total_steps * body.step_length(life.person), 2)


def _skin(day: Day) -> float:
    return round(34.6 + day.temperature, 2)
