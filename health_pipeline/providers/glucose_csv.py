"""Glucose tables of no vendor: a time and a value by any usual name, as CSV, TSV, semicolons or JSON.

Times are ISO 8601 with an offset, epoch seconds or milliseconds, or local times of the upload's zone. The
unit comes from the header, a unit column, the upload (`unit`), or the range of the values.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._delimited import TextTable, has_header, plain, read_table
from health_pipeline.providers._glucose import (
    FILE_OPTIONS,
    READINGS,
    Candidates,
    Objects,
    Source,
    absent,
    hash_serial,
    load_readings,
    unit_of,
)
from health_pipeline.providers._json_list import looks_like_json, read_elements, text_of
from health_pipeline.providers.base import Parsed, Provider, RawDocument, UnreadableFileError

_ENVELOPES = ("readings", "entries", "data", "result", "results", "glucose", "values", "records")

#: Names of columns without blanks, marks and unit, the most telling first.
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "time": (
        "timestamp", "datetime", "dateandtime", "datetimestamp", "recordedat", "measuredat",
        "measurementtime", "readingtime", "eventtime", "devicetimestamp", "devicetime", "displaytime",
        "localtime", "localdatetime", "systemtime", "sampletime", "effectivedatetime", "zeitstempel",
        "horodatage", "marcatemporal", "fechayhora", "fechahora", "dataeora", "epoch", "epochms",
        "epochseconds", "unixtime", "unixtimestamp", "timestampms", "ts", "datestring", "createdat",
        "time", "zeit", "uhrzeit", "hora", "heure", "ora", "t", "date", "datum", "fecha", "data",
    ),
    "date": (
        "date", "datum", "fecha", "data", "day",
    ),
    "value": (
        "glucose", "sgv", "bg", "gl", "glu", "bloodglucose", "glucosevalue", "sensorglucose",
        "glucosereading", "glucoselevel", "glucoseconcentration", "bloodglucosevalue", "bgvalue",
        "bgreading", "cgm", "cgmglucose", "cgmglucosevalue", "cgmvalue", "egv", "glukose",
        "glukosewert", "cgmglukosewert", "blutzucker", "blutzuckerwert", "glycemie", "glucosa",
        "niveldeglucosa", "glucemia", "glucosio", "glicemia", "historicglucose", "mbg", "smbg", "",
        "reading", "value", "wert", "valeur", "valor", "valore",
    ),
    "unit": (
        "unit", "units", "glucoseunit", "glucoseunits", "uom", "einheit", "unite", "unidad", "unita",
    ),
    "type": (
        "readingtype", "recordtype", "eventtype", "measurementtype", "glucosetype", "type",
    ),
    "trend": (
        "trend", "direction", "trendarrow",
    ),
    "rate": (
        "trendrate", "rateofchange", "rate", "roc",
    ),
    "device": (
        "device", "devicename", "devicemodel", "sensor", "source", "sourcename",
    ),
    "serial": (
        "deviceserial", "serialnumber", "serial", "transmitterid", "deviceid", "sensorid",
    ),
    "record_id": (
        "recordid", "identifier", "uuid", "guid", "id",
    ),
    "person": (
        "subject", "subjectid", "patient", "patientid", "ptid", "participant", "participantid",
        "person", "personid", "user", "userid", "usubjid", "id",
    ),
}  # fmt: skip
_VAGUE_VALUES = {"reading", "value", "wert", "valeur", "valor", "valore"}
_UNIT_SUFFIX = re.compile(r"(mg(per)?dl|mmol(per)?l?|mg)$")
_UTC_MARK = re.compile(r"^utc|utc$|gmt$")
_TIME_OF_DAY = r"^\d{1,2}:\d{2}(:\d{2}([.,]\d+)?)?( ?[AaPp]\.?[Mm]\.?)?$"
_READING_TYPES = {
    **dict.fromkeys(
        ("", "cgm", "sgv", "egv", "sensor", "glucose", "historic", "history", "automatic"), "cgm"
    ),
    **dict.fromkeys(("scan", "flash"), "scan"),
    **dict.fromkeys(("strip", "mbg", "bgm", "smbg", "meter", "finger", "fingerstick", "capillary"), "strip"),
    **dict.fromkeys(("manual", "blood glucose", "finger stick", "selfmonitored"), "strip"),
    **dict.fromkeys(("cal", "calibration"), "calibration"),
}
_OTHER_TYPE = re.compile(
    r"insulin|bolus|basal|carb|food|meal|exercise|activity|step|heart|keton|note|alert|alarm|weight|sleep"
)
_KEPT_IN_QUARANTINE = ("time", "date", "value", "unit", "type", "trend", "rate")


def parse(document: RawDocument) -> Parsed:
    """Glucose readings of a plain table or a JSON list of objects.

    UnreadableFileError: empty or binary file, no header with a time and a glucose column, no rows, no time
    zone for local times, dates or units that can be read two ways, readings of several people.
    """
    if looks_like_json(document.content):
        return _load(document, _table_of_json(document.content), json=True)
    return _load(document, read_table(document.content, _match_header, "glucose table"))


def sniff(head: bytes) -> float:
    """Low: any vendor's own reader knows more of its file."""
    if looks_like_json(head):
        names = re.findall(r'"([^"\\]{1,60})"\s*:', head[:16384].decode("utf-8", errors="replace"))
        # LibreLinkUp answers write two times and two units in every reading: they need a reader of their own.
        if "FactoryTimestamp" in names:
            return 0.0
        return 0.2 if _match_header([plain(name) for name in dict.fromkeys(names)]) else 0.0
    return 0.3 if has_header(head, _match_header) else 0.0


