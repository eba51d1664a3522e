"""Strava API v3: activities and their streams, recorded by a watch that measures heart rate, and the athlete."""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox import body, noise
from health_pipeline.sandbox.activity import Ints, heart_rate
from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.life import Day, Life, Workout, life_of
from health_pipeline.sandbox.oauth import Grant, OAuthRules, TokenError
from health_pipeline.sandbox.people import EPOCH, person
from health_pipeline.sandbox.routers import ProviderApi, Revision, SampleRequest, TrueValue, WebhookCall
from health_pipeline.sandbox.subscriptions import EVERYTHING, Subscribed, ask

_ONE_DAY = dt.timedelta(days=1)
#: An application has one.
_SUBSCRIPTION_ID = 120475
#: Seconds from the end of a workout to its activity: the watch syncs.
_SYNC_DELAY = 600
_LARGEST_PAGE = 200
_SPORTS = {
    "running": "Run",
    "cycling": "Ride",
    "swimming": "Swim",
    "walking": "Walk",
    "hiking": "Hike",
    "strength_training": "WeightTraining",
    "yoga": "Yoga",
    "badminton": "Badminton",
}
#: What a sport becomes when its owner corrects it.
_CORRECTED = {"Run": "TrailRun", "Ride": "GravelRide"}
#: Metres climbed in a minute.
_CLIMB = {"running": 1.1, "cycling": 3.2, "hiking": 6.0, "walking": 0.6}
_STREAMS = ("time", "distance", "heartrate")
_READ = frozenset({"activity:read", "activity:read_all"})


