"""Glooko exports: a zip of CSV tables, of which those of sensor and meter hold glucose; or one of these tables.

Each begins with a line that names the person, then `Timestamp,CGM Glucose Value (mg/dl),Serial Number` (or, of meters,
`Timestamp,Glucose Value (mg/dl),Manual Reading,Serial Number`). Glooko documents none of it: this is what published
readers of such exports agree on. Times are the wall clock's, without a zone.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._archive import UnreadableMemberError, open_archive, read_member
from health_pipeline.providers._arrow import flags
from health_pipeline.providers._delimited import has_header, read_table
from health_pipeline.providers._glucose import (
    FILE_OPTIONS,
    READINGS,
    Candidates,
    Source,
    hash_serial,
    load_readings,
    unit_of,
)
from health_pipeline.providers._zip_stream import is_zip, member_names
from health_pipeline.providers.base import Parsed, Provider, RawDocument, UnreadableFileError

_SENSOR = re.compile(r"cgm glucose value\b.*")
_METER = re.compile(r"glucose value\b.*")
_TABLE = re.compile(r"(?:.*/)?([a-z_]+)_data(?:_\d+)?\.csv", re.IGNORECASE)
_GLUCOSE_TABLES = ("cgm", "bg")


def parse(document: RawDocument) -> Parsed:
    """Glucose of sensors and meters; rows of the archive's other tables are counted and left.

    UnreadableFileError: empty or binary file, a damaged archive or none of Glooko's, no rows, no time zone, dates or
    units that can be read two ways.
    """
    if not is_zip(document.content):
        return _readings(document, document.content, "")
    found: list[Parsed] = []
    skipped: Counter[str] = Counter()
    for name, content in _members(document.content):
        kind = _TABLE.fullmatch(name)
        assert kind is not None
        if kind[1].casefold() in _GLUCOSE_TABLES:
            # A sensor or a meter that was never used leaves an empty table.
            if _data_lines(content):
                found.append(_readings(document, content, f"{PurePosixPath(name).name} "))
        else:
            skipped[kind[1].casefold()] += _data_lines(content)
    if not found:
        raise UnreadableFileError(
            "the archive has no readings of a sensor or a meter; export a longer period"
        )
    for parsed in found:
        skipped.update(parsed.skipped)
    return Parsed(
        tables={READINGS.name: pa.concat_tables(parsed.tables[READINGS.name] for parsed in found)},
        quarantine=pa.concat_tables(parsed.quarantine for parsed in found),
        records_in=sum(parsed.records_loaded + parsed.quarantine.num_rows for parsed in found)
        + skipped.total(),
        records_loaded=sum(parsed.records_loaded for parsed in found),
        skipped={reason: number for reason, number in skipped.items() if number},
    )


def sniff(head: bytes) -> float:
    """Certain of its tables' headers, and of an archive whose first table is named as Glooko names it."""
    if is_zip(head):
        tables = [name for name in member_names(head) if not name.endswith("/")]
        return 0.9 if tables and _TABLE.fullmatch(tables[0]) else 0.0
    return 0.9 if has_header(head, _match_header) else 0.0


def _members(content: bytes) -> Iterator[tuple[str, bytes]]:
    with open_archive(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            if _TABLE.fullmatch(member.filename) is None:
                continue
            try:
                yield member.filename, read_member(archive, member)
            except UnreadableMemberError as error:
                raise UnreadableFileError(
                    f"{member.filename} in the archive cannot be read ({error}); export it again"
                ) from None


def _readings(document: RawDocument, content: bytes, where: str) -> Parsed:
    table = read_table(content, _match_header, "Glooko")
    is_meter = _METER.fullmatch(table.header[table.position["value"]].strip().casefold()) is not None
    rows = np.flatnonzero(~table.empty)
    refused = np.full(len(table), None, dtype=object)
    refused[table.extra] = "extra_cells"
    # The last cell of a line that breaks off may miss digits; what stands before it is whole.
    refused[table.cut & (table.width <= table.position["value"] + 1)] = "truncated_line"
    candidates = Candidates(
        line=table.line,
        time=table.column("time"),
        value=table.column("value"),
        reading_type=pa.repeat(pa.scalar("strip" if is_meter else "cgm"), len(table)),
        unit=unit_of(table.header[table.position["value"]]),
        serial=table.column("serial"),
        refused=refused,
        date_evidence=table.preamble,
    ).take(rows)

    def original(row: int) -> Mapping[str, object]:
        kept = {}
        for column, cell in enumerate(table.cells(int(rows[row]))[: len(table.header)]):
            if cell:
                is_serial = column == table.position.get("serial")
                kept[table.header[column]] = hash_serial(cell) if is_serial else cell
        return kept

    empty = int(table.empty.sum())
    source = Source(
        records_in=len(table),
        skipped={"empty_row": empty},
        locate=lambda row: f"{where}line {candidates.line[row]}",
        original=original,
    )
    return load_readings(document, candidates, source)


def _match_header(cells: Sequence[str]) -> Mapping[str, int] | None:
    if len(cells) < 2 or cells[0] != "timestamp" or unit_of(cells[1]) is None:
        return None
    # A meter's table is told from any other by what follows its value.
    if not _SENSOR.fullmatch(cells[1]) and not (_METER.fullmatch(cells[1]) and "manual reading" in cells):
        return None
    position = {"time": 0, "value": 1}
    return position | ({"serial": cells.index("serial number")} if "serial number" in cells else {})


def _data_lines(content: bytes) -> int:
    """Lines after the person's and the header."""
    lines = pa.array(content.splitlines(), pa.binary())
    return max(int(flags(pc.greater(pc.binary_length(lines), 0)).sum()) - 2, 0)


PROVIDER = Provider(
    name="glooko",
    title="Glooko export",
    door="upload",
    entities=(READINGS,),
    parse=parse,
    sniff=sniff,
    file_options=FILE_OPTIONS,
    parser_version=1,
)
