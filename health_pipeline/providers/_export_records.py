"""Values, sleeps and workouts of the files that makers of devices and apps export: one shape for all kinds.

A kind reads its records one by one and says what each comes to; a record that does not fit is refused alone,
with the field named. `dbt_project/macros/export_files.sql` makes canonical rows of the three tables.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._json import UTC_TIMESTAMP, original_json, quarantine_table
from health_pipeline.providers._local_time import load_zone, offsets_at
from health_pipeline.providers.base import Entity, Parsed, UnreadableFileError

_TEXT, _FLOAT, _SHORT, _INT = pa.string(), pa.float64(), pa.int16(), pa.int32()
_SECOND = 1_000_000
_FIRST_YEAR, _LAST_YEAR = 1900, 2199
_EARLIEST = round(dt.datetime(_FIRST_YEAR, 1, 1, tzinfo=dt.UTC).timestamp()) * _SECOND
_LATEST = round(dt.datetime(_LAST_YEAR, 1, 1, tzinfo=dt.UTC).timestamp()) * _SECOND
_LONGEST_OFFSET = 14 * 60
_LARGEST = 1e12
_LONGEST_TEXT = 200
_ISO = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?\s?(Z|[+-]\d\d:?\d\d)?", re.ASCII
)

Ints = npt.NDArray[np.int64]
Row = dict[str, Any]
#: What a record comes to: rows by table, samples as tables of RECORDS_SCHEMA.
Found = Iterator[tuple[str, Row] | pa.Table]

#: `value` is as the file says, `unit` UCUM. `record_id` names what a later file says anew (the steps of a day);
#: samples and what was measured once have none. Without an offset, the person's zone holds.
RECORDS_SCHEMA = pa.schema(
    [
        pa.field("metric_type", _TEXT, nullable=False),
        pa.field("value", _FLOAT, nullable=False),
        pa.field("unit", _TEXT),
        pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
        pa.field("ended_at", UTC_TIMESTAMP),
        pa.field("local_date", pa.date32()),
        pa.field("device", _TEXT),
        pa.field("utc_offset_minutes", _SHORT),
        pa.field("utc_offset_source", _TEXT),
        pa.field("record_id", _TEXT),
        pa.field("location", _TEXT, nullable=False),
    ]
)
#: `stages` is a JSON array of {"stage", "start" (seconds since the sleep began), "seconds"}.
SLEEPS_SCHEMA = pa.schema(
    [
        pa.field("sleep_id", _TEXT, nullable=False),
        pa.field("started_at", UTC_TIMESTAMP, nullable=False),
        pa.field("ended_at", UTC_TIMESTAMP, nullable=False),
        pa.field("utc_offset_minutes", _SHORT),
        pa.field("end_utc_offset_minutes", _SHORT),
        pa.field("local_date", pa.date32()),
        pa.field("sleep_type", _TEXT),
        pa.field("is_main_sleep", pa.bool_(), nullable=False),
        *(
            pa.field(f"{name}_seconds", _INT)
            for name in ("time_in_bed", "sleep", "deep_sleep", "light_sleep", "rem_sleep", "awake", "latency")
        ),
        pa.field("efficiency_percent", _FLOAT),
        pa.field("sleep_score", _FLOAT),
        pa.field("average_spo2_percent", _FLOAT),
        pa.field("average_breath_per_minute", _FLOAT),
        pa.field("device", _TEXT),
        pa.field("stages", _TEXT),
        pa.field("location", _TEXT, nullable=False),
    ]
)
WORKOUTS_SCHEMA = pa.schema(
    [
        pa.field("workout_id", _TEXT, nullable=False),
        pa.field("started_at", UTC_TIMESTAMP, nullable=False),
        pa.field("ended_at", UTC_TIMESTAMP, nullable=False),
        pa.field("utc_offset_minutes", _SHORT),
        pa.field("activity", _TEXT, nullable=False),
        pa.field("duration_seconds", _FLOAT, nullable=False),
        pa.field("calories_kcal", _FLOAT),
        pa.field("distance_m", _FLOAT),
        pa.field("average_heart_rate_bpm", _FLOAT),
        pa.field("max_heart_rate_bpm", _FLOAT),
        pa.field("elevation_gain_m", _FLOAT),
        pa.field("location", _TEXT, nullable=False),
    ]
)
SCHEMAS: Mapping[str, pa.Schema] = {
    "records": RECORDS_SCHEMA,
    "sleep_sessions": SLEEPS_SCHEMA,
    "workouts": WORKOUTS_SCHEMA,
}
ENTITIES = (
    Entity(
        name="records",
        schema=RECORDS_SCHEMA,
        key=("metric_type", "recorded_at", "device", "value"),
        description="One row a value, of an instant or a span of time.",
    ),
    Entity(
        name="sleep_sessions",
        schema=SLEEPS_SCHEMA,
        key=("sleep_id",),
        description="One row a sleep with its stages, naps included.",
    ),
    Entity(
        name="workouts",
        schema=WORKOUTS_SCHEMA,
        key=("workout_id",),
        description="One row a workout.",
    ),
)


class Refused(ValueError):  # noqa: N818
    """A record that does not fit: why, and which of its fields."""

    def __init__(self, reason: str, name: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = name


class Skipped(ValueError):  # noqa: N818
    """A record that is understood and holds nothing for us: why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Kept(Exception):  # noqa: N818
    """A record that is loaded with others in one row, which is put by itself."""


