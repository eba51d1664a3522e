"""Strava API v3: activities with their heart rate, and the athlete's weight.

The list of activities says which there are; the energy is in each activity's own document and the heart rate
in its streams, so both are asked for one by one. Activities carry no time of update, and only changes of
title, type and privacy are announced: every fetch reads some days again.

`start_date_local` is wall-clock time under a false `Z`; the instant is `start_date`.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hmac
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._json import (
    NUMBERS,
    UTC_TIMESTAMP,
    Column,
    MalformedBodyError,
    instants,
    load_object,
    numbers,
    original_json,
    original_text,
    quarantine_table,
    read_records,
    schema_of,
    unknown_fields,
)
from health_pipeline.providers._strava_subscriptions import SUBSCRIPTIONS
from health_pipeline.providers._timed_signature import proves
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
from health_pipeline.providers.http import ApiClient, MalformedResponseError, RecordGoneError, require_object

if TYPE_CHECKING:
    import httpx

_ATHLETE = "/athlete"
_ACTIVITIES = "/athlete/activities"
_LARGEST_PAGE = 200
_QUARTER_HOUR = 900.0
_DAY = 86_400.0
#: Seconds; no place on earth is farther from UTC.
_LONGEST_OFFSET = 18 * 3600

_INT = pa.int32()
_FLOAT = pa.float64()
_TEXT = pa.string()
_FLAG = pa.bool_()
_SHORT = pa.int16()


def _ids(values: Sequence[Any]) -> pa.Array:
    """Ids, 64-bit whole numbers, as text."""
    return numbers(values, pa.int64()).cast(_TEXT)


def _offsets(values: Sequence[Any]) -> pa.Array:
    """UTC offsets in seconds."""
    offsets = numbers(values, _FLOAT)
    if pc.any(pc.greater(pc.abs(offsets), _LONGEST_OFFSET)).as_py():
        raise ValueError("not a UTC offset")
    return offsets


def _zones(values: Sequence[Any]) -> pa.Array:
    """`(GMT-08:00) America/Los_Angeles` without the label, which is not that of summer time."""
    return pc.replace_substring_regex(pa.array(values, _TEXT), r"^\(GMT[^)]*\)\s*", "")


_ACTIVITY = (
    Column("id", _TEXT, required=True, convert=_ids),
    Column("start_date", UTC_TIMESTAMP, "started_at", required=True),
    # False instants, and only for their distance from the true ones.
    Column("start_date_local", UTC_TIMESTAMP),
    Column("utc_offset", _FLOAT, convert=_offsets),
    Column("timezone", _TEXT, "time_zone", convert=_zones),
    Column("sport_type", _TEXT),
    Column("type", _TEXT),
    Column("elapsed_time", _INT, "elapsed_time_seconds", required=True),
    Column("moving_time", _INT, "moving_time_seconds"),
    Column("distance", _FLOAT, "distance_m"),
    Column("total_elevation_gain", _FLOAT, "elevation_gain_m"),
    Column("perceived_exertion", _FLOAT),
    Column("average_speed", _FLOAT, "average_speed_m_per_s"),
    Column("max_speed", _FLOAT, "max_speed_m_per_s"),
    Column("has_heartrate", _FLAG),
    Column("average_heartrate", _FLOAT, "average_heart_rate_bpm"),
    Column("max_heartrate", _FLOAT, "max_heart_rate_bpm"),
    Column("calories", _FLOAT, "calories_kcal"),
    # Mechanical work of rides, not energy burned.
    Column("kilojoules", _FLOAT, "work_kilojoule"),
    Column("suffer_score", _FLOAT),
    Column("average_watts", _FLOAT),
    Column("weighted_average_watts", _FLOAT),
    Column("max_watts", _FLOAT),
    Column("device_watts", _FLAG),
    Column("average_cadence", _FLOAT),
    Column("average_temp", _FLOAT, "average_temperature_celsius"),
    Column("manual", _FLAG),
    Column("trainer", _FLAG),
    Column("commute", _FLAG),
    Column("private", _FLAG),
    Column("device_name", _TEXT),
    Column("external_id", _TEXT),
)
_SAID_TWICE = ("start_date_local", "utc_offset", "type")
_OFFSET = pa.field("utc_offset_minutes", _SHORT)
_ACTIVITY_SCHEMA = pa.schema(
    [field for field in schema_of(_ACTIVITY) if field.name not in _SAID_TWICE] + [_OFFSET]
)

_STREAMS = (
    Column("time.data", NUMBERS, required=True),
    Column("heartrate.data", NUMBERS, required=True),
)
_STREAM_SCHEMA = pa.schema(
    [
        pa.field("activity_id", _TEXT, nullable=False),
        pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
        _OFFSET,
        pa.field("bpm", _FLOAT, nullable=False),
    ]
)

_ATHLETE_COLUMNS = (
    Column("id", _TEXT, required=True, convert=_ids),
    Column("updated_at", UTC_TIMESTAMP),
    Column("weight", _FLOAT, "weight_kg"),
    Column("ftp", _FLOAT, "functional_threshold_power_watts"),
)
_SEEN_AT = pa.field("seen_at", UTC_TIMESTAMP, nullable=False)

#: Fields we know and leave in raw: names and places, people's reactions, gear, laps and segments.
_LEFT_IN_RAW = (
    *("name", "description", "map", "start_latlng", "end_latlng", "start_latitude", "start_longitude"),
    *("location_city", "location_state", "location_country", "athlete", "athlete_count", "photos"),
    *("achievement_count", "kudos_count", "comment_count", "photo_count", "total_photo_count", "pr_count"),
    *("has_kudoed", "gear", "gear_id", "segment_efforts", "best_efforts", "splits_metric", "splits_standard"),
    *(
        "laps",
        "upload_id",
        "upload_id_str",
        "guid",
        "flagged",
        "resource_state",
        "workout_type",
        "visibility",
    ),
    *("elev_high", "elev_low", "display_hide_heartrate_option", "heartrate_opt_out", "embed_token"),
    *("from_accepted_tag", "hide_from_home", "stats_visibility", "similar_activities", "available_zones"),
    *("segment_leaderboard_opt_out", "leaderboard_opt_out", "prefer_perceived_exertion"),
    *("partner_brand_tag", "highlighted_kudosers", "private_note"),
)


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """The activities, or heart rate streams, of the days of `window` and some hours beside it; or the athlete.

    An activity that is gone between list and question is passed over. A list that cannot be paged through
    raises MalformedResponseError. Raises the errors of `ApiClient.get`.
    """
    if entity.window == "everything":
        yield Page(entity.name, client.get(_ATHLETE).content, window)
        return
    for activity in _listed(client, window):
        with contextlib.suppress(RecordGoneError):
            if entity.name == "heart_rate_stream":
                yield from _stream(client, activity, window)
            else:
                yield Page(entity.name, client.get(f"/activities/{activity['id']}").content, window)


def fetch_records(
    client: ApiClient, entity: Entity, record_ids: Sequence[str], window: Window
) -> Iterator[Page]:
    """The activities, or their heart rate streams. Raises the errors of `ApiClient.get`, but for what is gone."""
    for record_id in record_ids:
        with contextlib.suppress(RecordGoneError):
            content = client.get(f"/activities/{record_id}").content
            if entity.name == "heart_rate_stream":
                activity = require_object(client, "/activities/{id}", content)
                yield from _stream(client, activity, window)
            else:
                yield Page(entity.name, content, window)
                require_object(client, "/activities/{id}", content)


def _stream(client: ApiClient, activity: Mapping[str, Any], window: Window) -> Iterator[Page]:
    start = activity.get("start_date")
    if not activity.get("has_heartrate") or not isinstance(start, str):
        return
    params = {"keys": "time,heartrate", "key_by_type": "true"}
    context = {"activity_id": str(activity["id"]), "start_date": start}
    offset = activity.get("utc_offset")
    if isinstance(offset, int | float) and abs(offset) <= _LONGEST_OFFSET:
        context["utc_offset"] = str(offset)
    content = client.get(f"/activities/{activity['id']}/streams", params).content
    yield Page("heart_rate_stream", content, window, context=context)


def _listed(client: ApiClient, window: Window) -> Iterator[dict[str, Any]]:
    """Summaries of the activities that started in the window. Filtering can make any page but an empty one short."""
    # Whole local days anywhere on earth, from UTC+14 to UTC-12: the account's zone is not known here.
    first = dt.datetime.combine(window.start, dt.time(), dt.UTC) - dt.timedelta(hours=14)
    last = dt.datetime.combine(window.end, dt.time(), dt.UTC) + dt.timedelta(hours=36)
    span = {"after": str(int(first.timestamp()) - 1), "before": str(int(last.timestamp()))}
    page = 1
    while True:
        params = {**span, "page": str(page), "per_page": str(_LARGEST_PAGE)}
        try:
            found = orjson.loads(client.get(_ACTIVITIES, params).content)
        except orjson.JSONDecodeError:
            found = None
        if not isinstance(found, list) or not all(
            isinstance(activity, dict) and type(activity.get("id")) is int for activity in found
        ):
            raise MalformedResponseError(
                client.provider, _ACTIVITIES, 200, "the body is no list of activities; the rest is unknown"
            )
        if not found:
            return
        yield from found
        page += 1


def identify(client: ApiClient) -> Account:
    """Who the tokens belong to: Strava's athlete id and, where known, sex and weight_kg."""
    response = client.get(_ATHLETE)
    try:
        body = load_object(response.content)
    except MalformedBodyError:
        body = {}
    if type(body.get("id")) is not int:
        raise MalformedResponseError(client.provider, _ATHLETE, response.status_code, "no athlete id came")
    sex = {"M": "male", "F": "female"}.get(str(body.get("sex")))
    profile = {"sex": sex, "weight_kg": body.get("weight") or None}
    return Account(str(body["id"]), {name: value for name, value in profile.items() if value is not None})


