"""Google Health API v4, the successor of Fitbit's Web API: heart, activity, sleep, body and workouts.

Windows are civil (user-local) days on this wire, too. What may come from several devices at once and adds up
(steps, distance, energy, sleep, workouts) is read by `reconcile`, which gives the one merged stream that the
app shows; totals that have no other form come by `dailyRollUp`; the rest by `list`, with its device.
There is no query for what changed, and a device syncs days late: every fetch reads some days again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers import _google_health_webhook as webhook
from health_pipeline.providers._google_health_columns import (
    COLUMNS,
    STAGE_TYPE,
    STAGES,
    ZEROS,
    known_fields,
)
from health_pipeline.providers._json import (
    MalformedBodyError,
    load_object,
    original_json,
    original_text,
    quarantine_table,
    read_records,
    schema_of,
    unknown_fields,
)
from health_pipeline.providers.base import (
    Account,
    Budget,
    Entity,
    OAuth,
    Page,
    Parsed,
    Provider,
    RawDocument,
    Verdict,
    Window,
)
from health_pipeline.providers.http import (
    ApiClient,
    MalformedResponseError,
    PermissionMissingError,
    RequestRejectedError,
)

if TYPE_CHECKING:
    import httpx

_IDENTITY = "/v4/users/me/identity"
_SETTINGS = "/v4/users/me/settings"

_SCOPE = "https://www.googleapis.com/auth/googlehealth."
_ACTIVITY = f"{_SCOPE}activity_and_fitness.readonly"
_METRICS = f"{_SCOPE}health_metrics_and_measurements.readonly"
_SLEEP = f"{_SCOPE}sleep.readonly"

Method = Literal["list", "reconcile", "dailyRollUp"]


@dataclass(frozen=True, slots=True)
class _Reading:
    """How a data type is read. `day` is the member that a filter selects civil days by; rollups have none."""

    method: Method
    scope: str
    description: str
    day: str = ""
    page_size: int = 10_000
    max_window_days: int = 90
    lookback_days: int = 7

    @property
    def records(self) -> str:
        """The body's array of records."""
        return "rollupDataPoints" if self.method == "dailyRollUp" else "dataPoints"


def _samples(description: str, scope: str = _METRICS, *, max_window_days: int = 90) -> _Reading:
    return _Reading("list", scope, description, "sample_time.civil_time", max_window_days=max_window_days)


def _daily(description: str, scope: str = _METRICS) -> _Reading:
    return _Reading("list", scope, description, "date")


def _intervals(description: str) -> _Reading:
    return _Reading("reconcile", _ACTIVITY, description, "interval.civil_start_time", max_window_days=31)


def _sessions(description: str, scope: str, day: str) -> _Reading:
    # More than 25 a page are not given.
    return _Reading("reconcile", scope, description, day, page_size=25)


def _roll_up(description: str, days: int) -> _Reading:
    """`days` is the longest range the vendor takes, and the most days it gives in a page."""
    return _Reading("dailyRollUp", _ACTIVITY, description, page_size=days, max_window_days=days)


