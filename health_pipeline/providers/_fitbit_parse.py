"""Answers of Fitbit's old Web API, recognised by what is in them, to Arrow tables.

Days, times and times of day are the wall clock of the account, without an offset (but in lists of workouts);
numbers come as text in series. Distances are km and weights kg unless a record says its unit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._json import (
    UTC_TIMESTAMP,
    Column,
    MalformedBodyError,
    Records,
    load_object,
    original_json,
    original_text,
    quarantine_table,
    read_records,
    unknown_fields,
)
from health_pipeline.providers._local_time import (
    CIVIL,
    INSTANT,
    NO_OFFSET,
    Ints,
    load_zone,
    localise,
    offsets_at,
    parse_times,
)
from health_pipeline.providers.base import Parsed, RawDocument, UnreadableFileError

_TEXT, _DATE, _FLOAT, _LONG, _SHORT = pa.string(), pa.date32(), pa.float64(), pa.int64(), pa.int16()
_LEVELS = pa.list_(pa.struct([pa.field("at", _TEXT), pa.field("level", _TEXT), pa.field("seconds", _LONG)]))
_ISO = r"^\d{4}-\d\d-\d\dT\d\d?:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?$"
_SECOND = 1_000_000
_DAY_US = 86_400 * _SECOND
#: A part of a day, of which intraday series are made, in seconds.
_INTERVALS = {"second": 1, "minute": 60}
_STAGES = {
    "deep": "deep",
    "light": "light",
    "rem": "rem",
    "wake": "awake",
    "asleep": "asleep",
    "restless": "awake",
    "awake": "awake",
}

_VALUE_FIELDS = [
    pa.field("date", _DATE, nullable=False),
    pa.field("resource", _TEXT, nullable=False),
    pa.field("started_at", UTC_TIMESTAMP, nullable=False),
    pa.field("ended_at", UTC_TIMESTAMP, nullable=False),
    pa.field("utc_offset_minutes", _SHORT, nullable=False),
    pa.field("value", _FLOAT, nullable=False),
]
SCHEMAS: Mapping[str, pa.Schema] = {
    "daily_value": pa.schema(_VALUE_FIELDS),
    "intraday_value": pa.schema(_VALUE_FIELDS),
    "body_log": pa.schema(
        [
            pa.field("kind", _TEXT, nullable=False),
            pa.field("log_id", _TEXT, nullable=False),
            pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
            pa.field("utc_offset_minutes", _SHORT, nullable=False),
            pa.field("weight_kg", _FLOAT),
            pa.field("body_mass_index_kg_per_m2", _FLOAT),
            pa.field("fat_percent", _FLOAT),
        ]
    ),
    "sleep": pa.schema(
        [
            pa.field("log_id", _TEXT, nullable=False),
            pa.field("date", _DATE, nullable=False),
            pa.field("started_at", UTC_TIMESTAMP, nullable=False),
            pa.field("ended_at", UTC_TIMESTAMP, nullable=False),
            pa.field("utc_offset_minutes", _SHORT, nullable=False),
            pa.field("end_utc_offset_minutes", _SHORT, nullable=False),
            pa.field("is_main_sleep", pa.bool_()),
            pa.field("type", _TEXT),
            pa.field("asleep_minutes", _FLOAT),
            pa.field("awake_minutes", _FLOAT),
            pa.field("in_bed_minutes", _FLOAT),
            pa.field("to_fall_asleep_minutes", _FLOAT),
            pa.field("efficiency_percent", _FLOAT),
            pa.field("deep_minutes", _FLOAT),
            pa.field("light_minutes", _FLOAT),
            pa.field("rem_minutes", _FLOAT),
            pa.field("stages", _TEXT),
        ]
    ),
    "workout": pa.schema(
        [
            pa.field("log_id", _TEXT, nullable=False),
            pa.field("started_at", UTC_TIMESTAMP, nullable=False),
            pa.field("utc_offset_minutes", _SHORT, nullable=False),
            pa.field("duration_seconds", _FLOAT, nullable=False),
            pa.field("activity", _TEXT),
            pa.field("calories_kcal", _FLOAT),
            pa.field("distance", _FLOAT),
            pa.field("distance_unit", _TEXT),
            pa.field("steps", _FLOAT),
            pa.field("average_heart_rate_bpm", _FLOAT),
            pa.field("elevation_gain_m", _FLOAT),
        ]
    ),
}

#: Series of days: the name of the list, the resource it is of, and the place of its number.
_SERIES = {
    **{
        f"activities-{name}": (name, "value")
        for name in ("steps", "distance", "calories", "caloriesBMR", "floors", "elevation")
    },
    "activities-heart": ("restingHeartRate", "value.restingHeartRate"),
    "hrv": ("dailyRmssd", "value.dailyRmssd"),
    "br": ("breathingRate", "value.breathingRate"),
    "tempSkin": ("nightlyRelative", "value.nightlyRelative"),
    "cardioScore": ("vo2Max", "value.vo2Max"),
}
_INTRADAY = "-intraday"
_LISTS = (*_SERIES, *(f"{name}{_INTRADAY}" for name in _SERIES if name.startswith("activities-")))
_OTHER_LISTS = ("sleep", "weight", "fat", "activities")
#: What a summary of a day has as numbers of the day.
_SUMMED = (
    "steps",
    "caloriesOut",
    "caloriesBMR",
    "marginalCalories",
    "floors",
    "elevation",
    "restingHeartRate",
)
_MARKS = re.compile(
    r'"activities-[A-Za-z]+(?:-intraday)?"\s*:\s*[\[{]'
    r'|"(?:hrv|br|tempSkin|cardioScore)"\s*:\s*\[\s*\{[^\]]{0,400}?"dateTime"\s*:'
    r'|"caloriesOut"\s*:|"dateOfSleep"\s*:|"(?:weight|fat)"\s*:\s*\[\s*\{[^}]*"logId"'
    r'|^\s*\{\s*"(?:sleep|weight|fat|activities)"\s*:\s*\[\s*\]\s*[,}]'
)


def sniff(head: bytes) -> float:
    """Sure of a JSON object with a list that only this API names so."""
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace")
    return 0.9 if text.lstrip().startswith("{") and _MARKS.search(text) else 0.0


def parse(document: RawDocument) -> Parsed:
    """One answer as staging rows, whatever entity it was kept as: what it is, its lists say.

    Each item of a list is a record, and so is the summary of a day; a sample of an intraday series is one. A
    summary does not say its day: it is that of the workouts beside it, else `date` of the context, else it is
    refused. A VO2max that is given as a range is skipped. Wall-clock times are read in the document's zone.
    UnreadableFileError: there are records and no zone.
    """
    try:
        body = load_object(document.content.removeprefix(b"\xef\xbb\xbf"))
    except MalformedBodyError:
        body = {}
    reader = _Reader(document, body)
    for name in (*_LISTS, *_OTHER_LISTS):
        if name in body:
            reader.read(name)
    if isinstance(body.get("summary"), dict) and "caloriesOut" in body["summary"]:
        reader.summary()
    if not reader.known:
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(document.entity, refused), records_in=1, records_loaded=0)
    return Parsed(
        tables={name: pa.concat_tables(tables) for name, tables in reader.tables.items() if tables},
        quarantine=quarantine_table(document.entity, reader.refused),
        records_in=reader.records_in,
        records_loaded=reader.records_in - len(reader.refused) - sum(reader.skipped.values()),
        skipped=reader.skipped,
        notes=tuple(sorted(reader.notes)),
    )


@dataclass(slots=True)
class _Reader:
    """One answer as it is read."""

    document: RawDocument
    body: dict[str, Any]
    known: bool = False
    records_in: int = 0
    tables: dict[str, list[pa.Table]] = field(default_factory=lambda: {name: [] for name in SCHEMAS})
    refused: list[tuple[str, str | None, str, str]] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)
    notes: set[str] = field(default_factory=set)

    def read(self, name: str) -> None:
        self.known = True
        said = self.body[name]
        if name.endswith(_INTRADAY):
            said = said.get("dataset") if isinstance(said, dict) else None
        if not isinstance(said, list):
            self.records_in += 1
            self.refused.append(("wrong_type", name, name, original_json(self.body[name])))
        elif name.endswith(_INTRADAY):
            self._intraday(name, said)
        elif name in _SERIES:
            self._days(name, said)
        elif name == "sleep":
            self._sleeps(said)
        elif name == "activities":
            self._workouts(said)
        else:
            self._body_logs(name, said)

    @property
    def zone(self) -> ZoneInfo:
        if self.document.time_zone is None:
            raise UnreadableFileError(
                "the answer's times are local and no time zone is known; upload it again with one, for example "
                "--timezone Europe/Berlin"
            )
        return load_zone(self.document.time_zone)

    def _read(
        self,
        place: str,
        records: Sequence[Any],
        columns: Sequence[Column],
        left_in_raw: Sequence[str] = (),
        at: str = "",
    ) -> Records:
        """The records as a table, with the refused noted. `at` is what the record's own `at` was made of."""
        read = read_records(records, columns)
        self.records_in += len(records)
        self.refused += [
            (
                bad.reason,
                at if bad.field == "at" else bad.field,
                f"{place}[{bad.index}]",
                original_json(records[bad.index]),
            )
            for bad in read.refused
        ]
        known = [*(column.path for column in columns), *left_in_raw]
        self.notes |= {f"{place}: new field {path}" for path in unknown_fields(records, known)}
        return read

    def _instants(self, texts: pa.Array | pa.ChunkedArray, group: Ints | None = None) -> tuple[Ints, Ints]:
        """UTC microseconds and minutes east of UTC of date-times, with or without an offset."""
        times = parse_times(texts)
        us, offset = times.us.copy(), times.offset.astype(np.int64)
        told = times.offset != NO_OFFSET
        us[told] -= offset[told] * 60 * _SECOND
        if not len(us):
            return us, offset
        civil = (times.kind == CIVIL) & ~told
        found = localise(us[civil], self.zone, group=None if group is None else group[civil])
        us[civil], offset[civil] = found.us, found.offset
        rest = offset == NO_OFFSET
        offset[rest] = offsets_at(us[rest], self.zone)
        return us, offset

    def _add_values(
        self, table: str, dates: pa.Array, resource: str, start: Ints, end: Ints, offset: Ints, value: Any
    ) -> None:
        columns = [
            dates,
            pa.repeat(pa.scalar(resource), len(start)),
            _utc(start),
            _utc(end),
            pa.array(offset, _SHORT),
            value,
        ]
        self.tables[table].append(pa.table(columns, schema=SCHEMAS[table]))

    def _add_days(self, resource: str, dates: pa.ChunkedArray, values: pa.ChunkedArray) -> None:
        """Values of local days, from midnight to midnight."""
        given = pc.is_valid(values)
        dates, values = dates.filter(given).combine_chunks(), values.filter(given).combine_chunks()
        first = np.asarray(dates.cast(pa.int32()).to_numpy(), dtype=np.int64) * _DAY_US
        if len(first):
            start, end = localise(first, self.zone), localise(first + _DAY_US, self.zone)
            offset = start.offset.astype(np.int64)
            self._add_values("daily_value", dates, resource, start.us, end.us, offset, values)

    def _days(self, name: str, said: list[Any]) -> None:
        resource, path = _SERIES[name]
        if name == "cardioScore":
            kept = [item for item in said if not _is_range(item)]
            if len(kept) < len(said):
                self.skipped["value_is_a_range"] = len(said) - len(kept)
                self.records_in += len(said) - len(kept)
            said = kept
        columns = (
            Column("dateTime", _DATE, "date", required=True, convert=_dates),
            # A day without a pulse at rest still has its zones.
            Column(path, _FLOAT, "value", required=path == "value", convert=_decimals),
        )
        left = ("value.customHeartRateZones", "value.heartRateZones", "value.deepRmssd", "logType")
        table = self._read(name, said, columns, left).table
        self._add_days(resource, table["date"], table["value"])

    def _intraday(self, name: str, said: list[Any]) -> None:
        resource, _ = _SERIES[name.removesuffix(_INTRADAY)]
        days = self.body.get(name.removesuffix(_INTRADAY))
        date = (
            days[0].get("dateTime")
            if isinstance(days, list) and len(days) == 1 and isinstance(days[0], dict)
            else None
        )
        length = _INTERVALS.get(str(self.body[name].get("datasetType", "minute")))
        count = self.body[name].get("datasetInterval", 1)
        is_day = isinstance(date, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", date)
        if not is_day or length is None or type(count) is not int or not 0 < count * length <= 86_400:
            self.records_in += 1
            field_name = "datasetInterval" if is_day else "dateTime"
            self.refused.append(("missing_field", field_name, name, original_json(days)))
            return
        timed = [_with_text(item, "at", lambda item: f"{date}T{item['time']}", "time") for item in said]
        columns = (
            Column("at", _TEXT, required=True, convert=_date_times),
            Column("value", _FLOAT, required=True, convert=_decimals),
        )
        table = self._read(name, timed, columns, ("time", "level", "mets"), "time").table
        start, offset = self._instants(table["at"])
        end = start + count * length * _SECOND
        dates = pa.array([date] * len(start), _TEXT).cast(_DATE)
        which = "heart" if name.startswith("activities-heart") else resource
        self._add_values("intraday_value", dates, which, start, end, offset, table["value"].combine_chunks())

    def _body_logs(self, name: str, said: list[Any]) -> None:
        timed = [
            _with_text(item, "at", lambda item: f"{item['date']}T{item.get('time', '23:59:59')}", "date")
            for item in said
        ]
        columns = (
            Column("logId", _TEXT, "log_id", required=True, convert=_ids),
            Column("at", _TEXT, required=True, convert=_date_times),
            Column("weight", _FLOAT, required=name == "weight", convert=_decimals),
            Column("bmi", _FLOAT, convert=_decimals),
            Column("fat", _FLOAT, required=name == "fat", convert=_decimals),
        )
        table = self._read(name, timed, columns, ("date", "time", "source"), "date").table
        us, offset = self._instants(table["at"])
        arrays = [
            pa.repeat(pa.scalar(name), len(table)),
            table["log_id"],
            _utc(us),
            pa.array(offset, _SHORT),
            *(table[column] for column in ("weight", "bmi", "fat")),
        ]
        self.tables["body_log"].append(pa.table(arrays, schema=SCHEMAS["body_log"]))

    def _workouts(self, said: list[Any]) -> None:
        timed = [
            _with_text(
                item,
                "at",
                lambda item: (
                    f"{item['startDate']}T{item['startTime']}" if "startDate" in item else item["startTime"]
                ),
                "startTime",
            )
            for item in said
        ]
        columns = (
            Column("logId", _TEXT, "log_id", required=True, convert=_ids),
            Column("at", _TEXT, required=True, convert=_date_times),
            Column("duration", _LONG, required=True, convert=_durations),
            *(Column(name, _TEXT) for name in ("activityParentName", "activityName", "name", "distanceUnit")),
            *(
                Column(name, _FLOAT)
                for name in ("calories", "distance", "steps", "averageHeartRate", "elevationGain")
            ),
        )
        left = (
            *(
                "activityId",
                "activityParentId",
                "activityTypeId",
                "activeDuration",
                "activityLevel",
                "description",
            ),
            *(
                "hasStartTime",
                "isFavorite",
                "lastModified",
                "logType",
                "startDate",
                "startTime",
                "heartRateZones",
            ),
            *("originalDuration", "originalStartTime", "source", "speed", "pace", "tcxLink", "heartRateLink"),
            *(
                "caloriesLink",
                "manualValuesSpecified",
                "shouldFetchDetails",
                "hasGps",
                "intervalWorkoutSummaries",
            ),
            *("activeZoneMinutes", "hasActiveZoneMinutes", "inProgress", "details", "detailsLink"),
        )
        table = self._read("activities", timed, columns, left, "startTime").table
        us, offset = self._instants(table["at"])
        arrays = [
            table["log_id"],
            _utc(us),
            pa.array(offset, _SHORT),
            pc.divide(table["duration"].cast(_FLOAT), 1000.0),
            pc.coalesce(table["activityParentName"], table["activityName"], table["name"]),
            *(table[name] for name in ("calories", "distance", "distanceUnit", "steps")),
            *(table[name] for name in ("averageHeartRate", "elevationGain")),
        ]
        self.tables["workout"].append(pa.table(arrays, schema=SCHEMAS["workout"]))

    def summary(self) -> None:
        """The sums of a day, with the day that is not in them."""
        self.known = True
        activities = self.body.get("activities")
        workouts = (
            [item for item in activities if isinstance(item, dict)] if isinstance(activities, list) else []
        )
        days = {str(item.get("startDate")) for item in workouts}
        day = self.document.context.get("date") or (days.pop() if len(days) == 1 else None)
        said = dict(self.body["summary"], date=day)
        columns = (
            Column("date", _DATE, required=True, convert=_dates),
            *(Column(name, _FLOAT, convert=_decimals) for name in _SUMMED),
            Column("distances", _FLOAT, convert=_total_distances),
            *(Column(name, _FLOAT) for name in ("fairlyActiveMinutes", "veryActiveMinutes")),
        )
        left = (
            *(
                "activeScore",
                "activityCalories",
                "caloriesEstimationMu",
                "caloriesBMRMu",
                "calorieEstimationMu",
            ),
            *("lightlyActiveMinutes", "sedentaryMinutes", "heartRateZones", "customHeartRateZones"),
            *("caloriesOutUnestimated", "marginalCaloriesMu", "useEstimation", "activeZoneMinutes"),
        )
        before = len(self.refused)
        table = self._read("summary", [said], columns, left).table
        self.refused[before:] = [(*bad[:2], "summary", bad[3]) for bad in self.refused[before:]]
        for name in _SUMMED:
            self._add_days("calories" if name == "caloriesOut" else name, table["date"], table[name])
        self._add_days("distance", table["date"], table["distances"])
        active = pc.add(table["fairlyActiveMinutes"], table["veryActiveMinutes"])
        self._add_days("activeMinutes", table["date"], active)

    def _sleeps(self, said: list[Any]) -> None:
        columns = (
            Column("logId", _TEXT, "log_id", required=True, convert=_ids),
            Column("startTime", _TEXT, required=True, convert=_date_times),
            Column("duration", _LONG, required=True, convert=_durations),
            Column("dateOfSleep", _DATE, convert=_dates),
            Column("isMainSleep", pa.bool_()),
            Column("type", _TEXT),
            *(
                Column(name, _FLOAT)
                for name in (
                    "minutesAsleep",
                    "minutesAwake",
                    "timeInBed",
                    "minutesToFallAsleep",
                    "efficiency",
                )
            ),
            *(Column(f"levels.summary.{name}.minutes", _FLOAT, name) for name in ("deep", "light", "rem")),
            Column("levels.data", _LEVELS, "data", convert=_levels),
            Column("levels.shortData", _LEVELS, "shortData", convert=_levels),
        )
        left = (
            *("endTime", "infoCode", "minutesAfterWakeup", "logType", "minuteData"),
            *(f"levels.summary.{name}" for name in ("asleep", "awake", "restless", "wake")),
            *("awakeCount", "awakeDuration", "awakeningsCount", "restlessCount", "restlessDuration"),
        )
        table = self._read("sleep", said, columns, left).table
        start, offset = self._instants(table["startTime"])
        end = start + np.asarray(table["duration"].to_numpy(), dtype=np.int64) * 1000
        end_offset = np.asarray(offsets_at(end, self.zone) if len(end) else end, dtype=np.int64)
        waking = _utc(end + end_offset * 60 * _SECOND).cast(_DATE)
        stages = self._stages(table, start, end)
        arrays = [
            table["log_id"],
            pc.coalesce(table["dateOfSleep"], pa.chunked_array([waking])),
            _utc(start),
            _utc(end),
            pa.array(offset, _SHORT),
            pa.array(end_offset, _SHORT),
            table["isMainSleep"],
            table["type"],
            *(table[name] for name in ("minutesAsleep", "minutesAwake", "timeInBed", "minutesToFallAsleep")),
            *(table[name] for name in ("efficiency", "deep", "light", "rem")),
            pa.array(stages, _TEXT),
        ]
        self.tables["sleep"].append(pa.table(arrays, schema=SCHEMAS["sleep"]))

    def _stages(self, table: pa.Table, start: Ints, end: Ints) -> list[str | None]:
        """Stages of each sleep as JSON text, `start` in seconds; short awakenings lie over the others."""
        runs = {
            name: self._level_runs(table[name].combine_chunks(), start, end) for name in ("data", "shortData")
        }
        found: list[str | None] = []
        for night, length in enumerate(((end - start) // _SECOND).tolist()):
            if not runs["data"][night]:
                found.append(None)
                continue
            edges = sorted(
                {0, length, *(edge for name in runs for run in runs[name][night] for edge in run[:2])}
            )
            places = np.array(edges[:-1])
            level = np.full(len(places), None, dtype=object)
            for name in ("data", "shortData"):
                for first, last, stage in runs[name][night]:
                    level[(places >= first) & (places < last)] = stage
            stages: list[dict[str, Any]] = []
            for first, last, stage in zip(edges, edges[1:], level, strict=False):
                if (
                    stage is not None
                    and stages
                    and stages[-1]["stage"] == stage
                    and sum(stages[-1][part] for part in ("start", "seconds")) == first
                ):
                    stages[-1]["seconds"] += last - first
                elif stage is not None:
                    stages.append({"stage": stage, "start": first, "seconds": last - first})
            found.append(orjson.dumps(stages).decode())
        return found

    def _level_runs(self, lists: Any, start: Ints, end: Ints) -> list[list[tuple[int, int, str]]]:
        """(first second, last second, stage) of the levels of each sleep, within it."""
        counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        night = np.repeat(np.arange(len(counts)), counts)
        items = lists.flatten()
        at, level, seconds = items.flatten()
        first = (self._instants(at, night)[0] - start[night]) // _SECOND
        longest = (end - start)[night] // _SECOND
        found: list[list[tuple[int, int, str]]] = [[] for _ in counts]
        rows = zip(
            night.tolist(),
            np.maximum(first, 0).tolist(),
            seconds.to_pylist(),
            longest.tolist(),
            level.to_pylist(),
            strict=True,
        )
        for place, said, lasts, length, name in rows:
            # One follows the other: where the clock was set back in the night, that tells the hour.
            begin = max(said, found[place][-1][1]) if found[place] else said
            until = min(begin + lasts, length)
            if begin < until:
                found[place].append((begin, until, _STAGES[name]))
        return found


def _utc(us: npt.NDArray[np.int64]) -> pa.Array:
    return pa.array(us, _LONG).cast(UTC_TIMESTAMP)


def _is_range(item: Any) -> bool:
    value = item.get("value") if isinstance(item, dict) else None
    said = value.get("vo2Max") if isinstance(value, dict) else None
    return isinstance(said, str) and re.fullmatch(r"\d+-\d+", said) is not None


def _with_text(item: Any, name: str, text: Callable[[dict[str, Any]], str], needed: str) -> Any:
    """The record with a date-time made of its parts; as it is where the part that is needed is not there."""
    if not isinstance(item, dict) or not isinstance(item.get(needed), str):
        return item
    return {**item, name: text(item)}


def _dates(values: Sequence[Any]) -> pa.Array:
    """Days of our time: a year that no clock has shown is refused."""
    days = pa.array(values, _TEXT).cast(_DATE)
    years = pc.min_max(pc.year(days))
    if years["min"].is_valid and not 1900 <= years["min"].as_py() <= years["max"].as_py() < 2200:
        raise ValueError("not a day of our time")
    return days


def _decimals(values: Sequence[Any]) -> pa.Array:
    """Numbers, written as such or as text."""
    if {type(value) for value in values} - {int, float, str, type(None)}:
        raise TypeError("not numbers")
    texts = [value for value in values if isinstance(value, str)]
    if any(not re.fullmatch(r"-?\d{1,12}(\.\d{1,12})?", text) for text in texts):
        raise ValueError("not a number")
    return pa.array([None if value is None else float(value) for value in values], _FLOAT)


def _ids(values: Sequence[Any]) -> pa.Array:
    if {type(value) for value in values} - {int, str, type(None)}:
        raise TypeError("not ids")
    if any(isinstance(value, str) and not re.fullmatch(r"[\w-]{1,64}", value) for value in values):
        raise ValueError("not an id")
    return pa.array([None if value is None else str(value) for value in values], _TEXT)


def _durations(values: Sequence[Any]) -> pa.Array:
    """Whole numbers that are milliseconds, or seconds, of two weeks at most."""
    if {type(value) for value in values} - {int, type(None)}:
        raise TypeError("not numbers")
    if any(value is not None and not 0 <= value <= 1_209_600_000 for value in values):
        raise ValueError("not a duration")
    return pa.array(values, _LONG)


def _date_times(values: Sequence[Any]) -> pa.Array:
    """Texts of ISO 8601 that are times of the calendar, with or without an offset."""
    texts = pa.array(values, _TEXT)
    given = texts.drop_null()
    if not pc.all(pc.match_substring_regex(given, _ISO), min_count=0).as_py():
        raise ValueError("not a date-time")
    if len(given) and not np.isin(parse_times(given).kind, (CIVIL, INSTANT)).all():
        raise ValueError("not a time of the calendar")
    return texts


def _levels(values: Sequence[Any]) -> pa.Array:
    if any(not isinstance(value, list | None) for value in values):
        raise TypeError("not arrays")
    items = [value or [] for value in values]
    entries = [entry for value in items for entry in value]
    at = _date_times([dict.get(entry, "dateTime") for entry in entries])
    level = pa.array([dict.get(entry, "level") for entry in entries], _TEXT)
    seconds = _durations([dict.get(entry, "seconds") for entry in entries])
    if at.null_count or seconds.null_count or not set(level.to_pylist()) <= _STAGES.keys():
        raise ValueError("a level we do not know")
    offsets = np.concatenate([[0], np.cumsum([len(value) for value in items], dtype=np.int32)]).astype(
        np.int32
    )
    struct = pa.StructArray.from_arrays([at, level, seconds], fields=list(_LEVELS.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets), struct).cast(_LEVELS)


def _total_distances(values: Sequence[Any]) -> pa.Array:
    """The total among the distances of a day, km."""
    found = []
    for value in values:
        if not isinstance(value, list | None):
            raise TypeError("not an array")
        totals = [dict.get(item, "distance") for item in value or () if dict.get(item, "activity") == "total"]
        found.append(totals[0] if totals else None)
    return _decimals(found)
