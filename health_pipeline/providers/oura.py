"""Oura API v2: the ring's daily scores, nights, heart rate and workouts.

Documents are revised after the fact and carry no time of update, so every fetch reads some days again.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._json import (
    NUMBERS,
    UTC_TIMESTAMP,
    Column,
    MalformedBodyError,
    load_object,
    numbers,
    original_json,
    original_text,
    quarantine_table,
    read_records,
    schema_of,
    unknown_fields,
)
from health_pipeline.providers._oura_webhook import SUBSCRIPTIONS, challenge, events, verify
from health_pipeline.providers.base import (
    Account,
    Budget,
    Entity,
    OAuth,
    Page,
    Parsed,
    Provider,
    RawDocument,
    Webhook,
    Window,
)
from health_pipeline.providers.http import (
    ApiClient,
    AuthorizationError,
    MalformedResponseError,
    PermissionMissingError,
    RecordGoneError,
    require_object,
)

_COLLECTION = "/v2/usercollection"
_PERSONAL_INFO = f"{_COLLECTION}/personal_info"

_SHORT = pa.int16()
_INT = pa.int32()
_FLOAT = pa.float64()
_TEXT = pa.string()

_ID = Column("id", _TEXT, required=True)
_DAY = Column("day", pa.date32(), required=True)
_TIMESTAMP = Column("timestamp", UTC_TIMESTAMP, required=True, offset="utc_offset_minutes")


def _seconds(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, _INT, f"{name}_seconds") for name in names)


def _contributors(
    *names: str, parent: str = "contributors", type_: pa.DataType = _SHORT
) -> tuple[Column, ...]:
    return tuple(Column(f"{parent}.{name}", type_) for name in names)


def _readiness(parent: str = "") -> tuple[Column, ...]:
    """A readiness score with its reasons: a document of its own, and one within each night."""
    prefix, column = (f"{parent}.", f"{parent}_") if parent else ("", "")
    return (
        Column(f"{prefix}score", _SHORT),
        Column(f"{prefix}temperature_deviation", _FLOAT, f"{column}temperature_deviation_celsius"),
        Column(
            f"{prefix}temperature_trend_deviation", _FLOAT, f"{column}temperature_trend_deviation_celsius"
        ),
        *_contributors(
            "activity_balance",
            "body_temperature",
            "hrv_balance",
            "previous_day_activity",
            "previous_night",
            "recovery_index",
            "resting_heart_rate",
            "sleep_balance",
            "sleep_regularity",
            parent=f"{prefix}contributors",
        ),
    )


def _intervals(values: Sequence[Any]) -> pa.Array:
    """Seconds between two samples. With none, or more than a day, samples would have no time of their own."""
    intervals = numbers(values, _FLOAT)
    limits = pc.min_max(intervals)
    if limits["min"].is_valid and not 0 < limits["min"].as_py() <= limits["max"].as_py() <= 86_400:
        raise ValueError("not an interval")
    return intervals


_COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "daily_activity": (
        _ID,
        _DAY,
        _TIMESTAMP,
        Column("score", _SHORT),
        Column("steps", _INT),
        Column("equivalent_walking_distance", _INT, "equivalent_walking_distance_m"),
        Column("active_calories", _INT, "active_calories_kcal"),
        Column("total_calories", _INT, "total_calories_kcal"),
        *_seconds(
            "high_activity_time",
            "medium_activity_time",
            "low_activity_time",
            "sedentary_time",
            "resting_time",
            "non_wear_time",
        ),
        Column("average_met_minutes", _FLOAT),
        Column("high_activity_met_minutes", _INT),
        Column("medium_activity_met_minutes", _INT),
        Column("low_activity_met_minutes", _INT),
        Column("sedentary_met_minutes", _INT),
        Column("inactivity_alerts", _INT),
        Column("target_calories", _INT, "target_calories_kcal"),
        Column("target_meters", _INT),
        Column("meters_to_target", _INT),
        Column("class_5_min", _TEXT),
        *_contributors(
            "meet_daily_targets",
            "move_every_hour",
            "recovery_time",
            "stay_active",
            "training_frequency",
            "training_volume",
        ),
    ),
    "daily_readiness": (_ID, _DAY, _TIMESTAMP, *_readiness()),
    "daily_sleep": (
        _ID,
        _DAY,
        _TIMESTAMP,
        Column("score", _SHORT),
        *_contributors(
            "deep_sleep", "efficiency", "latency", "rem_sleep", "restfulness", "timing", "total_sleep"
        ),
    ),
    "daily_spo2": (
        _ID,
        _DAY,
        Column("spo2_percentage.average", _FLOAT),
        Column("breathing_disturbance_index", _FLOAT),
    ),
    "daily_stress": (_ID, _DAY, *_seconds("stress_high", "recovery_high"), Column("day_summary", _TEXT)),
    "daily_resilience": (
        _ID,
        _DAY,
        Column("level", _TEXT),
        *_contributors("sleep_recovery", "daytime_recovery", "stress", type_=_FLOAT),
    ),
    "daily_cardiovascular_age": (
        _ID,
        _DAY,
        Column("vascular_age", _SHORT, "vascular_age_years"),
        Column("pulse_wave_velocity", _FLOAT, "pulse_wave_velocity_m_per_s"),
    ),
    "vo2_max": (_ID, _DAY, _TIMESTAMP, Column("vo2_max", _FLOAT, "vo2_max_ml_per_kg_min")),
    "sleep": (
        _ID,
        _DAY,
        Column("bedtime_start", UTC_TIMESTAMP, required=True, offset="utc_offset_minutes"),
        Column("bedtime_end", UTC_TIMESTAMP, required=True, offset="end_utc_offset_minutes"),
        Column("type", _TEXT),
        Column("period", _SHORT),
        *_seconds(
            "time_in_bed",
            "total_sleep_duration",
            "deep_sleep_duration",
            "light_sleep_duration",
            "rem_sleep_duration",
            "awake_time",
            "latency",
        ),
        Column("efficiency", _SHORT),
        Column("restless_periods", _INT),
        Column("average_breath", _FLOAT, "average_breath_per_minute"),
        Column("average_heart_rate", _FLOAT, "average_heart_rate_bpm"),
        Column("lowest_heart_rate", _FLOAT, "lowest_heart_rate_bpm"),
        Column("average_hrv", _FLOAT, "average_hrv_ms"),
        Column("sleep_phase_5_min", _TEXT),
        Column("app_sleep_phase_5_min", _TEXT),
        Column("sleep_phase_30_sec", _TEXT),
        Column("movement_30_sec", _TEXT),
        Column("low_battery_alert", pa.bool_()),
        Column("sleep_score_delta", _SHORT),
        Column("readiness_score_delta", _SHORT),
        *_readiness("readiness"),
        Column("sleep_algorithm_version", _TEXT),
        Column("sleep_analysis_reason", _TEXT),
        Column("ring_id", _TEXT),
    ),
    "heartrate": (
        Column("timestamp", UTC_TIMESTAMP, required=True),
        Column("bpm", _SHORT, required=True),
        Column("source", _TEXT, required=True),
    ),
    "workout": (
        _ID,
        _DAY,
        Column("start_datetime", UTC_TIMESTAMP, required=True, offset="utc_offset_minutes"),
        Column("end_datetime", UTC_TIMESTAMP, required=True, offset="end_utc_offset_minutes"),
        Column("activity", _TEXT, required=True),
        Column("intensity", _TEXT),
        Column("source", _TEXT),
        Column("label", _TEXT),
        Column("calories", _FLOAT, "calories_kcal"),
        Column("distance", _FLOAT, "distance_m"),
    ),
}

_SAMPLE_KINDS = ("hrv", "heart_rate")
_SAMPLE_COLUMNS = tuple(
    column
    for kind in _SAMPLE_KINDS
    for column in (
        Column(f"{kind}.timestamp", UTC_TIMESTAMP, required=True, offset=f"{kind}_utc_offset_minutes"),
        Column(f"{kind}.interval", _FLOAT, required=True, convert=_intervals),
        Column(f"{kind}.items", NUMBERS, required=True),
    )
)
_SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sleep_id", _TEXT, nullable=False),
        pa.field("kind", _TEXT, nullable=False),
        pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
        pa.field("utc_offset_minutes", _SHORT, nullable=False),
        pa.field("value", _FLOAT, nullable=False),
    ]
)
_HEARTRATE_OFFSET = pa.field("utc_offset_minutes", _SHORT)

#: Fields we know and leave in raw: the minute-by-minute MET curve, and the same instant once more.
_LEFT_IN_RAW = {"daily_activity": ("met",), "heartrate": ("timestamp_unix",)}


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """The pages of an entity that hold the days of `window`, and some of the days beside it.

    A page whose body cannot be paged through is yielded, so that it is kept, and MalformedResponseError is
    raised after it. Raises the errors of `ApiClient.get`.
    """
    if entity.endpoint is None:
        raise ValueError(f"oura has no endpoint for {entity.name}: it is filled from other objects")
    params = _query(entity, window)
    seen: set[str] = set()
    while True:
        content = _get(client, entity, params)
        yield Page(entity.name, content, window)
        next_token = _next_token(client, entity.endpoint, content)
        if next_token is None:
            return
        if next_token in seen:
            raise MalformedResponseError(
                client.provider, entity.endpoint, 200, "the pages go round in a circle"
            )
        seen.add(next_token)
        params = {**params, "next_token": next_token}


def fetch_records(
    client: ApiClient, entity: Entity, record_ids: Sequence[str], window: Window
) -> Iterator[Page]:
    """A page a document, kept before MalformedResponseError is raised where it is none.

    Raises the errors of `ApiClient.get`, but for documents that are not there any more.
    """
    for record_id in record_ids:
        with contextlib.suppress(RecordGoneError):
            content = _get(client, entity, {}, f"/{record_id}")
            yield Page(entity.name, content, window)
            require_object(client, f"{entity.endpoint}/{{document_id}}", content)


def _query(entity: Entity, window: Window) -> dict[str, str]:
    day = dt.timedelta(days=1)
    if entity.name == "heartrate":
        # Whole local days anywhere on earth, from UTC+14 to UTC-12: the account's zone is not known here.
        return {
            "start_datetime": f"{window.start - day}T10:00:00+00:00",
            "end_datetime": f"{window.end + day}T12:00:00+00:00",
        }
    # A date alone ends at its midnight and drops the last day; nights start after `start_date`, not on it.
    return {"start_date": f"{window.start - day}", "end_date": f"{window.end}T23:59:59"}


def _get(client: ApiClient, entity: Entity, params: Mapping[str, str], record: str = "") -> bytes:
    """The body of one page. A 401 for a missing scope is told from one for a dead token."""
    assert entity.endpoint is not None
    try:
        return client.get(entity.endpoint + record, params).content
    except AuthorizationError as error:
        refused = error
    # Some endpoints answer 401 where the scope is missing. Any live token may read personal_info.
    client.get(_PERSONAL_INFO)
    raise PermissionMissingError(
        client.provider,
        entity.endpoint,
        refused.status,
        f"the permission {entity.scope!r} was not granted; reconnect and allow it",
    )


def _next_token(client: ApiClient, path: str, content: bytes) -> str | None:
    try:
        body = load_object(content)
    except MalformedBodyError as error:
        problem = str(error)
    else:
        next_token = body.get("next_token")
        if isinstance(body.get("data"), list) and (next_token is None or isinstance(next_token, str)):
            return next_token or None
        problem = "the body has no data array or no usable next_token"
    raise MalformedResponseError(client.provider, path, 200, f"{problem}; the rest of the pages is unknown")


def identify(client: ApiClient) -> Account:
    """Who the tokens belong to: Oura's user id and, where known, age (years), sex, weight_kg and height_m."""
    response = client.get(_PERSONAL_INFO)
    try:
        body = load_object(response.content)
    except MalformedBodyError:
        body = {}
    user_id = body.get("id")
    if not isinstance(user_id, str) or not user_id:
        raise MalformedResponseError(client.provider, _PERSONAL_INFO, response.status_code, "no user id came")
    names = {"age": "age", "sex": "biological_sex", "weight_kg": "weight", "height_m": "height"}
    profile = {name: body[field] for name, field in names.items() if body.get(field) is not None}
    return Account(user_id, profile)


