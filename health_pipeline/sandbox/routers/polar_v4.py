"""Polar's Dynamic API (AccessLink v4): days by `features`, durations as text, usage that counts up.

The shapes are those that clients of the API hold in their tests; the vendor's own description is not to be had.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox.activity import heart_rate
from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.life import Day, life_of
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
from health_pipeline.sandbox.routers import ProviderApi, Revision, SampleRequest, TrueValue, night_values
from health_pipeline.sandbox.watch import Watched, calendar_day, pulses_awake

#: Seconds until the phone has sent what the watch recorded.
SYNC_DELAY = 600

_ONE_DAY = dt.timedelta(days=1)
_DEVICE = "C0FFEE01"
_DEVICE_UUID = "0e2b1a60-0000-4000-8000-0000c0ffee01"
_STATES = {
    AWAKE: "SLEEP_STATE_WAKE",
    REM: "SLEEP_STATE_REM",
    LIGHT: "SLEEP_STATE_NON_REM2",
    DEEP: "SLEEP_STATE_NON_REM3",
}
_SPORTS = {
    "running": "1",
    "cycling": "2",
    "walking": "3",
    "strength_training": "15",
    "hiking": "11",
    "yoga": "55",
    "badminton": "85",
}
_OTHER_SPORT = "83"
_SPEED = {"running": 0.29, "walking": 0.36, "cycling": 0.62, "hiking": 0.22}
#: Of each route: its scope and its longest span in days without `features`.
_ROUTES = {
    "activity/list": ("activity:read", 90),
    "sleeps": ("sleep:read", 30),
    "nightly-recharge-results": ("nightly_recharge:read", 28),
    "continuous-samples": ("continuous_samples:read", 30),
    "training-sessions/list": ("training_sessions:read", 90),
}
_SCOPES = (*(scope for scope, _ in _ROUTES.values()), "sports:read")
_LIMITS = (3000, 100_000)


class _ApiError(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


def _json(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def _refused(message: str, status: int = 400) -> _ApiError:
    return _ApiError(_json({"errorMessage": message}, status))


def _write_answer(answer: dict[str, Any], grant: Grant) -> dict[str, Any]:
    """With an id of the token; whose it is, is not said."""
    return answer | {"token_type": "bearer", "jti": secrets.token_hex(8)}


def _samples() -> dict[str, SampleRequest]:
    """The flight home from New York to Berlin, and a month's training."""

    def day(path: str, date: str, *features: str) -> SampleRequest:
        until = dt.date.fromisoformat(date) + _ONE_DAY
        return SampleRequest(f"/v4/data/{path}", {"from": date, "to": str(until), "features": list(features)})

    return {
        "activity.json": day("activity/list", "2026-08-30", "samples"),
        "continuous_heart_rate.json": day("continuous-samples", "2026-08-28", "heart-rate-samples"),
        "nightly_recharge.json": day("nightly-recharge-results", "2026-08-30", "samples"),
        "sleep.json": day("sleeps", "2026-08-30", "sleep-result", "sleep-evaluation", "sleep-score"),
        "training_session.json": SampleRequest(
            "/v4/data/training-sessions/list",
            {"from": "2026-08-01T00:00:00", "to": "2026-09-01T00:00:00"},
            context={"sports": orjson.dumps({"1": "RUNNING", "2": "CYCLING", "3": "WALKING"}).decode()},
        ),
    }


