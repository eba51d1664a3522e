"""xDrip+ exports ("Export CSV (SiDiary)"): semicolons, a row a thing that happened, most often in a zip archive.

`DAY;TIME;UDT_CGMS;BG_LEVEL;CH_GR;BOLUS;REMARK`: the phone's wall clock to the minute without a zone, day first;
sensor and calibration values as whole mg/dL, carbohydrates in grams. Contract: xDrip's DatabaseUtil.saveCSV. Remarks
are free text, unquoted and personal: they are counted and never kept.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._archive import UnreadableMemberError, open_archive, read_member
from health_pipeline.providers._arrow import flags
from health_pipeline.providers._delimited import has_header, plain, read_table, to_utf8
from health_pipeline.providers._glucose import (
    FILE_OPTIONS,
    MEAL,
    MEALS,
    MG_DL,
    READINGS,
    Candidates,
    Source,
    load_readings,
)
from health_pipeline.providers._zip_stream import is_zip, member_names
from health_pipeline.providers.base import Parsed, Provider, RawDocument, UnreadableFileError

_COLUMNS = ("day", "time", "udt_cgms", "bg_level", "ch_gr", "bolus", "remark")
#: What a filled cell is: a reading or a meal, else the reason why it is skipped.
_CELLS = {"udt_cgms": "cgm", "bg_level": "calibration", "ch_gr": MEAL, "bolus": "insulin", "remark": "note"}
_LOADED = ("cgm", "calibration", MEAL)
_REMARK = re.compile(rb"^((?:[^;\r\n]*;){6})(?!REMARK)[^\r\n]+", re.MULTILINE)
_MEMBER = re.compile(r"export\d{8}-\d{6}\.csv")
_DAY_FIRST = r"^(\d{1,2})\.(\d{1,2})\.(\d{4})$"
#: What the app writes where nothing was eaten or injected.
_NOTHING = r"^(0+([.,]0*)?)?$"


def parse(document: RawDocument) -> Parsed:
    """Sensor values, calibrations and carbohydrates; each filled cell of a row is a record of its own.

    UnreadableFileError: empty or binary file, an archive that is damaged or holds no such table, no header, no rows,
    no time zone.
    """
    # Before anything looks for quotes or further cells: what people write may have both.
    content = _REMARK.sub(rb"\1note", to_utf8(_table_of(document.content)))
    table = read_table(content, _match_header, "xDrip")
    day = pc.replace_substring_regex(table.column("day"), _DAY_FIRST, r"\3-\2-\1")
    time = pc.binary_join_element_wise(day, table.column("time"), " ")

    filled = {name: ~flags(pc.match_substring_regex(table.column(name), _NOTHING)) for name in _CELLS}
    some = np.any(list(filled.values()), axis=0)
    # A row that breaks off, or has too many cells, is one record, whatever it holds.
    whole = ~table.cut & ~table.extra
    rows = np.concatenate(
        [np.flatnonzero(filled[name] & whole) for name in _CELLS] + [np.flatnonzero(~whole)]
    )
    cells = np.repeat(
        np.array([*_CELLS, ""], dtype=object),
        [int((filled[name] & whole).sum()) for name in _CELLS] + [int((~whole).sum())],
    )
    order = np.argsort(rows, kind="stable")
    rows, cells = rows[order], cells[order]
    kinds = np.array([_CELLS.get(cell, "unknown") for cell in cells.tolist()], dtype=object)
    skipped = Counter(kinds[np.isin(kinds, ("insulin", "note"))].tolist())
    skipped["empty_row"] = int((~some & whole).sum())
    loaded = np.isin(kinds, (*_LOADED, "unknown"))
    rows, cells, kinds = rows[loaded], cells[loaded], kinds[loaded]

    value = pa.repeat(pa.scalar(""), len(rows))
    for name in _CELLS:
        here = pa.array(cells == name)
        value = pc.if_else(here, table.column(name).take(pa.array(rows)), value)
    refused = np.full(len(rows), None, dtype=object)
    refused[table.extra[rows]] = "extra_cells"
    refused[table.cut[rows]] = "truncated_line"
    candidates = Candidates(
        line=table.line[rows],
        time=time.take(pa.array(rows)),
        value=value,
        reading_type=pa.array(kinds, pa.string()),
        unit=MG_DL,
        refused=refused,
    )

    def original(row: int) -> Mapping[str, object]:
        texts = zip(table.header, table.cells(int(rows[row])), strict=False)
        return {title: text for title, text in texts if text and plain(title) != "remark"}

    source = Source(
        records_in=len(rows) + skipped.total(),
        skipped=skipped,
        locate=lambda row: f"line {candidates.line[row]}",
        original=original,
    )
    return load_readings(document, candidates, source)


def sniff(head: bytes) -> float:
    """Certain of the header, and of an archive whose first member is named as xDrip names it."""
    if is_zip(head):
        names = member_names(head)
        return 0.95 if names and _MEMBER.fullmatch(names[0]) else 0.0
    return 0.95 if has_header(head, _match_header) else 0.0


def _match_header(cells: Sequence[str]) -> Mapping[str, int] | None:
    if tuple(cells[:5]) != _COLUMNS[:5]:
        return None
    return {name: column for column, name in enumerate(_COLUMNS) if column < len(cells)}


def _table_of(content: bytes) -> bytes:
    """The table itself, out of its archive."""
    if not is_zip(content):
        return content
    with open_archive(io.BytesIO(content)) as archive:
        tables = [member for member in archive.infolist() if member.filename.lower().endswith(".csv")]
        if len(tables) != 1:
            raise UnreadableFileError(f"an xDrip archive holds one table, and this one {len(tables)}")
        try:
            return read_member(archive, tables[0])
        except UnreadableMemberError as error:
            raise UnreadableFileError(
                f"the table in the archive cannot be read ({error}); export it again"
            ) from None


PROVIDER = Provider(
    name="xdrip",
    title="xDrip+ export",
    door="upload",
    entities=(READINGS, MEALS),
    parse=parse,
    sniff=sniff,
    file_options=FILE_OPTIONS,
    parser_version=1,
)
