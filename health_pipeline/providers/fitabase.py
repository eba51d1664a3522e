"""Fitabase exports of Fitbit data for research: days, hours, pulse, sleeps and weights of people by `Id`.

Times are the wall clock of the wearer's account. Copies differ in how dates are written (month or day first,
with or without a time, AM/PM or 24 hours); which it is is decided once for a whole file. Distances are taken
for km: the export does not say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._delimited import TextTable, has_header, read_table
from health_pipeline.providers._json import UTC_TIMESTAMP, quarantine_table
from health_pipeline.providers._local_time import CIVIL, Times, load_zone, localise, parse_times
from health_pipeline.providers.base import Entity, Parsed, Provider, RawDocument, UnreadableFileError

_DAY, _HOUR, _INSTANT = 86_400_000_000, 3_600_000_000, 0
_NUMBER = r"^-?\d{1,12}(\.\d{1,20})?([eE]-?\d{1,2})?$"

_MEASUREMENTS = Entity(
    name="measurement",
    schema=pa.schema(
        [
            pa.field("resource", pa.string(), nullable=False),
            pa.field("date", pa.date32(), nullable=False),
            pa.field("started_at", UTC_TIMESTAMP, nullable=False),
            pa.field("ended_at", UTC_TIMESTAMP),
            pa.field("utc_offset_minutes", pa.int16(), nullable=False),
            pa.field("value", pa.float64(), nullable=False),
            pa.field("line", pa.int32(), nullable=False),
        ]
    ),
    key=("resource", "started_at"),
    description="One row a value of one person: of a day, of an hour, or of an instant (no end).",
)


@dataclass(frozen=True, slots=True)
class _File:
    """A kind of file: what its time column may be called, how long its rows are, its values by their names."""

    times: tuple[str, ...]
    length: int
    values: Mapping[str, str]
    needed: str


_FILES = (
    _File(
        ("activitydate", "activityday"),
        _DAY,
        {
            "totalsteps": "steps",
            "totaldistance": "distance",
            "calories": "calories",
            "veryactiveminutes": "very_active_minutes",
            "fairlyactiveminutes": "fairly_active_minutes",
            "sedentaryminutes": "sedentary_minutes",
        },
        "totalsteps",
    ),
    _File(("activityhour", "activitydate"), _HOUR, {"steptotal": "steps"}, "steptotal"),
    _File(("activityhour", "activitydate"), _HOUR, {"calories": "calories"}, "calories"),
    _File(
        ("sleepday",),
        _DAY,
        {"totalminutesasleep": "asleep_minutes", "totaltimeinbed": "in_bed_minutes"},
        "totalminutesasleep",
    ),
    _File(
        ("date",),
        _INSTANT,
        {"weightkg": "weight", "fat": "fat_percent", "bmi": "body_mass_index"},
        "weightkg",
    ),
    _File(("time",), _INSTANT, {"value": "heart_rate"}, "value"),
)


def parse(document: RawDocument) -> Parsed:
    """The rows of one person as values, each with its line; a row with a bad time or value goes to quarantine.

    `participant` of the context is the `Id` of the person where the file has several. Rows of the others, exact
    repetitions and days on which the tracker was not worn (no step, sedentary for all 24 hours) are skipped.
    UnreadableFileError: no such file, several people and none named, no time zone, dates that can be read two
    ways (answer with date_order).
    """
    table = read_table(document.content, _match_header, "Fitabase")
    kind = _kind_of(table.position)
    if document.time_zone is None:
        raise UnreadableFileError(
            "times of this file are local and no time zone is known; say where they were recorded with "
            "--timezone AREA/CITY"
        )
    zone = load_zone(document.time_zone)
    times = _read_times(_times(table), document.context.get("date_order"))
    reasons = np.full(len(table), "", dtype=object)
    reasons[_repeated(table)] = "repeated_row"
    reasons[~_flags(pc.equal(table.column("id"), _participant(document, table)))] = "another_person"
    values = {name: _numbers(table.column(name)) for name in kind.values if name in table.position}
    if "sedentaryminutes" in values:
        unworn = (values["totalsteps"] == 0) & (values["sedentaryminutes"] == 1440)
        reasons[unworn & (reasons == "")] = "not_worn"

    refused = np.full(len(table), None, dtype=object)
    for name, numbers in values.items():
        unread = np.isnan(numbers) & ~_flags(pc.equal(table.column(name), ""))
        refused[unread] = "not_a_number"
    refused[np.isnan(values[kind.needed])] = "not_a_number"
    refused[times.kind != CIVIL] = "not_a_time"
    refused[table.extra] = "extra_cells"
    refused[table.cut] = "truncated_line"
    refused[reasons != ""] = None

    is_bad = refused.astype(np.bool_)
    rows = np.flatnonzero(~reasons.astype(np.bool_) & ~is_bad)
    bad = np.flatnonzero(is_bad)
    start = localise(times.us[rows], zone)
    end = localise(times.us[rows] + kind.length, zone) if kind.length == _DAY else None
    ended = end.us if end is not None else start.us + kind.length
    parts = []
    for name, resource in kind.values.items():
        if name not in values:
            continue
        numbers = values[name][rows]
        columns = [
            pa.repeat(pa.scalar(resource), len(rows)),
            pa.array(times.us[rows] // _DAY, pa.int64()).cast(pa.int32()).cast(pa.date32()),
            pa.array(start.us, pa.int64()).cast(UTC_TIMESTAMP),
            pa.array(ended, pa.int64(), mask=np.full(len(rows), kind.length == _INSTANT)).cast(UTC_TIMESTAMP),
            pa.array(start.offset, pa.int16()),
            pa.array(numbers, pa.float64(), mask=np.isnan(numbers)),
            pa.array(table.line[rows], pa.int32()),
        ]
        part = pa.table(columns, names=_MEASUREMENTS.schema.names)
        parts.append(part.filter(pc.is_valid(part["value"])).cast(_MEASUREMENTS.schema))
    names, counts = np.unique(reasons[reasons != ""].astype(str), return_counts=True)
    return Parsed(
        tables={_MEASUREMENTS.name: pa.concat_tables(parts)},
        quarantine=quarantine_table(
            document.entity,
            (
                (str(refused[row]), None, table.location(int(row)), _original(table, int(row)))
                for row in bad.tolist()
            ),
        ),
        records_in=len(table),
        records_loaded=len(rows),
        skipped=dict(zip(names.tolist(), counts.tolist(), strict=True)),
    )


def sniff(head: bytes) -> float:
    """Certain of the column names of one of its files."""
    return 0.95 if has_header(head, _match_header) else 0.0


def _participant(document: RawDocument, table: TextTable) -> str:
    """Whose rows count."""
    named = document.context.get("participant")
    people = pc.unique(table.column("id").filter(pc.invert(pa.array(table.cut)))).to_pylist()
    if named is None and len(people) > 1:
        raise UnreadableFileError(
            f"the file has rows of {len(people)} people (column Id); upload the rows of one, or name theirs as "
            "participant"
        )
    if named is not None and named not in people:
        raise UnreadableFileError(
            f"the file has no rows of the participant named; it has {len(people)} others"
        )
    return str(named if named is not None else people[0] if people else "")


def _match_header(cells: Sequence[str]) -> Mapping[str, int] | None:
    names = {cell.replace(" ", ""): column for column, cell in reversed(list(enumerate(cells)))}
    for kind in _FILES:
        time = next((name for name in kind.times if name in names), None)
        if "id" not in names or time is None or kind.needed not in names:
            continue
        if kind.needed == "value" and len(names) != 3:
            return None  # other tables have a time and a value, too
        found = {"id": names["id"], "time": names[time]}
        if "activitytime" in names:
            found["clock"] = names["activitytime"]
        return found | {name: names[name] for name in kind.values if name in names}
    return None


def _kind_of(position: Mapping[str, int]) -> _File:
    return next(kind for kind in _FILES if kind.needed in position)


def _times(table: TextTable) -> pa.Array:
    """Date and time of each row; midnight where there is a date alone."""
    time = table.column("time")
    if "clock" in table.position:
        return pc.binary_join_element_wise(time, table.column("clock"), " ")
    is_date = pc.invert(pc.match_substring(time, ":"))
    return pc.if_else(is_date, pc.binary_join_element_wise(time, pa.scalar("0:00"), " "), time)


def _read_times(texts: pa.Array, date_order: str | None) -> Times:
    """What decides between day and month is in the file; else AM and PM are of the export's own month first."""
    try:
        return parse_times(texts, date_order=date_order)
    except UnreadableFileError:
        if date_order is not None or not pc.any(pc.match_substring_regex(texts, r"(?i)\d ?[ap]m$")).as_py():
            raise
        return parse_times(texts, date_order="mdy")


