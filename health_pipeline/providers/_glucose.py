"""What the readers of glucose files share: the shape of `readings`, numbers, units, and the bookkeeping."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._arrow import Flags, flag_column, flags, number_column, numbers
from health_pipeline.providers._local_time import (
    CIVIL,
    IMPLAUSIBLE,
    INSTANT,
    MISSING,
    NO_OFFSET,
    UNPARSABLE,
    Instants,
    Times,
    load_zone,
    localise,
    offsets_at,
    parse_times,
    strings,
)
from health_pipeline.providers.base import (
    QUARANTINE_SCHEMA,
    Entity,
    Parsed,
    RawDocument,
    UnreadableFileError,
)

MG_DL, MMOL_L = "mg/dL", "mmol/L"
#: What `load_readings` takes from the context.
FILE_OPTIONS: Mapping[str, str] = {
    "date_order": "dmy or mdy, where the dates leave it open",
    "unit": "mg/dL or mmol/L, where the file leaves it open",
}

#: One glucose value at one time, as the file has it. `unit` is UCUM; values are not converted. A word such as
#: Low gives `censored` and no `value`. `local_time` is the wall clock as written, null where the file has
#: instants; `utc_offset_source` is `record` or `upload_zone`. `trend_rate` is in `unit` per minute.
#: `device_serial` is a short hash: a serial number identifies its wearer.
READINGS_SCHEMA = pa.schema(
    [
        pa.field("recorded_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("local_time", pa.timestamp("us")),
        pa.field("utc_offset_minutes", pa.int16()),
        pa.field("utc_offset_source", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("unit", pa.string()),
        pa.field("value_text", pa.string(), nullable=False),
        pa.field("censored", pa.string()),
        pa.field("reading_type", pa.string(), nullable=False),
        pa.field("trend", pa.string()),
        pa.field("trend_rate", pa.float64()),
        pa.field("device", pa.string()),
        pa.field("device_serial", pa.string()),
        pa.field("record_id", pa.string()),
        pa.field("line", pa.int32(), nullable=False),
        pa.field("ambiguous_time", pa.bool_(), nullable=False),
    ]
)

READINGS = Entity(
    name="readings",
    schema=READINGS_SCHEMA,
    key=("recorded_at", "reading_type", "device_serial", "value_text"),
    description="Glucose readings of an uploaded file: one row for each value and time in it.",
)

#: Carbohydrates that somebody entered at one time.
MEALS_SCHEMA = pa.schema(
    [
        pa.field("recorded_at", pa.timestamp("us", "UTC"), nullable=False),
        pa.field("local_time", pa.timestamp("us")),
        pa.field("utc_offset_minutes", pa.int16()),
        pa.field("utc_offset_source", pa.string()),
        pa.field("carbohydrates_g", pa.float64(), nullable=False),
        pa.field("device", pa.string()),
        pa.field("device_serial", pa.string()),
        pa.field("line", pa.int32(), nullable=False),
        pa.field("ambiguous_time", pa.bool_(), nullable=False),
    ]
)

MEALS = Entity(
    name="meals",
    schema=MEALS_SCHEMA,
    key=("recorded_at", "device_serial", "carbohydrates_g"),
    description="Carbohydrates entered in the app of a glucose sensor: one row an entry.",
)

#: The kind of a candidate that is no reading but a meal: its value is grams of carbohydrates.
MEAL = "meal"

_NOTHING = ("", "-", "--", "---", "na", "n/a", "nan", "null", "none")
_LOW = ("low", "lo", "niedrig", "tief", "bas", "basse", "faible", "bajo", "baja", "basso", "bassa")
_HIGH = ("high", "hi", "hoch", "haut", "haute", "élevé", "élevée", "alto", "alta", "elevato")
_NUMBER = r"^[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d{1,2})?$"
_SERIAL = re.compile(r"(?<![A-Za-z0-9])(?=[A-Z0-9]*\d)(?=[A-Z0-9]*[A-Z]|\d{7})[A-Z0-9]{6,}(?![A-Za-z0-9])")

Objects = npt.NDArray[np.object_]
Floats = npt.NDArray[np.float64]


_NONE = np.array(None, dtype=object)


def absent(column: Objects) -> Flags:
    """Where a column of objects holds None."""
    return np.asarray(np.equal(column, _NONE), dtype=np.bool_)


@dataclass(kw_only=True)
class Candidates:
    """The records of a file that should hold a glucose value, column by column. Texts are trimmed.

    `unit` is None where the file does not say. `refused` holds reasons that the reader found, None elsewhere.
    `utc_offset` (minutes, NO_OFFSET) is for formats that keep it apart from the time. `clock` are seconds of
    a device clock that no time zone moves.
    """

    line: npt.NDArray[np.int32]
    time: pa.Array
    value: pa.Array
    reading_type: pa.Array
    unit: str | pa.Array | None = None
    trend: pa.Array | None = None
    trend_rate: pa.Array | None = None
    device: pa.Array | None = None
    serial: pa.Array | None = None
    record_id: pa.Array | None = None
    utc_offset: npt.NDArray[np.int32] | None = None
    clock: Floats | None = None
    refused: Objects | None = None
    times_are_utc: bool = False
    date_evidence: Sequence[str] = ()

    def take(self, rows: npt.NDArray[np.int64]) -> Candidates:
        """The candidates of these rows, given in their order."""
        return Candidates(**{name: _taken(getattr(self, name), rows) for name in self.__dataclass_fields__})


@dataclass(kw_only=True)
class Source:
    """Where the candidates come from: what a quarantine row and the counts need.

    `skipped` counts the records that were understood and are neither glucose nor a meal. `original` gives the
    texts of one candidate for quarantine, without personal fields.
    """

    records_in: int
    skipped: Mapping[str, int] = field(default_factory=dict)
    locate: Callable[[int], str]
    original: Callable[[int], Mapping[str, object]]


def unit_of(text: str) -> str | None:
    """The UCUM glucose unit that a header or a unit cell names, in whatever spelling."""
    text = text.casefold()
    if "mmol" in text:
        return MMOL_L
    return MG_DL if re.search(r"(?<![a-z])mg(?![a-z])|mg_?/?dl", text) else None


def hash_serial(serial: str) -> str:
    """A short, stable stand-in for a serial number."""
    return hashlib.sha256(serial.strip().encode()).hexdigest()[:12]


def split_device(name: str) -> tuple[str | None, str | None]:
    """A device's model, and the serial number that some apps write into its name.

    Of `loop://Anna's phone` only `loop` is kept: what follows is named by its owner.
    """
    model = name.split("://", 1)[0]
    serial = _SERIAL.search(model)
    model = _SERIAL.sub("", model).strip(" -_/:()")
    if serial is None and "://" not in name:
        return model or None, None
    return model or None, serial.group() if serial else name


def read_numbers(text: pa.Array) -> tuple[Floats, Flags]:
    """Numbers with a decimal point or comma, NaN and False where there is none."""
    good = flags(pc.match_substring_regex(text, _NUMBER))
    usable = text if good.all() else text.filter(flag_column(good))
    if pc.any(pc.match_substring(usable, ",")).as_py():
        usable = pc.replace_substring(usable, ",", ".")
    values = np.full(len(text), np.nan)
    values[good] = numbers(usable.cast(pa.float64()), np.float64)
    good &= np.isfinite(values)
    values[~good] = np.nan
    return values, good


def _taken(column: Any, rows: npt.NDArray[np.int64]) -> Any:
    """These rows of a column, given in their order; of what is no column, itself."""
    if not isinstance(column, np.ndarray | pa.Array) or len(column) == len(rows):
        return column
    return column[rows] if isinstance(column, np.ndarray) else column.take(pa.array(rows))


def load_readings(document: RawDocument, rows: Candidates, source: Source) -> Parsed:
    """Turn candidates into `readings` and, where there are any, `meals`; those that cannot be read into quarantine
    rows.

    UnreadableFileError: times without an offset and no zone, an unknown zone, dates or units that can be
    read two ways.
    """
    count = len(rows.line)
    refused = np.full(count, None, dtype=object) if rows.refused is None else rows.refused.copy()
    times = parse_times(rows.time, date_order=document.context.get("date_order"), evidence=rows.date_evidence)
    _refuse(refused, times.kind == MISSING, "missing_time")
    _refuse(refused, times.kind == UNPARSABLE, "unparsable_time")
    _refuse(refused, times.kind == IMPLAUSIBLE, "implausible_time")
    text = rows.value
    values, numeric = read_numbers(text)
    is_meal = flags(pc.is_in(rows.reading_type, pa.array([MEAL])))
    if numeric.all():
        censored = pa.nulls(count, pa.string())
    else:
        censored = _censored(text)
        words = flags(pc.is_valid(censored))
        _refuse(refused, flags(pc.is_in(pc.utf8_lower(text), pa.array(_NOTHING))), "missing_value")
        _refuse(refused, ~numeric & (~words | is_meal), "unparsable_value")
    unit, unit_known = _units(rows.unit, document.context.get("unit"), values, absent(refused) & ~is_meal)
    _refuse(refused, ~unit_known, "unknown_unit")
    instants, offset, from_record = _instants(document, rows, times, refused)

    kept = np.flatnonzero(absent(refused))
    rows = rows.take(kept)
    civil = _taken(times.kind == CIVIL, kept) & (not rows.times_are_utc)
    known = _taken(offset != NO_OFFSET, kept)
    device, serial = _devices(rows)
    rate = None if rows.trend_rate is None else read_numbers(strings(rows.trend_rate))
    columns = {
        "recorded_at": number_column(_taken(instants.us, kept), pa.timestamp("us", "UTC")),
        "local_time": number_column(_taken(times.us, kept), pa.timestamp("us"), civil),
        "utc_offset_minutes": number_column(_taken(offset, kept).astype(np.int16), pa.int16(), known),
        "utc_offset_source": pc.if_else(
            flag_column(known),
            pc.if_else(flag_column(_taken(from_record, kept)), "record", "upload_zone"),
            pa.scalar(None, pa.string()),
        ),
        "value": number_column(_taken(values, kept), pa.float64(), _taken(numeric, kept)),
        "unit": _taken(unit, kept),
        "value_text": _taken(text, kept),
        "censored": _taken(censored, kept),
        "reading_type": rows.reading_type,
        "trend": _optional(rows.trend, len(kept)),
        "trend_rate": pa.nulls(len(kept), pa.float64())
        if rate is None
        else number_column(rate[0], pa.float64(), rate[1]),
        "device": device,
        "device_serial": serial,
        "record_id": _optional(rows.record_id, len(kept)),
        "line": number_column(rows.line, pa.int32()),
        "ambiguous_time": flag_column(_taken(instants.ambiguous, kept)),
    }
    readings = pa.table(columns, schema=READINGS_SCHEMA)
    tables = {READINGS.name: readings}
    if is_meal.any():
        eaten = flag_column(_taken(is_meal, kept))
        meals = readings.filter(eaten).rename_columns({"value": "carbohydrates_g"})
        tables = {
            READINGS.name: readings.filter(pc.invert(eaten)),
            MEALS.name: meals.select(MEALS_SCHEMA.names).cast(MEALS_SCHEMA),
        }
    return Parsed(
        tables=tables,
        quarantine=_quarantine(refused, document.entity, source),
        records_in=source.records_in,
        records_loaded=len(kept),
        skipped={reason: number for reason, number in source.skipped.items() if number},
    )


_FIELD_OF_REASON = {"time": "recorded_at", "value": "value", "unit": "unit"}


def _quarantine(refused: Objects, entity: str, source: Source) -> pa.Table:
    rows = np.flatnonzero(~absent(refused)).tolist()
    return pa.table(
        {
            "entity": pa.repeat(pa.scalar(entity), len(rows)),
            "reason": pa.array([refused[row] for row in rows], pa.string()),
            "field": pa.array(
                [_FIELD_OF_REASON.get(refused[row].split("_")[-1]) for row in rows], pa.string()
            ),
            "location": pa.array([source.locate(row) for row in rows], pa.string()),
            "original": pa.array(
                [orjson.dumps(source.original(row), default=str).decode() for row in rows], pa.string()
            ),
        },
        schema=QUARANTINE_SCHEMA,
    )


def _refuse(refused: Objects, rows: Flags, reason: str) -> None:
    if rows.any():
        refused[rows & absent(refused)] = reason


def _censored(text: pa.Array) -> pa.Array:
    lower = pc.utf8_lower(text)
    low = pc.or_(pc.is_in(lower, pa.array(_LOW)), pc.match_substring_regex(text, r"^< ?\d"))
    high = pc.or_(pc.is_in(lower, pa.array(_HIGH)), pc.match_substring_regex(text, r"^> ?\d"))
    return pc.if_else(low, "low", pc.if_else(high, "high", pa.scalar(None, pa.string())))


def _units(
    unit: str | pa.Array | None, answer: str | None, values: Floats, usable: Flags
) -> tuple[pa.Array, Flags]:
    """The unit of every row, and where it is known: the file's own word, else the answer, else the values."""
    count = len(values)
    known = np.ones(count, dtype=np.bool_)
    if isinstance(unit, pa.Array):
        words = unit.dictionary_encode()
        meaning = pa.array([unit_of(word or "") for word in words.dictionary.to_pylist()], pa.string())
        stated = meaning.take(words.indices)
        blank = flags(pc.equal(unit, ""))
        if not blank.all():
            named = flags(pc.is_valid(stated))
            one = pc.unique(pc.drop_null(stated))
            if blank.any() and len(one) == 1 and not (~named & ~blank).any():
                return pa.repeat(one[0], count), known
            return stated, named
        unit = None
    if unit is None and answer is not None:
        unit = unit_of(answer)
        if unit is None:
            raise UnreadableFileError(f"unit is {answer!r}; it must be {MG_DL} or {MMOL_L}")
    if unit is None:
        unit = _unit_of_values(values[usable])
    return pa.repeat(pa.scalar(unit, pa.string()), count), known