def parse(document: RawDocument) -> Parsed:
    """A page of one entity, or a single document, as staging rows; nights give `sleep_sample` rows, too.

    A record with a wrong type or without a required field goes to quarantine, alone. Fields we do not know
    are named in the notes. Raises KeyError for an entity that has no pages.
    """
    entity = document.entity
    columns = _COLUMNS[entity]
    try:
        body = load_object(document.content)
        records = [body] if "data" not in body and "id" in body else body.get("data")
    except MalformedBodyError:
        records = None
    if not isinstance(records, list):
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, refused), records_in=1, records_loaded=0)

    read_columns = columns + _SAMPLE_COLUMNS if entity == "sleep" else columns
    known = [column.path for column in read_columns]
    read = read_records(records, read_columns)
    table = read.table.select(schema_of(columns).names)
    tables = {entity: table}
    if entity == "heartrate":
        tables[entity] = table.append_column(_HEARTRATE_OFFSET, pa.nulls(table.num_rows, _SHORT))
    elif entity == "sleep":
        tables["sleep_sample"] = _sleep_samples(read.table)
    return Parsed(
        tables=tables,
        quarantine=quarantine_table(
            entity,
            (
                (bad.reason, bad.field, f"data[{bad.index}]", original_json(records[bad.index]))
                for bad in read.refused
            ),
        ),
        records_in=len(records),
        records_loaded=table.num_rows,
        notes=tuple(
            f"{entity}: new field {path}"
            for path in unknown_fields(records, [*known, *_LEFT_IN_RAW.get(entity, ())])
        ),
    )


