"""Withings Public Health Data API: POSTs with an `action`, statuses in the body, `more` and `offset`."""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import secrets
import zlib
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from types import MappingProxyType
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlencode
from zoneinfo import ZoneInfo

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox import body
from health_pipeline.sandbox.activity import activity, heart_rate
from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.life import Day, life_of
from health_pipeline.sandbox.night import Night
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
from health_pipeline.sandbox.routers.withings.documents import (
    SYNC_DELAY,
    Documents,
    Row,
    awake_pulse,
    effort,
    score,
    warmth,
)
from health_pipeline.sandbox.subscriptions import Subscribed, ask

_ONE_DAY = dt.timedelta(days=1)
_LONGEST_SPAN = 86_400
#: Sleeps shorter than this are naps: the vendor does not tell them from nights.
_SHORTEST_NIGHT = 3 * 3600

#: What an answer has of `data` when no `data_fields` are named.
_PLAIN_SLEEP = (
    "wakeupduration",
    "wakeupcount",
    "durationtosleep",
    "remsleepduration",
    "durationtowakeup",
    "total_timeinbed",
    "total_sleep_time",
    "sleep_efficiency",
    "sleep_latency",
    "wakeup_latency",
    "waso",
    "nb_rem_episodes",
    "out_of_bed_count",
    "lightsleepduration",
    "deepsleepduration",
)
_OF_THE_ROW = (
    *("date", "timezone", "deviceid", "hash_deviceid", "brand", "is_tracker", "modified", "model"),
    *("modelid", "model_id", "startdate", "enddate", "state"),
)

#: What can be subscribed to, by number, and the scope it takes.
_APPLIS = {
    **dict.fromkeys(("1", "2", "4", "54", "58"), "user.metrics"),
    **dict.fromkeys(("16", "44"), "user.activity"),
    **dict.fromkeys(("50", "51", "52"), "user.sleepevents"),
    "46": "user.info",
}

#: How long a nonce is good.
_NONCE_SECONDS = 1800

Form = Mapping[str, str]


class _ApiError(Exception):
    def __init__(self, status: int, error: str) -> None:
        self.status = status
        self.error = error


def _answer(body: object, status: int = 0, error: str | None = None) -> Response:
    content = {"status": status, "body": body} | ({} if error is None else {"error": error})
    return Response(orjson.dumps(content), media_type="application/json")


def _user_id(handle: str) -> int:
    return 10_000_000 + zlib.crc32(handle.encode()) % 90_000_000


def _read_form(form: dict[str, str]) -> dict[str, str]:
    """Without the vendor's own `action` there is no grant type either."""
    return form if form.get("action") == "requesttoken" else {**form, "grant_type": ""}


def _write_answer(answer: dict[str, Any], grant: Grant) -> dict[str, Any]:
    return {"status": 0, "body": {"userid": _user_id(grant.handle), **answer, "csrf_token": "sandbox"}}


def _write_error(status: int, code: str, description: str) -> Response:
    what = "client_id or client_secret" if code == "invalid_client" else description
    return _answer({}, 503, f"Invalid params: {what}")


_FOUR_DAYS = {"startdateymd": "2026-08-27", "enddateymd": "2026-08-30"}