@dataclass(frozen=True, slots=True)
class Fields:
    """An object's values by name, of the types they have to be of; Refused where one is not."""

    values: Mapping[str, Any]
    prefix: str = ""

    @classmethod
    def of(cls, record: Any) -> Fields:
        if not isinstance(record, dict):
            raise Refused("wrong_type")
        return cls(record)

    def has(self, *names: str) -> bool:
        return all(name in self.values for name in names)

    def _given(self, name: str, *, required: bool) -> Any:
        value = self.values.get(name)
        if value is None and required:
            raise Refused("missing_field", self.prefix + name)
        return value

    def number(self, name: str, *, required: bool = False) -> float | None:
        return number(self._given(name, required=required), self.prefix + name)

    def needed(self, name: str) -> float:
        value = self.number(name, required=True)
        assert value is not None
        return value

    def text(self, name: str, *, required: bool = False) -> str | None:
        value = self._given(name, required=required)
        if value is None or (isinstance(value, str) and "\0" not in value):
            return None if value is None else value[:_LONGEST_TEXT]
        raise Refused("wrong_type", self.prefix + name)

    def name_of(self, name: str) -> str:
        """An id, written as a number or as text."""
        value = self._given(name, required=True)
        if isinstance(value, str | int) and not isinstance(value, bool):
            text = str(value)
            if text and len(text) <= _LONGEST_TEXT and text.isprintable():
                return text
        raise Refused("wrong_type", self.prefix + name)

    def day(self, name: str, *, required: bool = False) -> dt.date | None:
        value = self._given(name, required=required)
        return None if value is None else day_of(value, self.prefix + name)

    def needed_day(self, name: str) -> dt.date:
        return day_of(self._given(name, required=True), self.prefix + name)

    def millis(self, name: str, *, required: bool = False) -> int | None:
        """Epoch milliseconds, as microseconds."""
        value = self.number(name, required=required)
        return None if value is None else plausible(round(value * 1000), self.prefix + name)

    def time(self, name: str) -> int | None:
        """An ISO date-time as microseconds by the clock it is written in, UTC where it has an offset."""
        value = self._given(name, required=False)
        if value is None:
            return None
        us, offset = iso_time(value, self.prefix + name)
        return us - (offset or 0) * 60 * _SECOND

    def object(self, name: str) -> Fields:
        """The object of that name; one without values where there is none."""
        value = self.values.get(name)
        if value is not None and not isinstance(value, dict):
            raise Refused("wrong_type", self.prefix + name)
        return Fields(value or {}, f"{self.prefix}{name}.")

    def array(self, name: str) -> list[Any]:
        value = self.values.get(name)
        if value is not None and not isinstance(value, list):
            raise Refused("wrong_type", self.prefix + name)
        return value or []


def number(value: Any, name: str) -> float | None:
    """A JSON number; None for null. Refused where it is none, or more than anything of a body."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused("wrong_type", name)
    if not math.isfinite(value) or abs(value) > _LARGEST * 1000:
        raise Refused("wrong_type", name)
    return float(value)


def day_of(value: Any, name: str) -> dt.date:
    """A date of our time, of a text that starts with it."""
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d\d-\d\d(?:T.*)?", value, re.ASCII):
        raise Refused("wrong_type", name)
    try:
        found = dt.date.fromisoformat(value[:10])
    except ValueError:
        raise Refused("wrong_type", name) from None
    if not _FIRST_YEAR <= found.year <= _LAST_YEAR:
        raise Refused("implausible_time", name)
    return found


def plausible(us: int, name: str) -> int:
    if not _EARLIEST <= us <= _LATEST:
        raise Refused("implausible_time", name)
    return us


def iso_time(value: Any, name: str) -> tuple[int, int | None]:
    """`2026-01-07T06:00:00.0`, `2026-01-07 06:00:00 -0800`: microseconds by its own clock, minutes of offset."""
    found = _ISO.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise Refused("unparsable_time", name)
    date, clock, fraction, zone = found.groups()
    try:
        moment = dt.datetime.fromisoformat(f"{date}T{clock}").replace(tzinfo=dt.UTC)
    except ValueError:
        raise Refused("unparsable_time", name) from None
    us = round(moment.timestamp()) * _SECOND + int((fraction or "").ljust(6, "0")[:6])
    offset = None
    if zone == "Z":
        offset = 0
    elif zone is not None:
        hours, minutes = int(zone[1:3]), int(zone[-2:])
        offset = (60 * hours + minutes) * (-1 if zone[0] == "-" else 1)
        if minutes > 59 or abs(offset) > _LONGEST_OFFSET:
            raise Refused("unparsable_time", name)
    return plausible(us, name), offset


def offset_between(utc: int | None, local: int | None) -> int | None:
    """Minutes by which the local clock is ahead; None where that is no offset on earth."""
    if utc is None or local is None:
        return None
    minutes = round((local - utc) / (60 * _SECOND))
    return minutes if abs(minutes) <= _LONGEST_OFFSET else None


def seconds_of(value: float | None, name: str, factor: float = 1.0) -> int | None:
    """A length of time that a person's day or two can hold, in whole seconds."""
    if value is None:
        return None
    if not 0 <= value * factor <= 14 * 86_400:
        raise Refused("implausible_duration", name)
    return round(value * factor)


