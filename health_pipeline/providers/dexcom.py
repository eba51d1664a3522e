"""Dexcom API v3: sensor glucose, calibrations, events a person entered, alerts, devices.

`systemTime` is the instant (the device's clock in UTC). `displayTime` is what the wearer saw: a phone writes its
offset, a receiver does not. Nothing is newer than an hour (three outside the United States), and a receiver's
records come when it is uploaded, so every fetch reads some days again. There is no webhook.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._device_clock import EARLIEST_OFFSET, LATEST_OFFSET, derived_offsets
from health_pipeline.providers._json import (
    UTC_TIMESTAMP,
    Column,
    MalformedBodyError,
    instants,
    load_object,
    original_json,
    original_text,
    quarantine_table,
    read_records,
    schema_of,
    strings,
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
    Window,
)
from health_pipeline.providers.http import ApiClient, MalformedResponseError

_USER = "/v3/users/self"
_DATA_RANGE = f"{_USER}/dataRange"

_TEXT = pa.string()
_LONG = pa.int64()
_FLOAT = pa.float64()
_WALL_CLOCK = pa.timestamp("us")
_OFFSET = pa.field("utc_offset_minutes", pa.int16())

_OFFSET_TEXT = r"(?:[Zz]|[+-]\d{2}:?\d{2})$"
_LONE_DIGIT = r"([-T :])(\d)([-T :.Zz+]|$)"
_NO_SECONDS = r"^([^T]*T\d{2}:\d{2})([Zz]|[+-]\d{2}:?\d{2})?$"


def _written(values: Sequence[Any]) -> pa.Array:
    """Date-times with the blank for T, the missing seconds and the one-digit parts some devices write mended."""
    text = pc.replace_substring_regex(strings(values), r"^(\S+) ", r"\1T")
    for _ in range(2):  # neighbouring parts share a separator, so one pass mends every other
        text = pc.replace_substring_regex(text, _LONE_DIGIT, r"\10\2\3")
    return pc.replace_substring_regex(text, _NO_SECONDS, r"\1:00\2")


def _system_times(values: Sequence[Any]) -> pa.Array:
    """Instants; one without an offset is in UTC, as the vendor says of every system time."""
    text = _written(values)
    zoned = pc.match_substring_regex(text, _OFFSET_TEXT)
    return instants(pc.if_else(zoned, text, pc.binary_join_element_wise(text, "Z", "")).to_pylist())


def _display_times(values: Sequence[Any]) -> pa.Array:
    """What the clock showed, without its offset."""
    return pc.replace_substring_regex(_written(values), _OFFSET_TEXT, "").cast(_WALL_CLOCK)


def _display_offsets(values: Sequence[Any]) -> pa.Array:
    """Minutes east of UTC that a display time is written with, null where it is written without."""
    found = pc.extract_regex(_written(values), r"(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2})$")
    written = pc.is_valid(found)
    hours, minutes = (
        pc.if_else(written, found.field(name), "0").cast(pa.int16()) for name in ("hours", "minutes")
    )
    size = pc.add(pc.multiply(hours, 60), minutes)
    minutes = pc.if_else(written, pc.if_else(pc.equal(found.field("sign"), "-"), pc.negate(size), size), None)
    limits = pc.min_max(minutes)
    if limits["min"].is_valid and not EARLIEST_OFFSET <= limits["min"].as_py() <= limits["max"].as_py() <= (
        LATEST_OFFSET
    ):
        raise ValueError("not an offset of any zone")
    return minutes.cast(pa.int16())


def _event_values(values: Sequence[Any]) -> pa.Array:
    """The vendor writes numbers as strings; third parties describe them as numbers."""
    return strings([str(value) if type(value) in (int, float) else value for value in values])


_RECORD = (
    Column("recordId", _TEXT, "record_id", required=True),
    Column("systemTime", UTC_TIMESTAMP, "system_time", required=True, convert=_system_times),
    Column("displayTime", _WALL_CLOCK, "display_time", convert=_display_times),
    Column("displayTime", pa.int16(), "display_utc_offset_minutes", convert=_display_offsets),
)
_DEVICE = (
    Column("transmitterId", _TEXT, "transmitter_id"),
    Column("transmitterGeneration", _TEXT, "transmitter_generation"),
    Column("displayDevice", _TEXT, "display_device"),
    Column("displayApp", _TEXT, "display_app"),
)
_TICKS = Column("transmitterTicks", _LONG, "transmitter_ticks_seconds")

_COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "egvs": (
        *_RECORD,
        Column("value", _FLOAT),
        # Older devices have both; `value` is then the smoothed one where there is one.
        Column("smoothedValue", _FLOAT, "smoothed_value"),
        Column("realtimeValue", _FLOAT, "realtime_value"),
        Column("unit", _TEXT),
        Column("status", _TEXT),
        Column("trend", _TEXT),
        Column("trendRate", _FLOAT, "trend_rate"),
        Column("rateUnit", _TEXT, "rate_unit"),
        _TICKS,
        *_DEVICE,
    ),
    "events": (
        *_RECORD,
        Column("recordedSystemTime", UTC_TIMESTAMP, "recorded_system_time", convert=_system_times),
        Column("eventStatus", _TEXT, "event_status"),
        Column("eventType", _TEXT, "event_type", required=True),
        Column("eventSubType", _TEXT, "event_sub_type"),
        Column("value", _TEXT, "value_text", convert=_event_values),
        Column("unit", _TEXT),
        *_DEVICE,
    ),
    "calibrations": (*_RECORD, Column("value", _FLOAT), Column("unit", _TEXT), _TICKS, *_DEVICE),
    "alerts": (
        *_RECORD,
        Column("alertName", _TEXT, "alert_name", required=True),
        Column("alertState", _TEXT, "alert_state"),
        *_DEVICE,
    ),
    "devices": (
        Column("lastUploadDate", UTC_TIMESTAMP, "last_uploaded_at", convert=_system_times),
        Column("transmitterId", _TEXT, "transmitter_id"),
        Column("transmitterGeneration", _TEXT, "transmitter_generation"),
        Column("displayDevice", _TEXT, "display_device", required=True),
        Column("displayApp", _TEXT, "display_app"),
    ),
    "data_range": (
        Column("kind", _TEXT, required=True),
        Column("start.systemTime", UTC_TIMESTAMP, "start_system_time", convert=_system_times),
        Column("end.systemTime", UTC_TIMESTAMP, "end_system_time", convert=_system_times),
    ),
}

#: Fields we know and leave in raw: what else a device is set to, and times said a second time.
_LEFT_IN_RAW = {
    "events": ("recordedDisplayTime",),
    "devices": ("alertSchedules", "recordId", "displayTime", "systemTime"),
    "data_range": ("start.displayTime", "end.displayTime"),
}
_RANGES = ("egvs", "events", "calibrations")
_ENVELOPE = ("recordType", "recordVersion", "userId")


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """The one answer that holds the days of `window`, and some hours beside it.

    Devices and the range of data have no window. Raises the errors of `ApiClient.get`.
    """
    assert entity.endpoint is not None
    params = None
    if entity.window == "instants":
        day = dt.timedelta(days=1)
        # Read as UTC. Whole local days anywhere on earth, from UTC+14 to UTC-12: the account's zone is not
        # known here.
        params = {
            "startDate": f"{window.start - day}T10:00:00",
            "endDate": f"{window.end + day}T12:00:00",
        }
    yield Page(entity.name, client.get(entity.endpoint, params).content, window)


def identify(client: ApiClient) -> Account:
    """Who the tokens belong to: Dexcom's user id, which is another for every client application."""
    response = client.get(_DATA_RANGE)
    try:
        user_id = load_object(response.content).get("userId")
    except MalformedBodyError:
        user_id = None
    if not isinstance(user_id, str) or not user_id:
        raise MalformedResponseError(client.provider, _DATA_RANGE, response.status_code, "no user id came")
    return Account(user_id)


