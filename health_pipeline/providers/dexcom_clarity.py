"""Dexcom Clarity exports: CSV, or the same table saved as an Excel workbook, in any language Clarity speaks.

Clarity writes the wall clock without a zone. Rows without a time are settings and personal data; they are
counted and never kept.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._arrow import Flags, flags
from health_pipeline.providers._delimited import TextTable, has_header, plain, read_table
from health_pipeline.providers._glucose import (
    FILE_OPTIONS,
    MEAL,
    MEALS,
    READINGS,
    Candidates,
    Objects,
    Source,
    absent,
    hash_serial,
    load_readings,
    read_numbers,
    split_device,
    unit_of,
)
from health_pipeline.providers._local_time import Ints
from health_pipeline.providers.base import Parsed, Provider, RawDocument

# The column order is the same in every language seen; names of unknown columns follow from the time's place.
_OFFSET_FROM_TIME = {
    "event": 1,
    "subtype": 2,
    "device_info": 4,
    "source_device": 5,
    "value": 6,
    "carbohydrates": 8,
    "rate": 10,
    "transmitter_time": 11,
    "transmitter": 12,
}
_PERSONAL_OFFSET = 3
_TIME_FORMAT = re.compile(r"\(\w{4}-\w{2}-\w{2}.{0,2}\w{2}:\w{2}:\w{2}\)")
_TIME_WORD = re.compile(r"^(timestamp|zeitstempel|horodatage|marca temporal|data e ora)\b")
_EVENT_WORD = re.compile(
    r"^(event type|ereignistyp|ereignisart|type d'evenement|tipo de evento|tipo di evento)$"
)
_GLUCOSE_WORD = re.compile(r"gluc|gluk|glyc|glic")

_READING_TYPES = {
    "egv": "cgm",
    "egw": "cgm",
    "niveles estimados de glucosa": "cgm",
    "calibration": "calibration",
    "kalibrierung": "calibration",
    "calibrage": "calibration",
    "etalonnage": "calibration",
    "calibracion": "calibration",
    "calibrazione": "calibration",
    "fasting glucose": "strip",
    "blood glucose": "strip",
}
_OTHER_EVENTS = {
    "insulin": "insulin",
    "insuline": "insulin",
    "insulina": "insulin",
    "carbs": "carbohydrates",
    "kohlenhydrate": "carbohydrates",
    "glucides": "carbohydrates",
    "carbohidratos": "carbohydrates",
    "carboidrati": "carbohydrates",
    "exercise": "exercise",
    "activity": "exercise",
    "training": "exercise",
    "exercice": "exercise",
    "ejercicio": "exercise",
    "esercizio": "exercise",
    "health": "health_event",
    "gesundheit": "health_event",
    "sante": "health_event",
    "salud": "health_event",
    "salute": "health_event",
    "alert": "alert",
    "warnung": "alert",
    "alerte": "alert",
    "alerta": "alert",
    "avviso": "alert",
    "notes": "note",
    "note": "note",
}


def parse(document: RawDocument) -> Parsed:
    """Readings (`EGV`), calibrations, meter values and carbohydrates of a Clarity export.

    UnreadableFileError: empty, binary or damaged file, no Clarity header, no rows, no time zone.
    """
    table = read_table(document.content, _match_header, "Dexcom Clarity")
    kinds, skipped = _classify(table)
    rows = np.flatnonzero(~absent(kinds))
    transmitter = table.column("transmitter")
    clock, _ = read_numbers(table.column("transmitter_time"))
    refused = np.full(len(table), None, dtype=object)
    refused[kinds == "unknown"] = "unknown_event_type"
    refused[table.extra] = "extra_cells"
    refused[table.cut] = "truncated_line"
    candidates = Candidates(
        line=table.line,
        time=table.column("time"),
        value=pc.if_else(pa.array(kinds == MEAL), table.column("carbohydrates"), table.column("value")),
        reading_type=pa.array(kinds, pa.string()),
        unit=_unit(table),
        trend_rate=table.column("rate"),
        device=table.column("source_device"),
        serial=transmitter,
        clock=clock,
        refused=refused,
    ).take(rows)

    def original(row: int) -> Mapping[str, object]:
        kept = {}
        for column, (title, cell) in enumerate(zip(table.header, table.cells(int(rows[row])), strict=False)):
            if column == table.position.get("transmitter"):
                cell = cell and hash_serial(cell)
            elif column == table.position.get("source_device"):
                cell = split_device(cell)[0] or ""
            if cell and column != table.position["time"] + _PERSONAL_OFFSET:
                kept[title] = cell
        return kept

    source = Source(
        records_in=len(table),
        skipped=skipped,
        locate=lambda row: f"line {candidates.line[row]}",
        original=original,
    )
    return load_readings(document, candidates, source)


def sniff(head: bytes) -> float:
    """Certain of a Clarity header; an Excel workbook is taken for one, as the only kind we know."""
    if head.startswith(b"PK\x03\x04"):
        return 0.5 if b"xl/" in head else 0.0
    return 0.95 if has_header(head, _match_header) else 0.0


def _match_header(cells: Sequence[str]) -> Mapping[str, int] | None:
    """Two of the time, event and glucose columns are enough: any one header cell may be damaged."""
    votes: Counter[int] = Counter()
    for column, cell in enumerate(cells):
        if _TIME_FORMAT.search(cell) or _TIME_WORD.match(cell):
            votes[column] += 1
        elif _EVENT_WORD.match(cell):
            votes[column - 1] += 1
        elif "/min" not in cell and unit_of(cell) and _GLUCOSE_WORD.search(cell):
            votes[column - 6] += 1
    if not votes:
        return None
    time, found = votes.most_common(1)[0]
    if found < 2 or time < 0:
        return None
    position = {"time": time}
    position |= {name: time + steps for name, steps in _OFFSET_FROM_TIME.items()}
    return {name: column for name, column in position.items() if column < len(cells)}


def _unit(table: TextTable) -> str | None:
    for name in ("value", "rate"):
        column = table.position.get(name)
        if column is not None and (unit := unit_of(table.header[column])):
            return unit
    return None


def _classify(table: TextTable) -> tuple[Objects, dict[str, int]]:
    """What each row is: a reading type, a meal, `unknown` (to be refused), or None and counted by a reason."""
    events = table.column("event").dictionary_encode()
    words = [plain(word) for word in events.dictionary.to_pylist()]
    codes = events.indices.to_numpy(zero_copy_only=False)
    untimed = _empty(table.column("time"))
    valued = ~_empty(table.column("value"))
    ticking = ~_empty(table.column("transmitter_time"))
    meanings = _meanings(words, codes[~untimed & valued])
    kinds = np.array([*meanings, None], dtype=object)[codes]
    reasons = np.array([_OTHER_EVENTS.get(word, "other_event") for word in words] + [""], dtype=object)[codes]
    unknown = absent(kinds) & np.array([word not in _OTHER_EVENTS for word in words])[codes]
    kinds[unknown & valued] = "unknown"
    kinds[(reasons == "carbohydrates") & ~untimed & ~_empty(table.column("carbohydrates"))] = MEAL
    # Settings and personal rows have no time. A reading whose time got lost still has its other cells.
    metadata = untimed & ~((np.isin(kinds, list(set(_READING_TYPES.values()))) | ticking) & valued)
    kinds[metadata] = None
    reasons[metadata] = "metadata"
    kinds[table.empty] = None
    reasons[table.empty] = "empty_row"
    kinds[table.cut] = "unknown"
    return kinds, dict(Counter(reasons[absent(kinds)].tolist()))


def _meanings(words: list[str], codes_with_value: Ints) -> list[str | None]:
    """Reading types of event words. In a language not seen, the commonest word with a value is EGV."""
    meanings = [_READING_TYPES.get(word) for word in words]
    if "cgm" not in meanings and codes_with_value.size:
        counts = np.bincount(codes_with_value, minlength=len(words))
        counts[[code for code, word in enumerate(words) if meanings[code] or word in _OTHER_EVENTS]] = 0
        if counts.any() and words[int(counts.argmax())]:
            meanings[int(counts.argmax())] = "cgm"
    return meanings


def _empty(text: pa.Array) -> Flags:
    return flags(pc.equal(text, ""))


PROVIDER = Provider(
    name="dexcom_clarity",
    title="Dexcom Clarity export",
    door="upload",
    entities=(READINGS, MEALS),
    parse=parse,
    sniff=sniff,
    file_options=FILE_OPTIONS,
    parser_version=2,
)
