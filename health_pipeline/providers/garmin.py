"""Garmin Health API: days, 15-minute epochs, nights, stress, body battery, blood pressure, scales, activities.

Garmin posts its data to us (see `_garmin_webhook`). What can be fetched is chosen by when the device uploaded
it, 24 hours at a time, and by default only with the token that a ping carries: `fetch_callback` follows a
ping, `request_backfill` has old days posted to us, and `fetch` asks the endpoints themselves.

The contract is that of open-source integrations; the vendor's own specification is confidential and not used.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._garmin_records import SUMMARIES, Summary
from health_pipeline.providers._garmin_tables import (
    LEVEL_SCHEMA,
    MEASURE_SCHEMA,
    NAP_SCHEMA,
    SAMPLE_SCHEMA,
    TRACK_SCHEMA,
    levels_of,
    means_of,
    measures_of,
    naps_of,
    samples_of,
    track_of,
)
from health_pipeline.providers._garmin_webhook import events, is_ping
from health_pipeline.providers._json import (
    MalformedBodyError,
    load_object,
    original_json,
    original_text,
    quarantine_table,
    read_records,
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
    Webhook,
    Window,
)
from health_pipeline.providers.http import (
    ApiClient,
    MalformedResponseError,
    RequestRejectedError,
)

_WELLNESS = "/wellness-api/rest"
_USER = "/partner-gateway/rest/user"

#: Longest span of upload time of one request, and of data time of one backfill request, in seconds. For the
#: latter sources say 30 or 90 days; 30 is good under both.
_UPLOAD_SPAN = 86_400
_BACKFILL_SPAN = 30 * 86_400

#: Seconds that local midnights are before and after UTC's, at most.
_EAST = 14 * 3600
_WEST = 12 * 3600

#: A device that syncs once a day brings the end of a day two days later.
_DAYS_TO_UPLOAD = 2

_CALLBACK = re.compile(rf"{_WELLNESS}/[A-Za-z]+(?:/[A-Za-z]+)?")


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """What was uploaded from the first day of `window` to two days after its last, 24 hours of upload a page.

    The days of a window are uploaded within it or after it, never before. Raises the errors of `ApiClient.get`;
    RequestRejectedError, too, where Garmin gives this application data on a ping's token only.
    """
    if entity.endpoint is None:
        raise ValueError(f"garmin has no endpoint for {entity.name}: it is filled from other objects")
    start = _midnight(window.start) - _EAST
    end = _midnight(window.end + dt.timedelta(days=1 + _DAYS_TO_UPLOAD))
    for first, last in _slices(start, end, _UPLOAD_SPAN):
        params = {"uploadStartTimeInSeconds": first, "uploadEndTimeInSeconds": last}
        yield Page(entity.name, client.get(entity.endpoint, params).content, window)


def fetch_callback(client: ApiClient, entity: Entity, url: str, window: Window) -> Page:
    """What a ping points to. Only an address of the API itself is followed: anybody can post a ping.

    Raises RequestRejectedError for any other address, without a request; and the errors of `ApiClient.get`,
    RequestRejectedError among them where the address is older than 24 hours.
    """
    try:
        asked = httpx.URL(url)
    except httpx.InvalidURL:
        asked = httpx.URL("")
    base = client.base_url
    root = base.raw_path.decode().rstrip("/")
    path = asked.raw_path.decode().split("?")[0]
    if (
        (asked.scheme, asked.netloc) != (base.scheme, base.netloc)
        or asked.userinfo
        or asked.fragment
        or not path.startswith(root)
        or not _CALLBACK.fullmatch(path.removeprefix(root))
    ):
        raise RequestRejectedError(
            client.provider, "callbackURL", None, "the ping's address is not one of this provider's API"
        )
    return Page(entity.name, client.get(url).content, window)


@dataclass(frozen=True, slots=True)
class Backfill:
    """What became of a backfill request: how many spans Garmin will post, and how many it had been asked for."""

    accepted: int
    duplicate: int


def request_backfill(client: ApiClient, summary_type: str, window: Window) -> Backfill:
    """Ask for the days of `window` to be posted to our webhook, 30 days a request, oldest first.

    `summary_type` is the name of an entity. A span that was asked for before counts as done: Garmin answers 409, and
    would not post it again before the person has disconnected and connected anew.

    Raises PermissionMissingError (historical data or this kind of data not granted), RequestRejectedError
    (before the earliest day there is, or the kind is not enabled for this application) and the other errors
    of `ApiClient.get`. Spans accepted before an error stay accepted; to ask again is harmless.
    """
    path = f"{_WELLNESS}/backfill/{SUMMARIES[summary_type].path}"
    start = _midnight(window.start) - _EAST
    end = _midnight(window.end + dt.timedelta(days=1)) + _WEST
    accepted = duplicate = 0
    for first, last in _slices(start, end, _BACKFILL_SPAN):
        try:
            client.get(path, {"summaryStartTimeInSeconds": first, "summaryEndTimeInSeconds": last})
        except RequestRejectedError as error:
            if error.status != 409:
                raise
            duplicate += 1
        else:
            accepted += 1
    return Backfill(accepted, duplicate)


def _midnight(day: dt.date) -> int:
    return int(dt.datetime(day.year, day.month, day.day, tzinfo=dt.UTC).timestamp())


def _slices(start: int, end: int, span: int) -> Iterator[tuple[int, int]]:
    """Consecutive spans that meet without overlapping: to ask for a second twice may be refused."""
    while start < end:
        yield start, min(start + span, end)
        start += span


def interpret(response: httpx.Response, now: float) -> Verdict | None:
    """429 names no time to wait, and some refusals are told by other codes than 401 and 403."""
    backfill = "/backfill/" in response.url.path
    if response.status_code == 429 and "Retry-After" not in response.headers:
        return Verdict("rate_limited", 60.0)
    if response.status_code == 403 and backfill:
        return Verdict("forbidden", message="historical data was not granted; reconnect and switch it on")
    if response.status_code == 412:
        return Verdict("forbidden", message="this kind of data was not granted; reconnect and switch it on")
    if response.status_code == 400 and b"InvalidPullToken" in response.content:
        return Verdict(
            "rejected",
            message="Garmin gives data on a ping's token of the last 24 hours only; wait for its webhook, "
            "or request a backfill",
        )
    if response.status_code == 400 and backfill:
        return Verdict(
            "rejected",
            message="no backfill of these days: they are before the earliest allowed, or the kind of data is "
            "not enabled in Garmin's endpoint tool",
        )
    return None


def disconnect(client: ApiClient) -> None:
    """Deregister the person, which Garmin demands of who disconnects them; its last event is the deregistration."""
    client.request("DELETE", f"{_USER}/registration")


def identify(client: ApiClient) -> Account:
    """Who the tokens belong to, and as `permissions` what they allowed."""
    user_id = _read(client, f"{_USER}/id")
    if isinstance(user_id, dict):
        user_id = user_id.get("userId")
    if not isinstance(user_id, str) or not user_id:
        raise MalformedResponseError(client.provider, f"{_USER}/id", 200, "no user id came")
    permissions = _read(client, f"{_USER}/permissions")
    if isinstance(permissions, dict):
        permissions = permissions.get("permissions")
    if not isinstance(permissions, list):
        permissions = []
    return Account(user_id, {"permissions": sorted(str(permission) for permission in permissions)})


def deregister(client: ApiClient) -> None:
    """End the person's registration at Garmin, as it demands when they disconnect here."""
    client.request("DELETE", f"{_USER}/registration")


