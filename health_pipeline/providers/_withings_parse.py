"""Withings bodies to Arrow tables.

Every body is `{"status": 0, "body": {…}}`. Times are epoch seconds in UTC; where a body or a record names the
IANA zone the person was in, the offset of that zone at that time is a column of its own, null where it does
not or where the zone is unknown to us.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._json import (
    UTC_TIMESTAMP,
    Column,
    MalformedBodyError,
    Records,
    load_object,
    numbers,
    original_json,
    original_text,
    quarantine_table,
    read_records,
    schema_of,
    strings,
    unknown_fields,
)
from health_pipeline.providers.base import Parsed, RawDocument

_SHORT = pa.int16()
_INT = pa.int32()
_LONG = pa.int64()
_FLOAT = pa.float64()
_TEXT = pa.string()
_SAMPLES = pa.map_(_TEXT, _FLOAT)

#: Year 1 to 9999; beyond it neither Python nor a table of days has dates.
_EPOCH_RANGE = -62_135_596_800, 253_402_300_799
_NUMBER_TYPES = {int, float}

#: What `state` says of a part of a sleep. 4 was entered by hand, 5 has no stages, 15 is out of bed.
_STAGES = {0: "awake", 1: "light", 2: "deep", 3: "rem", 4: "asleep", 5: "asleep", 15: "awake"}
#: Series of samples within a part of a sleep, and what they are called in `sleep_sample`.
SLEEP_SERIES = {
    "hr": "heart_rate",
    "rr": "respiratory_rate",
    "rmssd": "rmssd",
    "sdnn_1": "sdnn",
    "snoring": "snoring",
    "mvt_score": "movement_score",
}


def _epochs(values: Sequence[Any]) -> pa.Array:
    """Epoch seconds as UTC microseconds."""
    seconds = numbers(values, _LONG)
    limits = pc.min_max(seconds)
    first, last = limits["min"].as_py(), limits["max"].as_py()
    if first is not None and (first < _EPOCH_RANGE[0] or last > _EPOCH_RANGE[1]):
        raise ValueError("no date of our calendar")
    return pc.multiply(seconds, 1_000_000).cast(UTC_TIMESTAMP)


def _exponents(values: Sequence[Any]) -> pa.Array:
    """Powers of ten. One beyond what any measure needs would make a number of thousands of digits."""
    exponents = numbers(values, _SHORT)
    limits = pc.min_max(exponents)
    if limits["min"].is_valid and not -20 <= limits["min"].as_py() <= limits["max"].as_py() <= 20:
        raise ValueError("not an exponent of a measure")
    return exponents


def _or_empty(values: Sequence[Any]) -> pa.Array:
    return pc.fill_null(strings(values), "")


def _or_minus_one(values: Sequence[Any]) -> pa.Array:
    return pc.fill_null(numbers(values, _SHORT), -1)


def _states(values: Sequence[Any]) -> pa.Array:
    states = numbers(values, _SHORT)
    if not set(values) <= _STAGES.keys() | {None}:
        raise ValueError("a state we do not know")
    return states


def _series(values: Sequence[Any]) -> pa.Array:
    """Objects of epoch second to number. PHP writes an empty object as `[]`."""
    items = [[] if value == [] else None if value is None else list(dict.items(value)) for value in values]
    kinds = {type(number) for pairs in items if pairs for _, number in pairs}
    if kinds - _NUMBER_TYPES:
        raise TypeError("not numbers")
    series = pa.array(items, _SAMPLES)
    _epochs(series.keys.cast(_LONG).to_pylist())
    return series


def _instant(path: str, name: str, *, required: bool = False) -> Column:
    return Column(path, UTC_TIMESTAMP, name, required=required, convert=_epochs)


def _of_data(*names: str, type_: pa.DataType = _FLOAT, unit: str = "") -> tuple[Column, ...]:
    return tuple(Column(f"data.{name}", type_, f"{name}{unit}") for name in names)


_DEVICE = Column("deviceid", _TEXT, "device_id")
_ZONE = Column("timezone", _TEXT, "time_zone")
_MODIFIED = _instant("modified", "modified_at")
_START = _instant("startdate", "started_at", required=True)
_END = _instant("enddate", "ended_at", required=True)
_HR_ZONES = ("hr_zone_0", "hr_zone_1", "hr_zone_2", "hr_zone_3")

COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "measure": (
        Column("grpid", _LONG, "group_id", required=True),
        Column("attrib", _SHORT),
        Column("category", _SHORT),
        _instant("date", "measured_at", required=True),
        _instant("created", "created_at"),
        _MODIFIED,
        _DEVICE,
        Column("model", _TEXT),
        Column("measure.type", _SHORT, "measure_type", required=True),
        Column("measure.value", _LONG, "value", required=True),
        Column("measure.unit", _SHORT, "unit", required=True, convert=_exponents),
        Column("measure.position", _SHORT, "position", convert=_or_minus_one),
        _ZONE,
    ),
    "activity": (
        Column("date", pa.date32(), required=True),
        Column("deviceid", _TEXT, "device_id", convert=_or_empty),
        Column("model", _TEXT),
        Column("brand", _INT),
        Column("is_tracker", pa.bool_()),
        _MODIFIED,
        Column("steps", _LONG),
        Column("distance", _FLOAT, "distance_m"),
        Column("elevation", _FLOAT, "floors"),
        *(Column(name, _FLOAT, f"{name}_seconds") for name in ("soft", "moderate", "intense", "active")),
        Column("calories", _FLOAT, "active_calories_kcal"),
        Column("totalcalories", _FLOAT, "total_calories_kcal"),
        *(Column(name, _FLOAT, f"{name}_bpm") for name in ("hr_average", "hr_min", "hr_max")),
        *(Column(name, _FLOAT, f"{name}_seconds") for name in _HR_ZONES),
        _ZONE,
    ),
    "intraday_activity": (
        _instant("timestamp", "recorded_at", required=True),
        Column("deviceid", _TEXT, "device_id", convert=_or_empty),
        Column("model", _TEXT),
        Column("duration", _FLOAT, "duration_seconds"),
        Column("steps", _LONG),
        Column("distance", _FLOAT, "distance_m"),
        Column("elevation", _FLOAT, "floors"),
        Column("calories", _FLOAT, "active_calories_kcal"),
        Column("stroke", _LONG, "strokes"),
        Column("pool_lap", _LONG, "pool_laps"),
        Column("heart_rate", _FLOAT, "heart_rate_bpm"),
        Column("spo2_auto", _FLOAT, "spo2_percent"),
        Column("rmssd", _FLOAT, "rmssd_ms"),
        Column("sdnn1", _FLOAT, "sdnn_ms"),
        Column("hrv_quality", _FLOAT),
        Column("core_body_temperature", _FLOAT, "core_body_temperature_celsius"),
        Column("rr", _FLOAT, "respiratory_rate_per_minute"),
        Column("chest_movement_rate", _FLOAT, "chest_movement_rate_per_minute"),
    ),
    "workout": (
        Column("id", _LONG, required=True),
        Column("category", _INT, required=True),
        _START,
        _END,
        Column("date", pa.date32()),
        Column("attrib", _SHORT),
        Column("model", _INT, "model_id"),
        _DEVICE,
        _MODIFIED,
        *_of_data("calories", "manual_calories", unit="_kcal"),
        *_of_data("distance", "manual_distance", unit="_m"),
        *_of_data("steps", "strokes", "pool_laps", "intensity", "manual_intensity"),
        Column("data.elevation", _FLOAT, "floors"),
        Column("data.pool_length", _FLOAT, "pool_length"),
        *_of_data("hr_average", "hr_min", "hr_max", unit="_bpm"),
        *_of_data(*_HR_ZONES, "pause_duration", "algo_pause_duration", unit="_seconds"),
        Column("data.spo2_average", _FLOAT, "spo2_average_percent"),
        *_of_data(
            "core_body_temperature_avg",
            "core_body_temperature_min",
            "core_body_temperature_max",
            unit="_celsius",
        ),
        Column("data.core_body_temperature_status", _TEXT, "core_body_temperature_status"),
        _ZONE,
    ),
    "sleep": (
        Column("id", _LONG, required=True),
        Column("date", pa.date32(), required=True),
        _START,
        _END,
        Column("model", _INT),
        Column("model_id", _INT),
        Column("hash_deviceid", _TEXT, "device_hash"),
        Column("completed", pa.bool_()),
        _instant("created", "created_at"),
        _MODIFIED,
        *_of_data(
            "total_timeinbed",
            "total_sleep_time",
            "asleepduration",
            "lightsleepduration",
            "deepsleepduration",
            "remsleepduration",
            "wakeupduration",
            "sleep_latency",
            "wakeup_latency",
            "waso",
            "snoring",
            "breathing_sounds",
            "mvt_active_duration",
            unit="_seconds",
        ),
        Column("data.sleep_efficiency", _FLOAT, "sleep_efficiency_ratio"),
        *_of_data(
            "sleep_score",
            "wakeupcount",
            "nb_rem_episodes",
            "out_of_bed_count",
            "snoringepisodecount",
            "breathing_sounds_episode_count",
            "breathing_disturbances_intensity",
            "breathing_quality_assessment",
            "apnea_hypopnea_index",
            "withings_index",
            "mvt_score_avg",
        ),
        *_of_data("hr_average", "hr_min", "hr_max", unit="_bpm"),
        *_of_data("rr_average", "rr_min", "rr_max", unit="_per_minute"),
        *_of_data("rmssd_start_avg", "rmssd_end_avg", unit="_ms"),
        *_of_data(
            "core_body_temperature_avg",
            "core_body_temperature_min",
            "core_body_temperature_max",
            unit="_celsius",
        ),
        Column("data.core_body_temperature_status", _TEXT, "core_body_temperature_status"),
        _ZONE,
    ),
}

_PARTS = (
    _START,
    _END,
    Column("state", _SHORT, required=True, convert=_states),
    Column("model", _TEXT),
    *(Column(name, _SAMPLES, name, convert=_series) for name in SLEEP_SERIES),
)
HYPNOGRAM_SCHEMA = pa.schema(
    [
        pa.field("sleep_id", _LONG, nullable=False),
        pa.field("started_at", UTC_TIMESTAMP, nullable=False),
        pa.field("ended_at", UTC_TIMESTAMP, nullable=False),
        pa.field("stages", _TEXT, nullable=False),
        pa.field("rmssd_average_ms", _FLOAT),
    ]
)
SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("sleep_id", _LONG, nullable=False),
        pa.field("kind", _TEXT, nullable=False),
        pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
        pa.field("value", _FLOAT, nullable=False),
    ]
)

#: The columns that are made of others: of a zone and an instant.
_OFFSETS = {
    "measure": {"utc_offset_minutes": "measured_at"},
    "workout": {"utc_offset_minutes": "started_at", "end_utc_offset_minutes": "ended_at"},
    "sleep": {"utc_offset_minutes": "started_at", "end_utc_offset_minutes": "ended_at"},
}
_DAY_COLUMNS = (
    pa.field("started_at", UTC_TIMESTAMP),
    pa.field("ended_at", UTC_TIMESTAMP),
    pa.field("utc_offset_minutes", _SHORT),
)

#: Fields we know and leave in raw: ids said twice, what the vendor calls deprecated, lists of wakings.
_LEFT_IN_RAW: Mapping[str, tuple[str, ...]] = {
    "measure": (
        *("hash_deviceid", "modelid", "model_id", "comment"),
        *("measure.algo", "measure.fm", "measure.algo_params", "measure.apppfmid", "measure.appliver"),
    ),
    "activity": ("hash_deviceid", "modelid"),
    "intraday_activity": ("hash_deviceid", "model_id"),
    "workout": (),
    "sleep": (
        *("data.durationtosleep", "data.durationtowakeup", "data.night_events"),
        *(f"data.chest_movement_rate_{of}" for of in ("average", "min", "max")),
        *(f"data.chest_movement_rate_wellness_{of}" for of in ("average", "min", "max")),
    ),
    "hypnogram": (
        *("hash_deviceid", "deviceid", "model_id"),
        *("hrv_quality", "chest_movement_rate", "withings_index", "breathing_sounds"),
    ),
}

_LISTS = {"measure": "measuregrps", "activity": "activities"}


def schema(entity: str) -> pa.Schema:
    """The staging table of an entity that has pages."""
    found = schema_of(COLUMNS[entity])
    for name in _filled(entity):
        place = found.get_field_index(name)
        found = found.set(place, found.field(place).with_nullable(False))
    if entity == "activity":
        return pa.schema([*found, *_DAY_COLUMNS])
    return pa.schema([*found, *(pa.field(name, _SHORT) for name in _OFFSETS.get(entity, ()))])


def _filled(entity: str) -> tuple[str, ...]:
    """Columns whose conversion leaves no null."""
    return {
        "measure": ("measure_type", "value", "unit", "position"),
        "activity": ("device_id",),
        "intraday_activity": ("device_id",),
    }.get(entity, ())


def parse(document: RawDocument) -> Parsed:
    """A page of one entity as staging rows.

    Shapes of `sleep`: a page of summaries, or the parts of one sleep, whose id is in the context (`sleep_id`).
    A record with a wrong type or without a required field goes to quarantine, alone; a measure counts as a
    record, not its group. Raises KeyError for an entity that has no pages.
    """
    entity = document.entity
    columns = COLUMNS[entity]
    sleep_id = document.context.get("sleep_id") if entity == "sleep" else None
    body = _body(document.content)
    found: Any = None if body is None else body.get(_LISTS.get(entity, "series"))
    # PHP writes an empty object as an empty list.
    shape = dict if entity == "intraday_activity" and found != [] else list
    if body is None or not isinstance(found, shape):
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, refused), records_in=1, records_loaded=0)
    if entity == "measure":
        return _measures(found, body.get("timezone"))
    if entity == "intraday_activity":
        return _intraday(dict(found))
    if sleep_id is not None:
        return _hypnogram(found, int(sleep_id))
    read = read_records(found, columns)
    table = _with_days(read.table) if entity == "activity" else _with_offsets(entity, read.table)
    places = [f"body.{_LISTS.get(entity, 'series')}[{number}]" for number in range(len(found))]
    return _parsed(entity, {entity: table}, found, read, places, _known(columns, entity))


def _body(content: bytes) -> dict[str, Any] | None:
    try:
        body = load_object(content).get("body")
    except MalformedBodyError:
        return None
    return body if isinstance(body, dict) else None


def _known(columns: Sequence[Column], left: str) -> list[str]:
    return [*(column.path for column in columns), *_LEFT_IN_RAW[left]]


def _parsed(
    entity: str,
    tables: Mapping[str, pa.Table],
    records: Sequence[Any],
    read: Records,
    places: Sequence[str],
    known: Sequence[str],
    skipped: Mapping[str, int] | None = None,
    refused: Sequence[tuple[str, str | None, str, str]] = (),
) -> Parsed:
    """`refused` are records that could not even be taken out of their group."""
    bad = [
        *refused,
        *(
            (one.reason, one.field, places[one.index], original_json(records[one.index]))
            for one in read.refused
        ),
    ]
    return Parsed(
        tables={name: table.cast(_schema_of_table(name)) for name, table in tables.items()},
        quarantine=quarantine_table(entity, bad),
        records_in=len(records) + sum((skipped or {}).values()) + len(refused),
        records_loaded=read.table.num_rows,
        skipped=skipped or {},
        notes=tuple(f"{entity}: new field {path}" for path in unknown_fields(records, known)),
    )


def _schema_of_table(name: str) -> pa.Schema:
    return {"sleep_hypnogram": HYPNOGRAM_SCHEMA, "sleep_sample": SAMPLE_SCHEMA}.get(name) or schema(name)


def _measures(groups: Sequence[Any], zone: Any) -> Parsed:
    """A record for each measure of each group."""
    records: list[Any] = []
    places: list[str] = []
    refused: list[tuple[str, str | None, str, str]] = []
    empty = 0
    for number, group in enumerate(groups):
        place = f"body.measuregrps[{number}]"
        measures = group.get("measures") if isinstance(group, dict) else None
        if not isinstance(measures, list):
            reason = "missing_field" if isinstance(group, dict) and measures is None else "wrong_type"
            field = "measures" if isinstance(group, dict) else None
            refused.append((reason, field, place, original_json(group)))
            continue
        empty += not measures
        shared = {name: value for name, value in group.items() if name != "measures"}
        for part, measure in enumerate(measures):
            # Null would pass as a group that has no measure.
            records.append({"timezone": zone, **shared, "measure": {} if measure is None else measure})
            places.append(f"{place}.measures[{part}]")
    columns = COLUMNS["measure"]
    read = read_records(records, columns)
    return _parsed(
        "measure",
        {"measure": _with_offsets("measure", read.table)},
        records,
        read,
        places,
        _known(columns, "measure"),
        {"empty_group": empty} if empty else {},
        refused,
    )


def _intraday(series: Mapping[str, Any]) -> Parsed:
    """The samples of a day, each under its epoch second; a key that is none is a wrong timestamp."""
    records = [
        {"timestamp": int(key) if key.isascii() and key.isdigit() else key, **value}
        if isinstance(value, dict)
        else value
        for key, value in series.items()
    ]
    columns = COLUMNS["intraday_activity"]
    read = read_records(records, columns)
    places = [f"body.series.{key[:40]}" for key in series]
    known = _known(columns, "intraday_activity")
    return _parsed("intraday_activity", {"intraday_activity": read.table}, records, read, places, known)


def _hypnogram(parts: Sequence[Any], sleep_id: int) -> Parsed:
    """The parts of one sleep: its stages as one row, and its samples."""
    read = read_records(parts, _PARTS)
    tables = {
        "sleep_hypnogram": _stages(read.table, sleep_id),
        "sleep_sample": _sleep_samples(read.table, sleep_id),
    }
    places = [f"body.series[{number}]" for number in range(len(parts))]
    return _parsed("sleep", tables, parts, read, places, _known(_PARTS, "hypnogram"))


def _stages(parts: pa.Table, sleep_id: int) -> pa.Table:
    """One row: stages in order of time as JSON text, neighbours of one stage joined.

    `start` counts seconds from the first part's start. Where two devices recorded the same time, the part
    that began first holds.
    """
    if parts.num_rows == 0:
        return HYPNOGRAM_SCHEMA.empty_table()
    start = parts["started_at"].cast(_LONG).to_numpy() // 1_000_000
    end = parts["ended_at"].cast(_LONG).to_numpy() // 1_000_000
    states = parts["state"].to_pylist()
    first = until = int(start.min())
    runs: list[dict[str, Any]] = []
    for place in np.lexsort((end, start)).tolist():
        begin, stop, stage = max(int(start[place]), until), int(end[place]), _STAGES[states[place]]
        if stop <= begin:
            continue
        if runs and begin == until and runs[-1]["stage"] == stage:
            runs[-1]["seconds"] += stop - begin
        else:
            runs.append({"stage": stage, "start": begin - first, "seconds": stop - begin})
        until = stop
    return pa.table(
        [
            pa.array([sleep_id], _LONG),
            _epochs([first]),
            _epochs([until]),
            pa.array([orjson.dumps(runs).decode()]),
            pa.array([_mean(parts["rmssd"])], _FLOAT),
        ],
        schema=HYPNOGRAM_SCHEMA,
    )


def _mean(series: pa.ChunkedArray) -> float | None:
    """The mean of a night's samples; zero is what a device says when it found none."""
    values = series.combine_chunks().items
    mean: float | None = pc.mean(values.filter(pc.greater(values, 0))).as_py()
    return mean


