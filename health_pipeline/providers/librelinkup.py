"""LibreLinkUp: what a follower of a FreeStyle Libre wearer sees. Unofficial, and off by default.

Abbott has no public API: this is the one its own app uses, found out by others, and it may breach Abbott's
terms. It breaks when Abbott raises the app version it wants. The follower signs in with e-mail and password;
every account lives on one of several regional hosts. An access token here is `region:account-id:ticket`, which
is all that a request needs.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from health_pipeline.providers._device_clock import derived_offsets
from health_pipeline.providers._glucose import hash_serial
from health_pipeline.providers._json import (
    UTC_TIMESTAMP,
    Column,
    MalformedBodyError,
    load_object,
    original_json,
    original_text,
    quarantine_table,
    read_records,
    schema_of,
    strings,
    unknown_fields,
)
from health_pipeline.providers._local_time import CIVIL, parse_times
from health_pipeline.providers.base import (
    Account,
    Budget,
    Credentials,
    Entity,
    Page,
    Parsed,
    PasswordLogin,
    Provider,
    RawDocument,
    Verdict,
    Window,
)
from health_pipeline.providers.http import ApiClient, MalformedResponseError, RequestRejectedError

if TYPE_CHECKING:
    import httpx

#: The version of the app that requests claim to be; the vendor's floor was this in October 2025.
VERSION_SETTING = "HEALTH_PIPELINE_LIBRELINKUP_VERSION"
_VERSION = "4.16.0"

_LOGIN = "/llu/auth/login"
_CONNECTIONS = "/llu/connections"
_MOST_REDIRECTS = 3
#: A block for too many requests says nothing of its length, and asking again makes it longer.
_BLOCK_SECONDS = 3600.0

_STEPS = {
    "tou": "accept the new terms of use",
    "pp": "accept the new privacy policy",
    "verifyEmail": "confirm the e-mail address",
}

_SHORT = pa.int16()
_FLOAT = pa.float64()


def _clock(values: Sequence[Any]) -> pa.Array:
    """`5/21/2022 1:38:50 PM` as microseconds of a clock."""
    text = strings(values)
    times = parse_times(text, date_order="mdy")
    given = np.asarray(text.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)
    if (times.kind[given] != CIVIL).any():
        raise ValueError("not a time")
    return pa.array(times.us, mask=~given).cast(pa.timestamp("us"))


def _utc_clock(values: Sequence[Any]) -> pa.Array:
    return _clock(values).cast(pa.int64()).cast(UTC_TIMESTAMP)


_COLUMNS = (
    Column("FactoryTimestamp", UTC_TIMESTAMP, "factory_time", required=True, convert=_utc_clock),
    Column("Timestamp", pa.timestamp("us"), "local_time", convert=_clock),
    Column("type", _SHORT, "measurement_type", required=True),
    Column("ValueInMgPerDl", _FLOAT, "value_mg_dl", required=True),
    # What the app shows: 0 is mmol/L, 1 mg/dL.
    Column("Value", _FLOAT, "display_value"),
    Column("GlucoseUnits", _SHORT, "display_unit_code"),
    Column("TrendArrow", _SHORT, "trend_arrow"),
    Column("MeasurementColor", _SHORT, "measurement_color"),
    Column("isHigh", pa.bool_(), "is_high"),
    Column("isLow", pa.bool_(), "is_low"),
)
_LEFT_IN_RAW = ("TrendMessage",)
_SCHEMA = pa.schema(
    [
        *schema_of(_COLUMNS),
        pa.field("utc_offset_minutes", _SHORT),
        # A short hash: a serial number identifies its wearer.
        pa.field("sensor_serial", pa.string()),
    ]
)


def authorize(credentials: Credentials) -> Mapping[str, str]:
    """The headers of the vendor's app; without a token, those of a sign-in."""
    headers = {
        "product": "llu.android",
        "version": os.environ.get(VERSION_SETTING) or _VERSION,
        "cache-control": "no-cache",
    }
    if credentials.access_token:
        _, account, ticket = credentials.access_token.split(":", 2)
        headers |= {"Authorization": f"Bearer {ticket}", "account-id": account}
    return headers


def region_of(access_token: str) -> str | None:
    return access_token.split(":", 1)[0] or None


