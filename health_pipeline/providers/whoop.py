"""WHOOP API v2: cycles (the strain of a day), recoveries, sleeps, workouts and body measurements.

Lists come newest first, 25 records a page at most, and hold what overlaps the window. A record is scored some
time after it begins and may be scored again; there is no filter by time of update, so every fetch reads some
days again. A record that is not scored (yet) has no values, which is no error. Times are UTC, and the offset
stands beside them.

A recovery does not say when it was: its pages carry the times of the sleeps that they speak of.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

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
    unknown_fields,
    utc_offsets,
)
from health_pipeline.providers.base import (
    Account,
    Budget,
    Entity,
    Event,
    OAuth,
    Page,
    Parsed,
    Provider,
    RawDocument,
    Verdict,
    Webhook,
    WebhookRequest,
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

if TYPE_CHECKING:
    import httpx

_PROFILE = "/v2/user/profile/basic"
_SLEEPS = "/v2/activity/sleep"
_LARGEST_PAGE = 25
_SIGNATURE_TOLERANCE_SECONDS = 300

_INT = pa.int32()
_LONG = pa.int64()
_FLOAT = pa.float64()
_TEXT = pa.string()


def _ids(values: Sequence[Any]) -> pa.Array:
    """Ids as text: UUIDs, and whole numbers for cycles (and for what came over from API v1)."""
    if set(map(type, values)) - {str, int, type(None)}:
        raise TypeError("not ids")
    array = pa.array([None if value is None else str(value) for value in values], _TEXT)
    if pc.any(pc.match_substring_regex(array, r"^$|[\x00-\x20]")).as_py():
        raise ValueError("not ids")
    return array


def _offset_minutes(values: Sequence[Any]) -> pa.Array:
    """UTC offsets (`-05:00`, `+0530`, `Z`) in minutes."""
    if set(map(type, values)) - {str, type(None)}:
        raise TypeError("not UTC offsets")
    some_moment = [None if value is None else f"2000-01-01T00:00:00{value}" for value in values]
    return utc_offsets(some_moment, instants(some_moment))


def _record(*, ends: bool = True) -> tuple[Column, ...]:
    """When and where a record was, and whether it is scored."""
    return (
        Column("start", UTC_TIMESTAMP, "started_at", required=True),
        Column("end", UTC_TIMESTAMP, "ended_at", required=ends),
        Column("created_at", UTC_TIMESTAMP),
        Column("updated_at", UTC_TIMESTAMP),
        Column("timezone_offset", pa.int16(), "utc_offset_minutes", required=True, convert=_offset_minutes),
        _SCORE_STATE,
    )


def _millis(parent: str, *names: str, type_: pa.DataType = _INT) -> tuple[Column, ...]:
    """Durations in ms, the parent's last step left out of the column's name."""
    return tuple(Column(f"{parent}.{name}_milli", type_, f"{name}_milli") for name in names)


_ID = Column("id", _TEXT, required=True, convert=_ids)
_SCORE_STATE = Column("score_state", _TEXT, required=True)

_COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "cycle": (
        _ID,
        *_record(ends=False),
        Column("score.strain", _FLOAT, "strain", required=True),
        Column("score.kilojoule", _FLOAT, "kilojoule", required=True),
        Column("score.average_heart_rate", _FLOAT, "average_heart_rate_bpm"),
        Column("score.max_heart_rate", _FLOAT, "max_heart_rate_bpm"),
    ),
    "recovery": (
        Column("sleep_id", _TEXT, required=True, convert=_ids),
        Column("cycle_id", _TEXT, required=True, convert=_ids),
        Column("created_at", UTC_TIMESTAMP, required=True),
        Column("updated_at", UTC_TIMESTAMP),
        _SCORE_STATE,
        Column("score.user_calibrating", pa.bool_(), "user_calibrating"),
        Column("score.recovery_score", _FLOAT, "recovery_score_percent", required=True),
        Column("score.resting_heart_rate", _FLOAT, "resting_heart_rate_bpm", required=True),
        Column("score.hrv_rmssd_milli", _FLOAT, "hrv_rmssd_ms", required=True),
        # From the fourth generation of the strap on.
        Column("score.spo2_percentage", _FLOAT, "spo2_percent"),
        Column("score.skin_temp_celsius", _FLOAT, "skin_temperature_celsius"),
    ),
    "sleep": (
        _ID,
        Column("cycle_id", _TEXT, convert=_ids),
        *_record(),
        Column("nap", pa.bool_(), required=True),
        *_millis(
            "score.stage_summary",
            "total_in_bed_time",
            "total_awake_time",
            "total_no_data_time",
            "total_light_sleep_time",
            "total_slow_wave_sleep_time",
            "total_rem_sleep_time",
        ),
        Column("score.stage_summary.sleep_cycle_count", _INT, "sleep_cycle_count"),
        Column("score.stage_summary.disturbance_count", _INT, "disturbance_count"),
        *_millis(
            "score.sleep_needed",
            "baseline",
            "need_from_sleep_debt",
            "need_from_recent_strain",
            "need_from_recent_nap",
            type_=_LONG,
        ),
        Column("score.respiratory_rate", _FLOAT, "respiratory_rate_per_minute"),
        Column("score.sleep_performance_percentage", _FLOAT, "sleep_performance_percent"),
        Column("score.sleep_consistency_percentage", _FLOAT, "sleep_consistency_percent"),
        Column("score.sleep_efficiency_percentage", _FLOAT, "sleep_efficiency_percent"),
    ),
    "workout": (
        _ID,
        *_record(),
        Column("sport_name", _TEXT),
        Column("score.strain", _FLOAT, "strain", required=True),
        Column("score.average_heart_rate", _FLOAT, "average_heart_rate_bpm"),
        Column("score.max_heart_rate", _FLOAT, "max_heart_rate_bpm"),
        Column("score.kilojoule", _FLOAT, "kilojoule"),
        Column("score.percent_recorded", _FLOAT, "percent_recorded"),
        Column("score.distance_meter", _FLOAT, "distance_m"),
        Column("score.altitude_gain_meter", _FLOAT, "altitude_gain_m"),
        Column("score.altitude_change_meter", _FLOAT, "altitude_change_m"),
        *_millis(
            "score.zone_durations",
            *(f"zone_{zone}" for zone in ("zero", "one", "two", "three", "four", "five")),
            type_=_LONG,
        ),
    ),
    "body_measurement": (
        Column("height_meter", _FLOAT, "height_m", required=True),
        Column("weight_kilogram", _FLOAT, "weight_kg", required=True),
        Column("max_heart_rate", _FLOAT, "max_heart_rate_bpm", required=True),
    ),
}

#: When a recovery's sleep was, from the page's context.
_SLEEP_TIMES = (
    Column("started_at", UTC_TIMESTAMP),
    Column("ended_at", UTC_TIMESTAMP),
    Column("utc_offset_minutes", pa.int16(), convert=_offset_minutes),
)
_RECOVERY_SCHEMA = pa.schema([*schema_of(_COLUMNS["recovery"]), *schema_of(_SLEEP_TIMES)])

#: A body measurement is the value in force, without a time: it is of when we saw it.
_SEEN_AT = pa.field("seen_at", UTC_TIMESTAMP, nullable=False)

#: Fields we know and leave in raw: whose it is, and the numbers of API v1.
_LEFT_IN_RAW = ("user_id", "v1_id", "sport_id")


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """The pages of an entity that hold the days of `window`, and some of the days beside it.

    A page whose body cannot be paged through is yielded, so that it is kept, and MalformedResponseError is
    raised after it. Raises the errors of `ApiClient.get`.
    """
    if entity.endpoint is None:
        raise ValueError(f"whoop has no endpoint for {entity.name}")
    if entity.window == "everything":
        yield Page(entity.name, _get(client, entity.endpoint, entity.scope, {}), window)
        return
    times = _sleep_times(client, window) if entity.name == "recovery" else {}
    for content in _pages(client, entity.endpoint, entity.scope, window):
        context = {}
        if times:
            sleep_ids = (str(record.get("sleep_id")) for record in _records(content))
            context = {sleep_id: times[sleep_id] for sleep_id in sleep_ids if sleep_id in times}
        yield Page(entity.name, content, window, context=context)


def fetch_records(
    client: ApiClient, entity: Entity, record_ids: Sequence[str], window: Window
) -> Iterator[Page]:
    """A page a record; a recovery, which goes by its sleep's id, is asked for by the cycle of that.

    A page that is no record is kept before MalformedResponseError is raised. Raises the errors of
    `ApiClient.get`, but for records that are not there: they are gone, or not scored yet.
    """
    for record_id in record_ids:
        with contextlib.suppress(RecordGoneError):
            path, context = f"{entity.endpoint}/{record_id}", {}
            if entity.name == "recovery":
                content = _get(client, f"{_SLEEPS}/{record_id}", "read:sleep", {})
                sleep = require_object(client, f"{_SLEEPS}/{{id}}", content)
                path, context = f"/v2/cycle/{sleep.get('cycle_id')}/recovery", _times_of([sleep])
            content = _get(client, path, entity.scope, {})
            yield Page(entity.name, content, window, context=context)
            require_object(client, f"{entity.endpoint}/{{id}}", content)


def _sleep_times(client: ApiClient, window: Window) -> dict[str, str]:
    """`start end offset`, as they were sent, of each sleep around the window; none without the permission."""
    day = dt.timedelta(days=1)
    wider = Window(window.start - day, window.end + day)
    times: dict[str, str] = {}
    try:
        for content in _pages(client, _SLEEPS, "read:sleep", wider):
            times |= _times_of(_records(content))
    except PermissionMissingError:
        return {}
    return times


def _times_of(sleeps: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    times = {}
    for record in sleeps:
        parts = [record.get(name) for name in ("start", "end", "timezone_offset")]
        if all(isinstance(part, str) and " " not in part for part in parts):
            times[str(record.get("id"))] = " ".join(map(str, parts))
    return times


def _pages(client: ApiClient, path: str, scope: str | None, window: Window) -> Iterator[bytes]:
    # Whole local days anywhere on earth, from UTC+14 to UTC-12: the account's zone is not known here.
    day = dt.timedelta(days=1)
    params = {
        "limit": str(_LARGEST_PAGE),
        "start": f"{window.start - day}T10:00:00.000Z",
        "end": f"{window.end + day}T12:00:00.000Z",
    }
    seen: set[str] = set()
    while True:
        content = _get(client, path, scope, params)
        yield content
        next_token = _next_token(client, path, content)
        if next_token is None:
            return
        if next_token in seen:
            raise MalformedResponseError(client.provider, path, 200, "the pages go round in a circle")
        seen.add(next_token)
        params = {**params, "nextToken": next_token}


def _get(client: ApiClient, path: str, scope: str | None, params: Mapping[str, str]) -> bytes:
    """The body of one page. A 401 for a missing scope is told from one for a dead token."""
    try:
        return client.get(path, params).content
    except AuthorizationError as error:
        refused = error
    client.get(_PROFILE)
    raise PermissionMissingError(
        client.provider,
        path,
        refused.status,
        f"the permission {scope!r} was not granted; reconnect and allow it",
    )


def _records(content: bytes) -> list[dict[str, Any]]:
    try:
        records = load_object(content).get("records")
    except MalformedBodyError:
        return []
    return [record for record in records if isinstance(record, dict)] if isinstance(records, list) else []


def _next_token(client: ApiClient, path: str, content: bytes) -> str | None:
    try:
        body = load_object(content)
    except MalformedBodyError as error:
        problem = str(error)
    else:
        next_token = body.get("next_token")
        if isinstance(body.get("records"), list) and (next_token is None or isinstance(next_token, str)):
            return next_token or None
        problem = "the body has no records array or no usable next_token"
    raise MalformedResponseError(client.provider, path, 200, f"{problem}; the rest of the pages is unknown")


def identify(client: ApiClient) -> Account:
    """Who the tokens belong to: WHOOP's user id."""
    response = client.get(_PROFILE)
    try:
        user_id = load_object(response.content).get("user_id")
    except MalformedBodyError:
        user_id = None
    if type(user_id) not in (int, str) or not user_id:
        raise MalformedResponseError(client.provider, _PROFILE, response.status_code, "no user id came")
    return Account(str(user_id))


