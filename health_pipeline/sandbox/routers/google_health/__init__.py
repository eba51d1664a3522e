"""Google Health API v4: Google's OAuth, data points by list, reconcile and dailyRollUp, filters and errors.

Data types are those of `_KINDS`. `users/me` is the only user there is: the vendor answered 400 to numbers.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import parse_qs, parse_qsl, urlsplit

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox import body, noise
from health_pipeline.sandbox.activity import heart_rate
from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.life import Day, life_of
from health_pipeline.sandbox.night import DEEP, LIGHT, REM
from health_pipeline.sandbox.oauth import Grant, OAuthRules, OAuthServer, TokenError
from health_pipeline.sandbox.people import EPOCH
from health_pipeline.sandbox.routers import (
    ProviderApi,
    Revision,
    SampleRequest,
    TrueValue,
    WebhookCall,
)
from health_pipeline.sandbox.routers.google_health.points import (
    PROCESSING,
    SYNC_DELAY,
    Batch,
    Points,
    civil_object,
    date_object,
    day_seconds,
    iso,
)
from health_pipeline.sandbox.routers.google_health.signing import Signer
from health_pipeline.sandbox.routers.google_health.subscribers import ServiceAccount, SubscriberRoutes

_ONE_DAY = dt.timedelta(days=1)
_SCOPE = "https://www.googleapis.com/auth/googlehealth."
_ACTIVITY, _METRICS, _SLEEP, _SETTINGS = (
    f"{_SCOPE}{name}.readonly"
    for name in ("activity_and_fitness", "health_metrics_and_measurements", "sleep", "settings")
)

_OF_A_SAMPLE = ("sample_time.physical_time", "sample_time.civil_time")
_OF_AN_INTERVAL = ("interval.start_time", "interval.civil_start_time")
_LIST, _ROLL_UP = "list", "dailyRollUp"


@dataclass(frozen=True, slots=True)
class _Kind:
    """A data type: the scope that opens it, what filters may compare, how it may be read.

    `roll_up_days` is the longest range of a rollup, and the largest page.
    """

    scope: str
    members: tuple[str, ...] = ()
    methods: tuple[str, ...] = (_LIST,)
    roll_up_days: int = 90
    page_size: int = 1440
    largest_page: int = 10_000


def _daily(scope: str = _METRICS) -> _Kind:
    return _Kind(scope, ("date",))


def _session(scope: str, *members: str) -> _Kind:
    return _Kind(scope, members, page_size=25, largest_page=25)


_SUMS = _Kind(_ACTIVITY, _OF_AN_INTERVAL, (_LIST, _ROLL_UP))
_KINDS: Mapping[str, _Kind] = {
    **dict.fromkeys(
        (
            "heart-rate",
            "heart-rate-variability",
            "oxygen-saturation",
            "core-body-temperature",
            "weight",
            "body-fat",
            "height",
        ),
        _Kind(_METRICS, _OF_A_SAMPLE),
    ),
    **dict.fromkeys(
        (
            "daily-resting-heart-rate",
            "daily-heart-rate-variability",
            "daily-oxygen-saturation",
            "daily-respiratory-rate",
            "daily-sleep-temperature-derivations",
        ),
        _daily(),
    ),
    "daily-vo2-max": _daily(_ACTIVITY),
    **dict.fromkeys(("steps", "distance", "active-energy-burned"), _SUMS),
    **dict.fromkeys(("floors", "active-zone-minutes"), _Kind(_ACTIVITY, methods=(_ROLL_UP,))),
    **dict.fromkeys(
        ("total-calories", "active-minutes"), _Kind(_ACTIVITY, methods=(_ROLL_UP,), roll_up_days=14)
    ),
    "sleep": _session(_SLEEP, "interval.end_time", "interval.civil_end_time"),
    "exercise": _session(_ACTIVITY, "interval.civil_start_time"),
}

#: Data types that the vendor calls about, of those we have.
_CALLED_ABOUT = ("sleep", "steps", "heart-rate", "daily-resting-heart-rate")

_COMPARISON = re.compile(r'^\s*([a-z0-9_.]+)\s*(>=|<)\s*"([^"]*)"\s*$')


class _ApiError(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


@dataclass(frozen=True, slots=True)
class _Range:
    """What a filter asks for: from `start` (included) to `end`, in epoch seconds or wall-clock seconds."""

    civil: bool
    start: float
    end: float


def _json(document: object, status: int = 200) -> Response:
    return Response(orjson.dumps(document), status, media_type="application/json; charset=UTF-8")


def _problem(code: int, status: str, reason: str, message: str) -> Response:
    detail = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason,
        "domain": "health.googleapis.com",
    }
    return _json({"error": {"code": code, "message": message, "status": status, "details": [detail]}}, code)


def _invalid(reason: str, message: str) -> _ApiError:
    return _ApiError(_problem(400, "INVALID_ARGUMENT", reason, message))


class _GoogleOAuth(OAuthServer):
    """Google's: a refresh token comes only with the first answer, and only where `access_type` is offline."""

    def __init__(self, provider: str, rules: OAuthRules, sandbox: Sandbox) -> None:
        super().__init__(provider, rules, sandbox)
        self._online: set[str] = set()
        self.service_account = ServiceAccount()

    async def _token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
        if form.get("grant_type") != "urn:ietf:params:oauth:grant-type:jwt-bearer":
            return await super()._token(request)
        # An assertion is dated by its maker's clock, which is not the sandbox's.
        answer = self.service_account.token(form.get("assertion", ""), time.time())
        if answer is None:
            return _json({"error": "invalid_grant", "error_description": "Invalid JWT Signature."}, 400)
        return _json(answer)

    async def _authorize(self, request: Request) -> Response:
        answer = await super()._authorize(request)
        query = parse_qs(urlsplit(answer.headers.get("location", "")).query)
        if "code" in query and request.query_params.get("access_type") != "offline":
            self._online.add(self._read("code", query["code"][0])["f"])
        return answer

    def _tokens(self, claims: dict[str, Any], refresh_token: str | None = None) -> dict[str, Any]:
        answer = super()._tokens(claims, refresh_token)
        if refresh_token is not None or claims["f"] in self._online:
            del answer["refresh_token"]
        return answer


