"""Polar AccessLink bodies to Arrow tables.

Polar writes times in three ways: with an offset (sleep), local with the offset in minutes beside it
(exercise), and local without one (clock times of samples, days). The last stay local in staging, `…_local`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._json import (
    UTC_TIMESTAMP,
    Column,
    Records,
    numbers,
    original_json,
    original_text,
    quarantine_table,
    read_records,
    schema_of,
    unknown_fields,
)
from health_pipeline.providers.base import Parsed, RawDocument

_SHORT = pa.int16()
_INT = pa.int32()
_LONG = pa.int64()
_FLOAT = pa.float64()
_TEXT = pa.string()
_DATE = pa.date32()
_LOCAL = pa.timestamp("us")
_SERIES = pa.map_(_TEXT, _FLOAT)
_STEP_SERIES = pa.list_(
    pa.struct(
        [
            pa.field("started_at_local", _LOCAL, nullable=False),
            pa.field("steps", _LONG, nullable=False),
        ]
    )
)

_DURATION = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?::[0-5]\d)?")
_EXERTIONS = {
    f"RPE_{word}": number
    for number, word in enumerate(
        (
            *("NONE", "EASY", "LIGHT", "FAIRLY_BRISK", "BRISK"),
            *("MODERATE", "FAIRLY_HARD", "HARD", "EXHAUSTING", "EXTREME"),
        ),
        start=1,
    )
}
#: What a hypnogram says from a minute on; 5 was not recognised.
_STAGES = {0: "awake", 1: "rem", 2: "light", 3: "light", 4: "deep", 5: "asleep"}


def _durations(values: Sequence[Any]) -> pa.Array:
    """`PT2H44M5S` as seconds."""
    found: list[float | None] = []
    for value in values:
        match = None if value is None else _DURATION.fullmatch(value)
        if value is not None and (match is None or not any(match.groups())):
            raise ValueError("not a duration")
        parts = [float(part or 0) for part in match.groups()] if match else []
        found.append(sum(a * b for a, b in zip(parts, (86_400, 3600, 60, 1), strict=True)) if match else None)
    return pa.array(found, _FLOAT)


def _exertions(values: Sequence[Any]) -> pa.Array:
    """Polar's ten words for how hard it was as 1 to 10; null for one that says nothing."""
    if {type(value) for value in values} - {str, type(None)}:
        raise TypeError("not words")
    return pa.array([_EXERTIONS.get(value) for value in values], _FLOAT)


def _local_times(values: Sequence[Any]) -> pa.Array:
    """`2026-11-20T18:30:00`, a clock's time without a zone. An offset would be cut off: it is refused."""
    text = pa.array(values, _TEXT)
    if pc.any(pc.match_substring_regex(text, r"(?:Z|[+-]\d\d:?\d\d)$")).as_py():
        raise ValueError("not a local time")
    return text.cast(_LOCAL)


def _utc_times(values: Sequence[Any]) -> pa.Array:
    """UTC with or without a mark of it."""
    text = pc.replace_substring_regex(pa.array(values, _TEXT), r"Z$", "")
    return _local_times(text.to_pylist()).cast(UTC_TIMESTAMP)


def _days(values: Sequence[Any]) -> pa.Array:
    """The day of a date or date-time."""
    return pc.utf8_slice_codeunits(pa.array(values, _TEXT), 0, 10).cast(_DATE)


def _epochs(values: Sequence[Any]) -> pa.Array:
    seconds = numbers(values, _LONG)
    limits = pc.min_max(seconds)
    if limits["min"].is_valid and not 0 <= limits["min"].as_py() <= limits["max"].as_py() < 253_402_300_800:
        raise ValueError("not an epoch second")
    return pc.multiply(seconds, 1_000_000).cast(UTC_TIMESTAMP)


def _offsets(values: Sequence[Any]) -> pa.Array:
    offsets = numbers(values, _SHORT)
    limits = pc.min_max(offsets)
    if limits["min"].is_valid and not -1440 < limits["min"].as_py() <= limits["max"].as_py() < 1440:
        raise ValueError("not an offset in minutes")
    return offsets


def _clock_series(values: Sequence[Any]) -> pa.Array:
    """Objects of clock time to number."""
    items = [None if value is None else list(dict.items(value)) for value in values]
    for pairs in items:
        for clock, number in pairs or ():
            if not _CLOCK.fullmatch(clock) or type(number) not in (int, float):
                raise ValueError("not a series of clock times")
    return pa.array(items, _SERIES)


def _hypnograms(values: Sequence[Any]) -> pa.Array:
    series = _clock_series(values)
    if not set(series.items.to_pylist()) <= _STAGES.keys():
        raise ValueError("a stage we do not know")
    return series


