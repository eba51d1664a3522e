"""Android's Health Connect: the zip of its export, or the SQLite database in it.

Instants are epoch milliseconds, zone offsets seconds and often absent; mass is grams, energy calories. Columns come
and go with the version of the module, so what is there is looked up. Source of the contract: AOSP's Health Fitness
module. Nothing of the database is run or written: it is opened read-only and immutable, from a temporary file.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from health_pipeline.providers._archive import open_archive, rewindable
from health_pipeline.providers._export_records import (
    ENTITIES,
    Collector,
    Found,
    Ints,
    Kept,
    Refused,
    Row,
    are_plausible,
    samples,
    seconds_of,
)
from health_pipeline.providers._parts import telling, whole
from health_pipeline.providers._stage_sessions import Segment, mark_main, session_row
from health_pipeline.providers._zip_stream import is_zip, member_names
from health_pipeline.providers.base import Parsed, Provider, RawDocument, RawFile, UnreadableFileError

_MAGIC = b"SQLite format 3\0"
_TABLES = re.compile(rb"(?:steps|weight|heart_rate|sleep_session)_record_table|application_info_table")
_EXPORT = re.compile(r"(?:^|/)health_connect_export\.db$", re.IGNORECASE)
_BATCH_ROWS = 50_000
_MS = 1000
_INTERSTITIAL = 1


@dataclass(frozen=True, slots=True)
class _Measure:
    """A table of values: its column, what that is, its unit, and what it has to be multiplied by."""

    table: str
    column: str
    metric: str
    unit: str
    factor: float = 1.0
    is_interval: bool = False


_MEASURES = (
    _Measure("steps_record_table", "count", "steps", "{steps}", is_interval=True),
    _Measure("distance_record_table", "distance", "distance", "m", is_interval=True),
    _Measure("floors_climbed_record_table", "floors", "floors", "{floors}", is_interval=True),
    _Measure("elevation_gained_record_table", "elevation", "elevation_gain", "m", is_interval=True),
    _Measure(
        "active_calories_burned_record_table", "energy", "calories_burned", "kcal", 0.001, is_interval=True
    ),
    _Measure(
        "total_calories_burned_record_table", "energy", "total_calories", "kcal", 0.001, is_interval=True
    ),
    _Measure("hydration_record_table", "volume", "hydration", "L", is_interval=True),
    _Measure("nutrition_record_table", "total_carbohydrate", "carbohydrates", "g", is_interval=True),
    _Measure("weight_record_table", "weight", "weight", "g"),
    _Measure("height_record_table", "height", "height", "m"),
    _Measure("body_fat_record_table", "percentage", "body_fat", "%"),
    _Measure("bone_mass_record_table", "mass", "bone_mass", "g"),
    _Measure("lean_body_mass_record_table", "mass", "lean_mass", "g"),
    _Measure("body_water_mass_record_table", "body_water_mass", "body_water", "g"),
    _Measure("resting_heart_rate_record_table", "beats_per_minute", "resting_heart_rate", "/min"),
    _Measure(
        "heart_rate_variability_rmssd_record_table",
        "heart_rate_variability_millis",
        "heart_rate_variability_sample",
        "ms",
    ),
    _Measure("oxygen_saturation_record_table", "percentage", "spo2", "%"),
    _Measure("respiratory_rate_record_table", "rate", "respiratory_rate", "/min"),
    _Measure("body_temperature_record_table", "temperature", "body_temperature", "Cel"),
    _Measure("vo2_max_record_table", "vo2_milliliters_per_minute_kilogram", "vo2_max", "mL/(kg.min)"),
    _Measure("blood_pressure_record_table", "systolic", "blood_pressure_systolic", "mm[Hg]"),
    _Measure("blood_pressure_record_table", "diastolic", "blood_pressure_diastolic", "mm[Hg]"),
    _Measure("blood_glucose_record_table", "level", "blood_glucose", "mmol/L"),
)
_STAGES: Mapping[int, str] = {
    1: "awake",
    2: "asleep",
    3: "awake",
    4: "light",
    5: "deep",
    6: "rem",
    7: "awake",
}
#: The platform's numbers, which are not those of the Jetpack library.
_ACTIVITIES = (
    *("other", "badminton", "baseball", "basketball", "cycling", "indoor_cycling", "boot_camp", "boxing"),
    *("calisthenics", "cricket", "dancing", "exercise_class", "fencing", "american_football"),
    *("australian_football", "frisbee", "golf", "guided_breathing", "gymnastics", "handball"),
    *("high_intensity_interval_training", "hiking", "ice_hockey", "ice_skating", "martial_arts", "paddling"),
    *(
        "paragliding",
        "pilates",
        "racquetball",
        "rock_climbing",
        "roller_hockey",
        "rowing",
        "rugby",
        "running",
    ),
    *("treadmill_running", "sailing", "scuba_diving", "skating", "skiing", "snowboarding", "snowshoeing"),
    *("soccer", "softball", "squash", "stair_climbing", "strength_training", "stretching", "surfing"),
    *(
        "open_water_swimming",
        "pool_swimming",
        "table_tennis",
        "tennis",
        "volleyball",
        "walking",
        "water_polo",
    ),
    *(
        "weightlifting",
        "wheelchair",
        "yoga",
        "other",
        "stair_climbing_machine",
        "elliptical",
        "rowing_machine",
    ),
)


def parse_stream(file: RawFile) -> Iterator[Parsed]:
    """Values, sleeps with their stages, and workouts, in parts of some ten thousand rows.

    A row whose value or time is none goes to quarantine with its table and row id. Each app that wrote a value is
    a device of its own: apps copy each other's, and are never summed up. Tables that hold nothing for us are
    counted as `other_table` where they have rows.

    UnreadableFileError: neither such a zip nor such a database, or damaged.
    """
    with rewindable(file.content) as content, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "export.db"
        _unpack(content, path)
        try:
            with closing(_connect(path)) as connection:
                collector = Collector(file.entity, file.time_zone)
                yield from telling(_parts(collector, _Database(connection)))
        except (sqlite3.DatabaseError, UnicodeDecodeError):
            # The driver decodes some names by itself.
            raise UnreadableFileError(
                "the Health Connect database is cut off or damaged; export it again"
            ) from None


def parse(document: RawDocument) -> Parsed:
    """`parse_stream` of a file that is in memory."""
    return whole(parse_stream, document)


def sniff(head: bytes) -> float:
    """Certain of the export's name in a zip, and of a SQLite database with its tables."""
    if is_zip(head):
        return 0.95 if any(_EXPORT.search(name) for name in member_names(head)) else 0.0
    return 0.95 if head.startswith(_MAGIC) and _TABLES.search(head) else 0.0


