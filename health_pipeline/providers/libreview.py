"""LibreView exports, and those of the older FreeStyle Libre reader software.

Times are the wall clock of the phone or reader, to the minute. Names and birth dates stand above the header
and are not read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._arrow import Flags, flags
from health_pipeline.providers._delimited import TextTable, has_header, read_table
from health_pipeline.providers._glucose import (
    FILE_OPTIONS,
    MEAL,
    MEALS,
    MMOL_L,
    READINGS,
    Candidates,
    Objects,
    Source,
    hash_serial,
    load_readings,
    unit_of,
)
from health_pipeline.providers.base import Parsed, Provider, RawDocument

_WORDS = {
    "device": r"device|gerat|appareil|dispositif|dispositivo",
    "serial": r"serial number|seriennummer|numero de serie|numero de serial|numero di serie",
    "time": r"device timestamp|geratezeitstempel|horodatage de l'appareil|horodatage du dispositif"
    r"|sello de tiempo del dispositivo|timestamp del dispositivo|data e ora del dispositivo",
    "type": r"record type|aufzeichnungstyp|type d'enregistrement|tipo de registro|tipo di registrazione"
    r"|tipo di record",
    "historic": r"(historic glucose|glukosewert-verlauf|historique de la glycemie|historial de glucosa"
    r"|storico del glucosio)\b.*",
    "scan": r"(scan glucose|glukose-scan|numerisation de la glycemie|scan de la? ?glycemie"
    r"|escaneo de glucosa|scansione del glucosio)\b.*",
    "carbohydrates": r"carbohydrates \(grams\)|kohlenhydrate \(gramm\)|glucides \(grammes\)"
    r"|carbohidratos \(gramos\)|carboidrati \(grammi\)",
    "strip": r"(strip glucose|glukose-teststreifen|tira reactiva|electrode|.*bandelette|.*striscia)\b.*",
}
_PATTERNS = {name: re.compile(pattern) for name, pattern in _WORDS.items()}
_STRIP_AFTER_HISTORIC = 10
_CARBOHYDRATES_AFTER_HISTORIC = 5
#: Record types that hold glucose: the reading type and the column it is in.
_GLUCOSE = {"0": ("cgm", "historic"), "1": ("scan", "scan"), "2": ("strip", "strip")}
_FOOD = "5"
_OTHER = {"3": "ketone", "4": "insulin", _FOOD: "food", "6": "note"}
_KEPT_IN_QUARANTINE = ("device", "time", "type", "historic", "scan", "strip", "carbohydrates")


def parse(document: RawDocument) -> Parsed:
    """Sensor history, scans, strip values and carbohydrates of a LibreView export.

    UnreadableFileError: empty or binary file, no LibreView header, no rows, no time zone, dates that can be
    read two ways (answer with date_order).
    """
    table = read_table(document.content, _match_header, "LibreView")
    types = pc.replace_substring_regex(table.column("type"), r"[.,]0$", "")
    codes: Objects = types.to_numpy(zero_copy_only=False)
    kinds = np.full(len(table), "unknown", dtype=object)
    value = pa.repeat(pa.scalar(""), len(table))
    for code, (kind, column) in _GLUCOSE.items():
        kinds[codes == code] = kind
        value = pc.if_else(pa.array(codes == code), table.column(column), value)
    reasons = np.full(len(table), "", dtype=object)
    for code, reason in _OTHER.items():
        reasons[codes == code] = reason
    eaten = (codes == _FOOD) & ~flags(pc.equal(table.column("carbohydrates"), ""))
    kinds[eaten], reasons[eaten] = MEAL, ""
    value = pc.if_else(pa.array(eaten), table.column("carbohydrates"), value)
    reasons[table.empty] = "empty_row"
    reasons[table.cut] = ""
    rows = np.flatnonzero(reasons == "")

    refused = np.full(len(table), None, dtype=object)
    refused[kinds == "unknown"] = "unknown_record_type"
    unit = unit_of(table.header[table.position["historic"]])
    refused[_split_decimals(table, codes, unit)] = "conflicting_values"
    refused[table.extra] = "extra_cells"
    refused[table.cut] = "truncated_line"
    candidates = Candidates(
        line=table.line,
        time=table.column("time"),
        value=value,
        reading_type=pa.array(kinds, pa.string()),
        unit=unit,
        device=table.column("device"),
        serial=table.column("serial"),
        refused=refused,
        date_evidence=table.preamble,
    ).take(rows)

    def original(row: int) -> Mapping[str, object]:
        cells = dict(enumerate(table.cells(int(rows[row]))))
        kept = {
            table.header[column]: cells[column]
            for name in _KEPT_IN_QUARANTINE
            if (column := table.position.get(name)) is not None and cells.get(column)
        }
        serial = table.position.get("serial")
        if serial is not None and cells.get(serial):
            kept[table.header[serial]] = hash_serial(cells[serial])
        return kept

    source = Source(
        records_in=len(table),
        skipped=Counter(reasons[reasons != ""].tolist()),
        locate=lambda row: f"line {candidates.line[row]}",
        original=original,
    )
    return load_readings(document, candidates, source)


def sniff(head: bytes) -> float:
    """Certain of a LibreView header."""
    return 0.95 if has_header(head, _match_header) else 0.0


def _match_header(cells: Sequence[str]) -> Mapping[str, int] | None:
    """By names; in other languages by order: time, type, then two glucose columns in the same unit."""
    position: dict[str, int] = {}
    for name, pattern in _PATTERNS.items():
        for column, cell in enumerate(cells):
            if pattern.fullmatch(cell) and (name not in ("historic", "scan", "strip") or unit_of(cell)):
                position.setdefault(name, column)
    if {"time", "type", "historic"} <= position.keys():
        return position
    units = [None if "/min" in cell else unit_of(cell) for cell in cells]
    for column in range(3, len(cells) - 1):
        if units[column] is None or units[column] != units[column + 1]:
            continue
        # Nothing before the pair holds glucose, and the columns that follow are insulin and food.
        if any(units[:column]) or len(cells) < column + 5:
            return None
        found = {"time": column - 2, "type": column - 1, "historic": column, "scan": column + 1}
        if column >= 4:
            found |= {"device": column - 4, "serial": column - 3}
        eaten = column + _CARBOHYDRATES_AFTER_HISTORIC
        found |= {"carbohydrates": eaten} if eaten < len(cells) else {}
        strip = column + _STRIP_AFTER_HISTORIC
        if strip < len(cells) and units[strip]:
            found["strip"] = strip
        return found | position
    return None


def _split_decimals(table: TextTable, codes: Objects, unit: str | None) -> Flags:
    """Rows where an unquoted decimal comma parted a value: `6,2` reads as a history of 6 and a scan of 2."""
    none = np.zeros(len(table), dtype=np.bool_)
    if unit != MMOL_L or table.delimiter != ",":
        return none
    whole = [flags(pc.match_substring_regex(table.column(name), r"^\d+$")) for name in ("historic", "scan")]
    return np.isin(codes, list(_GLUCOSE)) & whole[0] & whole[1]


PROVIDER = Provider(
    name="libreview",
    title="LibreView export",
    door="upload",
    entities=(READINGS, MEALS),
    parse=parse,
    sniff=sniff,
    file_options=FILE_OPTIONS,
    parser_version=2,
)