def _intervals(values: Sequence[Any]) -> pa.Array:
    """Lengths in milliseconds."""
    lengths = numbers(values, _LONG)
    limits = pc.min_max(lengths)
    if limits["min"].is_valid and not 0 < limits["min"].as_py() <= limits["max"].as_py() <= 86_400_000:
        raise ValueError("not the length of a part of a day")
    return lengths


def _step_series(values: Sequence[Any]) -> pa.Array:
    """The samples of each day, `timestamp` (local) and `steps`, in the order of the body."""
    items = [list(value) if isinstance(value, list) else [] for value in values]
    if any(value is not None and not isinstance(value, list) for value in values):
        raise TypeError("not arrays")
    samples = [sample for day in items for sample in day]
    started = _local_times([dict.get(sample, "timestamp") for sample in samples])
    steps = numbers([dict.get(sample, "steps") for sample in samples], _LONG)
    if started.null_count or steps.null_count:
        raise ValueError("a sample without its time or its steps")
    offsets = np.concatenate([[0], np.cumsum([len(day) for day in items], dtype=np.int32)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.StructArray.from_arrays([started, steps], fields=list(_STEP_SERIES.value_type))
    ).cast(_STEP_SERIES)


def _day(path: str = "date") -> Column:
    return Column(path, _DATE, "date", required=True)


def _plain(type_: pa.DataType, *names: str, unit: str = "") -> tuple[Column, ...]:
    return tuple(Column(name, type_, f"{name.replace('-', '_')}{unit}") for name in names)


COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "activity": (
        Column("start_time", _DATE, "date", required=True, convert=_days),
        *(
            Column(name, _FLOAT, f"{name}_seconds", convert=_durations)
            for name in ("active_duration", "inactive_duration")
        ),
        Column("daily_activity", _FLOAT, "daily_activity_percent"),
        *_plain(_FLOAT, "calories", "active_calories", unit="_kcal"),
        *_plain(_LONG, "steps", "inactivity_alert_count"),
        Column("distance_from_steps", _FLOAT, "distance_from_steps_m"),
    ),
    "activity_samples": (
        _day(),
        Column("steps.interval_ms", _LONG, "interval_ms", required=True, convert=_intervals),
        Column("steps.total_steps", _LONG, "total_steps"),
    ),
    "exercise": (
        Column("id", _TEXT, required=True),
        Column("start_time", _LOCAL, "started_at_local", required=True, convert=_local_times),
        Column("start_time_utc_offset", _SHORT, "utc_offset_minutes", convert=_offsets),
        Column("duration", _FLOAT, "duration_seconds", required=True, convert=_durations),
        *_plain(_TEXT, "upload_time", "device", "device_id", "sport", "detailed_sport_info"),
        Column("calories", _FLOAT, "calories_kcal"),
        Column("distance", _FLOAT, "distance_m"),
        Column("heart_rate.average", _FLOAT, "average_heart_rate_bpm"),
        Column("heart_rate.maximum", _FLOAT, "max_heart_rate_bpm"),
        *_plain(_FLOAT, "training_load", "running-index"),
        *(
            Column(f"training_load_pro.{name}", _FLOAT, name.replace("-", "_"))
            for name in ("cardio-load", "muscle-load", "perceived-load")
        ),
        Column("training_load_pro.user-rpe", _FLOAT, "perceived_exertion", convert=_exertions),
    ),
    "sleep": (
        _day(),
        Column("sleep_start_time", UTC_TIMESTAMP, "started_at", required=True, offset="utc_offset_minutes"),
        Column("sleep_end_time", UTC_TIMESTAMP, "ended_at", required=True, offset="end_utc_offset_minutes"),
        Column("device_id", _TEXT),
        *_plain(
            _FLOAT,
            *("light_sleep", "deep_sleep", "rem_sleep", "unrecognized_sleep_stage"),
            *("total_interruption_duration", "short_interruption_duration", "long_interruption_duration"),
            "sleep_goal",
            unit="_seconds",
        ),
        *_plain(_FLOAT, "sleep_score", "continuity", "continuity_class", "sleep_charge", "sleep_rating"),
        *_plain(
            _FLOAT, "sleep_cycles", "group_duration_score", "group_solidity_score", "group_regeneration_score"
        ),
    ),
    "nightly_recharge": (
        _day(),
        Column("heart_rate_avg", _FLOAT, "heart_rate_avg_bpm"),
        Column("beat_to_beat_avg", _FLOAT, "beat_to_beat_avg_ms"),
        Column("heart_rate_variability_avg", _FLOAT, "heart_rate_variability_avg_ms"),
        Column("breathing_rate_avg", _FLOAT, "breathing_rate_avg_per_minute"),
        *_plain(_FLOAT, "nightly_recharge_status", "ans_charge", "ans_charge_status"),
    ),
    "cardio_load": (
        _day(),
        Column("cardio_load_status", _TEXT),
        *_plain(_FLOAT, "cardio_load", "strain", "tolerance", "cardio_load_ratio"),
    ),
    "physical_info": (
        Column("created", UTC_TIMESTAMP, "created_at"),
        Column("modified", UTC_TIMESTAMP, "modified_at", required=True),
        Column("weight", _FLOAT, "weight_kg"),
        Column("weight_source", _TEXT),
        Column("height", _FLOAT, "height_cm"),
        Column("resting_heart_rate", _FLOAT, "resting_heart_rate_bpm"),
        Column("maximum_heart_rate", _FLOAT, "maximum_heart_rate_bpm"),
        Column("vo2_max", _FLOAT, "vo2_max_ml_per_kg_min"),
    ),
    "skin_temperature": (
        _day("sleep_date"),
        Column("sleep_time_skin_temperature_celsius", _FLOAT, "skin_temperature_celsius"),
        Column("deviation_from_baseline_celsius", _FLOAT),
    ),
    "spo2": (
        Column("test_time", UTC_TIMESTAMP, "recorded_at", required=True, convert=_epochs),
        Column("time_zone_offset", _SHORT, "utc_offset_minutes", convert=_offsets),
        Column("source_device_id", _TEXT, "device_id"),
        Column("test_status", _TEXT),
        Column("blood_oxygen_percent", _FLOAT),
        Column("average_heart_rate_bpm", _FLOAT),
        Column("heart_rate_variability_ms", _FLOAT),
    ),
    "body_temperature": (
        Column("start_time", UTC_TIMESTAMP, "started_at", required=True, convert=_utc_times),
        Column("measurement_type", _TEXT, required=True),
        Column("source_device_id", _TEXT, "device_id"),
        Column("recording_time_delta_milliseconds", _LONG, required=True),
        Column("temperature_celsius", _FLOAT, required=True),
    ),
    "continuous_heart_rate": (
        Column("time", _LOCAL, "recorded_at_local", required=True, convert=_local_times),
        Column("heart_rate", _FLOAT, "heart_rate_bpm", required=True),
    ),
}