def interpret(response: httpx.Response, now: float) -> Verdict | None:
    """What the usage headers and the errors' fields say.

    The windows are those of the clock: quarter hours and days of UTC. What is used up is told beside the good
    answer that used it, and with a 429 there is no Retry-After.
    """
    wait = _wait(response.headers, now)
    if response.is_success:
        return None if wait is None else Verdict("good", wait_seconds=wait)
    if response.status_code == 429:
        return Verdict("rate_limited", wait_seconds=_until_next(_QUARTER_HOUR, now) if wait is None else wait)
    if response.status_code in (401, 403):
        for error in _errors(response.content):
            resource, field, code = (error.get(name) for name in ("resource", "field", "code"))
            if (resource, field, code) == ("Application", "Status", "Inactive"):
                return Verdict(
                    "rejected",
                    message="Strava has switched this application off: its owner has to subscribe and reactivate it",
                )
            if code == "missing" and str(field).endswith("_permission"):
                return Verdict(
                    "forbidden",
                    message="the permission for activities was not granted; reconnect and tick it",
                )
    return None


def _wait(headers: httpx.Headers, now: float) -> float | None:
    """Seconds until the budget that is used up is there again; None where none is. Pairs: 15 minutes, day."""
    wait = None
    for kind in ("X-RateLimit", "X-ReadRateLimit"):
        limits, used = (headers.get(f"{kind}-{part}", "").split(",") for part in ("Limit", "Usage"))
        try:
            spent = [int(use) >= int(limit) for use, limit in zip(used, limits, strict=True)]
        except ValueError:
            continue
        for window, is_spent in zip((_QUARTER_HOUR, _DAY), spent, strict=False):
            if is_spent:
                wait = max(wait or 0.0, _until_next(window, now))
    return wait