def _samples() -> dict[str, SampleRequest]:
    """The last days in New York and the flight home to Berlin."""

    def asked(path: str, action: str, sleep_id: str | None = None, **query: str) -> SampleRequest:
        context = {} if sleep_id is None else {"sleep_id": sleep_id}
        return SampleRequest(path, method="POST", form={"action": action, **query}, context=context)

    activity_fields = "steps,distance,elevation,soft,moderate,intense,active,calories,totalcalories"
    activity_fields += ",hr_average,hr_min,hr_max"
    sleep_fields = "total_timeinbed,total_sleep_time,lightsleepduration,deepsleepduration,remsleepduration"
    sleep_fields += ",wakeupduration,sleep_efficiency,sleep_latency,waso,hr_average,hr_min,hr_max"
    sleep_fields += ",rr_average,sleep_score,rmssd_start_avg,rmssd_end_avg"
    epochs = {"startdate": "1787788800", "enddate": "1788048000"}  # 27 to 30 August, midnights UTC
    midday = {"startdate": "1787871000", "enddate": "1787871900"}  # in a run
    night = {"startdate": "1788045989", "enddate": "1788077844"}
    return {
        "measure.json": asked("/measure", "getmeas", category="1", **epochs),
        "activity.json": asked("/v2/measure", "getactivity", data_fields=activity_fields, **_FOUR_DAYS),
        "workout.json": asked(
            "/v2/measure",
            "getworkouts",
            data_fields="calories,intensity,hr_average,hr_min,hr_max,steps,distance",
            **_FOUR_DAYS,
        ),
        "intraday_activity.json": asked(
            "/v2/measure", "getintradayactivity", data_fields="steps,distance,duration,heart_rate", **midday
        ),
        "sleep.1.json": asked("/v2/sleep", "getsummary", data_fields=sleep_fields, **_FOUR_DAYS),
        "sleep.2.json": asked("/v2/sleep", "get", data_fields="hr,rmssd", sleep_id="56989812181", **night),
    }


