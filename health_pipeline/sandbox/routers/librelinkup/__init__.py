"""LibreLinkUp, the follower's API: sign-in by region, the app's headers, graph and logbook.

The hosts of the vendor's regions are paths here: `/eu2/llu/…` is `/llu/…` on the host of that region.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import orjson
from fastapi import APIRouter, Request
from fastapi.responses import Response

from health_pipeline.sandbox.activity import Flags, Ints
from health_pipeline.sandbox.context import Sandbox
from health_pipeline.sandbox.glucose import HIGHEST, LOWEST, midnight, readings, sensor_life
from health_pipeline.sandbox.life import Life, life_of
from health_pipeline.sandbox.oauth import OAuthRules, TokenError
from health_pipeline.sandbox.people import EPOCH, Person, person
from health_pipeline.sandbox.routers import ProviderApi, Revision, SampleRequest, TrueValue

#: The oldest version of the app that is served.
MINIMUM_VERSION = (4, 16, 0)

_MG_DL_PER_MMOL_L = 18.0156
_TICKET_SECONDS = 180 * 86_400
_GRAPH = dt.timedelta(hours=12)
_LOGBOOK = dt.timedelta(days=14)
#: The history lags behind the present value.
_LAG_SECONDS = 900
_FAILURES_BEFORE_LOCK, _LOCKOUT_SECONDS = 3, 300
_ONE_DAY = dt.timedelta(days=1)
#: mg/dL a minute, from below.
_ARROWS = ((-2.0, 1), (-1.0, 2), (1.0, 3), (2.0, 4))


def password_of(person: Person) -> str:
    """What the person's follower signs in with, together with the person's address."""
    return f"{person.handle} follows"


def region_of(person: Person) -> str:
    return "us" if person.zone.startswith("America/") else "eu2"


def _user_id(person: Person) -> str:
    return person.uuid("librelinkup", "follower")


def _account_id(person: Person) -> str:
    return hashlib.sha256(_user_id(person).encode()).hexdigest()


def _patient_id(person: Person) -> str:
    return person.uuid("librelinkup", "patient")


def _json(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


class _RefusedError(Exception):
    def __init__(self, response: Response) -> None:
        self.response = response


class API(ProviderApi):
    """LibreLinkUp. `pending_step` makes every sign-in wait for the person, as new terms of use do."""

    name: ClassVar[str] = "librelinkup"
    #: There is no OAuth: tokens are made and read by its machinery, and given out by the sign-in.
    oauth_rules: ClassVar[OAuthRules] = OAuthRules(scopes=("follow",), revoke_path=None)
    samples: ClassVar[Mapping[str, SampleRequest]] = MappingProxyType(
        {
            "graph.json": SampleRequest(f"/us/llu/connections/{_patient_id(person('dana'))}/graph"),
            "logbook.json": SampleRequest(f"/us/llu/connections/{_patient_id(person('dana'))}/logbook"),
        }
    )
    sample_person: ClassVar[str] = "dana"

    def __init__(self, sandbox: Sandbox) -> None:
        super().__init__(sandbox)
        self.pending_step: str | None = None
        self._failures: Counter[str] = Counter()
        self._locked_until: dict[str, float] = {}

    def router(self) -> APIRouter:
        router = APIRouter()
        for prefix in ("/llu", "/{region}/llu"):
            router.add_api_route(f"{prefix}/auth/login", self._login, methods=["POST"])
            router.add_api_route(f"{prefix}/connections", self._connections, methods=["GET"])
            router.add_api_route(f"{prefix}/connections/{{patient}}/graph", self._graph, methods=["GET"])
            router.add_api_route(f"{prefix}/connections/{{patient}}/logbook", self._logbook, methods=["GET"])
        return router

    def headers_of(self, handle: str) -> Mapping[str, str]:
        """What a signed-in app sends."""
        return {
            "product": "llu.android",
            "version": ".".join(map(str, MINIMUM_VERSION)),
            "Authorization": f"Bearer {self.oauth.access_token(handle)}",
            "account-id": _account_id(self.sandbox.people[handle]),
        }

    def sample_headers(self, handle: str) -> Mapping[str, str]:
        return self.headers_of(handle)

    def unauthorized(self, reason: str) -> Response:
        return _json({"status": 2, "error": {"message": f"notAuthenticated: {reason}"}}, 401)

    def rate_limited(self, retry_after: int) -> Response:
        detail = {"failures": 3, "interval": 60, "lockout": retry_after}
        return _json({"status": 429, "data": {"code": 60, "data": detail, "message": "locked"}}, 429)

    def revise(self, handle: str, day: dt.date, kind: Revision) -> list[str]:
        raise LookupError("what a sensor has said is never changed")

    def account(self, handle: str) -> Mapping[str, str]:
        person = self.sandbox.people[handle]
        if person.cgm is None:
            raise LookupError(f"{handle} wears no glucose sensor")
        return {"user_name": person.email, "password": password_of(person)}

    def truth(self, handle: str, start: dt.date, end: dt.date) -> list[TrueValue]:
        person = self.sandbox.people[handle]
        if person.cgm is None:
            return []
        life, found = life_of(person), []
        time, value = self._history(life)
        date = start
        while date <= end:
            of_date = (time >= midnight(life, date)) & (time < midnight(life, date + _ONE_DAY))
            if of_date.any():
                mean = float(np.clip(value[of_date], LOWEST, HIGHEST).mean())
                found.append(TrueValue("glucose", date, mean, 1e-6))
            date += _ONE_DAY
        return found

    # Routes

    async def _login(self, request: Request) -> Response:
        try:
            self._check_app(request)
            body = orjson.loads(await request.body())
            address, password = str(body["email"]), str(body["password"])
        except _RefusedError as error:
            return error.response
        except (ValueError, KeyError, TypeError):
            return _json({"status": 2, "error": {"message": "missingCredentials"}})
        now = self.sandbox.now().timestamp()
        if self._locked_until.get(address, 0) > now:
            return _json(self._lock(address))
        person = next((p for p in self.sandbox.people.values() if p.email == address), None)
        if person is None or password != password_of(person):
            self._failures[address] += 1
            if self._failures[address] >= _FAILURES_BEFORE_LOCK:
                self._locked_until[address] = now + _LOCKOUT_SECONDS
                return _json(self._lock(address))
            return _json({"status": 2, "error": {"message": "notAuthenticated"}})
        self._failures.pop(address, None)
        if request.path_params.get("region") != region_of(person):
            return _json({"status": 0, "data": {"redirect": True, "region": region_of(person)}})
        ticket = {
            "token": self.oauth.access_token(person.handle),
            "expires": int(now) + _TICKET_SECONDS,
            "duration": _TICKET_SECONDS * 1000,
        }
        if self.pending_step is not None:
            step = {"type": self.pending_step, "componentName": "AcceptDocument"}
            return _json({"status": 4, "data": {"step": step, "authTicket": ticket}})
        self.oauth.counts["login"] += 1
        user = {"id": _user_id(person), "country": "US" if region_of(person) == "us" else "GB"}
        return _json({"status": 0, "data": {"user": user, "authTicket": ticket}})

    async def _connections(self, request: Request) -> Response:
        try:
            person = self._whose(request)
        except _RefusedError as error:
            return error.response
        found = [] if person.cgm is None else [self._connection(person)]
        return _json({"status": 0, "data": found})

    async def _graph(self, request: Request, patient: str) -> Response:
        try:
            person = self._whose(request, patient)
        except _RefusedError as error:
            return error.response
        time, value = self._history(life_of(person))
        data = {
            "connection": self._connection(person),
            "activeSensors": [],
            "graphData": _measurements(life_of(person), time, value, kind=0),
        }
        return _json({"status": 0, "data": data})

    async def _logbook(self, request: Request, patient: str) -> Response:
        try:
            person = self._whose(request, patient)
        except _RefusedError as error:
            return error.response
        life = life_of(person)
        time, value = self._seen(life, _LOGBOOK)
        # By the instant alone, so that a scan is in every logbook that reaches back to it.
        luck = time // 300 * 2_654_435_761 % 2**32 / 2**32
        scanned = (luck < 0.01) & (np.arange(time.size) > 0)
        rows = _measurements(life, time, value, kind=1, chosen=scanned)
        return _json({"status": 0, "data": rows[::-1]})

    # Parts

    def _check_app(self, request: Request) -> None:
        if request.headers.get("product") not in ("llu.android", "llu.ios"):
            raise _RefusedError(_json({"message": "RequiredHeaderMissing"}, 400))
        parts = request.headers.get("version", "").split(".")
        version = tuple(int(part) for part in parts if part.isdigit())
        if version < MINIMUM_VERSION:
            wanted = ".".join(map(str, MINIMUM_VERSION))
            raise _RefusedError(_json({"data": {"minimumVersion": wanted}, "status": 920}, 403))

    def _whose(self, request: Request, patient: str | None = None) -> Person:
        """Whom the signed-in account follows."""
        self._check_app(request)
        try:
            person = self.sandbox.people[self.oauth.grant(request).handle]
        except TokenError as error:
            raise _RefusedError(self.unauthorized(str(error))) from error
        if "account-id" not in request.headers:
            raise _RefusedError(_json({"message": "RequiredHeaderMissing"}, 400))
        wrong_host = request.path_params.get("region") != region_of(person)
        if wrong_host or request.headers["account-id"] != _account_id(person):
            raise _RefusedError(self.unauthorized("not an account of this host"))
        if patient is not None and (person.cgm is None or patient != _patient_id(person)):
            raise _RefusedError(_json({"status": 1, "message": "couldNotLoadPatient"}))
        return person

    def _lock(self, address: str) -> dict[str, Any]:
        left = int(self._locked_until[address] - self.sandbox.now().timestamp())
        detail = {"failures": self._failures[address], "interval": 60, "lockout": left}
        return {"status": 429, "data": {"code": 60, "data": detail, "message": "locked"}}

    def _seen(self, life: Life, back: dt.timedelta) -> tuple[Ints, Ints]:
        """Instants and mg/dL of what the sensor measured in the time up to now."""
        now = self.sandbox.now()
        start = max((now - back).date() - _ONE_DAY, EPOCH)
        seen = readings(life.person, start, now.date() + _ONE_DAY, until=now)
        recent = seen.time > (now - back).timestamp()
        return seen.time[recent], seen.mg_dl[recent]

    def _history(self, life: Life) -> tuple[Ints, Ints]:
        time, value = self._seen(life, _GRAPH)
        settled = time <= self.sandbox.now().timestamp() - _LAG_SECONDS
        return time[settled], value[settled]

    def _connection(self, person: Person) -> dict[str, Any]:
        life = life_of(person)
        time, value = self._seen(life, _GRAPH)
        newest = np.arange(time.size) == time.size - 1
        present = _measurements(life, time, value, kind=1, chosen=newest)
        lasts, warm_up = sensor_life(person)
        worn_since = int(self.sandbox.now().timestamp()) // (lasts * 86_400) * lasts * 86_400
        first, last = person.name.split(" ", 1)
        return {
            "id": person.uuid("librelinkup", "connection"),
            "patientId": _patient_id(person),
            "firstName": first,
            "lastName": last,
            "targetLow": 70,
            "targetHigh": 180,
            "uom": _unit_code(person),
            "sensor": {
                "deviceId": "",
                "sn": person.uuid("libre", worn_since)[:10].upper(),
                "a": worn_since,
                "w": warm_up * 60,
                "pt": 4,
            },
            "glucoseMeasurement": present[0] if present else None,
        }


def _unit_code(person: Person) -> int:
    return 1 if region_of(person) == "us" else 0


def _stamp(moment: dt.datetime) -> str:
    hour = moment.hour % 12 or 12
    half = "AM" if moment.hour < 12 else "PM"
    return f"{moment.month}/{moment.day}/{moment.year} {hour}:{moment:%M:%S} {half}"


def _measurements(
    life: Life, time: Ints, mg_dl: Ints, *, kind: int, chosen: Flags | None = None
) -> list[dict[str, Any]]:
    """Measurements in order of time; only those of `kind` 1 have an arrow."""
    rows = []
    unit = _unit_code(life.person)
    for place in np.flatnonzero(chosen) if chosen is not None else range(time.size):
        instant, raw = int(time[place]), int(mg_dl[place])
        value = min(max(raw, LOWEST), HIGHEST)
        row: dict[str, Any] = {
            "FactoryTimestamp": _stamp(dt.datetime.fromtimestamp(instant, dt.UTC)),
            "Timestamp": _stamp(life.timeline.local(instant)),
            "type": kind,
            "ValueInMgPerDl": value,
            "MeasurementColor": 1 if 70 <= value <= 180 else 2 if value <= 240 else 3,
            "GlucoseUnits": unit,
            "Value": value if unit == 1 else round(value / _MG_DL_PER_MMOL_L, 1),
            "isHigh": raw > HIGHEST,
            "isLow": raw < LOWEST,
        }
        if kind == 1:
            before = max(int(place) - 1, 0)
            apart = int(time[place] - time[before])
            rate = float(mg_dl[place] - mg_dl[before]) * 60 / apart if 0 < apart < 900 else 0.0
            row["TrendArrow"] = next((arrow for limit, arrow in _ARROWS if rate <= limit), 5)
            row["TrendMessage"] = None
        rows.append(row)
    return rows