def _sleep_samples(nights: pa.Table) -> pa.Table:
    """The HRV (rMSSD, ms) and heart rate (bpm) samples of nights, without the items that measured nothing."""
    tables = []
    for kind in _SAMPLE_KINDS:
        items = nights[f"{kind}_items"].combine_chunks()
        night = pc.list_parent_indices(items).to_numpy()
        values = pc.list_flatten(items)
        position = np.arange(len(night)) - np.searchsorted(night, night)
        started = nights[f"{kind}_timestamp"].cast(pa.int64()).take(night).to_numpy()
        interval = nights[f"{kind}_interval"].take(night).to_numpy()
        recorded_at = started + np.rint(position * interval * 1e6).astype(np.int64)
        samples = pa.table(
            [
                nights["id"].take(night),
                pa.repeat(kind, len(night)),
                pa.array(recorded_at).cast(UTC_TIMESTAMP),
                nights[f"{kind}_utc_offset_minutes"].take(night),
                values,
            ],
            names=_SAMPLE_SCHEMA.names,
        )
        tables.append(samples.filter(values.is_valid()).cast(_SAMPLE_SCHEMA))
    return pa.concat_tables(tables)


def _documents(name: str, description: str, scope: str, endpoint: str | None = None) -> Entity:
    return Entity(
        name=name,
        schema=schema_of(_COLUMNS[name]),
        key=("id",),
        description=description,
        endpoint=f"{_COLLECTION}/{endpoint or name}",
        paging="cursor",
        lookback_days=7,
        # The vendor advises one to three months a request.
        max_window_days=90,
        scope=scope,
    )