def _unpack(content: IO[bytes], path: Path) -> None:
    head = content.read(len(_MAGIC))
    content.seek(0)
    if not is_zip(head):
        if head != _MAGIC:
            raise UnreadableFileError("the file is neither a Health Connect export nor its database")
        with path.open("wb") as out:
            shutil.copyfileobj(content, out, 1024**2)
        return
    with open_archive(content) as archive:
        members = [member for member in archive.infolist() if member.filename.lower().endswith(".db")]
        if not members:
            raise UnreadableFileError("there is no Health Connect database in the archive")
        with _damage_told(), archive.open(members[0]) as packed, path.open("wb") as out:
            shutil.copyfileobj(packed, out, 1024**2)


@contextmanager
def _damage_told() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UnreadableFileError("the archive is cut off or damaged; export it again") from None


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro&immutable=1", uri=True)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    # Views and triggers of a stranger's database stay what they are: text.
    connection.execute("pragma trusted_schema = off")
    connection.execute("pragma cell_size_check = on")
    return connection


class _Database:
    """What tables and columns there are, and the apps."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        names = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")]
        self.columns = {
            name: {row[1] for row in connection.execute(f'pragma table_info("{name}")')}
            for name in names
            if isinstance(name, str) and re.fullmatch(r"\w+", name)
        }
        self.apps: dict[Any, str] = {}
        if self.has("application_info_table", "row_id", "package_name"):
            rows = connection.execute("select row_id, package_name from application_info_table")
            self.apps = {row_id: str(name)[:100] for row_id, name in rows if name}

    def has(self, table: str, *columns: str) -> bool:
        return set(columns) <= self.columns.get(table, set()) and table in self.columns

    def rows(
        self, table: str, wanted: Sequence[str], optional: Sequence[str]
    ) -> Iterator[list[tuple[Any, ...]]]:
        """Batches of rows; null for columns that this version has not."""
        names = [
            f'"{name}"' if name in wanted or name in self.columns[table] else "null"
            for name in (*wanted, *optional)
        ]
        cursor = self._connection.execute(f'select {", ".join(names)} from "{table}" order by rowid')  # noqa: S608
        while batch := cursor.fetchmany(_BATCH_ROWS):
            yield batch

    def pulses(self) -> Iterator[list[tuple[Any, ...]]]:
        """Samples of heart rate with what their record says: app and zone offset."""
        named = [
            f'parents."{name}"' if self.has("heart_rate_record_table", "row_id", name) else "null"
            for name in ("app_info_id", "start_zone_offset")
        ]
        join = (
            "left join heart_rate_record_table as parents on parents.row_id = samples.parent_key"
            if set(named) != {"null"}
            else ""
        )
        cursor = self._connection.execute(
            "select samples.parent_key, samples.beats_per_minute, samples.epoch_millis, "  # noqa: S608
            f"{', '.join(named)} from heart_rate_record_series_table as samples {join} order by samples.rowid"
        )
        while batch := cursor.fetchmany(_BATCH_ROWS):
            yield batch

    def count(self, table: str) -> int:
        return int(self._connection.execute(f'select count(*) from "{table}"').fetchone()[0])  # noqa: S608

    def app(self, row_id: Any) -> str:
        return self.apps.get(row_id, "unknown app")


def _parts(collector: Collector, database: _Database) -> Iterator[Parsed]:
    if not any(name.endswith("_record_table") for name in database.columns):
        raise UnreadableFileError("the database is not Health Connect's: it has none of its tables")
    present = [measure for measure in _MEASURES if database.has(measure.table, measure.column)]
    read = {"heart_rate_record_table", *(measure.table for measure in present)}
    for measure in present:
        yield from _values(collector, database, measure)
    if database.has("heart_rate_record_series_table", "parent_key", "beats_per_minute", "epoch_millis"):
        read.add("heart_rate_record_series_table")
        yield from _pulse(collector, database)
    if database.has("sleep_session_record_table", "row_id", "start_time", "end_time"):
        read.add("sleep_session_record_table")
        _sleeps(collector, database)
        yield collector.parsed()
    if database.has("exercise_session_record_table", "row_id", "start_time", "end_time", "exercise_type"):
        read.add("exercise_session_record_table")
        _workouts(collector, database)
        yield collector.parsed()
    others = [table for table in sorted(database.columns.keys() - read) if table.endswith("_record_table")]
    for count in filter(None, map(database.count, others)):
        collector.skip("other_table", count)
    yield collector.parsed()


_SESSION = ("row_id", "start_time", "end_time")
_OF_WORKOUT = ("exercise_type", "start_zone_offset", "app_info_id", "uuid")


def _workouts(collector: Collector, database: _Database) -> None:
    table = "exercise_session_record_table"
    for batch in database.rows(table, _SESSION, _OF_WORKOUT):
        for row in batch:
            collector.take_one(_shown(row), f"{table} row {row[0]}", _workout(database, row))


def _shown(row: Sequence[Any]) -> dict[str, Any]:
    """Numbers and texts of a row, for quarantine."""
    return {
        f"column_{place}": value for place, value in enumerate(row) if isinstance(value, int | float | str)
    }


def _values(collector: Collector, database: _Database, measure: _Measure) -> Iterator[Parsed]:
    start = "start_time" if measure.is_interval else "time"
    zone = "start_zone_offset" if measure.is_interval else "zone_offset"
    if not database.has(measure.table, "row_id", start):
        collector.refuse("unknown_shape", measure.table, "{}")
        return
    optional = ("end_time", zone, "app_info_id", "specimen_source")
    for batch in database.rows(measure.table, ("row_id", measure.column, start), optional):
        if measure.metric == "carbohydrates":
            # What was eaten is a row for all nutrients; most may be empty.
            eaten = [row for row in batch if row[1] is not None]
            if len(eaten) < len(batch):
                collector.skip("meal_without_carbohydrates", len(batch) - len(eaten))
            if not eaten:
                continue
            batch = eaten
        ids, values, starts, ends, zones, apps, specimens = zip(*batch, strict=True)
        us, value = _instants(starts), _floats(values)
        end = _instants(ends) if measure.is_interval else us
        good = _refuse(collector, measure, ids, us, value, end)
        # Fluid between the cells is what a sensor measures.
        sensor = np.array([each == _INTERSTITIAL for each in specimens], dtype=np.bool_)
        by_metric = (
            {measure.metric: good & ~sensor} if measure.metric == "blood_glucose" else {measure.metric: good}
        )
        if measure.metric == "blood_glucose":
            by_metric["glucose"] = good & sensor
        for metric, kept in by_metric.items():
            rows = np.flatnonzero(kept)
            table = samples(
                metric,
                measure.unit,
                us[rows],
                value[rows] * measure.factor,
                measure.table,
                ended=end[rows] if measure.is_interval else None,
                device=pa.array([database.app(apps[row]) for row in rows.tolist()], pa.string()),
            )
            collector.add(
                _placed(_zoned(table, [zones[row] for row in rows.tolist()]), ids, rows, measure.table)
            )
        yield collector.parsed()


def _instants(values: Sequence[Any]) -> Ints:
    """Epoch milliseconds as microseconds; 0 where there is none."""
    return np.array(
        [value * _MS if type(value) is int and abs(value) < 2**52 else 0 for value in values], dtype=np.int64
    )


def _floats(values: Sequence[Any]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array(
        [float(value) if isinstance(value, int | float) else np.nan for value in values], dtype=np.float64
    )


def _refuse(
    collector: Collector, measure: _Measure, ids: Sequence[Any], us: Ints, value: Any, end: Ints
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """The good rows."""
    timed = (us != 0) & are_plausible(us) & are_plausible(end)
    ordered = end >= us
    numeric = np.isfinite(value)
    good: np.ndarray[Any, np.dtype[np.bool_]] = timed & ordered & numeric
    for row in np.flatnonzero(~good).tolist():
        reason, name = "unparsable_value", measure.column
        if not timed[row]:
            reason, name = "unparsable_time", "start_time" if measure.is_interval else "time"
        elif not ordered[row]:
            reason, name = "ends_before_start", "end_time"
        collector.refuse(reason, f"{measure.table} row {ids[row]}", "{}", name)
    return good


def _zoned(table: pa.Table, zones: Sequence[Any]) -> pa.Table:
    """Offsets that the rows say; the others are left to the person's zone."""
    minutes = [
        round(zone / 60) if isinstance(zone, int | float) and abs(zone) <= 14 * 3600 else None
        for zone in zones
    ]
    columns = {
        "utc_offset_minutes": pa.array(minutes, pa.int16()),
        "utc_offset_source": pa.array([None if each is None else "record" for each in minutes], pa.string()),
    }
    for name, column in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(place), column)
    return table