def _load(document: RawDocument, table: TextTable, *, json: bool = False) -> Parsed:
    _refuse_several_people(table)
    kinds, reasons = _classify(table)
    time, utc = _times(table)
    rows = np.flatnonzero(absent(reasons))
    refused = np.full(len(table), None, dtype=object)
    refused[kinds == "unknown"] = "unknown_reading_type"
    refused[table.extra] = "not_an_object" if json else "extra_cells"
    # The last cell of a line that breaks off may miss digits; what stands before it is whole.
    last = max(table.position["time"], table.position["value"], table.position.get("date", 0))
    refused[table.cut & (table.width <= last + 1)] = "truncated_line"
    candidates = Candidates(
        line=table.line,
        time=time,
        value=table.column("value"),
        reading_type=pa.array(kinds, pa.string()),
        unit=_unit(table),
        trend=table.columns.get("trend"),
        trend_rate=table.columns.get("rate"),
        device=table.columns.get("device"),
        serial=table.columns.get("serial"),
        record_id=_record_ids(table),
        refused=refused,
        times_are_utc=utc,
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
        skipped=Counter(reasons[~absent(reasons)].tolist()),
        locate=lambda row: table.location(int(rows[row])),
        original=original,
    )
    return load_readings(document, candidates, source)


def _key(cell: str) -> str:
    return re.sub(r"[^a-z0-9]", "", re.sub(r"[(\[].*?[)\]]?$", "", cell))


def _match_header(cells: Sequence[str]) -> Mapping[str, int] | None:
    keys = [_key(cell) for cell in cells]
    bare = {
        "time": [_UTC_MARK.sub("", key) for key in keys],
        "value": [_UNIT_SUFFIX.sub("", key) for key in keys],
    }
    position = {}
    for name, aliases in _ALIASES.items():
        for alias in aliases:
            columns = [column for column, key in enumerate(bare.get(name, keys)) if key == alias]
            # A column without a name is an index, unless what was cut off its name was a unit.
            columns = [column for column in columns if keys[column] or unit_of(cells[column])]
            if columns:
                position[name] = columns[0]
                break
    if not {"time", "value"} <= position.keys() or position["time"] == position["value"]:
        return None
    if len(set(cells)) == 1:
        return None
    if position.get("date") == position["time"]:
        del position["date"]
    return position