@dataclass(slots=True)
class Collector:
    """What a file comes to, record by record."""

    entity: str
    time_zone: str | None
    records_in: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[str, str | None, str, str]] = field(default_factory=list)
    notes: set[str] = field(default_factory=set)
    _rows: dict[str, list[Row]] = field(default_factory=lambda: {name: [] for name in SCHEMAS})
    _tables: list[pa.Table] = field(default_factory=list)
    _zone: ZoneInfo | None = None

    @property
    def zone(self) -> ZoneInfo:
        """The zone of clocks that name none. UnreadableFileError: nobody has said which."""
        if self._zone is None:
            if self.time_zone is None:
                raise UnreadableFileError(
                    "the file's days and times are local and no time zone is known; upload it again with one, "
                    "for example --timezone Europe/Berlin"
                )
            self._zone = load_zone(self.time_zone)
        return self._zone

    def take(
        self, records: Sequence[Any], place: str, read: Callable[[Any], Iterable[tuple[str, Row] | pa.Table]]
    ) -> None:
        """Read each record: `read` gives its rows by table, samples as tables of RECORDS_SCHEMA."""
        for index, record in enumerate(records):
            self.take_one(record, f"{place}[{index}]", read)

    def take_one(
        self, record: Any, location: str, read: Callable[[Any], Iterable[tuple[str, Row] | pa.Table]]
    ) -> None:
        self.records_in += 1
        try:
            found = list(read(record))
        except Kept:
            return
        except Skipped as skipped:
            self.skipped[skipped.reason] += 1
        except Refused as refused:
            self.refused.append((refused.reason, refused.field, location, original_json(record)))
        else:
            if not any(isinstance(each, tuple) or each.num_rows for each in found):
                self.skipped["nothing_measured"] += 1
            for each in found:
                if isinstance(each, tuple):
                    self._rows[each[0]].append({**each[1], "location": location})
                else:
                    self._tables.append(each)

    def add(self, table: pa.Table) -> None:
        """Samples, each a record of its own."""
        self.records_in += table.num_rows
        self._tables.append(table)

    def put(self, table: str, row: Row, location: str) -> None:
        """A row that several records come to, each of them `Kept`."""
        self._rows[table].append({**row, "location": location})

    def skip(self, reason: str, count: int = 1) -> None:
        """Records that are understood and hold nothing for us."""
        self.records_in += count
        self.skipped[reason] += count

    def refuse(self, reason: str, location: str, original: str, name: str | None = None) -> None:
        """A record that cannot be read."""
        self.records_in += 1
        self.refused.append((reason, name, location, original))

    def parsed(self) -> Parsed:
        """What was taken since the last call."""
        tables = {name: [_table(rows, SCHEMAS[name])] for name, rows in self._rows.items() if rows}
        tables.setdefault("records", []).extend(table for table in self._tables if table.num_rows)
        made = Parsed(
            tables={name: pa.concat_tables(found) for name, found in tables.items() if found},
            quarantine=quarantine_table(self.entity, self.refused),
            records_in=self.records_in,
            records_loaded=self.records_in - len(self.refused) - self.skipped.total(),
            skipped=dict(self.skipped),
            notes=tuple(sorted(self.notes)),
        )
        self.records_in, self.skipped, self.refused, self.notes = 0, Counter(), [], set()
        self._rows, self._tables = {name: [] for name in SCHEMAS}, []
        return made

    def offset_at(self, us: int) -> int:
        """Minutes that the zone's clocks are ahead of UTC at an instant."""
        return int(offsets_at(np.array([us], dtype=np.int64), self.zone)[0])

    def local(self, us: int) -> tuple[int, int]:
        """The instant of a wall-clock time in the zone, and its offset; the first of two."""
        naive = dt.datetime(1970, 1, 1) + dt.timedelta(microseconds=us)
        moment = naive.replace(tzinfo=self.zone)
        offset = moment.utcoffset()
        assert offset is not None
        instant = us - round(offset.total_seconds()) * _SECOND
        return instant, self.offset_at(instant)

    def of_day(self, metric: str, date: dt.date, value: float | None, unit: str) -> Iterator[tuple[str, Row]]:
        """A value of a local day, from midnight to midnight. What a later file says of it takes its place."""
        if value is None:
            return
        start, offset = self.local(_midnight(date))
        end, _ = self.local(_midnight(date + dt.timedelta(days=1)))
        yield (
            "records",
            {
                "metric_type": metric,
                "value": value,
                "unit": unit,
                "recorded_at": start,
                "ended_at": end,
                "local_date": date,
                "utc_offset_minutes": offset,
                "utc_offset_source": "upload_zone",
                "record_id": f"{metric} of {date}",
            },
        )