def parse(document: RawDocument) -> Parsed:
    """An answer's records as staging rows, with the UTC offset of each that has a display time.

    A record with a wrong type or without a required field goes to quarantine, alone. Fields we do not know
    are named in the notes. Raises KeyError for an entity that has no pages.
    """
    entity = document.entity
    columns = _COLUMNS[entity]
    try:
        body = load_object(document.content)
    except MalformedBodyError:
        body = {}
    records, names = _records(entity, body)
    if records is None:
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, refused), records_in=1, records_loaded=0)
    read = read_records(records, columns)
    table = read.table
    if "display_utc_offset_minutes" in table.column_names:
        table = _with_offset(table)
    known = [*(column.path for column in columns), *_LEFT_IN_RAW.get(entity, ())]
    return Parsed(
        tables={entity: table},
        quarantine=quarantine_table(
            entity,
            (
                (bad.reason, bad.field, names[bad.index], original_json(records[bad.index]))
                for bad in read.refused
            ),
        ),
        records_in=len(records),
        records_loaded=table.num_rows,
        notes=tuple(f"{entity}: new field {path}" for path in unknown_fields(records, known)),
    )


def _records(entity: str, body: Mapping[str, Any]) -> tuple[list[Any] | None, Sequence[str]]:
    """The records of a body and the place of each; None where the body is not what it should be."""
    if entity != "data_range":
        records = body.get("records")
        found = records if isinstance(records, list) else None
        return found, [f"records[{index}]" for index in range(len(found or ()))]
    if not isinstance(body.get("userId"), str):
        return None, ()
    kinds = [kind for kind in body if kind not in _ENVELOPE and (kind in _RANGES or body[kind])]
    said = [kind for kind in kinds if body[kind] is not None]
    return [
        {"kind": kind, **body[kind]} if isinstance(body[kind], dict) else body[kind] for kind in said
    ], said