def disconnect(client: ApiClient) -> None:
    """End the person's consent, and with it their webhooks."""
    client.request("DELETE", "/v2/user/access")


def interpret(response: httpx.Response, now: float) -> Verdict | None:
    """A good answer that was the last of its minute or day; X-RateLimit-Reset is a number of seconds."""
    if not response.is_success or response.headers.get("X-RateLimit-Remaining", "").strip() != "0":
        return None
    try:
        return Verdict("good", wait_seconds=float(response.headers["X-RateLimit-Reset"]))
    except (KeyError, ValueError):
        return None


def parse(document: RawDocument) -> Parsed:
    """A page of one entity, a single record, or the body measurement, as staging rows.

    A record with a wrong type or without a required field goes to quarantine, alone. Fields we do not know
    are named in the notes. Raises KeyError for an entity that has no pages.
    """
    entity = document.entity
    columns = _COLUMNS[entity]
    single = entity == "body_measurement"
    try:
        body = load_object(document.content)
        single = single or ("records" not in body and ("id" in body or "sleep_id" in body))
        records = [body] if single else body.get("records")
    except MalformedBodyError:
        records = None
    if not isinstance(records, list):
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, refused), records_in=1, records_loaded=0)

    read = read_records(records, columns)
    table = read.table
    if entity == "body_measurement":
        table = table.append_column(
            _SEEN_AT, pa.repeat(pa.scalar(document.received_at, UTC_TIMESTAMP), len(table))
        )
    elif entity == "recovery":
        table = _with_times(table, document.context)
    return Parsed(
        tables={entity: table},
        quarantine=quarantine_table(
            entity,
            (
                (
                    bad.reason,
                    bad.field,
                    "$" if single else f"records[{bad.index}]",
                    original_json(records[bad.index]),
                )
                for bad in read.refused
            ),
        ),
        records_in=len(records),
        records_loaded=table.num_rows,
        notes=tuple(
            f"{entity}: new field {path}"
            for path in unknown_fields(records, [*(column.path for column in columns), *_LEFT_IN_RAW])
        ),
    )


