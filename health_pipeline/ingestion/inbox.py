"""The watched folder or S3 prefix: `<inbox>/<user's handle>/<file>` is taken into raw, once.

Files stay where they are. `ops.inbox_files` remembers each by place and fingerprint, also the refused ones
with the reason, so that a bad file is reported once and not read at every look.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from health_pipeline.connections.users import ensure_user
from health_pipeline.ingestion.upload import upload
from health_pipeline.providers.base import UnreadableFileError
from health_pipeline.raw.store import RawStore
from health_pipeline.warehouse.connection import Warehouse
from health_pipeline.warehouse.models import InboxFile

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """`location` is `<handle>/<path>` within the inbox; `fingerprint` changes with the content."""

    location: str
    fingerprint: str


class Inbox(Protocol):
    def entries(self) -> Iterator[InboxEntry]:
        """Whole files: not hidden, not on their way."""

    def local(self, location: str) -> AbstractContextManager[Path]:
        """The file on this machine, for as long as it is needed.

        Raises OSError where it is gone or cannot be had.
        """


class FolderInbox:
    """A folder on this machine; made on first use. Hidden files and partial downloads are not looked at."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def entries(self) -> Iterator[InboxEntry]:
        self._root.mkdir(parents=True, exist_ok=True)
        for path in sorted(self._root.rglob("*")):
            location = path.relative_to(self._root).as_posix()
            if _is_whole(location) and path.is_file():
                status = path.stat()
                yield InboxEntry(location, f"{status.st_size}:{status.st_mtime_ns}")

    @contextmanager
    def local(self, location: str) -> Iterator[Path]:
        path = self._root / location
        with path.open("rb"):
            yield path


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
                if _is_whole(location):
                    # An ETag alone would not tell that an earlier content came back.
                    changed_at = item["LastModified"].isoformat()
                    yield InboxEntry(location, f"{item['ETag'].strip(chr(34))}:{changed_at}")

    @contextmanager
    def local(self, location: str) -> Iterator[Path]:
        from botocore.exceptions import BotoCoreError, ClientError

        with tempfile.TemporaryDirectory(prefix="health-pipeline-inbox-") as folder:
            path = Path(folder) / "file"
            try:
                self._client.download_file(self._bucket, self._prefix + location, str(path))
            except ClientError as error:
                raise OSError(errno.EIO, str(error.response["Error"]["Code"])) from None
            except BotoCoreError as error:
                raise OSError(errno.EIO, type(error).__name__) from None
            yield path


def _is_whole(location: str) -> bool:
    """Whether this is a file that somebody put there, and not hidden, a folder or on its way."""
    hidden = any(part.startswith(".") for part in location.split("/"))
    return not hidden and not location.endswith(("/", ".part", ".tmp", ".crdownload"))


def open_inbox(url: str) -> Inbox:
    """The inbox at a folder or s3://bucket/prefix."""
    parts = urlsplit(url)
    if parts.scheme == "s3":
        return S3Inbox(parts.netloc, parts.path)
    return FolderInbox(Path(unquote(parts.path) if parts.scheme == "file" else url).expanduser())


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
    """Take every unseen file into raw. A file that cannot be read is recorded with the reason, and stays.

    A file that cannot be opened now is looked at again next time. Raises RawStoreUnavailableError.
    """
    report = InboxReport()
    for entry in unseen_files(warehouse.engine, inbox):
        raw_object_id, message = None, None
        with ExitStack() as opened:
            try:
                path = opened.enter_context(inbox.local(entry.location))
            except OSError as error:
                # Taken away meanwhile, or not ours to read: its fingerprint would not tell when that is mended.
                logger.warning("inbox: %s cannot be opened (%s)", entry.location, error.strerror)
                continue
            try:
                raw_object_id = _receive_file(warehouse, store, entry.location, path)
                report.received += 1
            except ValueError as error:  # unreadable, in conflict with an earlier upload, in nobody's folder
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


def _receive_file(warehouse: Warehouse, store: RawStore, location: str, path: Path) -> int:
    handle, separator, _ = location.partition("/")
    if not separator:
        raise UnreadableFileError("whose file is it? Put it into a folder of the inbox named like the user")
    with warehouse.engine.begin() as connection:
        user = ensure_user(connection, handle)
    return upload(warehouse, store, user, path).receipt.raw_object_id