def _times(table: TextTable) -> tuple[pa.Array, bool]:
    """The time texts, a date column joined to a column of times of day, and whether they are UTC by name."""
    time = table.column("time")
    name = _key(plain(table.header[table.position["time"]]))
    title = plain(table.header[table.position["time"]])
    utc = bool(_UTC_MARK.search(name)) or bool(re.search(r"\b(utc|gmt)\b", title))
    if "date" in table.position:
        of_day = pc.match_substring_regex(time, _TIME_OF_DAY)
        if pc.any(of_day).as_py():
            joined = pc.binary_join_element_wise(table.column("date"), time, " ")
            return pc.if_else(of_day, joined, time), utc
    return time, utc


def _unit(table: TextTable) -> str | pa.Array | None:
    if "unit" in table.position and pc.any(pc.not_equal(table.column("unit"), "")).as_py():
        return table.column("unit")
    return unit_of(table.header[table.position["value"]])


def _classify(table: TextTable) -> tuple[Objects, Objects]:
    """Reading types of the rows, and why a row is none (None where it is)."""
    vague = _UNIT_SUFFIX.sub("", _key(plain(table.header[table.position["value"]]))) in _VAGUE_VALUES
    types = table.column("type").dictionary_encode()
    meanings: list[str] = []
    others: list[str | None] = []
    for word in map(plain, types.dictionary.to_pylist()):
        other = word not in _READING_TYPES and _OTHER_TYPE.search(word) is not None
        others.append("other_event" if other else None)
        meanings.append(_READING_TYPES.get(word, "unknown" if vague else "cgm"))
    codes = types.indices.to_numpy(zero_copy_only=False)
    kinds = np.array([*meanings, None], dtype=object)[codes]
    reasons = np.array([*others, None], dtype=object)[codes]
    reasons[table.empty] = "empty_row"
    for row in np.flatnonzero(table.width != len(table.header)).tolist():
        if table.raw(row).startswith("#"):
            reasons[row] = "comment"
            reasons[row + 1 :] = "other_section"
            break
    reasons[table.extra | table.cut] = None
    return kinds, reasons


def _refuse_several_people(table: TextTable) -> None:
    column = table.position.get("person")
    if column is None:
        return
    names = pc.value_counts(table.column("person"))
    counts = {value["values"]: value["counts"] for value in names.to_pylist()} if len(names) <= 10_000 else {}
    # A damaged cell makes a name of its own; a person has many readings. Ids of records do not repeat.
    people = [name for name, count in counts.items() if name and count > 2]
    if len(people) > 1 and len(counts) < len(table) / 2:
        raise UnreadableFileError(
            f"the file holds readings of {len(people)} people (column {table.header[column]!r}); "
            "upload one file for each"
        )


def _record_ids(table: TextTable) -> pa.Array | None:
    """The id column where it tells records apart, not people."""
    ids = table.column("record_id")
    return ids if len(table) > 1 and pc.count_distinct(ids).as_py() > len(table) / 2 else None


def _table_of_json(content: bytes) -> TextTable:
    elements = read_elements(content, _ENVELOPES, "glucose")
    names = tuple(dict.fromkeys(name for element in elements for name in element.value))
    position = _match_header([plain(name) for name in names])
    if position is None:
        raise UnreadableFileError(
            "the objects of this JSON have no time and glucose that we know; name them timestamp and glucose"
        )
    columns = {
        name: pa.array(
            [text_of(element.value.get(names[column])).strip() for element in elements], pa.string()
        )
        for name, column in position.items()
    }
    size = len(elements)
    nothing = np.zeros(size, dtype=np.bool_)
    return TextTable(
        header=names,
        position=position,
        preamble=(),
        delimiter=",",
        columns=columns,
        line=np.array([element.line for element in elements], dtype=np.int32),
        width=np.full(size, len(names), dtype=np.int32),
        empty=nothing,
        extra=np.array([element.refused is not None for element in elements], dtype=np.bool_),
        cut=nothing,
        raw=lambda row: "",
        split=lambda row: [text_of(elements[row].value.get(name)) for name in names],
        locate=lambda row: elements[row].location,
    )


PROVIDER = Provider(
    name="glucose_csv",
    title="glucose table (CSV or JSON)",
    door="upload",
    entities=(READINGS,),
    parse=parse,
    sniff=sniff,
    file_options=FILE_OPTIONS,
)