PROVIDER = Provider(
    name="oura",
    title="Oura",
    door="fetch",
    base_url="https://api.ouraring.com",
    oauth=OAuth(
        authorize_url="https://cloud.ouraring.com/oauth/authorize",
        token_url="https://api.ouraring.com/oauth/token",  # noqa: S106
        revoke_url="https://api.ouraring.com/oauth/revoke",
        revoke_parameter="access_token",
        # The last three are not in the vendor's specification (it has spo2Daily for spo2); clients in use
        # ask for them, and are refused the data without.
        scopes=("personal", "daily", "heartrate", "workout", "spo2", "stress", "heart_health"),
    ),
    # The vendor's help says so; the headers of a refusal are what counts.
    budgets=(Budget(requests=5000, seconds=300, per="application"),),
    limit_signal="429 with Retry-After; X-RateLimit-Tier says whether for the token or the application",
    # Heart rate is announced by nothing.
    poll_hours=4,
    webhook=Webhook(
        carries="notice",
        scheme="x-oura-signature: hexadecimal HMAC-SHA256 of timestamp and body, by the client secret",
        events=events,
        verify=verify,
        challenge=challenge,
        deletes_records=True,
        signed_by_client=True,
        subscriptions=SUBSCRIPTIONS,
    ),
    entities=(
        _documents(
            "daily_activity", "One row a local day (from 04:00): steps, energy, active time.", "daily"
        ),
        _documents("daily_readiness", "One row a local day: readiness score and its contributors.", "daily"),
        _documents("daily_sleep", "One row a local day of waking up: sleep score and contributors.", "daily"),
        _documents("daily_spo2", "One row a night: mean blood oxygen, %.", "spo2"),
        _documents("daily_stress", "One row a local day: time in high stress and in recovery.", "stress"),
        _documents("daily_resilience", "One row a local day: resilience level and contributors.", "stress"),
        _documents("daily_cardiovascular_age", "One row a local day: vascular age.", "heart_health"),
        _documents("vo2_max", "One row an estimate of VO2max.", "heart_health", endpoint="vO2_max"),
        _documents(
            "sleep", "One row a sleep period, naps and periods the user deleted (`type`) too.", "daily"
        ),
        _documents("workout", "One row a workout, recorded, detected or entered by hand.", "workout"),
        Entity(
            name="heartrate",
            schema=schema_of(_COLUMNS["heartrate"]).append(_HEARTRATE_OFFSET),
            key=("timestamp", "source"),
            description="One row a heart rate sample, about every 5 minutes; UTC without a local offset.",
            endpoint=f"{_COLLECTION}/heartrate",
            window="instants",
            paging="cursor",
            lookback_days=2,
            # 30 days are allowed in one request, and the local days at both ends need a margin.
            max_window_days=28,
            scope="heartrate",
        ),
        Entity(
            name="sleep_sample",
            schema=_SAMPLE_SCHEMA,
            key=("sleep_id", "kind", "recorded_at"),
            description="One row an HRV (rMSSD, ms) or heart rate (bpm) sample of a sleep period; "
            "`utc_offset_minutes` is that of the series' start.",
        ),
    ),
    parse=parse,
    fetch=fetch,
    fetch_records=fetch_records,
    identify=identify,
)