def _placed(table: pa.Table, ids: Sequence[Any], rows: Ints, name: str) -> pa.Table:
    place = table.schema.get_field_index("location")
    where = pa.array([f"{name} row {ids[row]}" for row in rows.tolist()], pa.string())
    return table.set_column(place, table.schema.field(place), where)


def _pulse(collector: Collector, database: _Database) -> Iterator[Parsed]:
    measure = _Measure("heart_rate_record_series_table", "beats_per_minute", "heart_rate", "/min")
    for batch in database.pulses():
        keys, values, times, apps, zones = zip(*batch, strict=True)
        us, value = _instants(times), _floats(values)
        rows = np.flatnonzero(_refuse(collector, measure, keys, us, value, us))
        table = samples(
            "heart_rate",
            "/min",
            us[rows],
            value[rows],
            measure.table,
            device=pa.array([database.app(apps[row]) for row in rows.tolist()], pa.string()),
        )
        table = _zoned(table, [zones[row] for row in rows.tolist()])
        collector.add(_placed(table, keys, rows, measure.table))
        yield collector.parsed()


def _sleeps(collector: Collector, database: _Database) -> None:
    stages: dict[Any, list[tuple[Any, Any, Any]]] = {}
    if database.has("sleep_stages_table", "parent_key", "stage_type", "stage_start_time", "stage_end_time"):
        wanted = ("parent_key", "stage_type", "stage_start_time", "stage_end_time")
        for batch in database.rows("sleep_stages_table", wanted, ()):
            for parent, *stage in batch:
                stages.setdefault(parent, []).append((stage[0], stage[1], stage[2]))
    nights: list[tuple[Row, str]] = []
    optional = ("start_zone_offset", "end_zone_offset", "app_info_id", "uuid", "title")
    for batch in database.rows("sleep_session_record_table", _SESSION, optional):
        for row in batch:
            found: list[Row] = []
            where = f"sleep_session_record_table row {row[0]}"
            collector.take_one(_shown(row), where, _sleep(database, row, stages.get(row[0], []), found))
            nights += [(night, where) for night in found]
    by_app: dict[str, list[Row]] = {}
    for night, _ in nights:
        by_app.setdefault(night["device"], []).append(night)
    for rows in by_app.values():
        mark_main(rows)
    for night, where in nights:
        collector.put("sleep_sessions", night, where)