def _with_times(recoveries: pa.Table, context: Mapping[str, str]) -> pa.Table:
    """Recoveries with the times of their sleeps; without, where the page brought none that can be read."""
    names = schema_of(_SLEEP_TIMES).names
    times: list[dict[str, str]] = [
        dict(zip(names, context[sleep_id].split(" "), strict=False)) if sleep_id in context else {}
        for sleep_id in recoveries["sleep_id"].to_pylist()
    ]
    for bad in read_records(times, _SLEEP_TIMES).refused:
        times[bad.index] = {}
    read = read_records(times, _SLEEP_TIMES).table
    return pa.table([*recoveries.columns, *read.columns], schema=_RECOVERY_SCHEMA)


def verify(request: WebhookRequest, secrets: Sequence[str]) -> bool:
    """Base64 of HMAC-SHA256, by the client secret, of the timestamp (epoch ms) and the body behind it.

    Nothing parts the two, so neither may end, or begin, with what could be the other's.
    """
    signature = request.header("X-WHOOP-Signature")
    timestamp = request.header("X-WHOOP-Signature-Timestamp")
    if signature is None or timestamp is None or not (timestamp.isascii() and timestamp.isdigit()):
        return False
    if abs(int(timestamp) / 1000 - request.received_at.timestamp()) > _SIGNATURE_TOLERANCE_SECONDS:
        return False
    if request.body[:1].isdigit():
        return False
    message = timestamp.encode() + request.body
    proofs = [base64.b64encode(hmac.digest(secret.encode(), message, hashlib.sha256)) for secret in secrets]
    # As text: other texts decode to the same bytes.
    return any(hmac.compare_digest(signature.encode(), proof) for proof in proofs)