_NIGHT_SERIES = (
    Column("hypnogram", _SERIES, convert=_hypnograms),
    Column("heart_rate_samples", _SERIES, convert=_clock_series),
)
_RECHARGE_SERIES = tuple(
    Column(f"{name}_samples", _SERIES, convert=_clock_series) for name in ("hrv", "breathing")
)
_STEPS_OF_DAY = (Column("steps.samples", _STEP_SERIES, convert=_step_series),)
_SERIES_OF: Mapping[str, tuple[Column, ...]] = {
    "sleep": _NIGHT_SERIES,
    "nightly_recharge": _RECHARGE_SERIES,
    "activity_samples": _STEPS_OF_DAY,
}
_NIGHT_COLUMNS = (pa.field("stages", _TEXT), pa.field("lowest_heart_rate_bpm", _FLOAT))
SLEEP_SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("date", _DATE, nullable=False),
        pa.field("recorded_at", UTC_TIMESTAMP, nullable=False),
        pa.field("utc_offset_minutes", _SHORT, nullable=False),
        pa.field("heart_rate_bpm", _FLOAT, nullable=False),
    ]
)
RECHARGE_SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("date", _DATE, nullable=False),
        pa.field("kind", _TEXT, nullable=False),
        pa.field("recorded_at_local", _LOCAL, nullable=False),
        pa.field("value", _FLOAT, nullable=False),
    ]
)
STEP_SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("date", _DATE, nullable=False),
        pa.field("sequence", _INT, nullable=False),
        pa.field("started_at_local", _LOCAL, nullable=False),
        pa.field("steps", _LONG, nullable=False),
    ]
)