_READINGS: Mapping[str, _Reading] = {
    # A sample each few seconds: a fortnight is some ten full pages.
    "heart_rate": _samples("One row a heart rate sample of a device.", max_window_days=15),
    "heart_rate_variability": _samples("One row an HRV sample (rMSSD, ms), about each 5 minutes asleep."),
    "oxygen_saturation": _samples("One row a blood oxygen sample, %."),
    "core_body_temperature": _samples("One row a measurement of core body temperature."),
    "weight": _samples("One row a weighing."),
    "body_fat": _samples("One row a measurement of body fat, %."),
    "height": _samples("One row a body height that was entered."),
    "daily_resting_heart_rate": _daily("One row a local day: resting heart rate."),
    "daily_heart_rate_variability": _daily("One row a local day: HRV (rMSSD, ms) of the night."),
    "daily_oxygen_saturation": _daily("One row a local day: blood oxygen asleep, %."),
    "daily_respiratory_rate": _daily("One row a local day: breaths a minute asleep."),
    "daily_sleep_temperature_derivations": _daily(
        "One row a local day: skin temperature asleep, and its 30-day baseline."
    ),
    "daily_vo2_max": _daily("One row a local day: estimated VO2max.", _ACTIVITY),
    "steps": _intervals("One row a minute or so with steps, of all devices merged."),
    "distance": _intervals("One row a minute or so of distance, of all devices merged."),
    "active_energy_burned": _intervals("One row a minute or so of active energy, of all devices merged."),
    "floors": _roll_up("One row a local day: floors climbed.", 90),
    "total_calories": _roll_up("One row a local day: all energy, rest included.", 14),
    "active_minutes": _roll_up("One row a local day: minutes of light, moderate, vigorous activity.", 14),
    "active_zone_minutes": _roll_up("One row a local day: active zone minutes, intense ones twice.", 90),
    "sleep": _sessions("One row a sleep, naps too.", _SLEEP, "interval.civil_end_time"),
    "exercise": _sessions("One row a workout.", _ACTIVITY, "interval.civil_start_time"),
}

_STAGE_SCHEMA = pa.schema([pa.field("sleep_id", pa.string(), nullable=False), *STAGE_TYPE])

#: What an error's `reason` means where its status does not say it, and what to tell people.
_REASONS: Mapping[str, Verdict] = {
    # Nothing can be had for this account until its person has done something.
    "ACCOUNT_NOT_LINKED": Verdict(
        "unauthorized", message="the Google account has no Google Health (Fitbit) data; link it in the app"
    ),
    "SERVICE_DISABLED": Verdict(
        "rejected", message="the Google Health API is not enabled in the Cloud project of the client id"
    ),
    "RESOURCE_PERMISSION_DENIED": Verdict(
        "forbidden", message="Google denies access to this data; connecting the account again has mended it"
    ),
}


def interpret(response: httpx.Response, _now: float) -> Verdict | None:
    """An error by the `reason` in its details. A 429 names no time to wait: the client's backoff has to do."""
    if response.status_code not in (400, 403):
        return None
    try:
        error = load_object(response.content).get("error")
    except MalformedBodyError:
        return None
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else ():
        reason = detail.get("reason") if isinstance(detail, dict) else None
        if isinstance(reason, str) and reason in _REASONS:
            return _REASONS[reason]
    return None


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """The pages of an entity's civil days; an empty page may be followed by others.

    A page whose body cannot be paged through is yielded, so that it is kept, and MalformedResponseError is
    raised after it. Raises the errors of `ApiClient.request`.
    """
    if entity.endpoint is None:
        raise ValueError(f"google_health has no endpoint for {entity.name}: it is filled from other objects")
    reading = _READINGS[entity.name]
    if reading.method == "dailyRollUp":
        asked = {"range": _civil_range(window), "windowSizeDays": 1, "pageSize": reading.page_size}
        yield from _pages(client, entity, window, reading, asked)
        return
    if reading.day != "date":
        yield from _pages(client, entity, window, reading, _list_query(entity.name, reading, window))
        return
    # The vendor documents the snake case; accounts were seen for which it found nothing, and camel case did.
    found, refusal = False, None
    try:
        for page in _pages(client, entity, window, reading, _list_query(entity.name, reading, window)):
            found = found or _has_records(page.content, reading)
            yield page
    except RequestRejectedError as error:
        refusal = error
    if found:
        return
    camel = _list_query(entity.name, reading, window, _camel(entity.name))
    try:
        yield from _pages(client, entity, window, reading, camel)
    except RequestRejectedError:
        if refusal is not None:
            raise refusal from None


def _pages(
    client: ApiClient, entity: Entity, window: Window, reading: _Reading, asked: Mapping[str, Any]
) -> Iterator[Page]:
    assert entity.endpoint is not None
    seen: set[str] = set()
    while True:
        if reading.method == "dailyRollUp":
            content = client.request("POST", entity.endpoint, json=asked).content
        else:
            content = client.get(entity.endpoint, asked).content
        yield Page(entity.name, content, window)
        next_token = _next_token(client, entity.endpoint, reading, content)
        if next_token is None:
            return
        if next_token in seen:
            raise MalformedResponseError(
                client.provider, entity.endpoint, 200, "the pages go round in a circle"
            )
        seen.add(next_token)
        asked = {**asked, "pageToken": next_token}