class API(ProviderApi):
    """Polar's Dynamic API."""

    name: ClassVar[str] = "polar_v4"
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(
        scopes=_SCOPES, revoke_path=None, access_seconds=43_199, write_answer=_write_answer
    )
    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(_samples())

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._lives = {handle: life_of(person) for handle, person in sandbox.people.items()}
        self._edits: dict[tuple[str, dt.date], int] = {}
        self._requests = 0

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v4/data")
        for path, answer in (
            ("activity/list", self._activities),
            ("sleeps", self._sleeps),
            ("nightly-recharge-results", self._recharges),
            ("continuous-samples", self._heart_rates),
            ("training-sessions/list", self._sessions),
        ):
            router.add_api_route(f"/{path}", self._route(path, answer), methods=["GET"])
        router.add_api_route("/sports/list", self._sports, methods=["GET"])
        return router

    def unauthorized(self, reason: str) -> Response:
        return _json({"errorMessage": f"unauthorized: {reason}"}, 401)

    def rate_limited(self, retry_after: int) -> Response:
        headers = {
            "RateLimit-Usage": "3000, 4100",
            "RateLimit-Limit": ", ".join(map(str, _LIMITS)),
            "RateLimit-Reset": f"{retry_after}, 43200",
        }
        return _json({"errorMessage": "too many requests"}, 429, headers)

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        lived = self._lives[handle].day(day)
        if kind == "delete":
            raise LookupError("Polar does not tell of what was deleted")
        if lived is None or self._night(handle, lived) is None:
            raise LookupError(f"{handle} has no night on {day}")
        self._edits[handle, day] = self._edits.get((handle, day), 0) + 1
        return [day.isoformat()]

    # What is true

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        values: list[TrueValue] = []
        for day in self._lives[handle].days(start, end):
            watched = self._watched(handle, day)
            if watched is not None:
                values.append(TrueValue("steps", day.date, watched.total_steps, 0))
            night = self._night(handle, day)
            if night is not None:
                values += [
                    value
                    for value in night_values(day.date, [night])
                    if value.metric_type != "resting_heart_rate"
                ]
        return values

    # The days of a person

    def _watched(self, handle: str, day: Day) -> Watched | None:
        """The calendar day, once it is over and synced; None where the watch was not worn."""
        watched = calendar_day(self._lives[handle], day.date)
        is_over = watched.time.size and watched.end + SYNC_DELAY <= self.sandbox.now().timestamp()
        return watched if is_over and watched.worn.any() else None

    def _night(self, handle: str, day: Day) -> Night | None:
        """The night of a day as it now stands, once synced; Polar keeps one a date."""
        if not day.night_worn:
            return None
        main = next(night for night in nights(self._lives[handle], day) if night.kind == "main")
        if main.wake + SYNC_DELAY > self.sandbox.now().timestamp():
            return None
        return main.edited(25 * self._edits.get((handle, day.date), 0))

    # Routes

    def _route(self, path: str, answer: Callable[[str, list[Day], set[str]], Any]) -> Callable[..., Any]:
        scope, longest = _ROUTES[path]

        async def route(request: Request) -> Response:
            try:
                handle = self._handle(request, scope)
                features = set(request.query_params.getlist("features"))
                days = self._days(request, handle, 1 if features else longest)
            except _ApiError as error:
                return error.response
            return self._counted(_json(answer(handle, days, features)))

        return route

    def _handle(self, request: Request, scope: str) -> str:
        try:
            grant = self.oauth.grant(request)
        except TokenError as error:
            raise _ApiError(self.unauthorized(str(error))) from error
        if scope not in grant.scopes:
            raise _refused("Missing required scope", 403)
        self._requests += 1
        return grant.handle

    def _counted(self, response: Response) -> Response:
        used = self._requests % (_LIMITS[0] - 100)
        response.headers["RateLimit-Usage"] = f"{used}, {used}"
        response.headers["RateLimit-Limit"] = ", ".join(map(str, _LIMITS))
        response.headers["RateLimit-Reset"] = "900, 86400"
        return response

    def _days(self, request: Request, handle: str, longest: int) -> list[Day]:
        """The days from `from` to before `to`; times are local ones without an offset."""
        life, now = self._lives[handle], self.sandbox.now().timestamp()
        is_timed = request.url.path.endswith("/training-sessions/list")
        try:
            start, end = (
                dt.datetime.strptime(
                    request.query_params[name], "%Y-%m-%dT%H:%M:%S" if is_timed else "%Y-%m-%d"
                ).date()
                for name in ("from", "to")
            )
        except (KeyError, ValueError):
            raise _refused("from and to are needed, as dates (of training as local date-times)") from None
        if not 0 < (end - start).days <= longest:
            raise _refused(f"ask for at most {longest} days; to is not included")
        today = life.timeline.local(now).date()
        last = min(end - _ONE_DAY, today)
        return (
            [day for day in life.days(max(EPOCH, start), last) if day.start <= now] if start <= last else []
        )

    async def _sports(self, request: Request) -> Response:
        try:
            self._handle(request, "sports:read")
        except _ApiError as error:
            return error.response
        listed = [*_SPORTS.items(), ("other", _OTHER_SPORT)]
        sports = [{"id": {"id": number}, "name": name.upper()} for name, number in listed]
        return self._counted(_json({"sports": sports}))

    def _activities(self, handle: str, days: list[Day], features: set[str]) -> Any:
        found: list[dict[str, Any]] = []
        for day in days:
            watched = self._watched(handle, day)
            if watched is None:
                continue
            record: dict[str, Any] = {"date": day.date.isoformat()}
            if "samples" in features:
                device = {"deviceReference": {"deviceId": _DEVICE, "uuid": _DEVICE_UUID}}
                record["activitiesPerDevice"] = [device | {"activitySamples": _recordings(watched)}]
            found.append(record)
        return {"activities": {"activityDays": found}}

    def _sleeps(self, handle: str, days: list[Day], features: set[str]) -> Any:
        found = []
        for day in days:
            night = self._night(handle, day)
            if night is None:
                continue
            record: dict[str, Any] = {"sleepDate": day.date.isoformat()}
            if "sleep-result" in features:
                record["sleepResult"] = {"hypnogram": self._hypnogram(handle, night)}
            if "sleep-evaluation" in features:
                record["sleepEvaluation"] = _evaluation(night)
            if "sleep-score" in features:
                record["sleepScore"] = {
                    "sleepScore": max(1.0, min(100.0, float(night.efficiency))),
                    "scoreRate": 3,
                }
            found.append(record)
        return {"nightSleeps": found}

    def _hypnogram(self, handle: str, night: Night) -> dict[str, Any]:
        local = self._lives[handle].timeline.local
        changes = np.concatenate([[0], np.flatnonzero(np.diff(night.stages)) + 1])
        return {
            "sleepStart": local(night.bed).isoformat(timespec="milliseconds"),
            "sleepEnd": local(night.wake).isoformat(timespec="milliseconds"),
            "deviceReference": {"uuid": _DEVICE_UUID},
            "sleepStateChanges": [
                {
                    "offsetFromStart": f"{EPOCH_SECONDS * int(place)}s",
                    "newState": _STATES[int(night.stages[place])],
                }
                for place in changes
            ],
            "sleepGoal": "28800s",
        }

    def _recharges(self, handle: str, days: list[Day], features: set[str]) -> Any:
        life = self._lives[handle]
        found = []
        for day in days:
            night = self._night(handle, day)
            if night is None:
                continue
            shift = day.hrv / life.person.hrv_ms - 1
            record: dict[str, Any] = {
                "sleepResultDate": day.date.isoformat(),
                "ansStatus": round(max(-10.0, min(10.0, 12 * shift)), 2),
                "ansRate": 3,
                "recoveryIndicator": 1 + min(5, max(0, round(3 + 5 * shift))),
                "recoveryIndicatorSubLevel": 50,
                "meanNightlyRecoveryRmssd": night.average_hrv,
                "meanNightlyRecoveryRri": round(60_000 / float(np.nanmean(night.heart_rate))),
                "meanNightlyRecoveryRespirationInterval": round(60_000 / night.breath),
                "meanBaselineRmssd": round(life.person.hrv_ms),
                "sdBaselineRmssd": 4,
            }
            if "samples" in features:
                start = life.timeline.local(night.bed).replace(tzinfo=None).isoformat()
                # Of the four hours from falling asleep.
                values = [round(float(value)) for value in night.hrv[:48].tolist() if value == value]
                run = {"startTime": start, "sampleInterval": f"{SAMPLE_SECONDS}s"}
                record["hrvSamples"] = [run | {"hrvValues": values}]
                breaths = [round(night.breath, 1)] * min(48, night.hrv.size)
                record["breathingRateSamples"] = [run | {"breathingRateValues": breaths}]
            found.append(record)
        return {"nightlyRechargeResults": found}

    def _heart_rates(self, handle: str, days: list[Day], features: set[str]) -> Any:
        life, now = self._lives[handle], self.sandbox.now().timestamp()
        found = []
        for day in days:
            samples = []
            for lived in life.days(max(EPOCH, day.date - _ONE_DAY), day.date + _ONE_DAY):
                for time, bpm in pulses_awake(heart_rate(life, lived)):
                    local = life.timeline.local(time)
                    if time > now or local.date() != day.date:
                        continue
                    offset = 1000 * (3600 * local.hour + 60 * local.minute + local.second)
                    samples.append(
                        {"heartRate": bpm, "offsetMillis": offset, "triggerType": "TRIGGER_TIMED_247"}
                    )
            if samples:
                of_day = {"date": day.date.isoformat(), "deviceRef": {"deviceId": _DEVICE}}
                found.append(of_day | ({"samples": samples} if features else {}))
        return {"continuousSamples": {"heartRateSamplesPerDay": found}}

    def _sessions(self, handle: str, days: list[Day], features: set[str]) -> Any:
        life, now = self._lives[handle], self.sandbox.now().timestamp()
        found = []
        for day in days:
            samples = heart_rate(life, day)
            for number, done in enumerate(day.workouts):
                if done.end + SYNC_DELAY > now:
                    continue
                pulse = samples.bpm[(samples.time >= done.start) & (samples.time < done.end)]
                start, stop = (
                    life.timeline.local(at).replace(tzinfo=None).isoformat(timespec="milliseconds")
                    for at in (done.start, done.end)
                )
                session: dict[str, Any] = {
                    "identifier": {"id": life.person.uuid("polar_v4", day.date, number)},
                    "startTime": start,
                    "stopTime": stop,
                    "durationMillis": done.end * 1000 - done.start * 1000,
                    "timezoneOffsetMinutes": life.timeline.offset_seconds(done.start) // 60,
                    "sport": {"id": _SPORTS.get(done.activity, _OTHER_SPORT)},
                    "deviceId": _DEVICE,
                    "calories": round(done.met * life.person.weight_kg * done.minutes / 60),
                    "trainingBenefit": "TRAINING_BENEFIT_NONE",
                }
                if done.activity in _SPEED:
                    distance = _SPEED[done.activity] * done.met * done.minutes * 60
                    session["distanceMeters"] = round(distance, 1)
                if pulse.size:
                    session |= {"hrAvg": round(float(pulse.mean())), "hrMax": int(pulse.max())}
                found.append(session)
        return {"trainingSessions": found}


