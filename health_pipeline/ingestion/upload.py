"""The upload door: a file from a person's disk, checked to be readable, then kept as it is."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import dataclass

from health_pipeline.connections.users import UserRecord
from health_pipeline.providers.base import Parsed, Provider, RawDocument, UnreadableFileError
from health_pipeline.providers.registry import all_providers, recognise
from health_pipeline.raw.index import Delivery, Receipt, receive
from health_pipeline.raw.store import RawStore
from health_pipeline.warehouse.connection import Warehouse

_SNIFFED_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class UploadReport:
    """What a file is and what its parser says of it. Lines are of the file, from 1."""

    provider: Provider
    receipt: Receipt
    parsed: Parsed


def upload(
    warehouse: Warehouse,
    store: RawStore,
    user: UserRecord,
    content: bytes,
    *,
    time_zone: str | None = None,
    kind: str | None = None,
    context: Mapping[str, str] | None = None,
    received_at: dt.datetime | None = None,
) -> UploadReport:
    """Take a file into the raw store. The kind is found by content unless given.

    `context` is for the parser (`date_order`, `unit`). `time_zone` (IANA) is for times without an offset; the
    user's own is used where it is not given.

    Raises UnreadableFileError where nothing of the file can be read (it is not stored then: it stays where it
    is), ConflictingUploadError, RawStoreUnavailableError.
    """
    provider = _provider(kind) if kind else recognise(content[:_SNIFFED_BYTES])
    received_at = received_at or dt.datetime.now(dt.UTC)
    zone = time_zone or user.time_zone
    entity = provider.entities[0].name
    parsed = _parse(provider, RawDocument(entity, content, received_at, zone, context or {}))
    if parsed.records_in == 0:
        raise UnreadableFileError(f"the file is a {provider.title} file without a single record")
    today = received_at.date()
    receipt = receive(
        warehouse.engine,
        store,
        [
            Delivery(
                provider=provider.name,
                entity=entity,
                user_id=user.user_id,
                door="upload",
                content=content,
                received_at=received_at,
                partition_start=today,
                partition_end=today,
                content_type=_content_type(content),
                time_zone=zone,
                context=context or {},
            )
        ],
    )[0]
    return UploadReport(provider, receipt, parsed)


def _provider(kind: str) -> Provider:
    provider = all_providers().get(kind)
    if provider is None:
        known = ", ".join(name for name, each in all_providers().items() if each.door == "upload")
        raise UnreadableFileError(f"there is no kind of file {kind!r}; there are {known}")
    if provider.door != "upload":
        raise UnreadableFileError(f"{kind} is not a kind of file; its data is fetched over HTTP")
    return provider


def _parse(provider: Provider, document: RawDocument) -> Parsed:
    try:
        return provider.parse(document)
    except UnreadableFileError:
        raise
    except Exception as error:
        problem = type(error).__name__
    # Outside the handler, and only the type: a parser's own message may quote the data.
    raise UnreadableFileError(
        f"the file looks like a {provider.title} file, and reading it fails ({problem}); please report that"
    )


def _content_type(content: bytes) -> str:
    head = content[:64].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith((b"{", b"[")):
        return "application/json"
    if head.startswith(b"PK\x03\x04"):
        return "application/zip"
    return "text/csv"
