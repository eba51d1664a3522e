"""The upload door: a file from a person's disk, checked to be readable, then kept as it is."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from health_pipeline.connections.users import UserRecord
from health_pipeline.providers._zip_stream import is_zip
from health_pipeline.providers.base import Parsed, Provider, RawDocument, RawFile, UnreadableFileError
from health_pipeline.providers.registry import all_providers, recognise
from health_pipeline.raw.index import Delivery, Receipt, receive
from health_pipeline.raw.store import RawStore
from health_pipeline.warehouse.connection import Warehouse

_SNIFFED_BYTES = 64 * 1024
#: Tables of text that are larger are judged by their two ends, of so many bytes each, before they are parsed.
_WHOLE_BYTES = 4 * 1024 * 1024
_END_BYTES = 512 * 1024


@dataclass(frozen=True, slots=True)
class UploadReport:
    """What a file is and what its parser says of it: of one that is read in parts, of its first part, and of a
    large table of its two ends.
    """

    provider: Provider
    receipt: Receipt
    parsed: Parsed


def upload(
    warehouse: Warehouse,
    store: RawStore,
    user: UserRecord,
    content: bytes | Path,
    *,
    time_zone: str | None = None,
    kind: str | None = None,
    context: Mapping[str, str] | None = None,
    received_at: dt.datetime | None = None,
) -> UploadReport:
    """Take a file, or its bytes, into the raw store. The kind is found by content unless given.

    A kind that is parsed in parts is never held in memory. `context` is for the parser: words of the kind's
    `file_options`. `time_zone` (IANA) is for times without an offset; the user's own is used where it is not given.

    Raises UnreadableFileError where nothing of the file can be read (it is not stored then: it stays where it
    is), ConflictingUploadError, RawStoreUnavailableError, OSError. What spoils a large table in its midst alone
    is found when it is staged: then nothing of it is loaded.
    """
    with _open(content) as file:
        head = file.read(_SNIFFED_BYTES)
    provider = _provider(kind) if kind else recognise(head)
    if unknown := sorted(set(context or {}) - set(provider.file_options)):
        takes = "; ".join(f"{name}: {meaning}" for name, meaning in provider.file_options.items())
        raise UnreadableFileError(
            f"there is nothing to say of a file of the kind {provider.name} by {', '.join(unknown)}"
            + (f"; what there is: {takes}" if takes else "")
        )
    received_at = received_at or dt.datetime.now(dt.UTC)
    zone = time_zone or user.time_zone
    content_type = _content_type(head)
    parsed = None
    if content_type == "text/csv" and provider.parse_stream is None and (ends := _ends(content)):
        with suppress(UnreadableFileError):
            parsed = _parse(provider, ends, received_at, zone, context or {})
    if parsed is None or parsed.records_in == 0:
        parsed = _parse(provider, content, received_at, zone, context or {})
    if parsed.records_in == 0:
        raise UnreadableFileError(f"there is not a single record in the file ({provider.title})")
    today = received_at.date()
    receipt = receive(
        warehouse.engine,
        store,
        [
            Delivery(
                provider=provider.name,
                entity=provider.entities[0].name,
                user_id=user.user_id,
                door="upload",
                content=content,
                received_at=received_at,
                partition_start=today,
                partition_end=today,
                content_type=content_type,
                time_zone=zone,
                context=context or {},
            )
        ],
    )[0]
    return UploadReport(provider, receipt, parsed)


def _open(content: bytes | Path) -> BinaryIO:
    return content.open("rb") if isinstance(content, Path) else io.BytesIO(content)


def _ends(content: bytes | Path) -> bytes | None:
    """The first and the last lines of a large table, whose rows are much alike; None where it is a small one.

    To parse a million rows takes as long as to load them, and staging does it anyway. People come one after the
    other in most files of several.
    """
    with _open(content) as file:
        size = file.seek(0, io.SEEK_END)
        if size <= _WHOLE_BYTES:
            return None
        file.seek(0)
        head = file.read(_END_BYTES)
        file.seek(-_END_BYTES, io.SEEK_END)
        tail = file.read()
    return head[: head.rfind(b"\n") + 1] + tail[tail.find(b"\n") + 1 :]


def _provider(kind: str) -> Provider:
    provider = all_providers().get(kind)
    if provider is None:
        known = ", ".join(name for name, each in all_providers().items() if each.sniff)
        raise UnreadableFileError(f"there is no kind of file {kind!r}; there are {known}")
    if provider.sniff is None:
        raise UnreadableFileError(f"{kind} is not a kind of file; its data is fetched over HTTP")
    return provider


def _parse(
    provider: Provider,
    content: bytes | Path,
    received_at: dt.datetime,
    zone: str | None,
    context: Mapping[str, str],
) -> Parsed:
    entity = provider.entities[0].name
    try:
        if provider.parse_stream is not None:
            with _open(content) as file:
                return next(provider.parse_stream(RawFile(entity, file, received_at, zone, context)))
        whole = content.read_bytes() if isinstance(content, Path) else content
        return provider.parse(RawDocument(entity, whole, received_at, zone, context))
    except UnreadableFileError:
        raise
    except Exception as error:
        problem = type(error).__name__
    # Outside the handler, and only the type: a parser's own message may quote the data.
    raise UnreadableFileError(
        f"the file looks like a {provider.title} file, and reading it fails ({problem}); please report that"
    )


def _content_type(head: bytes) -> str:
    start = head[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith((b"{", b"[")):
        return "application/json"
    if start.startswith(b"<"):
        return "application/xml"
    return "application/zip" if is_zip(head) else "text/csv"