def _midnight(date: dt.date) -> int:
    return (date - dt.date(1970, 1, 1)).days * 86_400 * _SECOND


def measured(
    metric: str,
    value: float | None,
    unit: str,
    at: int,
    *,
    until: int | None = None,
    offset: int | None = None,
    offset_source: str = "record",
    device: str | None = None,
    record_id: str | None = None,
) -> Iterator[tuple[str, Row]]:
    """A value of an instant, or of a span of time; nothing where there is none."""
    if value is None:
        return
    yield (
        "records",
        {
            "metric_type": metric,
            "value": value,
            "unit": unit,
            "recorded_at": at,
            "ended_at": until,
            "device": device,
            "utc_offset_minutes": offset,
            "utc_offset_source": None if offset is None else offset_source,
            "record_id": record_id,
        },
    )


def samples(
    metric: str,
    unit: str,
    us: Ints,
    values: npt.NDArray[np.float64],
    location: str,
    *,
    lines: Ints | None = None,
    offset: Any = None,
    offset_source: str = "record",
    ended: Ints | None = None,
    device: Any = None,
) -> pa.Table:
    """Samples as a table. `offset` is of all (minutes), or an array of them, or None; `device` likewise.

    With `lines`, the location of each is the line it has in the file.
    """
    count = len(us)
    devices = device if isinstance(device, pa.Array) else pa.repeat(pa.scalar(device, _TEXT), count)
    places = pa.repeat(pa.scalar(location), count)
    if lines is not None:
        places = pc.binary_join_element_wise(places, pa.array(lines, pa.int64()).cast(_TEXT), " line ")
    offsets = pa.nulls(count, _SHORT)
    if offset is not None:
        offsets = pa.array(np.broadcast_to(np.asarray(offset, dtype=np.int16), (count,)))
    columns = {
        "metric_type": pa.repeat(pa.scalar(metric), count),
        "value": pa.array(values, _FLOAT),
        "unit": pa.repeat(pa.scalar(unit), count),
        "recorded_at": pa.array(us, pa.int64()).cast(UTC_TIMESTAMP),
        "ended_at": pa.nulls(count, UTC_TIMESTAMP)
        if ended is None
        else pa.array(ended, pa.int64()).cast(UTC_TIMESTAMP),
        "local_date": pa.nulls(count, pa.date32()),
        "device": devices,
        "utc_offset_minutes": offsets,
        "utc_offset_source": pa.nulls(count, _TEXT)
        if offset is None
        else pa.repeat(pa.scalar(offset_source), count),
        "record_id": pa.nulls(count, _TEXT),
        "location": places,
    }
    return pa.table(columns, schema=RECORDS_SCHEMA)


def are_plausible(us: Ints) -> npt.NDArray[np.bool_]:
    """Which instants are of our time."""
    return np.asarray((us >= _EARLIEST) & (us <= _LATEST), dtype=np.bool_)


def seconds_by_stage(stages: Iterable[tuple[str, int, int]]) -> dict[str, int]:
    """Seconds of each stage, of (stage, start, seconds)."""
    found: dict[str, int] = {}
    for stage, _, seconds in stages:
        found[stage] = found.get(stage, 0) + seconds
    return found


def _table(rows: list[Row], schema: pa.Schema) -> pa.Table:
    columns = []
    for each in schema:
        values = [row.get(each.name) for row in rows]
        if each.type == UTC_TIMESTAMP:
            columns.append(pa.array(values, pa.int64()).cast(UTC_TIMESTAMP))
        else:
            columns.append(pa.array(values, each.type))
    return pa.table(columns, schema=schema)