def login(client: ApiClient, user_name: str, password: str) -> Mapping[str, Any]:
    """Sign in, on the host the account lives on. The answer is in the shape of RFC 6749, 5.1.

    Raises PermissionMissingError for a wrong password, RequestRejectedError where the person has to do
    something in the app first, RateLimitedError while the account is locked.
    """
    region, path = "", _LOGIN
    for _ in range(_MOST_REDIRECTS):
        response = client.request("POST", path, json={"email": user_name, "password": password})
        try:
            data = load_object(response.content).get("data")
        except MalformedBodyError:
            data = None
        if not isinstance(data, dict):
            break
        if data.get("redirect") is True:
            region = str(data.get("region"))
            try:
                path = client.url_in(region, _LOGIN)
            except KeyError:
                raise RequestRejectedError(
                    client.provider,
                    _LOGIN,
                    response.status_code,
                    f"the account is in a region we do not know ({region[:20]!r})",
                ) from None
            continue
        try:
            user_id, ticket = data["user"]["id"], data["authTicket"]
            account = hashlib.sha256(str(user_id).encode()).hexdigest()
            left = int(ticket["expires"]) - dt.datetime.now(dt.UTC).timestamp()
            return {"access_token": f"{region}:{account}:{ticket['token']}", "expires_in": max(0, int(left))}
        except (KeyError, TypeError, ValueError):
            break
    raise MalformedResponseError(client.provider, _LOGIN, 200, "the sign-in ended without a ticket")


def interpret(response: httpx.Response, now: float) -> Verdict | None:
    """The status in the body counts for more than that of the answer."""
    try:
        body = load_object(response.content)
    except MalformedBodyError:
        if response.status_code == 403:
            return Verdict("rate_limited", _BLOCK_SECONDS)  # the network in front of the service shut us out
        return None
    data = body.get("data")
    data = data if isinstance(data, dict) else {}
    status, message = body.get("status"), str(body.get("message", ""))
    if status == 920 or "minimumVersion" in data:
        wanted = str(data.get("minimumVersion", ""))
        wanted = wanted if re.fullmatch(r"[\d.]{1,20}", wanted) else "a newer one"
        return Verdict("rejected", message=f"the app version is too old: set {VERSION_SETTING} to {wanted}")
    if status == 429 or message == "locked":
        detail = data.get("data")
        lockout = detail.get("lockout") if isinstance(detail, dict) else None
        wait = float(lockout) if isinstance(lockout, int | float) else None
        return Verdict("rate_limited", wait, for_all=False)
    if status == 4:
        step = data.get("step")
        kind = step.get("type") if isinstance(step, dict) else None
        todo = _STEPS.get(str(kind), "follow what it asks")
        return Verdict("rejected", message=f"the person has to open the LibreLinkUp app and {todo}")
    if message == "couldNotLoadPatient":
        return Verdict("forbidden", message="the wearer no longer shares with this follower")
    signing_in = response.request.url.path.endswith(_LOGIN)
    if signing_in and (status == 2 or response.status_code == 401):
        return Verdict("forbidden", message="the e-mail address or the password was refused")
    if response.is_success and status not in (0, None):
        return Verdict("rejected", message="the service refused without a reason that we know")
    return None


def fetch(client: ApiClient, entity: Entity, window: Window) -> Iterator[Page]:
    """The wearer's last twelve hours, or two weeks of scans: there is no window to ask for.

    Raises the errors of `ApiClient.get`.
    """
    patient = client.provider_user_id or identify(client).provider_user_id
    content = client.get(f"{_CONNECTIONS}/{patient}/{entity.name}").content
    yield Page(entity.name, content, window)


def identify(client: ApiClient) -> Account:
    """The one wearer that this account follows.

    An account that follows nobody, or several people, cannot be connected: whose the readings are would be
    anyone's guess.
    """
    response = client.get(_CONNECTIONS)
    try:
        found = load_object(response.content).get("data")
    except MalformedBodyError:
        found = None
    if not isinstance(found, list):
        raise MalformedResponseError(client.provider, _CONNECTIONS, 200, "no list of wearers came")
    if len(found) != 1:
        raise RequestRejectedError(
            client.provider,
            _CONNECTIONS,
            response.status_code,
            f"the account follows {len(found)} people; connect one that follows exactly one",
        )
    patient = found[0].get("patientId") if isinstance(found[0], dict) else None
    if not isinstance(patient, str) or not re.fullmatch(r"[0-9A-Za-z-]{1,64}", patient):
        raise MalformedResponseError(client.provider, _CONNECTIONS, 200, "no wearer's id came")
    return Account(patient)


