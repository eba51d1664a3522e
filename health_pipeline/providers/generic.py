"""Whatever has no provider of its own: records in one small JSON format, signed by Standard Webhooks.

Its sender, an app, a script or a service of yours, posts `{"user": …, "records": […]}` to `/webhooks/generic`. `user`
is the sender's own name for the person, which `health-pipeline connect generic` ties to one here. A record has
`metric_type` and `unit` of the catalogue (docs/metrics.md), `value`, and `recorded_at` with its UTC offset; `ended_at`,
`device` and `id` where there are such. A record sent again replaces the one of the same kind, instant and device;
without a value (null) it takes that one away. Its local day is that of `recorded_at`, of `ended_at` for what is about
sleep.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterator, Sequence

import pyarrow as pa

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
    unknown_fields,
)
from health_pipeline.providers.base import (
    Entity,
    Event,
    Parsed,
    Provider,
    RawDocument,
    Webhook,
    WebhookRequest,
)

#: Of `webhook-timestamp`, s, as the specification recommends.
TOLERANCE_SECONDS = 300
_SECRET_PREFIX = "whsec_"  # noqa: S105
_LONGEST_ID = 256

_COLUMNS = (
    Column("metric_type", pa.string(), required=True),
    Column("value", pa.float64()),
    Column("unit", pa.string(), required=True),
    Column("recorded_at", UTC_TIMESTAMP, required=True, offset="utc_offset_minutes"),
    Column("ended_at", UTC_TIMESTAMP, offset="ended_utc_offset_minutes"),
    Column("device", pa.string()),
    Column("id", pa.string()),
)


def verify(request: WebhookRequest, secrets: Sequence[str]) -> bool:
    """Standard Webhooks 1.0: `v1,` and base64 of HMAC-SHA256 of "id.timestamp.body"; several with blanks between.

    A call further than five minutes from its timestamp is refused. A secret is `whsec_` and base64; any other text
    is taken as its bytes.
    """
    identifier = request.header("webhook-id") or ""
    timestamp = request.header("webhook-timestamp") or ""
    given = request.header("webhook-signature") or ""
    if not 1 <= len(identifier) <= _LONGEST_ID or "." in identifier:
        return False
    if not (timestamp.isascii() and timestamp.isdecimal() and len(timestamp) <= 12):
        return False
    if abs(request.received_at.timestamp() - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    message = b".".join((identifier.encode(), timestamp.encode(), request.body))
    expected = [
        b"v1," + base64.b64encode(hmac.digest(key, message, hashlib.sha256))
        for key in map(_key, secrets)
        if key
    ]
    # All are compared, so that the time taken tells nothing.
    return sum(hmac.compare_digest(one.encode(), other) for one in given.split(" ") for other in expected) > 0


def _key(secret: str) -> bytes:
    if not secret.startswith(_SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return b""


def events(body: bytes) -> tuple[Event, ...]:
    """The one event of a call: records of its person. Raises ValueError where it names none."""
    user = load_object(body).get("user")
    if not isinstance(user, str) or not user:
        raise ValueError("a call says whose records it brings: user")
    return (Event("records", "data", user, entity="record"),)


def parse(document: RawDocument) -> Parsed:
    """A call's records as staging rows. One with a wrong type, or without a required field, goes to quarantine, alone.

    Fields we do not know are named in the notes. Raises KeyError for an entity that there is not.
    """
    entity = PROVIDER.entity(document.entity).name
    try:
        records = load_object(document.content).get("records")
    except MalformedBodyError:
        records = None
    if not isinstance(records, list):
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, refused), records_in=1, records_loaded=0)
    read = read_records(records, _COLUMNS)
    places = pa.array(_places(len(records), {bad.index for bad in read.refused}), pa.int32())
    table = read.table.append_column(_SCHEMA.field("position"), places)
    return Parsed(
        tables={entity: table},
        quarantine=quarantine_table(
            entity,
            (
                (bad.reason, bad.field, f"records[{bad.index}]", original_json(records[bad.index]))
                for bad in read.refused
            ),
        ),
        records_in=len(records),
        records_loaded=table.num_rows,
        notes=tuple(
            f"{entity}: new field {path}"
            for path in unknown_fields(records, [column.path for column in _COLUMNS])
        ),
    )


def _places(records: int, refused: set[int]) -> Iterator[int]:
    """Where in the call each good record was."""
    return (index for index in range(records) if index not in refused)


_SCHEMA = pa.schema([*schema_of(_COLUMNS), pa.field("position", pa.int32(), nullable=False)])

PROVIDER = Provider(
    name="generic",
    title="Generic webhook",
    door="webhook",
    entities=(
        Entity(
            name="record",
            schema=_SCHEMA,
            key=("metric_type", "recorded_at", "device"),
            description="One row a record of a call: a value of a metric at an instant, or over a time.",
        ),
    ),
    webhook=Webhook(
        carries="data",
        scheme="Standard Webhooks: HMAC-SHA256 of `id.timestamp.body` in webhook-signature, five minutes",
        events=events,
        verify=verify,
    ),
    parse=parse,
)