def _list_query(name: str, reading: _Reading, window: Window, spelling: str | None = None) -> dict[str, Any]:
    member = f"{spelling or name}.{reading.day}"
    after = window.end + dt.timedelta(days=1)
    return {
        "filter": f'{member} >= "{window.start}" AND {member} < "{after}"',
        "pageSize": reading.page_size,
    }


def _civil_range(window: Window) -> dict[str, Any]:
    """From the first day's midnight to the one after the last day, which is not included."""
    first, after = window.start, window.end + dt.timedelta(days=1)
    return {
        name: {"date": {"year": day.year, "month": day.month, "day": day.day}}
        for name, day in (("start", first), ("end", after))
    }


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _next_token(client: ApiClient, path: str, reading: _Reading, content: bytes) -> str | None:
    try:
        body = load_object(content)
    except MalformedBodyError as error:
        problem = str(error)
    else:
        next_token = body.get("nextPageToken")
        if _records(body, reading) is not None and (next_token is None or isinstance(next_token, str)):
            return next_token or None
        problem = f"the body has no {reading.records} array or no usable nextPageToken"
    raise MalformedResponseError(client.provider, path, 200, f"{problem}; the rest of the pages is unknown")


def _records(body: Mapping[str, Any], reading: _Reading) -> list[Any] | None:
    """The body's records. An empty array is left out on this wire; None where the body is something else."""
    records = body.get(reading.records)
    if records is None and not body.keys() - {"nextPageToken", reading.records}:
        return []
    return records if isinstance(records, list) else None


def _has_records(content: bytes, reading: _Reading) -> bool:
    try:
        return bool(_records(load_object(content), reading))
    except MalformedBodyError:
        return False


def identify(client: ApiClient) -> Account:
    """Who the tokens belong to: the health user id, with the old Fitbit id and the account's time zone.

    The zone is left out where the settings may not be read.
    """
    response = client.get(_IDENTITY)
    try:
        body = load_object(response.content)
    except MalformedBodyError:
        body = {}
    user_id, legacy = body.get("healthUserId"), body.get("legacyUserId")
    if not isinstance(user_id, str) or not user_id:
        raise MalformedResponseError(client.provider, _IDENTITY, response.status_code, "no user id came")
    profile = {"legacy_user_id": legacy} if isinstance(legacy, str) and legacy else {}
    try:
        time_zone = load_object(client.get(_SETTINGS).content).get("timeZone")
    except (PermissionMissingError, RequestRejectedError, MalformedBodyError):
        time_zone = None
    if isinstance(time_zone, str) and time_zone:
        profile["time_zone"] = time_zone
    return Account(user_id, profile)


def parse(document: RawDocument) -> Parsed:
    """A page of one data type as staging rows; sleeps give `sleep_stage` rows, too.

    A record with a wrong type or without a required field goes to quarantine, alone. Fields we do not know
    are named in the notes. Raises KeyError for an entity that has no pages.
    """
    entity = document.entity
    reading, columns = _READINGS[entity], COLUMNS[entity]
    try:
        points = _records(load_object(document.content), reading)
    except MalformedBodyError:
        points = None
    if points is None:
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, refused), records_in=1, records_loaded=0)

    records = _with_names(points, entity) if entity in ("sleep", "exercise") else _with_zeros(points, entity)
    read = read_records(records, (*columns, STAGES) if entity == "sleep" else columns)
    tables = {entity: read.table.select(schema_of(columns).names)}
    if entity == "sleep":
        tables["sleep_stage"] = _sleep_stages(read.table)
    return Parsed(
        tables=tables,
        quarantine=quarantine_table(
            entity,
            (
                (bad.reason, bad.field, f"{reading.records}[{bad.index}]", original_json(points[bad.index]))
                for bad in read.refused
            ),
        ),
        records_in=len(points),
        records_loaded=read.table.num_rows,
        notes=tuple(f"{entity}: new field {path}" for path in unknown_fields(points, known_fields(entity))),
    )