def _read(client: ApiClient, path: str) -> Any:
    try:
        return orjson.loads(client.get(path).content)
    except orjson.JSONDecodeError:
        return None


def parse(document: RawDocument) -> Parsed:
    """The summaries of one kind in a pulled array or a pushed body, and the rows of their series.

    Of several versions of a summary in one body the last counts, the others are skipped as `superseded`. With
    `provider_user_id` in the context, summaries of other people in the body are skipped as `other_user`: a
    push holds those of many. Pings are skipped as `ping`. Raises KeyError for an entity that has no bodies.
    """
    entity = document.entity
    summary = SUMMARIES[entity]
    place, records = _records_of(document.content, summary)
    if records is None:
        malformed = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, malformed), records_in=1, records_loaded=0)

    person = document.context.get("provider_user_id")
    skipped = {"other_user": 0, "ping": 0, "superseded": 0}
    chosen: list[int] = []
    for index, record in enumerate(records):
        if isinstance(record, dict) and person is not None and record.get("userId", person) != person:
            skipped["other_user"] += 1
        elif isinstance(record, dict) and is_ping(record):
            skipped["ping"] += 1
        else:
            chosen.append(index)
    mine = [records[index] for index in chosen]
    columns = summary.read_columns()
    read = read_records(mine, columns)
    refused = {bad.index for bad in read.refused}
    table = _newest(read.table, [record for index, record in enumerate(mine) if index not in refused])
    skipped["superseded"] = read.table.num_rows - table.num_rows
    known = (*(column.path for column in columns), *summary.left_in_raw, *_OF_ALL)
    return Parsed(
        tables=_tables(entity, summary, table),
        quarantine=quarantine_table(
            entity,
            (
                (bad.reason, bad.field, f"{place}[{chosen[bad.index]}]", original_json(mine[bad.index]))
                for bad in read.refused
            ),
        ),
        records_in=len(records),
        records_loaded=table.num_rows,
        skipped={reason: count for reason, count in skipped.items() if count},
        notes=tuple(f"{entity}: new field {path}" for path in unknown_fields(mine, known)),
    )


#: Whose a summary is; the second is of OAuth 1 and gone with it.
_OF_ALL = ("userId", "userAccessToken")


def _records_of(content: bytes, summary: Summary) -> tuple[str, list[Any] | None]:
    """Where the summaries are in a body, and the summaries; None where the body is not one of theirs."""
    try:
        records = orjson.loads(content)
    except orjson.JSONDecodeError:
        return "", None
    if isinstance(records, list):
        return "$", records
    try:
        body = load_object(content)
    except MalformedBodyError:
        return "", None
    present = [key for key in summary.keys if key in body]
    if not present or not all(isinstance(body[key], list) for key in present):
        return "", None
    return present[0], [record for key in present for record in body[key]]