#: Fields we know and leave in raw.
_LEFT_IN_RAW: Mapping[str, tuple[str, ...]] = {
    "activity": ("end_time", "samples"),
    "activity_samples": ("activity_zones", "inactivity_stamps"),
    "exercise": (
        *("polar_user", "has_route", "route", "club_id", "club_name", "heart_rate_zones", "samples"),
        *("fat_percentage", "carbohydrate_percentage", "protein_percentage"),
        "training_load_pro.date",
        *(f"training_load_pro.{name}-load-interpretation" for name in ("cardio", "muscle", "perceived")),
    ),
    "sleep": ("polar_user",),
    "nightly_recharge": ("polar_user",),
    "cardio_load": ("cardio_load_level",),
    "physical_info": (
        *("birthday", "gender", "aerobic_threshold", "anaerobic_threshold"),
        *("training_background", "typical_day", "sleep_goal"),
    ),
    "spo2": (
        *("spo2_class", "spo2_value_deviation_from_baseline", "spo2_quality_average_percent"),
        *("spo2_hrv_deviation_from_baseline", "altitude_meters"),
    ),
    "body_temperature": ("sensor_location", "end_time", "modified_time"),
    "continuous_heart_rate": ("sample_time",),
}
#: Where the records are; the body itself is the list where it is not said.
_LISTS = {"sleep": "nights", "nightly_recharge": "recharges"}


def schema(entity: str) -> pa.Schema:
    """The staging table of an entity that has pages."""
    found = schema_of(COLUMNS[entity])
    return pa.schema([*found, *_NIGHT_COLUMNS]) if entity == "sleep" else found


def parse(document: RawDocument) -> Parsed:
    """A page of one entity as staging rows.

    A record with a wrong type or without a required field goes to quarantine, alone; each sample of
    temperature and of continuous heart rate is a record, the samples of steps are one with their day. Of a day
    of these that a body has more than once the last counts, the others are skipped (`repeated_day`).
    Raises KeyError for an entity without pages.
    """
    entity = document.entity
    columns = COLUMNS[entity]
    taken = _records(entity, document.content)
    if taken is None:
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, refused), records_in=1, records_loaded=0)
    records, places = taken
    series = _SERIES_OF.get(entity, ())
    read = read_records(records, (*columns, *series))
    tables = {entity: read.table.select(schema_of(columns).names)}
    if entity == "sleep":
        tables["sleep"], tables["sleep_sample"] = _nights(tables["sleep"], read)
    elif entity == "nightly_recharge":
        tables["recharge_sample"] = _recharge_samples(read.table)
    elif entity == "activity_samples":
        tables["activity_samples"], tables["step_sample"] = _days_of_steps(read.table)
    repeated = read.table.num_rows - tables[entity].num_rows
    known = [*(column.path for column in (*columns, *series)), *_LEFT_IN_RAW.get(entity, ())]
    bad = (
        (one.reason, one.field, places[one.index], original_json(records[one.index])) for one in read.refused
    )
    return Parsed(
        tables=tables,
        quarantine=quarantine_table(entity, bad),
        records_in=len(records),
        records_loaded=tables[entity].num_rows,
        skipped={"repeated_day": repeated} if repeated else {},
        notes=tuple(f"{entity}: new field {path}" for path in unknown_fields(records, known)),
    )


def _records(entity: str, content: bytes) -> tuple[list[Any], list[str]] | None:
    """The records of a body and where each is; None where the body is not what it should be."""
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    if entity == "physical_info":
        return ([body], ["$"]) if isinstance(body, dict) else None
    if entity == "continuous_heart_rate":
        return _heart_rates(body)
    name = _LISTS.get(entity)
    found = body.get(name) if name and isinstance(body, dict) else body
    if (name or entity == "activity_samples") and isinstance(body, dict) and "date" in body:
        found = [body]  # one night or day, asked for by its date
    if not isinstance(found, list):
        return None
    places = [f"{name or '$'}[{number}]" for number in range(len(found))]
    return _samples(found, places) if entity == "body_temperature" else (found, places)


def _samples(periods: list[Any], places: list[str]) -> tuple[list[Any], list[str]]:
    """The samples of each period, each with what is said of the period; a period without a list of them as it is."""
    found: list[Any] = []
    where: list[str] = []
    for period, place in zip(periods, places, strict=True):
        samples = period.get("samples") if isinstance(period, dict) else None
        if not isinstance(samples, list):
            found.append(period)
            where.append(place)
            continue
        shared = {name: value for name, value in period.items() if name != "samples"}
        for number, sample in enumerate(samples):
            found.append({**shared, **sample} if isinstance(sample, dict) else sample)
            where.append(f"{place}.samples[{number}]")
    return found, where


def _heart_rates(body: Any) -> tuple[list[Any], list[str]] | None:
    """The samples of a day with the local time of each: one object a day, or a list of them."""
    days = body if isinstance(body, list) else [body]
    found: list[Any] = []
    where: list[str] = []
    for number, day in enumerate(days):
        samples = day.get("heart_rate_samples") if isinstance(day, dict) else None
        if not isinstance(samples, list):
            return None
        for place, sample in enumerate(samples):
            if isinstance(sample, dict) and isinstance(sample.get("sample_time"), str):
                sample = {"time": f"{day.get('date')}T{sample['sample_time']}", **sample}
            found.append(sample)
            where.append(f"[{number}].heart_rate_samples[{place}]")
    return found, where