def parse(document: RawDocument) -> Parsed:
    """Measurements as staging rows: of `graph` the history and the present value, of `logbook` the scans.

    A measurement with a wrong type or without a required field goes to quarantine, alone. Raises KeyError for
    an entity that has no pages.
    """
    entity = PROVIDER.entity(document.entity).name
    try:
        data = load_object(document.content).get("data")
    except MalformedBodyError:
        data = None
    found = _measurements(entity, data)
    if found is None:
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, refused), records_in=1, records_loaded=0)
    records, places, serial = found
    read = read_records(records, _COLUMNS)
    table = read.table
    serials = pa.repeat(pa.scalar(hash_serial(serial) if serial else None, pa.string()), table.num_rows)
    table = table.append_column(
        _SCHEMA.field("utc_offset_minutes"), derived_offsets(table["factory_time"], table["local_time"])
    ).append_column(_SCHEMA.field("sensor_serial"), serials)
    known = [*(column.path for column in _COLUMNS), *_LEFT_IN_RAW]
    return Parsed(
        tables={entity: table},
        quarantine=quarantine_table(
            entity,
            (
                (bad.reason, bad.field, places[bad.index], original_json(records[bad.index]))
                for bad in read.refused
            ),
        ),
        records_in=len(records),
        records_loaded=table.num_rows,
        notes=tuple(f"{entity}: new field {path}" for path in unknown_fields(records, known)),
    )


def _measurements(entity: str, data: Any) -> tuple[list[Any], list[str], str | None] | None:
    """Records, the place of each, and the serial number of the sensor that the answer is of."""
    if entity == "logbook":
        if not isinstance(data, list):
            return None
        return data, [f"data[{index}]" for index in range(len(data))], None
    history = data.get("graphData") if isinstance(data, dict) else None
    if not isinstance(history, list):
        return None
    connection = data.get("connection")
    connection = connection if isinstance(connection, dict) else {}
    sensor = connection.get("sensor")
    serial = sensor.get("sn") if isinstance(sensor, dict) else None
    places = [f"data.graphData[{index}]" for index in range(len(history))]
    present = connection.get("glucoseMeasurement")
    if present is not None:
        history, places = [*history, present], [*places, "data.connection.glucoseMeasurement"]
    return history, places, serial if isinstance(serial, str) else None


def _entity(name: str, description: str) -> Entity:
    return Entity(
        name=name,
        schema=_SCHEMA,
        key=("factory_time", "measurement_type"),
        description=description,
        endpoint=f"{_CONNECTIONS}/{{patient}}/{name}",
        window="everything",
    )


PROVIDER = Provider(
    name="librelinkup",
    title="LibreLinkUp (unofficial)",
    door="fetch",
    base_url="https://api.libreview.io",
    regions={
        **{
            region: f"https://api-{region}.libreview.io"
            for region in ("ae", "ap", "au", "ca", "de", "eu", "eu2", "fr", "jp", "la", "us")
        },
        "ru": "https://api.libreview.ru",
        "cn": "https://api-cn.myfreestyle.cn",
    },
    region_of=region_of,
    password=PasswordLogin(
        login=login,
        warning=(
            "This is not an official interface: Abbott offers none, may consider its use a breach of the "
            "LibreLinkUp terms, and may block the account. Connect a follower account of its own, never the "
            "wearer's. Its password is stored, encrypted, because there is no other way to stay signed in."
        ),
    ),
    authorize=authorize,
    # No limits are published; bursts get an address blocked.
    budgets=(Budget(20, 3600.0, "account"), Budget(1, 1.0)),
    limit_signal="429, or status 429 in the body with `lockout` in seconds; a bare 403 is a block",
    interpret=interpret,
    # Twelve hours are kept, and what is missed is gone.
    poll_hours=4,
    enabled=False,
    entities=(
        _entity(
            "graph",
            "One row a measurement of the last twelve hours: history (type 0), and the present value (1).",
        ),
        _entity("logbook", "One row a scan or alarm of the last two weeks."),
    ),
    parse=parse,
    fetch=fetch,
    identify=identify,
)