def _numbers(texts: pa.Array) -> npt.NDArray[np.float64]:
    given = pc.if_else(pc.match_substring_regex(texts, _NUMBER), texts, pa.scalar(None, pa.string()))
    found: npt.NDArray[np.float64] = given.cast(pa.float64()).to_numpy(zero_copy_only=False)
    return found


def _flags(array: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(array.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _repeated(table: TextTable) -> npt.NDArray[np.int64]:
    """Rows that say what an earlier one says."""
    whole = pa.table([table.column(name) for name in table.position], names=list(table.position))
    whole = whole.append_column("row", pa.array(np.arange(len(table))))
    firsts = whole.group_by(list(table.position)).aggregate([("row", "min")])["row_min"].to_numpy()
    return np.setdiff1d(np.arange(len(table)), firsts)


def _original(table: TextTable, row: int) -> str:
    kept = {name: table.column(name)[row].as_py() for name in table.position if name != "id"}
    return orjson.dumps(kept).decode().replace("\\u0000", "\\ufffd")[:4096]


PROVIDER = Provider(
    name="fitabase",
    title="Fitabase export",
    door="upload",
    entities=(_MEASUREMENTS,),
    parse=parse,
    sniff=sniff,
    file_options={
        "participant": "the Id of the person in a file of several",
        "date_order": "dmy or mdy, where the dates leave it open",
    },
)