def _newest(table: pa.Table, records: list[dict[str, Any]]) -> pa.Table:
    """The last row of each person's summary; `records` are what the rows were made of."""
    last = {
        (str(record.get("userId")), record["summaryId"]): position for position, record in enumerate(records)
    }
    return table if len(last) == len(records) else table.take(pa.array(sorted(last.values()), pa.int64()))


def _tables(entity: str, summary: Summary, table: pa.Table) -> dict[str, pa.Table]:
    staged = table
    for name in summary.aliases or {}:
        if name in summary.schema.names:
            position = staged.column_names.index(name)
            value = pc.coalesce(staged[name], staged[f"alias_{name}"])
            staged = staged.set_column(position, staged.schema.field(name), value)
    for column, name in (summary.means or {}).items():
        least = (summary.series or {})[column][1]
        staged = staged.append_column(name, means_of(staged, column, least))
    tables = {entity: staged.select(summary.schema.names)}
    series = [samples_of(staged, column, *how) for column, how in (summary.series or {}).items()]
    if entity == "sleeps":
        tables["sleep_level"] = levels_of(staged)
        tables["nap"] = naps_of(staged)
    elif entity == "health_snapshots":
        tables["health_snapshot_measure"], samples = measures_of(staged)
        series.append(samples)
    elif entity == "activity_details":
        tables["activity_sample"] = track_of(staged)
    if series:
        tables["sample"] = pa.concat_tables(series)
    return tables


_DESCRIPTIONS: Mapping[str, str] = {
    "dailies": "One row a version of a local day: steps, energy, floors, heart rate and stress of the day so far.",
    "epochs": "One row a version of 15 minutes and kind of activity; all of a start replace the ones before.",
    "sleeps": "One row a version of a night; `validation` says how final it is.",
    "body_comps": "One row a weighing.",
    "stress_details": "One row a version of a day's stress and body battery series.",
    "user_metrics": "One row a local day: VO2max and fitness age.",
    "pulse_ox": "One row a version of a series of oxygen saturation, or a spot check.",
    "respiration": "One row a version of a series of breathing rates.",
    "hrv": "One row a version of a night's heart rate variability (rMSSD).",
    "blood_pressures": "One row a blood pressure measurement.",
    "skin_temp": "One row a night: skin temperature against the person's usual.",
    "health_snapshots": "One row a two-minute measurement.",
    "activities": "One row a version of an activity, a part of a multisport activity included.",
    "activity_details": "One row a version of an activity with its samples.",
}


def _entity(name: str, summary: Summary) -> Entity:
    return Entity(
        name=name,
        schema=summary.schema,
        key=("summary_id",),
        description=_DESCRIPTIONS[name],
        endpoint=f"{_WELLNESS}/{summary.path}",
        window="upload_time",
        # A run that failed is made good by the next; what is uploaded late comes with its day of upload.
        lookback_days=1,
        scope=summary.permission,
    )


PROVIDER = Provider(
    name="garmin",
    title="Garmin",
    door="fetch",
    base_url="https://apis.garmin.com",
    oauth=OAuth(
        authorize_url="https://connect.garmin.com/oauth2Confirm",
        token_url="https://diauth.garmin.com/di-oauth2-service/oauth/token",  # noqa: S106
        # None is asked for: people choose on Garmin's page, and may change their choice there.
        scopes=(),
        pkce=True,
    ),
    # Of a key for evaluation; a production key has more.
    budgets=(Budget(100, 60.0),),
    limit_signal="429 without a time; a minute has to pass",
    interpret=interpret,
    webhook=Webhook(
        carries="data",
        scheme="unsigned; secret path, and callback addresses of the API's own host only",
        secret_path=True,
        events=events,
        dashboard="enter it in the endpoint configuration tool for every summary type, as ping or push, "
        "and for deregistrations and changes of permissions",
    ),
    # The program takes no new applications.
    enabled=False,
    entities=(
        *(_entity(name, summary) for name, summary in SUMMARIES.items()),
        Entity(
            "sample",
            SAMPLE_SCHEMA,
            ("summary_id", "kind", "recorded_at"),
            "One row a value of a summary's series; kinds that end in `_state` are codes, not measurements.",
        ),
        Entity(
            "sleep_level",
            LEVEL_SCHEMA,
            ("summary_id", "level", "recorded_at"),
            "One row a stretch of one sleep level of a night.",
        ),
        Entity("nap", NAP_SCHEMA, ("summary_id", "recorded_at"), "One row a nap in a night's summary."),
        Entity(
            "health_snapshot_measure",
            MEASURE_SCHEMA,
            ("summary_id", "kind"),
            "One row a measure of a Health Snapshot: extremes and mean over two minutes.",
        ),
        Entity(
            "activity_sample",
            TRACK_SCHEMA,
            ("summary_id", "recorded_at"),
            "One row a sample of an activity, up to one a second.",
        ),
    ),
    parse=parse,
    fetch=fetch,
    identify=identify,
    disconnect=disconnect,
)
