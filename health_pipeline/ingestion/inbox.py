"""The watched folder or S3 prefix: `<inbox>/<user's handle>/<file>` is taken into raw, once.

Files stay where they are. `ops.inbox_files` remembers each by place and fingerprint, also the refused ones
with the reason, so that a bad file is reported once and not read at every look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from health_pipeline.connections.users import ensure_user
from health_pipeline.ingestion.upload import upload
from health_pipeline.providers.base import UnreadableFileError
from health_pipeline.raw.index import ConflictingUploadError
from health_pipeline.raw.store import RawStore
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.models import InboxFile


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """`location` is `<handle>/<path>` within the inbox; `fingerprint` changes with the content."""

    location: str
    fingerprint: str


class Inbox(Protocol):
    def entries(self) -> Iterator[InboxEntry]: ...
    def read(self, location: str) -> bytes: ...


class FolderInbox:
    """A folder on this machine; made on first use. Hidden files and partial downloads are not looked at."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self) -> Iterator[InboxEntry]:
        self._root.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._root.glob("*/**/*")):
            hidden = any(part.startswith(".") for part in path.relative_to(self._root).parts)
            if path.is_file() and not hidden and path.suffix not in (".part", ".tmp", ".crdownload"):
                status = path.stat()
                location = path.relative_to(self._root).as_posix()
                yield InboxEntry(location, f"{status.st_size}:{status.st_mtime_ns}")

    def read(self, location: str) -> bytes:
        return (self._root / location).read_bytes()


class S3Inbox:
    """A prefix of a bucket, by boto3's own settings."""

    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3

        self._client = boto3.client("s3")
        self._bucket = bucket
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    def entries(self) -> Iterator[InboxEntry]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix
        )
        for page in pages:
            for item in page.get("Contents", []):
                location = item["Key"].removeprefix(self._prefix)
                if "/" in location and not location.endswith("/"):
                    yield InboxEntry(location, item["ETag"].strip('"'))

    def read(self, location: str) -> bytes:
        return self._client.get_object(Bucket=self._bucket, Key=self._prefix + location)["Body"].read()


def open_inbox(url: str) -> Inbox:
    """The inbox at a folder or s3://bucket/prefix."""
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return S3Inbox(parts.netloc, parts.path)
    return FolderInbox(Path(parts.path if parts.scheme == "file" else url))


@dataclass(slots=True)
class InboxReport:
    received: int = 0
    rejected: int = 0


def unseen_files(engine: sa.Engine, inbox: Inbox) -> list[InboxEntry]:
    """Files that were never looked at, or changed since."""
    entries = list(inbox.entries())
    if not entries:
        return []
    with engine.connect() as connection:
        seen = {
            tuple(row) for row in connection.execute(sa.select(InboxFile.location, InboxFile.fingerprint))
        }
    return [entry for entry in entries if (entry.location, entry.fingerprint) not in seen]


def inbox_fingerprint(entries: list[InboxEntry]) -> str:
    """One name for a set of files, for telling whether a run was asked for them already."""
    text = "\n".join(f"{entry.location}\t{entry.fingerprint}" for entry in entries)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def receive_new_files(warehouse: Warehouse, store: RawStore, inbox: Inbox) -> InboxReport:
    """Take every unseen file into raw. A file that cannot be read is recorded with the reason, and stays."""
    report = InboxReport()
    for entry in unseen_files(warehouse.engine, inbox):
        handle = entry.location.split("/", 1)[0]
        raw_object_id, message = None, None
        try:
            with warehouse.engine.begin() as connection:
                user = ensure_user(connection, handle)
            raw_object_id = upload(warehouse, store, user, inbox.read(entry.location)).receipt.raw_object_id
            report.received += 1
        except (UnreadableFileError, ConflictingUploadError, ValueError) as error:
            message = str(error)
            report.rejected += 1
        with warehouse.engine.begin() as connection:
            connection.execute(
                insert(InboxFile)
                .values(
                    location=entry.location,
                    fingerprint=entry.fingerprint,
                    state="rejected" if message else "received",
                    message=message,
                    raw_object_id=raw_object_id,
                )
                .on_conflict_do_nothing()
            )
    return report