def _with_zeros(points: Sequence[Any], entity: str) -> Sequence[Any]:
    """The points with the zeros that the wire leaves out, unless something unknown stands in their place."""
    if entity not in ZEROS:
        return points
    message, names, zero = ZEROS[entity]
    zeros = dict.fromkeys(names, zero)
    allowed = {*names, "interval"}
    return [
        {**point, message: zeros | said}
        if isinstance(point, dict)
        and isinstance(said := point.get(message), dict)
        and not said.keys() >= zeros.keys()
        and said.keys() <= allowed
        else point
        for point in points
    ]


def _with_names(points: Sequence[Any], entity: str) -> Sequence[Any]:
    """The points with a name each: their own, or the start of the session, which has not been seen to change."""
    named = []
    for point in points:
        if isinstance(point, dict) and point.get("dataPointName") is None:
            session = point.get(entity)
            interval = session.get("interval") if isinstance(session, dict) else None
            start = interval.get("startTime") if isinstance(interval, dict) else None
            point = {**point, "dataPointName": point.get("name") or start}
        named.append(point)
    return named


def _sleep_stages(sleeps: pa.Table) -> pa.Table:
    stages = sleeps["stages"].combine_chunks()
    items = pc.list_flatten(stages)
    columns = [sleeps["id"].take(pc.list_parent_indices(stages)), *items.flatten()]
    return pa.table(columns, names=_STAGE_SCHEMA.names).cast(_STAGE_SCHEMA)


def _entity(name: str, reading: _Reading) -> Entity:
    keys = {
        "list": ("day",) if reading.day == "date" else ("recorded_at", "device"),
        "reconcile": ("id",) if name in ("sleep", "exercise") else ("recorded_at",),
        "dailyRollUp": ("day",),
    }
    collection = f"/v4/users/me/dataTypes/{name.replace('_', '-')}/dataPoints"
    return Entity(
        name=name,
        schema=schema_of(COLUMNS[name]),
        key=keys[reading.method],
        description=reading.description,
        endpoint=collection if reading.method == "list" else f"{collection}:{reading.method}",
        paging="cursor",
        lookback_days=reading.lookback_days,
        max_window_days=reading.max_window_days,
        scope=reading.scope,
    )


PROVIDER = Provider(
    name="google_health",
    title="Google Health",
    door="fetch",
    base_url="https://health.googleapis.com",
    oauth=OAuth(
        authorize_url="https://accounts.google.com/o/oauth2/v2/auth",
        token_url="https://oauth2.googleapis.com/token",  # noqa: S106
        revoke_url="https://oauth2.googleapis.com/revoke",
        # The settings say the person's time zone.
        scopes=(_ACTIVITY, _METRICS, _SLEEP, f"{_SCOPE}settings.readonly"),
        pkce=True,
        rotates_refresh_token=False,
        # Without these no refresh token comes, or none at the second consent.
        authorize_params={"access_type": "offline", "prompt": "consent", "include_granted_scopes": "true"},
    ),
    budgets=(Budget(120_000, 60), Budget(300, 60, per="account")),
    limit_signal="429 RESOURCE_EXHAUSTED, without a time to wait",
    interpret=interpret,
    entities=(
        *(_entity(name, reading) for name, reading in _READINGS.items()),
        Entity(
            name="sleep_stage",
            schema=_STAGE_SCHEMA,
            key=("sleep_id", "started_at"),
            description="One row a stage of a sleep, in the vendor's words: DEEP, LIGHT, REM, AWAKE, ASLEEP, RESTLESS.",
        ),
    ),
    webhook=webhook.webhook({name.replace("_", "-"): name for name in _READINGS}),
    parse=parse,
    fetch=fetch,
    identify=identify,
)