def events(body: bytes) -> tuple[Event, ...]:
    """The one event of a notice. Its window is not said; a recovery goes by the id of its sleep.

    One change of a night brings a notice of the sleep and one of the recovery, under one trace: the event's
    id is made of the trace, the type and the record.
    """
    notice = load_object(body)
    event_type, record = notice.get("type"), notice.get("id")
    if not isinstance(event_type, str) or type(record) not in (str, int):
        raise ValueError("a WHOOP notice has a type and an id")
    entity, _, change = event_type.partition(".")
    known = entity in ("workout", "sleep", "recovery")
    user_id, trace_id = notice.get("user_id"), notice.get("trace_id")
    return (
        Event(
            event_type=event_type,
            kind="changed"
            if known and change == "updated"
            else "deleted"
            if known and change == "deleted"
            else "other",
            provider_user_id=str(user_id) if type(user_id) in (str, int) else None,
            event_id=f"{trace_id}/{event_type}/{record}" if isinstance(trace_id, str) else None,
            entity=entity if known else None,
            record_ids=(str(record),),
        ),
    )


def _list(name: str, endpoint: str, description: str, scope: str) -> Entity:
    return Entity(
        name=name,
        schema=_RECOVERY_SCHEMA if name == "recovery" else schema_of(_COLUMNS[name]),
        key=("sleep_id",) if name == "recovery" else ("id",),
        description=description,
        endpoint=endpoint,
        window="instants",
        paging="cursor",
        # The vendor names no end to revisions; most come within hours, edits of sleeps within days.
        lookback_days=7,
        # No limit of the vendor's, but a window that fails is asked for again as a whole.
        max_window_days=90,
        scope=scope,
    )


