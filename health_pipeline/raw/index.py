"""The index of the raw store: which bytes came, whose they are, when and by which door.

Bytes go to the store first and into `ops.raw_objects` after: a row always has its object.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import sqlalchemy as sa

from health_pipeline.raw.keys import object_key
from health_pipeline.raw.store import RawStore
from health_pipeline.warehouse.models import RawObject, Subject

_SUFFIXES = {
    "application/json": ".json",
    "text/csv": ".csv",
    "application/xml": ".xml",
    "application/zip": ".zip",
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """Bytes as they came, before they are stored. Days are inclusive; see `RawObject` for their meaning."""

    provider: str
    entity: str
    user_id: int
    door: str
    content: bytes
    received_at: dt.datetime
    partition_start: dt.date
    partition_end: dt.date
    content_type: str = "application/octet-stream"
    time_zone: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Receipt:
    """`created` is False where the same bytes were there already and nothing newer had come between."""

    raw_object_id: int
    created: bool
    sha256: str
    size_bytes: int


class ConflictingUploadError(ValueError):
    """The same file was uploaded before with another time zone."""


def subject_id_of(connection: sa.Connection, user_id: int) -> uuid.UUID:
    """The random id under which a user's objects are stored, made on first use."""
    connection.execute(
        sa.dialects.postgresql.insert(Subject)
        .values(subject_id=uuid.uuid4(), user_id=user_id)
        .on_conflict_do_nothing(index_elements=[Subject.user_id])
    )
    found: uuid.UUID = connection.execute(
        sa.select(Subject.subject_id).where(Subject.user_id == user_id)
    ).scalar_one()
    return found


def receive(engine: sa.Engine, store: RawStore, deliveries: Sequence[Delivery]) -> list[Receipt]:
    """Store deliveries and index them, in one transaction for the index.

    The same bytes twice are one object. They get a second index row only when the provider sent something
    newer for the same days in between: then the old version is the current one again, and the order of
    receipt must say so.

    Raises ConflictingUploadError, RawStoreUnavailableError.
    """
    receipts: list[Receipt] = []
    with engine.begin() as connection:
        subjects: dict[int, uuid.UUID] = {}
        for delivery in deliveries:
            if delivery.user_id not in subjects:
                subject = subject_id_of(connection, delivery.user_id)
                # One writer a subject: two deliveries of the same bytes must see each other.
                connection.execute(
                    sa.text("select pg_advisory_xact_lock(hashtextextended(:subject, 0))"),
                    {"subject": str(subject)},
                )
                subjects[delivery.user_id] = subject
            receipts.append(_receive_one(connection, store, subjects[delivery.user_id], delivery))
    return receipts


def _receive_one(
    connection: sa.Connection, store: RawStore, subject: uuid.UUID, delivery: Delivery
) -> Receipt:
    sha256 = hashlib.sha256(delivery.content).hexdigest()
    size = len(delivery.content)
    same_series = sa.and_(
        RawObject.subject_id == subject,
        RawObject.provider == delivery.provider,
        RawObject.entity == delivery.entity,
    )
    known = connection.execute(
        sa.select(RawObject.raw_object_id, RawObject.received_at, RawObject.object_key, RawObject.time_zone)
        .where(same_series, RawObject.sha256 == sha256)
        .order_by(RawObject.received_at.desc(), RawObject.raw_object_id.desc())
        .limit(1)
    ).one_or_none()
    if known is not None:
        if delivery.door == "upload" and known.time_zone != delivery.time_zone:
            raise ConflictingUploadError(
                f"this file was uploaded before with the time zone {known.time_zone}; its readings would be "
                f"counted twice under {delivery.time_zone}. Upload it with the same time zone."
            )
        superseded = connection.execute(
            sa.select(sa.literal(1))
            .where(
                same_series,
                RawObject.received_at > known.received_at,
                RawObject.sha256 != sha256,
                RawObject.partition_start <= delivery.partition_end,
                RawObject.partition_end >= delivery.partition_start,
            )
            .limit(1)
        ).one_or_none()
        if superseded is None:
            return Receipt(known.raw_object_id, False, sha256, size)
        key = known.object_key
    else:
        key = object_key(
            provider=delivery.provider,
            date=delivery.received_at.date(),
            subject=subject,
            sha256=sha256,
            entity=delivery.entity,
            suffix=_SUFFIXES.get(delivery.content_type, ".bin"),
        )
    stored = store.put(key, delivery.content)
    raw_object_id = connection.execute(
        sa.insert(RawObject)
        .values(
            provider=delivery.provider,
            entity=delivery.entity,
            subject_id=subject,
            door=delivery.door,
            received_at=delivery.received_at,
            partition_start=delivery.partition_start,
            partition_end=delivery.partition_end,
            sha256=sha256,
            size_bytes=size,
            stored_bytes=stored.stored_bytes,
            object_key=key,
            content_type=delivery.content_type,
            time_zone=delivery.time_zone,
            context=dict(delivery.context),
        )
        .returning(RawObject.raw_object_id)
    ).scalar_one()
    return Receipt(raw_object_id, True, sha256, size)


def count_received(engine: sa.Engine, first: dt.date, last: dt.date) -> dict[str, tuple[int, int]]:
    """Objects and bytes of the day partitions from `first` to `last`, by provider."""
    query = (
        sa.select(RawObject.provider, sa.func.count(), sa.func.sum(RawObject.size_bytes))
        .where(RawObject.partition_start <= last, RawObject.partition_end >= first)
        .group_by(RawObject.provider)
    )
    with engine.connect() as connection:
        return {provider: (objects, int(size)) for provider, objects, size in connection.execute(query)}