def _samples() -> dict[str, SampleRequest]:
    """Two days with the flight home from New York to Berlin between them; samples of less than an hour."""
    first, after = "2026-08-29", "2026-08-31"
    found: dict[str, SampleRequest] = {}
    for kind, rules in _KINDS.items():
        path = f"/v4/users/me/dataTypes/{kind}/dataPoints"
        name = kind.replace("-", "_")
        start, end = first, after
        if rules.members in (_OF_A_SAMPLE, _OF_AN_INTERVAL) and kind not in ("weight", "body-fat", "height"):
            asleep = kind in ("heart-rate-variability", "oxygen-saturation")
            start, end = (
                f"{first}T{time}"
                for time in (("01:00:00", "01:30:00") if asleep else ("15:00:00", "16:00:00"))
            )
        if kind in ("weight", "body-fat", "exercise"):
            start = "2026-08-25"
        if kind == "height":
            start = "2024-01-01"
        if _LIST in rules.methods:
            member = f"{name}.{rules.members[-1]}"
            query = {"filter": f'{member} >= "{start}" AND {member} < "{end}"', "pageSize": "25"}
            merged = kind in ("sleep", "exercise", "steps", "distance", "active-energy-burned")
            found[f"{name}.json"] = SampleRequest(f"{path}:reconcile" if merged else path, query)
        else:
            days = {
                end: {"date": date_object(dt.date.fromisoformat(day))}
                for end, day in (("start", first), ("end", after))
            }
            asked = {"range": days, "windowSizeDays": 1}
            found[f"{name}.json"] = SampleRequest(f"{path}:dailyRollUp", method="POST", json=asked)
    return found