def _recordings(watched: Watched) -> list[dict[str, Any]]:
    """Steps a minute; the watch begins anew when its clock is set."""
    steady = (np.diff(watched.clock) == 60) & (np.diff(watched.time) == 60)
    starts = np.concatenate([[0], np.flatnonzero(~steady) + 1, [watched.time.size]])
    found = []
    for first, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        clock = int(watched.clock[first]) % 86_400
        series = {
            "startTime": f"{clock // 3600:02}:{clock // 60 % 60:02}:{clock % 60:02}",
            "interval": 60_000,
        }
        found.append({"stepSamples": series | {"steps": watched.steps[first:end].tolist()}})
    return found


def _evaluation(night: Night) -> dict[str, Any]:
    return {
        "sleepSpan": f"{night.time_in_bed}s",
        "asleepDuration": f"{night.total_sleep}s",
        "phaseDurations": {
            "wake": f"{night.awake_time}s",
            "rem": f"{night.seconds_of(REM)}s",
            "light": f"{night.seconds_of(LIGHT)}s",
            "deep": f"{night.seconds_of(DEEP)}s",
            "unknown": "0s",
        },
        "interruptions": {"totalCount": 12, "longCount": 2},
        "analysis": {
            "efficiencyPercent": round(100 * night.total_sleep / night.time_in_bed, 2),
            "continuityIndex": round(1 + 4 * night.efficiency / 100, 1),
        },
    }