class API(ProviderApi):
    """Withings."""

    name: ClassVar[str] = "withings"
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(
        scopes=("user.info", "user.metrics", "user.activity", "user.sleepevents"),
        authorize_path="/oauth2_user/authorize2",
        token_path="/v2/oauth2",  # noqa: S106 - a path
        revoke_path=None,
        scope_separator=",",
        code_seconds=30,
        access_seconds=10_800,
        read_form=_read_form,
        write_answer=_write_answer,
        write_error=_write_error,
    )
    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(_samples())

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self._documents = {handle: Documents(life_of(person)) for handle, person in sandbox.people.items()}
        #: Path, action: scope and what answers it.
        self._actions: dict[tuple[str, str], tuple[str, Callable[[Documents, Form], object]]] = {
            ("measure", "getmeas"): ("user.metrics", self._getmeas),
            ("v2/measure", "getactivity"): ("user.activity", self._getactivity),
            ("v2/measure", "getintradayactivity"): ("user.activity", self._getintradayactivity),
            ("v2/measure", "getworkouts"): ("user.activity", self._getworkouts),
            ("v2/sleep", "getsummary"): ("user.activity", self._getsummary),
            ("v2/sleep", "get"): ("user.activity", self._getsleep),
            ("v2/user", "getdevice"): ("user.info", self._getdevice),
        }
        #: Nonces that were given, and until when each is good.
        self._nonces: dict[str, float] = {}
        self.oauth.other_action = self._revoke

    def router(self) -> APIRouter:
        router = APIRouter()
        for path in sorted({path for path, _ in self._actions}):
            router.add_api_route(f"/{path}", self._call, methods=["GET", "POST"])
        router.add_api_route("/v2/signature", self._getnonce, methods=["POST"])
        router.add_api_route("/notify", self._notify, methods=["GET", "POST"])
        return router

    def kind_of(self, call: WebhookCall) -> str:
        return dict(parse_qsl(call.body.decode()))["appli"]

    def unauthorized(self, reason: str) -> Response:
        return _answer({}, 401, f"invalid_token: {reason}")

    def rate_limited(self, retry_after: int) -> Response:
        return _answer({}, 601, "Too Many Requests")

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        if kind == "delete":
            raise LookupError("Withings does not tell of what was deleted")
        documents = self._documents[handle]
        lived = documents.life.day(day)
        if lived is None or not lived.night_worn:
            raise LookupError(f"{handle} has no night on {day}")
        count, _ = documents.edits.get(day, (0, 0))
        documents.edits[day] = count + 1, int(self.sandbox.now().timestamp())
        return [str(documents.number("sleep", day, "main"))]

    def webhooks(self, handle: str, day: dt.date, secret: str) -> list[WebhookCall]:
        """The vendor signs nothing: the secret is in the path of the address it calls."""
        documents = self._documents[handle]
        lived = documents.life.day(day)
        if lived is None:
            raise LookupError(f"{handle} did not live {day}")
        user = str(_user_id(handle))
        calls = [{"userid": user, "appli": "16", "date": day.isoformat()}]
        for appli, rows in (("1", documents.measures(lived)), ("44", documents.sleeps(lived))):
            if rows:
                span = {"startdate": str(rows[0].instant), "enddate": str(rows[-1].instant + 1)}
                calls.append({"userid": user, "appli": appli, **span})
        headers = {"content-type": "application/x-www-form-urlencoded"}
        return [WebhookCall(headers, urlencode(call).encode()) for call in calls]

    # What is true

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        documents = self._documents[handle]
        life, now = documents.life, int(self.sandbox.now().timestamp())
        values: list[TrueValue] = []
        slept: dict[dt.date, list[Night]] = {}
        pulses: dict[dt.date, list[float]] = {}
        for day in life.days(max(EPOCH, start - 2 * _ONE_DAY), end + 2 * _ONE_DAY):
            if start <= day.date <= end:
                values += self._true_day(documents, day, now)
            values += [
                value
                for value in self._true_measures(documents, day, now)
                if start <= value.local_date <= end
            ]
            for night in documents.seen_sleeps(day):
                if night.wake + SYNC_DELAY <= now and night.time_in_bed >= _SHORTEST_NIGHT:
                    slept.setdefault(life.timeline.local(night.wake).date(), []).append(night)
            for time, bpm in self._true_pulses(documents, day, now):
                pulses.setdefault(self._home_date(documents, time), []).append(bpm)
        for date in sorted(slept.keys() & _dates(start, end)):
            values += night_values(date, slept[date])
            values.append(TrueValue("sleep_score", date, score(slept[date][-1]), 0))
        values += [
            TrueValue("heart_rate", date, float(np.mean(pulses[date])), 1e-6)
            for date in sorted(pulses.keys() & _dates(start, end))
        ]
        return values

    @staticmethod
    def _home_date(documents: Documents, instant: float) -> dt.date:
        return dt.datetime.fromtimestamp(instant, ZoneInfo(documents.person.zone)).date()

    @staticmethod
    def _true_day(documents: Documents, day: Day, now: int) -> list[TrueValue]:
        lived = activity(documents.life, day)
        if day.end + SYNC_DELAY > now or not lived.worn.any():
            return []
        seen = effort(documents.life, day)
        active = int((lived.worn & (lived.met >= 3.0)).sum())
        return [
            TrueValue("steps", day.date, lived.recorded_steps, 0),
            TrueValue("distance", day.date, seen["distance"], 0.001),
            TrueValue("floors", day.date, seen["floors"], 0),
            TrueValue("calories_burned", day.date, seen["active"], 0.001),
            TrueValue("total_calories", day.date, seen["total"], 0.001),
            TrueValue("active_minutes", day.date, active, 0.001),
        ]

    def _true_measures(self, documents: Documents, day: Day, now: int) -> list[TrueValue]:
        late = 86_400 if day.index % 11 == 4 else 60
        found: list[tuple[int, dict[str, float]]] = []
        if day.night_worn:
            found.append((day.wake + 300, {"spo2": round(body.spo2(documents.life, day), 1)}))
        if day.illness > 0.3:
            found.append((day.wake + 600, {"body_temperature": warmth(day)}))
        scale = body.weigh_in(documents.life, day)
        if scale is not None:
            age = body.vascular_age(documents.life, day)
            composition = {
                "weight": scale.weight,
                "body_fat": scale.fat_percent,
                "fat_mass": scale.fat,
                "lean_mass": scale.weight - scale.fat,
                "muscle_mass": scale.muscle,
                "body_water": scale.water,
                "bone_mass": scale.bone,
                "pulse_wave_velocity": body.pulse_wave_velocity(age),
                "vascular_age": age,
            }
            pressure = {
                "blood_pressure_systolic": float(scale.systolic),
                "blood_pressure_diastolic": float(scale.diastolic),
            }
            found += [(scale.instant, composition), (scale.instant + 120, pressure)]
        return [
            TrueValue(metric, self._home_date(documents, instant), float(value), 0.006)
            for instant, metrics in found
            if instant + late <= now
            for metric, value in metrics.items()
        ]

    @staticmethod
    def _true_pulses(documents: Documents, day: Day, now: int) -> list[tuple[int, float]]:
        awake = awake_pulse(heart_rate(documents.life, day))
        found = [
            (time, float(bpm))
            for time, bpm in zip(awake.time.tolist(), awake.bpm.tolist(), strict=True)
            if time <= now
        ]
        for night in documents.seen_sleeps(day):
            if night.wake + SYNC_DELAY <= now:
                pulse = zip(range(night.bed, night.wake, 300), night.heart_rate.tolist(), strict=False)
                found += [(time, bpm) for time, bpm in pulse if bpm == bpm]
        scale = body.weigh_in(documents.life, day)
        late = 86_400 if day.index % 11 == 4 else 60
        if scale is not None and scale.instant + 120 + late <= now:
            found.append((scale.instant + 120, float(scale.pulse)))
        return found

    # Routes

    async def _call(self, request: Request) -> Response:
        form = dict(request.query_params) | dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
        path = request.url.path.removeprefix(f"/{self.name}/")
        try:
            grant = self.oauth.grant(request)
        except TokenError as error:
            return self.unauthorized(str(error))
        found = self._actions.get((path, form.get("action", "")))
        if found is None:
            return _answer({}, 2554, "Not implemented")
        scope, act = found
        if scope not in grant.scopes:
            return _answer({}, 2555, f"Unauthorized: the scope {scope} was not granted")
        try:
            return _answer(act(self._documents[grant.handle], form))
        except _ApiError as error:
            return _answer({}, error.status, error.error)

    async def _getnonce(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
        if form.get("action") != "getnonce":
            return _answer({}, 2554, "Not implemented")
        if not form.get("timestamp", "").isdigit():
            return _answer({}, 503, "Invalid params: timestamp")
        if not self._is_signed(form, "timestamp"):
            return _answer({}, 277, "Invalid signature")
        nonce = secrets.token_hex(20)
        self._nonces[nonce] = monotonic() + _NONCE_SECONDS
        return _answer({"nonce": nonce})

    def _is_signed(self, form: Form, last: str) -> bool:
        """By the secret of the client it names, over action, client id and `last`."""
        secret = self.sandbox.settings.clients.get(form.get("client_id", ""))
        if secret is None:
            return False
        text = ",".join(form.get(name, "") for name in ("action", "client_id", last))
        good = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
        return hmac.compare_digest(good, form.get("signature", ""))

    def _revoke(self, form: dict[str, str]) -> Response | None:
        """Ends a person's consent and notifications; a nonce is spent by being shown."""
        if form.get("action") != "revoke":
            return None
        until = self._nonces.pop(form.get("nonce", ""), 0.0)
        if not self._is_signed(form, "nonce"):
            return _answer({}, 277, "Invalid signature")
        if monotonic() >= until:
            return _answer({}, 277, "Invalid nonce")
        handle = next((name for name in self._documents if str(_user_id(name)) == form.get("userid")), None)
        if handle is None:
            return _answer({}, 503, "Invalid params: userid")
        self.oauth.counts["revoke"] += 1
        self.oauth.revoke_person(handle)
        for one in [each for each in self.subscribers if each.handle == handle]:
            self.subscribers.remove(one.subscription_id)
        return _answer({})

    async def _notify(self, request: Request) -> Response:
        """Who is told of a person's data, by `appli`; an address is asked with HEAD before it is taken."""
        form = dict(request.query_params) | dict(parse_qsl((await request.body()).decode("utf-8", "replace")))
        try:
            grant = self.oauth.grant(request)
        except TokenError as error:
            return self.unauthorized(str(error))
        action, appli, address = (form.get(name, "") for name in ("action", "appli", "callbackurl"))
        mine = [one for one in self.subscribers if one.handle == grant.handle]
        if action == "list":
            return _answer({"profiles": [one.details for one in mine if appli in ("", *one.kinds)]})
        if action not in ("get", "subscribe", "revoke"):
            return _answer({}, 2554, "Not implemented")
        if appli not in _APPLIS:
            return _answer({}, 503, "Invalid params: appli")
        found = next((one for one in mine if one.address == address and appli in one.kinds), None)
        if action == "subscribe":
            return await self._subscribe(grant, appli, address, form.get("comment", ""), found)
        if found is None:
            return _answer({}, 286, "No such subscription was found")
        if action == "revoke":
            self.subscribers.remove(found.subscription_id)
        return _answer(found.details if action == "get" else {})

    async def _subscribe(
        self, grant: Grant, appli: str, address: str, comment: str, found: Subscribed | None
    ) -> Response:
        if _APPLIS[appli] not in grant.scopes:
            return _answer({}, 2555, f"Unauthorized: the scope {_APPLIS[appli]} was not granted")
        answer = await ask("HEAD", address)
        if answer is None or answer.status_code != 200:
            return _answer({}, 293, "Callback URL is either unknown or invalid")
        if found is None:
            details = {"appli": int(appli), "callbackurl": address, "comment": comment}
            self.subscribers.add(
                Subscribed(address, frozenset({appli}), secret="", handle=grant.handle, details=details)
            )
        return _answer({})

    def _getmeas(self, documents: Documents, form: Form) -> object:
        wanted = _integers(form, "meastypes") | _integers(form, "meastype")
        if form.get("category") == "2":
            rows: list[Row] = []
        else:
            rows = self._rows(documents, form, documents.measures, by_day=False)
        groups = []
        for row in rows:
            measures = [m for m in row.payload["measures"] if not wanted or m["type"] in wanted]
            if measures:
                groups.append({**row.payload, "measures": measures})
        page, rest = self._page(groups, form)
        return {
            "updatetime": int(self.sandbox.now().timestamp()),
            "timezone": documents.person.zone,
            "measuregrps": page,
            **({"more": 1, "offset": rest} if rest else {"more": 0, "offset": 0}),
        }

    def _getactivity(self, documents: Documents, form: Form) -> object:
        def of_day(day: Day) -> list[Row]:
            row = documents.activity(day)
            return [] if row is None else [row]

        rows = self._rows(documents, form, of_day, by_day=True)
        return self._paged("activities", [_named(row.payload, form) for row in rows], form)

    def _getworkouts(self, documents: Documents, form: Form) -> object:
        rows = self._rows(documents, form, documents.workouts, by_day=True)
        found = [{**row.payload, "data": _named(row.payload["data"], form)} for row in rows]
        return self._paged("series", found, form)

    def _getsummary(self, documents: Documents, form: Form) -> object:
        rows = self._rows(documents, form, documents.sleeps, by_day=True)
        found = [{**row.payload, "data": _named(row.payload["data"], form, _PLAIN_SLEEP)} for row in rows]
        return self._paged("series", found, form)

    def _getintradayactivity(self, documents: Documents, form: Form) -> object:
        now = int(self.sandbox.now().timestamp())
        first = _epoch(form, "startdate", now - _LONGEST_SPAN)
        last = min(_epoch(form, "enddate", now), first + _LONGEST_SPAN, now)
        found = documents.intraday(first, last) if last >= first else {}
        named = {str(time): _named(sample, form) for time, sample in found.items()}
        series = {time: sample for time, sample in named.items() if sample.keys() - set(_OF_THE_ROW)}
        # An empty array of PHP is a list in JSON.
        return {"series": series or []}

    def _getsleep(self, documents: Documents, form: Form) -> object:
        now = int(self.sandbox.now().timestamp())
        first, last = _epoch(form, "startdate"), _epoch(form, "enddate")
        last = min(last, first + _LONGEST_SPAN)
        parts = [_named(part, form) for part in documents.parts(first, last, now)]
        return {"series": parts, "model": 16}

    def _getdevice(self, documents: Documents, form: Form) -> object:
        now = int(self.sandbox.now().timestamp())
        devices = (
            ("Scale", "Body Comp", 18),
            ("Blood Pressure Monitor", "BPM Connect", 45),
            ("Activity Tracker", "ScanWatch", 93),
        )
        return {
            "devices": [
                {
                    "type": kind,
                    "battery": "high",
                    "model": model,
                    "model_id": model_id,
                    "timezone": documents.person.zone,
                    "first_session_date": int(dt.datetime.combine(EPOCH, dt.time(), dt.UTC).timestamp()),
                    "last_session_date": now - 3600,
                    "deviceid": documents.device(model),
                    "hash_deviceid": documents.device(model),
                }
                for kind, model, model_id in devices
            ]
        }

    # Parts

    def _rows(
        self, documents: Documents, form: Form, of_day: Callable[[Day], Iterable[Row]], *, by_day: bool
    ) -> list[Row]:
        """The rows of a window, by local days or by instants, or of those changed since `lastupdate`."""
        now = int(self.sandbox.now().timestamp())
        today = documents.life.timeline.local(now).date()
        names = ("startdateymd", "enddateymd") if by_day else ("startdate", "enddate")
        start, end = EPOCH, today + 2 * _ONE_DAY
        keep: Callable[[Row], bool]
        if "lastupdate" in form:
            if names[0] in form or names[1] in form:
                raise _ApiError(503, "Invalid params: lastupdate goes without dates")
            since = _epoch(form, "lastupdate")
            keep = lambda row: row.modified >= since  # noqa: E731
        elif by_day:
            first, last = (_date(form, name) for name in names)
            start, end = max(start, first - 2 * _ONE_DAY), min(end, last + 2 * _ONE_DAY)
            keep = lambda row: first <= row.date <= last  # noqa: E731
        else:
            begin, until = _epoch(form, names[0], 0), _epoch(form, names[1], now)
            dates = [dt.datetime.fromtimestamp(second, dt.UTC).date() for second in (begin, until)]
            start, end = max(start, dates[0] - 2 * _ONE_DAY), min(end, dates[1] + 2 * _ONE_DAY)
            keep = lambda row: begin <= row.instant <= until  # noqa: E731
        if end < start:
            return []
        rows = (row for day in documents.life.days(start, end) for row in of_day(day))
        return [row for row in rows if row.modified <= now and keep(row)]

    def _page(self, rows: list[Any], form: Form) -> tuple[list[Any], int]:
        offset = _epoch(form, "offset", 0)
        size = self.sandbox.settings.document_page_size
        following = offset + size
        return rows[offset:following], following if following < len(rows) else 0

    def _paged(self, name: str, rows: list[Any], form: Form) -> dict[str, Any]:
        page, rest = self._page(rows, form)
        return {name: page, "more": bool(rest), "offset": rest}


def _dates(start: dt.date, end: dt.date) -> set[dt.date]:
    return {start + n * _ONE_DAY for n in range((end - start).days + 1)}


def _named(values: dict[str, Any], form: Form, plain: Iterable[str] = ()) -> dict[str, Any]:
    """The values that `data_fields` names, and what every row has."""
    wanted = set(form["data_fields"].split(",")) if form.get("data_fields") else set(plain)
    return {name: value for name, value in values.items() if name in wanted or name in _OF_THE_ROW}


def _integers(form: Form, name: str) -> set[int]:
    try:
        return {int(part) for part in form.get(name, "").split(",") if part}
    except ValueError as error:
        raise _ApiError(503, f"Invalid params: {name}") from error


def _epoch(form: Form, name: str, default: int | None = None) -> int:
    text = form.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdigit() or len(text) > 11:
        raise _ApiError(503, f"Invalid params: {name}")
    return int(text)


def _date(form: Form, name: str) -> dt.date:
    try:
        return dt.date.fromisoformat(form.get(name, ""))
    except ValueError as error:
        raise _ApiError(503, f"Invalid params: {name}") from error