class _ApiError(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


def _json(body: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    usage = {
        "X-RateLimit-Limit": "200,2000",
        "X-RateLimit-Usage": "1,1",
        "X-ReadRateLimit-Limit": "100,1000",
        "X-ReadRateLimit-Usage": "1,1",
    }
    return Response(orjson.dumps(body), status, usage | (headers or {}), media_type="application/json")


def _fault(
    status: int, message: str, *errors: tuple[str, str, str], headers: dict[str, str] | None = None
) -> Response:
    listed = [dict(zip(("resource", "field", "code"), error, strict=True)) for error in errors]
    return _json({"message": message, "errors": listed}, status, headers)


class Watch:
    """The activities of one person; `edited` and `deleted` are days whose activities their owner revised."""

    def __init__(self, life: Life) -> None:
        self.life = life
        self.person = life.person
        self.edited: set[dt.date] = set()
        self.deleted: set[dt.date] = set()
        key = noise.key(self.person.seed, self.person.handle, "strava")
        self.athlete_id = 1_000_000 + key % 80_000_000
        self._first_activity = 10_000_000_000 + key % 70_000 * 100_000

    def activity_id(self, day: Day, number: int) -> int:
        return self._first_activity + 10 * day.index + number

    def of_id(self, activity_id: int, now: float) -> tuple[Day, int, Workout] | None:
        """The workout behind an activity that is there."""
        index, number = divmod(activity_id - self._first_activity, 10)
        if not 0 <= index < 10_000:
            return None
        return next((found for found in self.done(EPOCH + index * _ONE_DAY, now) if found[1] == number), None)

    def done(self, date: dt.date, now: float) -> list[tuple[Day, int, Workout]]:
        """The workouts of a date that are uploaded by now and not deleted, in order of time."""
        day = self.life.day(date)
        if day is None or date in self.deleted:
            return []
        return [(day, n, done) for n, done in enumerate(day.workouts) if done.end + _SYNC_DELAY <= now]

    @staticmethod
    def is_private(day: Day) -> bool:
        return day.index % 11 == 4

    def samples(self, day: Day, done: Workout) -> tuple[Ints, Ints]:
        """Seconds from the start, and beats a minute."""
        seen = heart_rate(self.life, day)
        during = (seen.time >= done.start) & (seen.time < done.end)
        return seen.time[during] - done.start, seen.bpm[during]

    def summary(self, day: Day, number: int, done: Workout) -> dict[str, Any]:
        _, bpm = self.samples(day, done)
        local = self.life.timeline.local(done.start)
        zone = self.life.timeline.zone_at(done.start)
        # The label has the offset of winter; the standard half of the year differs by hemisphere.
        winter = min(
            dt.datetime(local.year, month, 1, tzinfo=zone).utcoffset() or dt.timedelta() for month in (1, 7)
        )
        label = f"{'-' if winter < dt.timedelta() else '+'}{dt.datetime.min + abs(winter):%H:%M}"
        seconds = done.end - done.start
        distance = round(body.workout_distance(done) or 0.0, 1)
        sport = _SPORTS.get(done.activity, "Workout")
        edited = day.date in self.edited
        summary: dict[str, Any] = {
            "resource_state": 2,
            "athlete": {"id": self.athlete_id, "resource_state": 1},
            "name": f"{'Corrected' if edited else 'Daily'} {done.activity.replace('_', ' ')}",
            "distance": distance,
            "moving_time": seconds - 60 * (day.index % 3),
            "elapsed_time": seconds,
            "total_elevation_gain": round(_CLIMB.get(done.activity, 0.0) * done.minutes, 1),
            "type": sport,
            "sport_type": _CORRECTED.get(sport, sport) if edited else sport,
            "workout_type": None,
            "id": self.activity_id(day, number),
            "external_id": f"watch_{done.start}.fit",
            "upload_id": self.activity_id(day, number) + 7,
            "start_date": f"{dt.datetime.fromtimestamp(done.start, dt.UTC):%Y-%m-%dT%H:%M:%SZ}",
            "start_date_local": f"{local:%Y-%m-%dT%H:%M:%SZ}",
            "timezone": f"(GMT{label}) {zone.key}",
            "utc_offset": float(self.life.timeline.offset_seconds(done.start)),
            "start_latlng": [],
            "end_latlng": [],
            "location_city": None,
            "location_state": None,
            "location_country": None,
            "achievement_count": 0,
            "kudos_count": day.index % 5,
            "comment_count": 0,
            "athlete_count": 1,
            "photo_count": 0,
            "map": {"id": f"a{self.activity_id(day, number)}", "summary_polyline": "", "resource_state": 2},
            "device_name": "Sandbox Watch",
            "trainer": False,
            "commute": False,
            "manual": False,
            "private": self.is_private(day),
            "visibility": "only_me" if self.is_private(day) else "everyone",
            "flagged": False,
            "gear_id": None,
            "from_accepted_tag": False,
            "average_speed": round(distance / seconds, 3),
            "max_speed": round(1.4 * distance / seconds, 3),
            "has_heartrate": bool(bpm.size),
            "pr_count": 0,
            "total_photo_count": 0,
            "has_kudoed": False,
            "suffer_score": float(round(done.load)),
        }
        if bpm.size:
            summary["average_heartrate"] = round(float(bpm.mean()), 1)
            summary["max_heartrate"] = float(bpm.max())
        if sport == "Ride":
            summary["kilojoules"] = round(body.workout_kcal(self.person, done), 1)
            summary["device_watts"] = False
        return summary

    def detail(self, day: Day, number: int, done: Workout) -> dict[str, Any]:
        return self.summary(day, number, done) | {
            "resource_state": 3,
            "description": None,
            "calories": round(body.workout_kcal(self.person, done), 1),
            "segment_efforts": [],
            "splits_metric": [],
            "laps": [],
            "best_efforts": [],
        }

    def streams(self, day: Day, done: Workout, keys: list[str]) -> dict[str, Any]:
        seconds, bpm = self.samples(day, done)
        speed = (body.workout_distance(done) or 0.0) / (done.end - done.start)
        data = {
            "time": seconds.tolist(),
            "distance": np.round(seconds * speed, 1).tolist(),
            "heartrate": bpm.tolist(),
        }
        known = {"series_type": "distance", "original_size": int(bpm.size), "resolution": "high"}
        # Distance comes whether or not it was asked for.
        asked = [key for key in _STREAMS if key in keys or key == "distance"]
        return {key: {"data": data[key], **known} for key in asked if bpm.size}


def _token_answer(answer: dict[str, Any], grant: Grant) -> dict[str, Any]:
    """With `expires_at`, without `scope`: what was granted stands in the address of the callback."""
    expires_at = int(dt.datetime.now(dt.UTC).timestamp()) + int(answer["expires_in"])
    return {name: value for name, value in answer.items() if name != "scope"} | {"expires_at": expires_at}


def _samples() -> dict[str, SampleRequest]:
    """A run and a ride in New York, by a person at home in Berlin."""
    watch = Watch(life_of(person("ben")))
    now = dt.datetime(2026, 9, 5, tzinfo=dt.UTC).timestamp()
    done = [found for n in (27, 29) for found in watch.done(dt.date(2026, 8, n), now)]
    samples = {"athlete.json": SampleRequest("/athlete")}
    for number, (day, place, workout) in enumerate(done, 1):
        path = f"/activities/{watch.activity_id(day, place)}"
        summary = watch.summary(day, place, workout)
        context = {
            "activity_id": str(summary["id"]),
            "start_date": summary["start_date"],
            "utc_offset": str(summary["utc_offset"]),
        }
        samples[f"activity.{number}.json"] = SampleRequest(path)
        samples[f"heart_rate_stream.{number}.json"] = SampleRequest(
            f"{path}/streams", {"keys": "time,heartrate", "key_by_type": "true"}, context=context
        )
    span = {"after": "1787788800", "before": "1788220800"}
    samples["activities.json"] = SampleRequest("/athlete/activities", span)
    return samples


class API(ProviderApi):
    """Strava."""

    name: ClassVar[str] = "strava"
    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(_samples())
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(
        scopes=("read", "read_all", "profile:read_all", "activity:read", "activity:read_all"),
        rotates=True,
        scope_separator=",",
        access_seconds=21_600,
        write_answer=_token_answer,
    )

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._watches = {handle: Watch(life_of(person)) for handle, person in sandbox.people.items()}

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/athlete", self._athlete, methods=["GET"])
        router.add_api_route("/athlete/activities", self._list, methods=["GET"])
        router.add_api_route("/activities/{activity_id}", self._detail, methods=["GET"])
        router.add_api_route("/activities/{activity_id}/streams", self._streams, methods=["GET"])
        router.add_api_route("/push_subscriptions", self._subscriptions, methods=["GET"])
        router.add_api_route("/push_subscriptions", self._subscribe, methods=["POST"])
        router.add_api_route("/push_subscriptions/{number}", self._unsubscribe, methods=["DELETE"])
        return router

    def unauthorized(self, reason: str) -> Response:
        return _fault(401, "Authorization Error", ("Athlete", "access_token", "invalid"))

    def rate_limited(self, retry_after: int) -> Response:
        """The quarter hour is used up; how long it lasts is for the client to know."""
        headers = {"X-RateLimit-Usage": "101,800", "X-ReadRateLimit-Usage": "101,800"}
        return _fault(
            429, "Rate Limit Exceeded", ("Application", "read rate limit", "exceeded"), headers=headers
        )

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        watch = self._watches[handle]
        done = watch.done(day, self._now())
        if not done:
            raise LookupError(f"{handle} has no activity on {day}")
        (watch.deleted if kind == "delete" else watch.edited).add(day)
        return [str(watch.activity_id(lived, number)) for lived, number, _ in done]

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        watch, now = self._watches[handle], self._now()
        beats: dict[dt.date, list[int]] = {}
        for lived in watch.life.days(start - _ONE_DAY, end + _ONE_DAY):
            for day, _, done in watch.done(lived.date, now):
                # The whole activity counts in the offset of its start.
                east = watch.life.timeline.offset_seconds(done.start)
                for second, bpm in zip(*watch.samples(day, done), strict=True):
                    local = dt.datetime.fromtimestamp(done.start + int(second) + east, dt.UTC)
                    beats.setdefault(local.date(), []).append(int(bpm))
        return [
            TrueValue("heart_rate", date, sum(seen) / len(seen), 0.001)
            for date, seen in sorted(beats.items())
            if start <= date <= end
        ]

    def webhooks(self, handle: str, day: dt.date, secret: str) -> list[WebhookCall]:
        """Unsigned; `secret` is part of the path that they are sent to."""
        watch = self._watches[handle]
        gone, edited = day in watch.deleted, day in watch.edited
        lived = watch.life.day(day)
        told = list(enumerate(lived.workouts)) if lived is not None else []
        calls = [
            {
                "object_type": "activity",
                "object_id": watch.activity_id(lived, number),
                "aspect_type": "delete" if gone else "update" if edited else "create",
                "updates": {"type": "Workout"} if edited and not gone else {},
                "owner_id": watch.athlete_id,
                "subscription_id": _SUBSCRIPTION_ID,
                "event_time": int(done.end) + _SYNC_DELAY,
            }
            for number, done in told
            if lived is not None and done.end + _SYNC_DELAY <= self._now()
        ]
        if not calls:
            raise LookupError(f"{handle} has no activity on {day}")
        return [WebhookCall({"Content-Type": "application/json"}, orjson.dumps(call)) for call in calls]

    # Routes

    def _athlete(self, request: Request) -> Response:
        try:
            watch, grant = self._granted(request, frozenset())
        except _ApiError as error:
            return error.response
        person = watch.person
        first_name, _, last_name = person.name.partition(" ")
        athlete = {
            "id": watch.athlete_id,
            "username": person.handle,
            "resource_state": 2,
            "firstname": first_name,
            "lastname": last_name,
            "sex": "F" if person.sex == "female" else "M",
            "premium": True,
            "created_at": f"{EPOCH}T08:00:00Z",
            "updated_at": f"{EPOCH + 40 * _ONE_DAY}T08:00:00Z",
        }
        if "profile:read_all" in grant.scopes:
            athlete |= {"resource_state": 3, "weight": person.weight_kg, "ftp": None}
        return _json(athlete)

    def _list(self, request: Request) -> Response:
        try:
            watch, grant = self._granted(request, _READ)
            after, before = _number(request, "after"), _number(request, "before")
            page, size = _number(request, "page") or 1, _number(request, "per_page") or 30
        except _ApiError as error:
            return error.response
        if page < 1 or not 1 <= size <= _LARGEST_PAGE:
            return _fault(400, "Bad Request", ("Activity", "per_page", "invalid"))
        now = self._now()
        first = dt.datetime.fromtimestamp(after or 0, dt.UTC).date() - 2 * _ONE_DAY
        last = dt.datetime.fromtimestamp(min(before or now, now), dt.UTC).date() + 2 * _ONE_DAY
        found = [
            (day, number, done)
            for n in range((last - max(first, EPOCH)).days + 1)
            for day, number, done in watch.done(max(first, EPOCH) + n * _ONE_DAY, now)
            if (after is None or done.start > after) and (before is None or done.start < before)
        ]
        if after is None:
            found.reverse()
        # What its owner keeps private is taken out of the page, which is then a short one.
        shown = [
            watch.summary(day, number, done)
            for day, number, done in found[(page - 1) * size : page * size]
            if self._may_see(watch, day, grant)
        ]
        return _json(shown)

    def _detail(self, request: Request, activity_id: int) -> Response:
        try:
            watch, day, number, done = self._found(request, activity_id)
        except _ApiError as error:
            return error.response
        return _json(watch.detail(day, number, done))

    def _streams(self, request: Request, activity_id: int) -> Response:
        try:
            watch, day, _, done = self._found(request, activity_id)
        except _ApiError as error:
            return error.response
        if request.query_params.get("key_by_type") != "true":
            return _fault(400, "Bad Request", ("Stream", "key_by_type", "required"))
        return _json(watch.streams(day, done, request.query_params.get("keys", "").split(",")))

    # Where it calls

    async def _subscriptions(self, request: Request) -> Response:
        client_id = self._client(request.query_params)
        if client_id is None:
            return _unknown_client()
        return _json([one.details for one in self.subscribers if one.client_id == client_id])

    async def _subscribe(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
        client_id = self._client(form)
        if client_id is None:
            return _unknown_client()
        address, token = form.get("callback_url", ""), form.get("verify_token", "")
        if not address.startswith(("http://", "https://")):
            return _fault(400, "Bad Request", ("PushSubscription", "callback url", "not a valid URL"))
        if any(one.client_id == client_id for one in self.subscribers):
            return _fault(400, "Bad Request", ("PushSubscription", "", "already exists"))
        challenge = secrets.token_hex(8)
        query = {"hub.mode": "subscribe", "hub.challenge": challenge, "hub.verify_token": token}
        answer = await ask("GET", address, params=query)
        if answer is None or answer.status_code != 200 or not _gives_back(answer.content, challenge):
            problem = ("PushSubscription", "callback url", "GET to callback URL does not return 200")
            return _fault(400, "Bad Request", problem)
        now = self.sandbox.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        shown = {
            "id": _SUBSCRIPTION_ID,
            "resource_state": 2,
            "application_id": 1,
            "callback_url": address,
            "created_at": now,
            "updated_at": now,
        }
        self.subscribers.add(
            Subscribed(
                address=address,
                kinds=frozenset({EVERYTHING}),
                secret="",
                client_id=client_id,
                details=shown,
                subscription_id=str(_SUBSCRIPTION_ID),
            )
        )
        return _json({"id": _SUBSCRIPTION_ID}, 201)

    async def _unsubscribe(self, request: Request, number: str) -> Response:
        client_id = self._client(request.query_params)
        if client_id is None:
            return _unknown_client()
        if self.subscribers.get(number, client_id) is None:
            return _fault(404, "Record Not Found", ("PushSubscription", "id", "not found"))
        self.subscribers.remove(number)
        return Response(status_code=204)

    def _client(self, given: Mapping[str, str]) -> str | None:
        client_id = given.get("client_id", "")
        known = self.oauth.client_secret(client_id, given.get("client_secret", ""))
        return None if known is None else client_id

    # Parts

    def _now(self) -> float:
        return self.sandbox.now().timestamp()

    def _granted(self, request: Request, any_of: frozenset[str]) -> tuple[Watch, Grant]:
        try:
            grant = self.oauth.grant(request)
        except TokenError as error:
            raise _ApiError(self.unauthorized(str(error))) from error
        if any_of and not any_of & grant.scopes:
            missing = ("AccessToken", "activity:read_permission", "missing")
            raise _ApiError(_fault(401, "Authorization Error", missing))
        return self._watches[grant.handle], grant

    def _found(self, request: Request, activity_id: int) -> tuple[Watch, Day, int, Workout]:
        watch, grant = self._granted(request, _READ)
        found = watch.of_id(activity_id, self._now())
        if found is None or not self._may_see(watch, found[0], grant):
            raise _ApiError(_fault(404, "Record Not Found", ("Activity", "id", "not found")))
        return watch, *found

    @staticmethod
    def _may_see(watch: Watch, day: Day, grant: Grant) -> bool:
        return "activity:read_all" in grant.scopes or not watch.is_private(day)


def _unknown_client() -> Response:
    return _fault(401, "Authorization Error", ("Application", "client_id", "invalid"))


def _gives_back(content: bytes, challenge: str) -> bool:
    try:
        said = orjson.loads(content)
    except orjson.JSONDecodeError:
        return False
    return isinstance(said, dict) and said.get("hub.challenge") == challenge


def _number(request: Request, name: str) -> int | None:
    text = request.query_params.get(name)
    if text is None:
        return None
    if not text.isascii() or not text.isdigit():
        raise _ApiError(_fault(400, "Bad Request", ("Activity", name, "invalid")))
    return int(text)