PROVIDER = Provider(
    name="whoop",
    title="WHOOP",
    door="fetch",
    base_url="https://api.prod.whoop.com/developer",
    oauth=OAuth(
        authorize_url="https://api.prod.whoop.com/oauth/oauth2/auth",
        token_url="https://api.prod.whoop.com/oauth/oauth2/token",  # noqa: S106
        scopes=(
            "read:recovery",
            "read:cycles",
            "read:sleep",
            "read:workout",
            "read:profile",
            "read:body_measurement",
            # Without it there is no refresh token.
            "offline",
        ),
        refresh_params={"scope": "offline"},
    ),
    budgets=(Budget(100, 60.0), Budget(10_000, 86_400.0)),
    limit_signal="429, and X-RateLimit-Remaining: 0 before it; X-RateLimit-Reset in seconds",
    interpret=interpret,
    webhook=Webhook(
        carries="notice",
        scheme="X-WHOOP-Signature: base64 HMAC-SHA256 of timestamp and body, by the client secret",
        events=events,
        verify=verify,
        deletes_records=True,
        signed_by_client=True,
        dashboard="add it to the app as a webhook URL, model version v2, on the developer dashboard",
    ),
    entities=(
        _list("sleep", _SLEEPS, "One row a sleep or nap; stages as totals.", "read:sleep"),
        _list(
            "recovery",
            "/v2/recovery",
            "One row a recovery, with the times of its sleep where the pages of sleeps had it.",
            "read:recovery",
        ),
        _list(
            "cycle",
            "/v2/cycle",
            "One row a cycle, from falling asleep to falling asleep again; the last has not ended.",
            "read:cycles",
        ),
        _list("workout", "/v2/activity/workout", "One row a workout.", "read:workout"),
        Entity(
            name="body_measurement",
            schema=schema_of(_COLUMNS["body_measurement"]).append(_SEEN_AT),
            key=("seen_at",),
            description="One row a version of the height and weight in the person's profile.",
            endpoint="/v2/user/measurement/body",
            window="everything",
            scope="read:body_measurement",
        ),
    ),
    parse=parse,
    fetch=fetch,
    fetch_records=fetch_records,
    identify=identify,
    disconnect=disconnect,
)
