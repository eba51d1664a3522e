"""Nightscout as files: `entries` (JSON, the v3 envelope, an object a line, or CSV), carbohydrates of `treatments`.

Nightscout keeps mg/dL whatever it displays. `date` is the instant; offsets come from `utcOffset` or from
`dateString` where it is not UTC.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._arrow import flags
from health_pipeline.providers._delimited import read_table
from health_pipeline.providers._glucose import (
    FILE_OPTIONS,
    MEAL,
    MEALS,
    MG_DL,
    READINGS,
    Candidates,
    Source,
    absent,
    load_readings,
    read_numbers,
    unit_of,
)
from health_pipeline.providers._json_list import Element, looks_like_json, read_elements, text_of
from health_pipeline.providers._local_time import NO_OFFSET
from health_pipeline.providers.base import Parsed, Provider, RawDocument, UnreadableFileError

#: Below this, `sgv` is a code for what is wrong with the sensor.
_LOWEST_GLUCOSE = 39
_OFFSET = re.compile(r"([+-])(\d{2}):?(\d{2})$")
_KEPT_IN_QUARANTINE = (
    "type",
    "sgv",
    "mbg",
    "glucose",
    "units",
    "date",
    "dateString",
    "sysTime",
    "utcOffset",
    "carbs",
)
#: Where the value of each kind of object is.
_VALUES = {"cgm": ("sgv", "glucose"), "strip": ("mbg", "sgv", "glucose"), MEAL: ("carbs",)}
_CSV_COLUMNS = {"time_text": 0, "time": 1, "value": 2, "trend": 3, "device": 4}


def parse(document: RawDocument) -> Parsed:
    """Sensor (`sgv`) and meter (`mbg`) glucose of Nightscout entries, and what was eaten; other treatments and
    profiles are skipped.

    UnreadableFileError: empty or binary file, broken JSON, no list of objects in it.
    """
    if not looks_like_json(document.content):
        return _parse_csv(document)
    elements = read_elements(document.content, ("result", "entries"), "Nightscout")
    kept: list[Element] = []
    refused: list[str | None] = []
    skipped: Counter[str] = Counter()
    for element in elements:
        reason = element.refused
        if reason is None:
            reason = _not_glucose(element.value)
            if reason:
                skipped[reason] += 1
                continue
        kept.append(element)
        refused.append(element.refused)
    values = [element.value for element in kept]
    kinds = [_kind(value) for value in values]
    candidates = Candidates(
        line=np.array([element.line for element in kept], dtype=np.int32),
        time=_texts(values, lambda e: _first(e, "date", "dateString", "sysTime", "created_at")),
        value=_texts(
            values,
            lambda e: _first(e, *_VALUES[_kind(e)]),
        ),
        reading_type=pa.array(kinds, pa.string()),
        unit=pa.array([_unit(value) for value in values], pa.string()),
        trend=_texts(values, lambda e: _first(e, "direction", "trend")),
        device=_texts(values, lambda e: e.get("device")),
        record_id=_texts(values, lambda e: _first(e, "identifier", "_id")),
        utc_offset=np.array([_utc_offset(value) for value in values], dtype=np.int32),
        refused=np.array([*refused, None], dtype=object)[:-1],
    )
    return _load(document, candidates, kept, len(elements), skipped)


def sniff(head: bytes) -> float:
    """By the names of fields that only Nightscout uses together."""
    if not looks_like_json(head):
        return 0.9 if _entries_csv(head.split(b"\n", 1)[0].decode("utf-8", errors="replace")) else 0.0
    names = set(re.findall(rb'"(\w+)"\s*:', head[:16384]))
    if names & {b"sgv", b"mbg"} and names & {b"date", b"dateString", b"sysTime"}:
        return 0.9
    if {b"eventType", b"created_at"} <= names or {b"defaultProfile", b"store"} <= names:
        return 0.7
    return 0.0


def _load(
    document: RawDocument,
    candidates: Candidates,
    kept: list[Element],
    records_in: int,
    skipped: Counter[str],
) -> Parsed:
    values, numeric = read_numbers(candidates.value)
    low = numeric & (values < _LOWEST_GLUCOSE) & (values >= 0)
    in_mg_dl = flags(pc.equal(candidates.unit, MG_DL))
    cgm = flags(pc.equal(candidates.reading_type, "cgm"))
    codes = low & cgm & in_mg_dl
    if candidates.refused is not None:
        codes &= absent(candidates.refused)
    skipped["sensor_error_code"] += int(codes.sum())
    rows = np.flatnonzero(~codes)

    def original(row: int) -> Mapping[str, object]:
        value = kept[rows[row]].value
        return {name: value[name] for name in _KEPT_IN_QUARANTINE if name in value}

    source = Source(
        records_in=records_in,
        skipped=skipped,
        locate=lambda row: kept[rows[row]].location,
        original=original,
    )
    return load_readings(document, candidates.take(rows), source)


def _not_glucose(entry: Mapping[str, Any]) -> str | None:
    """Why an object of a Nightscout file is neither a reading nor a meal, None if it should be one."""
    kind = entry.get("type")
    if entry.get("isValid") is False:
        return "deleted"
    if "eventType" in entry:
        return None if entry.get("carbs") not in (None, "", 0) else "treatment"
    if "defaultProfile" in entry or "store" in entry:
        return "profile"
    if kind == "cal":
        return "calibration_parameters"
    if {"sgv", "mbg"} & entry.keys() or kind in ("sgv", "mbg", None):
        return "device_status" if {"openaps", "loop", "pump", "uploader"} & entry.keys() else None
    return "other_entry"


def _kind(entry: Mapping[str, Any]) -> str:
    if "eventType" in entry:
        return MEAL
    return "strip" if entry.get("type") == "mbg" or ("mbg" in entry and "sgv" not in entry) else "cgm"


def _first(entry: Mapping[str, Any], *names: str) -> Any:
    for name in names:
        value = entry.get(name)
        if value is not None and value != "":
            return value
    return None


def _texts(values: list[Mapping[str, Any]], get: Callable[[Mapping[str, Any]], Any]) -> pa.Array:
    return pa.array([text_of(get(value)).strip() for value in values], pa.string())


def _unit(entry: Mapping[str, Any]) -> str:
    return unit_of(text_of(entry.get("units"))) or MG_DL


def _utc_offset(entry: Mapping[str, Any]) -> int:
    minutes = entry.get("utcOffset")
    if isinstance(minutes, int | float) and not isinstance(minutes, bool) and abs(minutes) <= 14 * 60:
        return int(minutes)
    if found := _OFFSET.search(text_of(entry.get("dateString"))):
        minutes = int(found[2]) * 60 + int(found[3])
        if minutes <= 14 * 60:
            return -minutes if found[1] == "-" else minutes
    return NO_OFFSET


def _entries_csv(line: str) -> Mapping[str, int] | None:
    cells = [cell.strip().strip('"') for cell in re.split(r"[,\t]", line)]
    return _match_first_row(cells)


def _match_first_row(cells: Sequence[str]) -> Mapping[str, int] | None:
    if len(cells) == len(_CSV_COLUMNS) and re.match(r"\d{4}-\d\d-\d\dt", cells[0].casefold()):
        return _CSV_COLUMNS if re.fullmatch(r"\d{13}", cells[1]) else None
    return None


def _parse_csv(document: RawDocument) -> Parsed:
    try:
        table = read_table(document.content, _match_first_row, "Nightscout entries", has_header=False)
    except UnreadableFileError as error:
        if "header" not in str(error):
            raise
        raise UnreadableFileError(
            "this is neither Nightscout JSON nor its entries.csv; download /api/v1/entries.json with a count"
        ) from error
    refused = np.full(len(table), None, dtype=object)
    refused[table.extra] = "extra_cells"
    refused[table.cut] = "truncated_line"
    utc_offset = [_utc_offset({"dateString": text}) for text in table.column("time_text").to_pylist()]
    candidates = Candidates(
        line=table.line,
        time=table.column("time"),
        value=table.column("value"),
        reading_type=pa.repeat(pa.scalar("cgm"), len(table)),
        unit=pa.repeat(pa.scalar(MG_DL), len(table)),
        trend=table.column("trend"),
        device=table.column("device"),
        utc_offset=np.array(utc_offset, dtype=np.int32),
        refused=refused,
    )
    kept = [
        Element(line, f"line {line}", {"date": date, "sgv": sgv})
        for line, date, sgv in zip(
            table.line.tolist(),
            table.column("time").to_pylist(),
            table.column("value").to_pylist(),
            strict=True,
        )
    ]
    return _load(document, candidates, kept, len(table), Counter())


PROVIDER = Provider(
    name="nightscout",
    title="Nightscout entries",
    door="upload",
    entities=(READINGS, MEALS),
    parse=parse,
    sniff=sniff,
    file_options=FILE_OPTIONS,
    parser_version=2,
)