def _minutes_after(start: dt.datetime, clock: str) -> int:
    """Minutes from the minute of `start` to a clock time of the day after it; just before it is before it."""
    match = _CLOCK.fullmatch(clock)
    assert match is not None
    minutes = (60 * int(match[1]) + int(match[2]) - 60 * start.hour - start.minute) % 1440
    return minutes if minutes < 1380 else minutes - 1440


def _nights(table: pa.Table, read: Records) -> tuple[pa.Table, pa.Table]:
    """Nights with their stages as JSON text (`start` in seconds since the start), and their heart rates."""
    stages: list[str | None] = []
    lowest: list[float | None] = []
    samples: list[dict[str, Any]] = []
    names = ("date", "started_at", "ended_at", "utc_offset_minutes", "hypnogram", "heart_rate_samples")
    for night in read.table.select(names).to_pylist():
        local = night["started_at"] + dt.timedelta(minutes=night["utc_offset_minutes"])
        minute = night["started_at"].replace(second=0, microsecond=0)
        length = int((night["ended_at"] - night["started_at"]).total_seconds())
        late = int((night["started_at"] - minute).total_seconds())
        stages.append(_stages(night["hypnogram"], local, late, length))
        pulse = night["heart_rate_samples"] or []
        lowest.append(min((bpm for _, bpm in pulse if bpm > 0), default=None))
        for clock, bpm in pulse:
            at = minute + dt.timedelta(minutes=_minutes_after(local, clock))
            samples.append(
                {
                    "date": night["date"],
                    "recorded_at": at,
                    "utc_offset_minutes": night["utc_offset_minutes"],
                    "heart_rate_bpm": bpm,
                }
            )
    for field, values in zip(_NIGHT_COLUMNS, (stages, lowest), strict=True):
        table = table.append_column(field, pa.array(values, field.type))
    return table, pa.Table.from_pylist(samples, schema=SLEEP_SAMPLE_SCHEMA)


def _stages(
    hypnogram: Sequence[tuple[str, float]] | None, start: dt.datetime, late: int, length: int
) -> str | None:
    if not hypnogram:
        return None
    points = sorted(
        (min(max(0, 60 * _minutes_after(start, clock) - late), length), place, _STAGES[int(stage)])
        for place, (clock, stage) in enumerate(hypnogram)
    )
    runs: list[dict[str, Any]] = []
    ends = [point[0] for point in points[1:]] + [length]
    for (begin, _, stage), end in zip(points, ends, strict=True):
        if end <= begin:
            continue
        if runs and runs[-1]["stage"] == stage:
            runs[-1]["seconds"] += end - begin
        else:
            runs.append({"stage": stage, "start": begin, "seconds": end - begin})
    return orjson.dumps(runs).decode()


def _recharge_samples(nights: pa.Table) -> pa.Table:
    """Samples by local clock: those before noon are of the date itself, the others of the evening before."""
    rows = [
        {
            "date": night["date"],
            "kind": kind,
            "recorded_at_local": dt.datetime.combine(
                night["date"] - dt.timedelta(days=clock >= "12:00"), dt.time.fromisoformat(clock)
            ),
            "value": value,
        }
        for night in nights.select(["date", "hrv_samples", "breathing_samples"]).to_pylist()
        for kind in ("hrv", "breathing")
        for clock, value in night[f"{kind}_samples"] or ()
    ]
    return pa.Table.from_pylist(rows, schema=RECHARGE_SAMPLE_SCHEMA)


def _days_of_steps(read: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Days, the last of each date, and their samples in the order of the body (`sequence` of a day)."""
    last = {day: place for place, day in enumerate(read["date"].to_pylist())}
    days = read.take(pa.array(sorted(last.values()), pa.int64()))
    series = days["steps_samples"].combine_chunks()
    counts = pc.fill_null(pc.list_value_length(series), 0).to_numpy()
    samples = series.flatten()
    of_day = np.repeat(np.arange(len(counts)), counts)
    sequence = np.arange(len(of_day)) - np.repeat(np.cumsum(counts) - counts, counts)
    columns = [
        days["date"].combine_chunks().take(pa.array(of_day, pa.int64())),
        pa.array(sequence, _INT),
        *samples.flatten(),
    ]
    return days.select(schema("activity_samples").names), pa.table(columns, schema=STEP_SAMPLE_SCHEMA)