def _sleep_samples(parts: pa.Table, sleep_id: int) -> pa.Table:
    tables = []
    for name, kind in SLEEP_SERIES.items():
        series = parts[name].combine_chunks()
        moments = pc.multiply(series.keys.cast(_LONG), 1_000_000).cast(UTC_TIMESTAMP)
        columns = [pa.repeat(pa.scalar(sleep_id, _LONG), len(moments)), pa.repeat(kind, len(moments))]
        tables.append(pa.table([*columns, moments, series.items], schema=SAMPLE_SCHEMA))
    return pa.concat_tables(tables)


def _with_offsets(entity: str, table: pa.Table) -> pa.Table:
    zones = table["time_zone"].to_pylist()
    for name, instant in _OFFSETS[entity].items():
        seconds = pc.divide(table[instant].cast(_LONG), 1_000_000).to_pylist()
        offsets = [_offset(zone, second) for zone, second in zip(zones, seconds, strict=True)]
        table = table.append_column(name, pa.array(offsets, _SHORT))
    return table


def _with_days(table: pa.Table) -> pa.Table:
    """When each local day began and ended, and the offset at its start."""
    spans = [
        _day(zone, day)
        for zone, day in zip(table["time_zone"].to_pylist(), table["date"].to_pylist(), strict=True)
    ]
    columns: tuple[list[Any], ...] = ([], [], [])
    for span in spans:
        for column, value in zip(columns, span, strict=True):
            column.append(value)
    arrays = (_epochs(columns[0]), _epochs(columns[1]), pa.array(columns[2], _SHORT))
    for field, array in zip(_DAY_COLUMNS, arrays, strict=True):
        table = table.append_column(field, array)
    return table


@lru_cache(maxsize=128)
def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None


@lru_cache(maxsize=4096)
def _offset(zone_name: str | None, second: int) -> int | None:
    zone = _zone(zone_name) if zone_name else None
    if zone is None:
        return None
    try:
        offset = dt.datetime.fromtimestamp(second, zone).utcoffset()
    except (OverflowError, ValueError):
        return None
    return None if offset is None else int(offset.total_seconds() // 60)


def _day(zone_name: str | None, day: dt.date) -> tuple[int | None, int | None, int | None]:
    zone = _zone(zone_name) if zone_name else None
    if zone is None or not 1 < day.year < 9999:
        return None, None, None
    begin, end = (
        int(dt.datetime.combine(date, dt.time(), zone).timestamp())
        for date in (day, day + dt.timedelta(days=1))
    )
    return begin, end, _offset(zone_name, begin)
