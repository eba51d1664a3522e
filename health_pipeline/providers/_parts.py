"""Files that are parsed in parts: taken as a whole, and without parts that say nothing."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pyarrow as pa

from health_pipeline.providers.base import (
    QUARANTINE_SCHEMA,
    Parsed,
    RawDocument,
    RawFile,
    StreamFunction,
)


def whole(parse_stream: StreamFunction, document: RawDocument) -> Parsed:
    """All parts of a file in memory as one. Raises what `parse_stream` raises."""
    file = RawFile(
        document.entity,
        io.BytesIO(document.content),
        document.received_at,
        document.time_zone,
        document.context,
    )
    parts = list(parse_stream(file))
    tables: dict[str, list[pa.Table]] = {}
    skipped: Counter[str] = Counter()
    for part in parts:
        for name, table in part.tables.items():
            tables.setdefault(name, []).append(table)
        skipped.update(part.skipped)
    return Parsed(
        tables={name: pa.concat_tables(found) for name, found in tables.items()},
        quarantine=pa.concat_tables([QUARANTINE_SCHEMA.empty_table(), *(part.quarantine for part in parts)]),
        records_in=sum(part.records_in for part in parts),
        records_loaded=sum(part.records_loaded for part in parts),
        skipped=dict(skipped),
        notes=tuple(note for part in parts for note in part.notes),
    )


def telling(parts: Iterable[Parsed]) -> Iterator[Parsed]:
    """The parts with records in them; an empty one where there is none. Notes come with the next part.

    Whoever takes a file looks at its first part, which an empty member of an archive must not be.
    """
    notes: tuple[str, ...] = ()
    told = False
    for part in parts:
        notes += part.notes
        if part.records_in:
            yield replace(part, notes=notes)
            notes, told = (), True
    if notes or not told:
        yield Parsed({}, QUARANTINE_SCHEMA.empty_table(), records_in=0, records_loaded=0, notes=notes)