def _with_offset(table: pa.Table) -> pa.Table:
    """The offset a record is written with, else the difference of its two clocks."""
    written = table["display_utc_offset_minutes"]
    derived = derived_offsets(table["system_time"], table["display_time"])
    place = table.column_names.index("display_utc_offset_minutes")
    return table.set_column(place, _OFFSET, pc.coalesce(written, derived))


def _schema(name: str) -> pa.Schema:
    schema = schema_of(_COLUMNS[name])
    if "display_utc_offset_minutes" not in schema.names:
        return schema
    return schema.set(schema.names.index("display_utc_offset_minutes"), _OFFSET)


def _series(name: str, description: str) -> Entity:
    return Entity(
        name=name,
        schema=_schema(name),
        key=("record_id",),
        description=description,
        endpoint=f"{_USER}/{name}",
        window="instants",
        lookback_days=7,
        # 30 days are allowed in one request, and the local days at both ends need a margin.
        max_window_days=28,
        scope="offline_access",
    )


PROVIDER = Provider(
    name="dexcom",
    title="Dexcom",
    door="fetch",
    base_url="https://api.dexcom.com",
    regions={
        "us": "https://api.dexcom.com",
        "eu": "https://api.dexcom.eu",
        "jp": "https://api.dexcom.jp",
        "sandbox": "https://sandbox-api.dexcom.com",
    },
    oauth=OAuth(
        authorize_url="https://api.dexcom.com/v2/oauth2/login",
        token_url="https://api.dexcom.com/v2/oauth2/token",  # noqa: S106
        scopes=("offline_access",),
    ),
    budgets=(Budget(60_000, 3600.0),),
    limit_signal="429 for the whole application; no Retry-After and no quota headers are documented",
    # The data is an hour old or more; people look at it every few hours.
    poll_hours=2,
    entities=(
        _series(
            "egvs", "One row an estimated glucose value, every five minutes; 39 and 401 mean Low and High."
        ),
        _series("calibrations", "One row a finger-stick value entered to calibrate the sensor."),
        _series(
            "events",
            "One row a thing entered: carbohydrates, insulin, exercise, health, blood glucose, notes.",
        ),
        _series("alerts", "One row a change of state of an alert."),
        Entity(
            name="devices",
            schema=_schema("devices"),
            key=("display_device",),
            description="One row a device that uploads, as it stood when asked.",
            endpoint=f"{_USER}/devices",
            window="everything",
            scope="offline_access",
        ),
        Entity(
            name="data_range",
            schema=_schema("data_range"),
            key=("kind",),
            description="One row a kind of record: the first and last instant there is one of.",
            endpoint=_DATA_RANGE,
            window="everything",
            scope="offline_access",
        ),
    ),
    parse=parse,
    fetch=fetch,
    identify=identify,
)