class API(ProviderApi):
    """Google Health."""

    name: ClassVar[str] = "google_health"
    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(_samples())
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(
        scopes=(_ACTIVITY, _METRICS, _SLEEP, _SETTINGS, f"{_SCOPE}profile.readonly"),
        rotates=False,
        authorize_path="/o/oauth2/v2/auth",
        token_path="/token",  # noqa: S106 - a path
        revoke_path="/revoke",
        access_seconds=3599,
    )

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self.oauth = self._google_oauth = _GoogleOAuth(self.name, self.oauth_rules, sandbox)
        self.signer = Signer(sandbox.seed)
        self._points = {handle: Points(life_of(person)) for handle, person in sandbox.people.items()}

    def router(self) -> APIRouter:
        router = APIRouter()
        points = "/v4/users/{user}/dataTypes/{kind}/dataPoints"
        router.add_api_route("/v4/users/{user}/identity", self._identity, methods=["GET"])
        router.add_api_route("/v4/users/{user}/settings", self._settings, methods=["GET"])
        router.add_api_route(f"{points}:reconcile", self._reconcile, methods=["GET"])
        router.add_api_route(f"{points}:dailyRollUp", self._daily_roll_up, methods=["POST"])
        router.add_api_route(points, self._list, methods=["GET"])
        # Of another host at the vendor's.
        keyset = "/googlehealthapi/webhooks/webhooks_public_keyset.json"
        router.add_api_route(keyset, self._keyset, methods=["GET"])
        account = self._google_oauth.service_account
        router.include_router(SubscriberRoutes(self.sandbox, account, self.subscribers).router())
        return router

    def service_account(self, root: str) -> Mapping[str, str]:
        return self._google_oauth.service_account.key_file(f"{root}/token")

    def kind_of(self, call: WebhookCall) -> str:
        return str(orjson.loads(call.body)[0]["data"]["dataType"])

    def unauthorized(self, reason: str) -> Response:
        message = f"Request had invalid authentication credentials: {reason}."
        return _problem(401, "UNAUTHENTICATED", "ACCESS_TOKEN_INVALID", message)

    def rate_limited(self, retry_after: int) -> Response:
        """The vendor does not say how long to wait."""
        message = "Quota exceeded for quota metric 'Queries' and limit 'Queries per minute per user'."
        return _problem(429, "RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED", message)

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        points = self._points[handle]
        lived = points.life.day(day)
        night = points.night(lived) if lived else None
        if lived is None or night is None or day in points.deleted:
            raise LookupError(f"{handle} has no night on {day}")
        if kind == "delete":
            points.deleted.add(day)
        else:
            points.edits[day] = points.edits.get(day, 0) + 1
        return [points.sleep_name(lived, night)]

    def user_id(self, handle: str) -> str:
        person = self.sandbox.people[handle]
        return str(10**18 + noise.key(person.seed, handle, "google_health", "user") % (8 * 10**18))

    def webhooks(self, handle: str, day: dt.date, secret: str) -> list[WebhookCall]:
        """A call a data type, `secret` being the value of the Authorization header; the signature is ours."""
        points = self._points[handle]
        lived = points.life.day(day)
        if lived is None:
            raise LookupError(f"{handle} did not live {day}")
        return [
            self.webhook(handle, kind, batch, secret)
            for kind in _CALLED_ABOUT
            if (batch := points.batch(kind, day, self.sandbox.now().timestamp())) is not None
        ]

    def webhook(
        self, handle: str, kind: str, batch: Batch, secret: str, operation: str = "UPSERT"
    ) -> WebhookCall:
        points = self._points[handle]
        start, end = int(batch.start[0]), int(batch.physical[-1])
        civil = [instant + points.offset(instant) for instant in (start, end)]
        interval = {
            "physicalTimeInterval": {"startTime": iso(start), "endTime": iso(end)},
            "civilDateTimeInterval": {
                "startDateTime": civil_object(civil[0]),
                "endDateTime": civil_object(civil[1]),
            },
            "civilIso8601TimeInterval": {
                "startTime": iso(civil[0]).rstrip("Z"),
                "endTime": iso(civil[1]).rstrip("Z"),
            },
        }
        data = {
            "version": "1",
            "clientProvidedSubscriptionName": self.sandbox.people[handle].uuid("google_health", kind, start),
            "healthUserId": self.user_id(handle),
            "operation": operation,
            "dataType": kind,
            "intervals": [interval],
        }
        content = orjson.dumps([{"data": data}])
        headers = {
            "Content-Type": "application/json",
            "Authorization": secret,
            "User-Agent": "Google-Health-API-Webhooks",
            "GOOGLE-HEALTH-API-SIGNATURE": self.signer.sign(content),
        }
        return WebhookCall(headers, content)

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        points, now = self._points[handle], self.sandbox.now().timestamp()
        dates = [start + n * _ONE_DAY for n in range((end - start).days + 1)]
        values = [value for date in dates for value in self._true_activity(points, date, now)]
        for day in points.life.days(start - 2 * _ONE_DAY, end + 2 * _ONE_DAY):
            values += [v for v in self._true_night(points, day, now) if start <= v.local_date <= end]
            seen = body.weigh_in(points.life, day)
            if seen is not None and seen.instant + SYNC_DELAY <= now:
                date = points.life.timeline.local(seen.instant).date()
                if start <= date <= end:
                    values.append(TrueValue("weight", date, seen.weight, 0.001))
                    values.append(TrueValue("body_fat", date, seen.fat_percent, 0))
        return values

    def _true_activity(self, points: Points, date: dt.date, now: float) -> Iterator[TrueValue]:
        seen = points.minutes(date)
        if not seen.worn.any() or seen.time[-1] + 60 + SYNC_DELAY > now:
            return
        burn, cardio, peak = seen.zones()
        _, moderate, vigorous = seen.levels()
        steps = int(seen.steps.sum())
        if steps:
            yield TrueValue("steps", date, steps, 0)
            # Whole millimetres a minute.
            yield TrueValue("distance", date, steps * body.step_length(points.person), 1)
            yield TrueValue("calories_burned", date, float(seen.energy.sum()), 0.01)
        yield TrueValue("floors", date, seen.floors, 0)
        yield TrueValue("total_calories", date, points.total_energy(date, seen), 0.01)
        yield TrueValue("active_minutes", date, moderate + vigorous, 0)
        yield TrueValue("active_zone_minutes", date, burn + 2 * (cardio + peak), 0)
        beats = [
            (found.time + points.offsets(found.time), found.bpm)
            for day in points.life.days(date - 2 * _ONE_DAY, date + _ONE_DAY)
            if (found := heart_rate(points.life, day)).time.size
        ]
        of_day = np.concatenate(
            [bpm[civil // 86_400 == day_seconds(date) // 86_400] for civil, bpm in beats] or [np.zeros(0)]
        )
        if of_day.size:
            yield TrueValue("heart_rate", date, float(of_day.mean()), 1e-6)

    def _true_night(self, points: Points, day: Day, now: float) -> Iterator[TrueValue]:
        night = points.night(day)
        if night is None or night.wake + PROCESSING > now:
            return
        date = points.date_of(night)
        yield TrueValue("resting_heart_rate", date, night.lowest_heart_rate, 0)
        yield TrueValue("heart_rate_variability", date, night.average_hrv or 0, 0)
        yield TrueValue("respiratory_rate", date, night.breath, 0)
        yield TrueValue("spo2", date, body.spo2(points.life, day), 0.05)
        yield TrueValue("body_temperature_deviation", date, day.temperature, 0.01)
        yield TrueValue("skin_temperature", date, points.skin_temperature + day.temperature, 0.01)
        yield TrueValue("vo2_max", date, body.fitness(points.life, day.date), 0.05)
        if day.date in points.deleted:
            return
        # The vendor says whole minutes.
        for metric, seconds in (
            ("sleep_duration", night.total_sleep),
            ("time_in_bed", night.time_in_bed),
            ("awake_time", night.awake_time),
            ("sleep_latency", night.latency),
            ("deep_sleep", night.seconds_of(DEEP)),
            ("light_sleep", night.seconds_of(LIGHT)),
            ("rem_sleep", night.seconds_of(REM)),
        ):
            yield TrueValue(metric, date, seconds, 60 if metric == "light_sleep" else 30)
        yield TrueValue("sleep_efficiency", date, 100 * night.total_sleep / night.time_in_bed, 0.25)

    # Routes

    async def _keyset(self) -> Response:
        return _json(self.signer.keyset())

    async def _identity(self, request: Request, user: str) -> Response:
        try:
            grant = self._grant(request, user)
        except _ApiError as error:
            return error.response
        person = self.sandbox.people[grant.handle]
        legacy = person.uuid("fitbit", "user").replace("-", "")[:6].upper()
        return _json(
            {
                "name": "users/me/identity",
                "healthUserId": self.user_id(grant.handle),
                "legacyUserId": legacy,
            }
        )

    async def _settings(self, request: Request, user: str) -> Response:
        try:
            grant = self._grant(request, user, _SETTINGS)
        except _ApiError as error:
            return error.response
        points = self._points[grant.handle]
        return _json(
            {
                "name": "users/me/settings",
                "timeZone": points.person.zone,
                "utcOffset": f"{points.offset(self.sandbox.now().timestamp())}s",
                "languageLocale": "en_GB",
                "distanceUnit": "DISTANCE_UNIT_KILOMETERS",
            }
        )

    async def _list(self, request: Request, user: str, kind: str) -> Response:
        return self._many(request, user, kind, merged=False)

    async def _reconcile(self, request: Request, user: str, kind: str) -> Response:
        return self._many(request, user, kind, merged=True)

    def _many(self, request: Request, user: str, kind: str, *, merged: bool) -> Response:
        query = request.query_params
        try:
            points, rules = self._asked(request, user, kind, _LIST)
            wanted = _read_filter(query.get("filter", ""), kind.replace("-", "_"), rules)
            size = _page_size(query.get("pageSize"), rules.page_size, rules.largest_page)
            before = _read_token(query.get("pageToken"), query.get("filter", ""))
        except _ApiError as error:
            return error.response
        size = min(size, self.sandbox.settings.page_size)
        found: list[dict[str, Any]] = []
        last = 0
        for batch, place in self._newest_first(points, kind, wanted):
            start = int(batch.start[place])
            if before is not None and start >= before:
                continue
            if len(found) == size:
                token = _token(last, query.get("filter", ""))
                return _json({"dataPoints": found, "nextPageToken": token})
            found.append(_point(batch, place, kind, merged=merged))
            last = start
        # On this wire an empty array is left out.
        return _json({"dataPoints": found} if found else {})

    def _newest_first(self, points: Points, kind: str, wanted: _Range) -> Iterator[tuple[Batch, int]]:
        now = self.sandbox.now().timestamp()
        last = dt.datetime.fromtimestamp(min(wanted.end, now), dt.UTC).date() + 2 * _ONE_DAY
        first = dt.datetime.fromtimestamp(max(wanted.start, day_seconds(EPOCH)), dt.UTC).date() - 2 * _ONE_DAY
        date = last
        while date >= first:
            batch = points.batch(kind, date, now)
            date -= _ONE_DAY
            if batch is None:
                continue
            times = batch.civil if wanted.civil else batch.physical
            chosen = (times >= wanted.start) & (times < wanted.end) & (batch.available <= now)
            for place in np.flatnonzero(chosen)[::-1].tolist():
                yield batch, place

    async def _daily_roll_up(self, request: Request, user: str, kind: str) -> Response:
        try:
            points, rules = self._asked(request, user, kind, _ROLL_UP)
            asked = _body(await request.body())
            first, after = (_date(asked.get("range"), end) for end in ("start", "end"))
            days = (after - first).days
            if days < 1 or days > rules.roll_up_days:
                raise _invalid("INVALID_ROLLUP_RANGE", f"The range must be 1 to {rules.roll_up_days} days.")
            if asked.get("windowSizeDays", 1) != 1:
                raise _invalid("INVALID_WINDOW_SIZE", "The sandbox sums single days only.")
            size = _page_size(asked.get("pageSize"), rules.roll_up_days, rules.roll_up_days)
            key = orjson.dumps(asked["range"]).decode()
            place = _read_token(asked.get("pageToken"), key) or 0
        except _ApiError as error:
            return error.response
        size = min(size, self.sandbox.settings.document_page_size)
        now = self.sandbox.now().timestamp()
        found = []
        until = min(place + size, days)
        for date in (first + n * _ONE_DAY for n in range(place, until)):
            said = points.roll_up(kind, date, now) if date >= EPOCH else None
            if said is not None:
                ends = {
                    name: {"date": date_object(day), "time": {}}
                    for name, day in (("civilStartTime", date), ("civilEndTime", date + _ONE_DAY))
                }
                found.append(ends | said)
        answer: dict[str, Any] = {"rollupDataPoints": found} if found else {}
        if until < days:
            answer["nextPageToken"] = _token(until, key)
        return _json(answer)

    # Parts

    def _grant(self, request: Request, user: str, scope: str | None = None) -> Grant:
        try:
            grant = self.oauth.grant(request)
        except TokenError as error:
            raise _ApiError(self.unauthorized(str(error))) from error
        if user != "me":
            raise _invalid("INVALID_USER", "The user has to be given as me.")
        if scope is not None and scope not in grant.scopes:
            message = "Request had insufficient authentication scopes."
            raise _ApiError(_problem(403, "PERMISSION_DENIED", "ACCESS_TOKEN_SCOPE_INSUFFICIENT", message))
        return grant

    def _asked(self, request: Request, user: str, kind: str, method: str) -> tuple[Points, _Kind]:
        rules = _KINDS.get(kind)
        grant = self._grant(request, user, None if rules is None else rules.scope)
        if rules is None:
            raise _invalid("INVALID_DATA_TYPE", f"{kind} is not a data type.")
        if method not in rules.methods:
            raise _invalid("UNSUPPORTED_METHOD", f"{method} is not supported for {kind}.")
        return self._points[grant.handle], rules


def _point(batch: Batch, place: int, kind: str, *, merged: bool) -> dict[str, Any]:
    name = f"users/me/dataTypes/{kind}/dataPoints/{batch.names[place]}" if batch.names else None
    if merged:
        return ({"dataPointName": name} if name else {}) | batch.payload(place)
    return ({"name": name} if name else {}) | {"dataSource": batch.source} | batch.payload(place)


def _read_filter(text: str, name: str, rules: _Kind) -> _Range:
    """Comparisons joined by AND, all of one member of this type."""
    start, end = float(day_seconds(EPOCH)), 4e9
    civil = True
    for part in text.split(" AND ") if text.strip() else ():
        match = _COMPARISON.match(part)
        member = match[1].removeprefix(f"{name}.") if match else ""
        if match is None or match[1] == member or member not in rules.members:
            reason = "INVALID_DATA_POINT_FILTER_DATA_TYPE_MEMBER"
            raise _invalid(reason, f"A filter of {name} compares {' or '.join(rules.members)}.")
        civil = "civil" in member or member == "date"
        value = _literal(match[3], civil=civil, date_only=member == "date")
        start, end = (max(start, value), end) if match[2] == ">=" else (start, min(end, value))
    return _Range(civil, start, end)


def _literal(text: str, *, civil: bool, date_only: bool) -> float:
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or (moment.tzinfo is None) != civil or (date_only and "T" in text):
        raise _invalid("INVALID_DATA_POINT_FILTER_LITERAL", "The filter's time is not as it must be written.")
    return moment.replace(tzinfo=dt.UTC).timestamp() if civil else moment.timestamp()


def _page_size(given: object, default: int, largest: int) -> int:
    if given is None:
        return default
    if not str(given).isdigit():
        raise _invalid("INVALID_PAGE_SIZE", "The page size is not a number.")
    return min(int(str(given)), largest) or default


def _body(content: bytes) -> dict[str, Any]:
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("range"), dict):
        raise _invalid("INVALID_ROLLUP_REQUEST", "A range has to be given.")
    return found


def _date(range_: Any, end: str) -> dt.date:
    try:
        date = range_[end]["date"]
        if any((range_[end].get("time") or {}).values()):
            raise ValueError("not aligned")
        return dt.date(date["year"], date["month"], date["day"])
    except (KeyError, TypeError, ValueError) as error:
        raise _invalid("INVALID_ROLLUP_RANGE", f"The range's {end} is not the start of a day.") from error


def _token(place: int, key: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([place, key])).decode().rstrip("=")


def _read_token(token: str | None, key: str) -> int | None:
    """Where the page goes on; a token is good for the request it was given to alone."""
    if not token:
        return None
    try:
        place, given = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        if given == key:
            return int(place)
    except (ValueError, TypeError, binascii.Error):
        pass
    raise _invalid("INVALID_PAGE_TOKEN", "The page token does not belong to this request.")
