"""The index of the raw store: which bytes came, whose they are, when and by which door.

Bytes go to the store first and into `ops.raw_objects` after: a row always has its object.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from health_pipeline.raw.keys import object_key
from health_pipeline.raw.store import RawStore
from health_pipeline.warehouse.models import RawObject, Subject

_SUFFIXES = {
    "application/json": ".json",
    "application/fhir+json": ".json",
    "text/csv": ".csv",
    "application/xml": ".xml",
    "application/zip": ".zip",
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """Bytes as they came, or a file with them, before they are stored.

    Days are inclusive; see `RawObject` for their meaning.
    """

    provider: str
    entity: str
    user_id: int | None
    door: str
    content: bytes | Path
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


def nobody(connection: sa.Connection) -> uuid.UUID:
    """A subject of its own for what came of somebody unknown: it can be erased, and given to its person later."""
    subject_id = uuid.uuid4()
    connection.execute(sa.insert(Subject).values(subject_id=subject_id, user_id=None))
    return subject_id


def receive_within(
    connection: sa.Connection, store: RawStore, subject: uuid.UUID, delivery: Delivery
) -> Receipt:
    """As receive(), in the caller's transaction and for a subject that is there already."""
    connection.execute(
        sa.text("select pg_advisory_xact_lock(hashtextextended(:subject, 0))"), {"subject": str(subject)}
    )
    return _receive_one(connection, store, subject, delivery)


def receive(engine: sa.Engine, store: RawStore, deliveries: Sequence[Delivery]) -> list[Receipt]:
    """Store deliveries and index them, in one transaction for the index.

    The same bytes twice are one object. They get a second index row only when the provider sent something
    newer for the same days in between: then the old version is the current one again, and the order of
    receipt must say so.

    Raises ConflictingUploadError, RawStoreUnavailableError.
    """
    # In an order, so that two writers of several subjects do not wait for each other.
    user_ids = sorted({delivery.user_id for delivery in deliveries if delivery.user_id is not None})
    with engine.begin() as connection:
        # Kept whatever becomes of the rest: an object under a subject that nobody is could not be erased.
        subjects = {user_id: subject_id_of(connection, user_id) for user_id in user_ids}
    with engine.begin() as connection:
        for subject in subjects.values():
            # One writer a subject: two deliveries of the same bytes must see each other.
            connection.execute(
                sa.text("select pg_advisory_xact_lock(hashtextextended(:subject, 0))"),
                {"subject": str(subject)},
            )
        return [
            _receive_one(connection, store, subjects[delivery.user_id], delivery)
            for delivery in deliveries
            if delivery.user_id is not None
        ]


def _receive_one(
    connection: sa.Connection, store: RawStore, subject: uuid.UUID, delivery: Delivery
) -> Receipt:
    sha256, size = _fingerprint(delivery.content)
    same_series = sa.and_(
        RawObject.subject_id == subject,
        RawObject.provider == delivery.provider,
        RawObject.entity == delivery.entity,
    )
    known = connection.execute(
        sa.select(RawObject)
        .where(same_series, RawObject.sha256 == sha256)
        .order_by(RawObject.received_at.desc(), RawObject.raw_object_id.desc())
        .limit(1)
    ).one_or_none()
    if known is not None:
        newly_zoned = False
        if delivery.door == "upload" and delivery.time_zone not in (None, known.time_zone):
            if known.time_zone is not None:
                raise ConflictingUploadError(
                    f"this file was uploaded before with the time zone {known.time_zone}; its readings would "
                    f"be counted twice under {delivery.time_zone}. Upload it with the same time zone."
                )
            # Its local times, if it has any, could not be read then.
            newly_zoned = True
        if not newly_zoned and not _superseded(connection, same_series, known, delivery):
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
    content = delivery.content
    stored = store.put_file(key, content) if isinstance(content, Path) else store.put(key, content)
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


def _fingerprint(content: bytes | Path) -> tuple[str, int]:
    """Hash and size."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest(), len(content)
    with content.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return digest, file.tell()


def _superseded(
    connection: sa.Connection, same_series: sa.ColumnElement[bool], known: Any, delivery: Delivery
) -> bool:
    """Whether other bytes about the same days came after the known ones."""
    if delivery.door == "fetch":
        same_days = sa.and_(
            RawObject.partition_start <= delivery.partition_end,
            RawObject.partition_end >= delivery.partition_start,
        )
    else:
        # The partition of what was sent to us is the day it came; what is not parsed yet may be of any day.
        same_days = sa.and_(
            sa.func.coalesce(RawObject.data_start_date, dt.date.min) <= (known.data_end_date or dt.date.max),
            sa.func.coalesce(RawObject.data_end_date, dt.date.max) >= (known.data_start_date or dt.date.min),
        )
    newer = sa.select(sa.literal(1)).where(
        same_series,
        RawObject.received_at > known.received_at,
        RawObject.sha256 != known.sha256,
        same_days,
    )
    return connection.execute(newer.limit(1)).one_or_none() is not None


def partition_of(engine: sa.Engine, raw_object_id: int) -> dt.date:
    """The first day partition of an object: of a file, the day it was first received."""
    query = sa.select(RawObject.partition_start).where(RawObject.raw_object_id == raw_object_id)
    with engine.connect() as connection:
        day: dt.date = connection.execute(query).scalar_one()
    return day


def count_received(engine: sa.Engine, first: dt.date, last: dt.date) -> dict[str, tuple[int, int]]:
    """Objects and bytes of the day partitions from `first` to `last`, by provider."""
    query = (
        sa.select(RawObject.provider, sa.func.count(), sa.func.sum(RawObject.size_bytes))
        .where(RawObject.partition_start <= last, RawObject.partition_end >= first)
        .group_by(RawObject.provider)
    )
    with engine.connect() as connection:
        return {provider: (objects, int(size)) for provider, objects, size in connection.execute(query)}