def _unit_of_values(values: Floats) -> str | None:
    """No one lives at 36 mmol/L, and no sensor reports less than 36 mg/dL: the ranges hardly meet."""
    evidence = values[values > 0]
    if not evidence.size:
        return None
    if (evidence < 40).all():
        return MMOL_L
    if (evidence >= 36).all():
        return MG_DL
    raise UnreadableFileError(
        f"the file does not name its unit, and its values ({evidence.min():g} to {evidence.max():g}) fit "
        f"neither {MG_DL} nor {MMOL_L} alone; upload it again with unit={MG_DL} or unit={MMOL_L}"
    )


def _instants(
    document: RawDocument, rows: Candidates, times: Times, refused: Objects
) -> tuple[Instants, npt.NDArray[np.int32], Flags]:
    """Instants of all rows with a time, the offsets in force, and which of these the records write."""
    zone = None if document.time_zone is None else load_zone(document.time_zone)
    us = times.us.copy()
    ambiguous = np.zeros(len(us), dtype=np.bool_)
    offset = times.offset.copy()
    if rows.utc_offset is not None and (rows.utc_offset[rows.utc_offset != NO_OFFSET] != 0).any():
        offset = np.where(offset == NO_OFFSET, rows.utc_offset, offset)
    from_record = offset != NO_OFFSET
    instant = times.kind == INSTANT
    civil = (times.kind == CIVIL) & ~instant
    shifted = civil & (times.offset != NO_OFFSET)
    us[shifted] -= times.offset[shifted].astype(np.int64) * 60_000_000
    local = civil & ~shifted & (not rows.times_are_utc)
    if rows.utc_offset is not None and (told := local & from_record).any():
        us[told] -= offset[told].astype(np.int64) * 60_000_000
        local &= ~told
    if local.any() and zone is None:
        if not (instant | shifted).any():
            raise UnreadableFileError(
                "the times in this file are local, without a UTC offset; "
                "say where they were recorded with --timezone AREA/CITY"
            )
        _refuse(refused, local, "missing_utc_offset")
    if zone is None:
        return Instants(us, offset, ambiguous), offset, from_record
    usable = absent(refused)
    where = np.flatnonzero(local & usable)
    if where.size:
        group = None
        if rows.serial is not None:
            codes = strings(rows.serial.take(pa.array(where))).dictionary_encode().indices
            group = codes.to_numpy(zero_copy_only=False).astype(np.int64)
        clock = None if rows.clock is None else rows.clock[where]
        found = localise(us[where], zone, group=group, clock=clock)
        us[where], offset[where], ambiguous[where] = found.us, found.offset, found.ambiguous
    unknown = np.flatnonzero((offset == NO_OFFSET) & (times.kind >= CIVIL) & usable)
    if unknown.size:
        offset[unknown] = offsets_at(us[unknown], zone)
    return Instants(us, offset, ambiguous), offset, from_record


def _devices(rows: Candidates) -> tuple[pa.Array, pa.Array]:
    """Models and hashed serial numbers."""
    count = len(rows.line)
    device, serial = pa.nulls(count, pa.string()), pa.nulls(count, pa.string())
    if rows.device is not None:
        names = strings(rows.device).dictionary_encode()
        pairs = [split_device(name) for name in names.dictionary.to_pylist()]
        device = pa.array([model for model, _ in pairs], pa.string()).take(names.indices)
        hashes = [number and hash_serial(number) for _, number in pairs]
        serial = pa.array(hashes, pa.string()).take(names.indices)
    if rows.serial is not None:
        serials = strings(rows.serial).dictionary_encode()
        hashes = [hash_serial(number) if number else None for number in serials.dictionary.to_pylist()]
        serial = pc.coalesce(pa.array(hashes, pa.string()).take(serials.indices), serial)
    return device, serial


def _optional(column: pa.Array | None, count: int) -> pa.Array:
    if column is None:
        return pa.nulls(count, pa.string())
    texts = strings(column)
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)