def _until_next(window: float, now: float) -> float:
    # A second more: the two clocks may differ.
    return (math.floor(now / window) + 1) * window - now + 1


def _errors(content: bytes) -> list[dict[str, Any]]:
    try:
        errors = load_object(content).get("errors")
    except MalformedBodyError:
        return []
    return [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []


def parse(document: RawDocument) -> Parsed:
    """One activity, heart rate stream or athlete as staging rows, or in quarantine with the field named.

    Fields we do not know are named in the notes. Raises KeyError for an entity that has no pages.
    """
    entity = document.entity
    columns = {"activity": _ACTIVITY, "heart_rate_stream": _STREAMS, "athlete": _ATHLETE_COLUMNS}[entity]
    try:
        body = load_object(document.content)
    except MalformedBodyError:
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, refused), records_in=1, records_loaded=0)
    if entity == "heart_rate_stream" and body.get("heartrate") is None:
        return Parsed(
            {}, quarantine_table(entity, ()), records_in=1, records_loaded=0, skipped={"no_heart_rate": 1}
        )
    read = read_records([body], columns)
    refused_rows = [(bad.reason, bad.field, "$", original_json(body)) for bad in read.refused]
    table, notes = read.table, []
    if entity == "activity":
        table = _activity(read.table)
        known = (*(column.path for column in columns), *_LEFT_IN_RAW)
        notes = [f"{entity}: new field {path}" for path in unknown_fields([body], known)]
    elif entity == "athlete":
        seen_at = pa.repeat(pa.scalar(document.received_at, UTC_TIMESTAMP), table.num_rows)
        table = table.append_column(_SEEN_AT, seen_at)
    elif not read.refused:
        found = _heart_rate(read.table, document.context)
        if found is None:
            refused_rows = [("wrong_type", "heartrate.data", "$", original_json(body))]
        table = _STREAM_SCHEMA.empty_table() if found is None else found
    else:
        table = _STREAM_SCHEMA.empty_table()
    return Parsed(
        tables={entity: table},
        quarantine=quarantine_table(entity, refused_rows),
        records_in=1,
        records_loaded=1 - len(refused_rows),
        notes=tuple(notes),
    )


