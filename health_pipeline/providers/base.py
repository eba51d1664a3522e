"""What a provider is: one declarative module that says how to fetch its pages and how to read its bytes.

A provider knows nothing of Dagster, Postgres or S3. It yields `Page`s (bytes exactly as received) and turns
`RawDocument`s (the same bytes, read back from the raw store) into Arrow tables.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

if TYPE_CHECKING:
    from health_pipeline.providers.http import ApiClient

#: Rows a parser refused. `location` is where in the object (a JSON path or a line number), `original` the
#: refused values as JSON text. Reasons are snake_case words, the same for all providers.
QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("entity", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("field", pa.string()),
        pa.field("location", pa.string(), nullable=False),
        pa.field("original", pa.string(), nullable=False),
    ]
)


@dataclass(frozen=True, slots=True)
class Window:
    """Whole days, both ends included, in the account's local time."""

    start: dt.date
    end: dt.date

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"window ends ({self.end}) before it starts ({self.start})")

    def split(self, days: int | None) -> Iterator[Window]:
        """Consecutive windows of at most `days` days; the whole window where there is no limit."""
        if days is None:
            yield self
            return
        start = self.start
        while start <= self.end:
            end = min(start + dt.timedelta(days=days - 1), self.end)
            yield Window(start, end)
            start = end + dt.timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Page:
    """One response body exactly as received, with what its bytes do not say about themselves."""

    entity: str
    content: bytes
    window: Window
    content_type: str = "application/json"
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RawDocument:
    """Bytes read back from the raw store, as a parser gets them.

    `time_zone` is the IANA zone to assume for local times without an offset: the one given with an upload,
    else the user's. `context` is `Page.context` as it was stored.
    """

    entity: str
    content: bytes
    received_at: dt.datetime
    time_zone: str | None = None
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a parser made of one object. Every record is accounted for: loaded, quarantined or skipped.

    `tables` maps a staging table to rows of that entity's schema; one record may give several rows (a night
    gives a row for the night and one for each HRV sample), so the `records_*` counts are of the provider's
    records, not of rows. `skipped` counts, by reason, the records that are understood and carry nothing for
    us (an insulin row in a glucose file).
    """

    tables: Mapping[str, pa.Table]
    quarantine: pa.Table
    records_in: int
    records_loaded: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        accounted = self.records_loaded + self.quarantine.num_rows + sum(self.skipped.values())
        if accounted != self.records_in:
            raise ValueError(f"parser lost records: {self.records_in} in, {accounted} accounted for")


@dataclass(frozen=True, slots=True)
class Entity:
    """One kind of record a provider has, and the staging table it becomes.

    `schema` is the staging table without the columns that staging adds. `endpoint` is None for tables that
    are filled from another entity's objects. `lookback_days` is how far back a daily fetch reads again for
    revised records. `max_window_days` is the longest span of one request, None where there is no limit.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    description: str
    endpoint: str | None = None
    lookback_days: int = 0
    max_window_days: int | None = None
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class OAuth:
    """OAuth 2.0 authorization-code facts. URLs are the vendor's; the sandbox replaces their host."""

    authorize_url: str
    token_url: str
    scopes: tuple[str, ...]
    revoke_url: str | None = None
    pkce: bool = False
    rotates_refresh_token: bool = True


@dataclass(frozen=True, slots=True)
class Account:
    """Who a provider says the tokens belong to."""

    provider_user_id: str
    profile: Mapping[str, Any] = field(default_factory=dict)


FetchFunction = Callable[["ApiClient", Entity, Window], Iterator[Page]]
ParseFunction = Callable[[RawDocument], Parsed]
#: Confidence, 0 (not mine) to 1 (certain), that the first bytes of a file are of this kind.
SniffFunction = Callable[[bytes], float]


@dataclass(frozen=True, slots=True)
class Provider:
    """A source of health data. `door` says how its bytes come: `fetch` over HTTP or `upload` as files."""

    name: str
    title: str
    door: Literal["fetch", "upload"]
    entities: tuple[Entity, ...]
    parse: ParseFunction
    base_url: str | None = None
    oauth: OAuth | None = None
    fetch: FetchFunction | None = None
    identify: Callable[[ApiClient], Account] | None = None
    sniff: SniffFunction | None = None
    #: Bumped when a parser's output changes, so that staged objects can be told from those to replay.
    parser_version: int = 1

    def entity(self, name: str) -> Entity:
        for entity in self.entities:
            if entity.name == name:
                return entity
        known = ", ".join(entity.name for entity in self.entities)
        raise KeyError(f"{self.name} has no entity {name!r}; it has {known}")


class UnreadableFileError(ValueError):
    """A file that cannot be read as a whole (empty, binary, no header). The message says what to do."""