def _span(row: Sequence[Any]) -> tuple[int, int]:
    start, end = _instants(row[1:3]).tolist()
    if not start or not end or not are_plausible(np.array([start, end])).all():
        raise Refused("unparsable_time", "start_time")
    if end <= start:
        raise Refused("ends_before_start", "end_time")
    seconds_of((end - start) / 1_000_000, "end_time")
    return start, end


def _sleep(
    database: _Database, row: Sequence[Any], stages: list[tuple[Any, Any, Any]], found: list[Row]
) -> Any:
    def read(_: Any) -> Found:
        start, end = _span(row)
        offsets = [None if zone is None else round(zone / 60) for zone in map(_number, row[3:5])]
        segments = []
        for stage, first, last in sorted(stages, key=lambda each: str(each[1])):
            begin, until = _instants((first, last)).tolist()
            name = _STAGES.get(stage) if isinstance(stage, int) else None
            if name is not None and start <= begin < until <= end:
                segments.append(Segment(name, begin, until, offsets[0], offsets[1]))
        night = session_row(segments or [Segment("asleep", start, end, offsets[0], offsets[1])])
        if not segments:
            night["stages"] = None
        in_bed = (end - start) // 1_000_000
        asleep = night["sleep_seconds"]
        night |= {
            "sleep_id": _uuid(row[6]) or f"{database.app(row[5])} {start // 1_000_000}",
            "started_at": start,
            "ended_at": end,
            "utc_offset_minutes": offsets[0],
            "end_utc_offset_minutes": offsets[1],
            "time_in_bed_seconds": in_bed,
            "efficiency_percent": min(100.0 * asleep / in_bed, 100.0) if asleep and in_bed else None,
            "device": database.app(row[5]),
        }
        found.append(night)
        raise Kept

    return read


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and abs(value) <= 14 * 3600 else None


def _uuid(value: Any) -> str | None:
    return value.hex() if isinstance(value, bytes) and len(value) == 16 else None


def _workout(database: _Database, row: Sequence[Any]) -> Any:
    def read(_: Any) -> Found:
        start, end = _span(row)
        kind, zone = row[3], _number(row[4])
        activity = _ACTIVITIES[kind] if isinstance(kind, int) and 0 <= kind < len(_ACTIVITIES) else "other"
        yield (
            "workouts",
            {
                "workout_id": _uuid(row[6]) or f"{database.app(row[5])} {start // 1_000_000}",
                "started_at": start,
                "ended_at": end,
                "utc_offset_minutes": None if zone is None else round(zone / 60),
                "activity": activity,
                "duration_seconds": (end - start) / 1_000_000,
            },
        )

    return read


PROVIDER = Provider(
    name="health_connect",
    title="Health Connect export",
    door="upload",
    entities=ENTITIES,
    parse=parse,
    parse_stream=parse_stream,
    sniff=sniff,
    parser_version=2,
)