def _activity(activities: pa.Table) -> pa.Table:
    """Activities with the offset in force, and one name of the sport. Older documents have no `utc_offset`."""
    seconds = [activities[name].cast(pa.int64()) for name in ("start_date_local", "started_at")]
    printed = pc.divide(pc.subtract(*seconds), 60_000_000)
    said = pc.divide(activities["utc_offset"], 60.0)
    # A local time that is not of this place on earth says nothing of the offset.
    printed = pc.if_else(pc.less_equal(pc.abs(printed), _LONGEST_OFFSET // 60), printed, None)
    minutes = pc.coalesce(pc.round(said), printed.cast(_FLOAT)).cast(_SHORT)
    sports = pc.coalesce(activities["sport_type"], activities["type"])
    place = activities.schema.get_field_index("sport_type")
    return (
        activities.set_column(place, "sport_type", sports)
        .append_column(_OFFSET, minutes)
        .select(_ACTIVITY_SCHEMA.names)
        .cast(_ACTIVITY_SCHEMA)
    )


def _heart_rate(streams: pa.Table, context: Mapping[str, str]) -> pa.Table | None:
    """A row a sample; None where the streams or the context do not fit each other."""
    seconds, bpm = (pc.list_flatten(streams[name]).combine_chunks() for name in streams.schema.names)
    try:
        start = instants([context["start_date"]])[0].value
        offset = float(context["utc_offset"]) // 60 if "utc_offset" in context else None
        activity_id = context["activity_id"]
    except (KeyError, ValueError, pa.ArrowException):
        return None
    if len(seconds) != len(bpm) or seconds.null_count:
        return None
    recorded_at = pc.add(pc.multiply(seconds, 1e6).cast(pa.int64(), safe=False), start)
    table = pa.table(
        [
            pa.repeat(activity_id, len(bpm)),
            recorded_at.cast(UTC_TIMESTAMP),
            pa.repeat(pa.scalar(None if offset is None else int(offset), _SHORT), len(bpm)),
            bpm,
        ],
        names=_STREAM_SCHEMA.names,
    )
    return table.filter(bpm.is_valid()).cast(_STREAM_SCHEMA)


def verify_configured(request: WebhookRequest, secrets: Sequence[str]) -> bool:
    """X-Strava-Signature as live calls carry it: `t=…,v1=…` (see `_timed_signature`). Its key is disputed."""
    return proves(request.header("x-strava-signature") or "", request, secrets)


def challenge(request: WebhookRequest, secrets: Sequence[str]) -> tuple[int, str, bytes] | None:
    """The handshake of a subscription: `hub.challenge` back, for one of our verify tokens."""
    asked = request.query.get("hub.challenge")
    if request.method != "GET" or request.query.get("hub.mode") != "subscribe" or asked is None:
        return None
    token = request.query.get("hub.verify_token", "").encode()
    if not any(hmac.compare_digest(token, secret.encode()) for secret in secrets):
        return 403, "application/json", b"{}"
    return 200, "application/json", orjson.dumps({"hub.challenge": asked})


def events(body: bytes) -> tuple[Event, ...]:
    """The event of a notice, or two: of the activity and its heart rate. It does not say when the activity was."""
    notice = load_object(body)
    kind_of, aspect, owner = (notice.get(name) for name in ("object_type", "aspect_type", "owner_id"))
    if not isinstance(kind_of, str) or not isinstance(aspect, str) or type(owner) is not int:
        raise ValueError("a Strava notice has an object_type, an aspect_type and an owner_id")
    updates = notice.get("updates")
    kinds = {"create": "changed", "update": "changed", "delete": "deleted"}
    kind: Any = kinds.get(aspect, "other") if kind_of == "activity" else "other"
    # Withdrawn consent comes as an update of the athlete; values of updates are strings.
    if (
        kind_of == "athlete"
        and isinstance(updates, dict)
        and str(updates.get("authorized")).lower() == "false"
    ):
        kind = "deauthorized"
    of_activity = kind_of == "activity" and type(notice.get("object_id")) is int
    # With an activity came its heart rate.
    entities = ("activity", "heart_rate_stream") if kind == "changed" else ("activity",)
    return tuple(
        Event(
            event_type=f"{kind_of}.{aspect}",
            kind=kind,
            provider_user_id=str(owner),
            entity=entity,
            record_ids=(str(notice["object_id"]),) if of_activity else (),
        )
        for entity in (entities if of_activity else (None,))
    )


PROVIDER = Provider(
    name="strava",
    title="Strava",
    door="fetch",
    base_url="https://www.strava.com/api/v3",
    oauth=OAuth(
        authorize_url="https://www.strava.com/oauth/authorize",
        token_url="https://www.strava.com/oauth/token",  # noqa: S106
        revoke_url="https://www.strava.com/oauth/revoke",
        scopes=("read", "profile:read_all", "activity:read_all"),
        scope_separator=",",
        authorize_params={"approval_prompt": "auto"},
    ),
    # What the standard tier may read; larger tiers are told apart by nothing but their headers.
    budgets=(Budget(100, _QUARTER_HOUR), Budget(1000, _DAY)),
    limit_signal="429, and X-(Read)RateLimit-Usage as high as -Limit, by quarter hour and UTC day",
    interpret=interpret,
    # Deliveries may carry X-Strava-Signature, but its key is not documented: the path has to do, until
    # somebody who knows the key configures it.
    webhook=Webhook(
        carries="notice",
        scheme="secret path; with a configured secret HMAC-SHA256 of `t.body` in X-Strava-Signature, too",
        secret_path=True,
        verify_configured=verify_configured,
        events=events,
        challenge=challenge,
        deletes_records=True,
        subscriptions=SUBSCRIPTIONS,
    ),
    entities=(
        Entity(
            name="activity",
            schema=_ACTIVITY_SCHEMA,
            key=("id",),
            description="One row an activity.",
            endpoint="/activities/{id}",
            window="instants",
            paging="page_number",
            # Each activity costs a request; later changes are announced.
            lookback_days=7,
            scope="activity:read_all",
        ),
        Entity(
            name="heart_rate_stream",
            schema=_STREAM_SCHEMA,
            key=("activity_id", "recorded_at"),
            description="One row a heart rate sample of an activity.",
            endpoint="/activities/{id}/streams",
            window="instants",
            paging="page_number",
            # For devices that are synchronised late; a stream does not change.
            lookback_days=3,
            scope="activity:read_all",
        ),
        Entity(
            name="athlete",
            schema=schema_of(_ATHLETE_COLUMNS).append(_SEEN_AT),
            key=("id", "seen_at"),
            description="One row a version of the athlete's weight and threshold power.",
            endpoint=_ATHLETE,
            window="everything",
            scope="profile:read_all",
        ),
    ),
    parse=parse,
    fetch=fetch,
    fetch_records=fetch_records,
    identify=identify,
    parser_version=2,
)
