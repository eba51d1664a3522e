"""Bodies of Polar's Dynamic API to Arrow tables.

Protobuf writes them: durations are `"80s"`, large whole numbers may be strings, what is empty may be absent. Clock
times without an offset stay local in staging, `…_local`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._json import (
    UTC_TIMESTAMP,
    Column,
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
_DATE = pa.date32()
_LOCAL = pa.timestamp("us")
_DAY_MILLISECONDS = 86_400_000
_SECONDS = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)s")
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?")
_OFFSET = r"(?:Z|[+-]\d\d:?\d\d)$"
_STAGES = {
    "SLEEP_STATE_WAKE": "awake",
    "SLEEP_STATE_REM": "rem",
    "SLEEP_STATE_NON_REM1": "light",
    "SLEEP_STATE_NON_REM2": "light",
    "SLEEP_STATE_NON_REM3": "deep",
    "SLEEP_STATE_UNKNOWN": "asleep",
}


def reference(value: Any) -> str | None:
    """`{"id": 27}`, `{"id": {"id": "27"}}`, `27` and `"27"` as text; None for all else."""
    for _ in range(2):
        value = value.get("id") if isinstance(value, dict) else value
    if type(value) is int:
        return str(value)
    return value if isinstance(value, str) and value and "\0" not in value else None


def _seconds(value: Any) -> float | None:
    """`"80s"` and `80` as 80. Raises ValueError."""
    if value is None or (type(value) in (int, float) and 0 <= value < 1e9):
        return None if value is None else float(value)
    match = _SECONDS.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("not a duration")
    return float(match[1])


def _durations(values: Sequence[Any]) -> pa.Array:
    return pa.array([_seconds(value) for value in values], _FLOAT)


def _milliseconds(value: Any) -> int:
    """A length of up to a day: milliseconds as a number or as its digits, or a duration. Raises ValueError."""
    if isinstance(value, str):
        value = int(value) if value.isdecimal() else round(1000 * (_seconds(value) or 0))
    found = value
    if type(found) is not int or not 0 < found <= _DAY_MILLISECONDS:
        raise ValueError("not the length of a part of a day")
    return found


def _whole(low: int, high: int) -> Callable[[Sequence[Any]], pa.Array]:
    """Whole numbers, or their digits, from `low` to below `high`."""

    def convert(values: Sequence[Any]) -> pa.Array:
        read = [int(value) if isinstance(value, str) and value.isdecimal() else value for value in values]
        found = numbers(read, _LONG)
        limits = pc.min_max(found)
        if limits["min"].is_valid and not low <= limits["min"].as_py() <= limits["max"].as_py() < high:
            raise ValueError("not a number in its range")
        return found

    return convert


def _references(values: Sequence[Any]) -> pa.Array:
    found = [reference(value) for value in values]
    if any(one is None and value is not None for one, value in zip(found, values, strict=True)):
        raise ValueError("not a reference")
    return pa.array(found, _TEXT)


def _devices(values: Sequence[Any]) -> pa.Array:
    """What an object says of a device: its `deviceId`, else its `uuid`; null where neither."""
    names = []
    for value in values:
        if value is not None and not isinstance(value, dict):
            raise TypeError("not a device")
        named = None if value is None else value.get("deviceId") or value.get("uuid")
        names.append(named)
    return strings(names)


def _local_times(values: Sequence[Any]) -> pa.Array:
    """The clock's time as printed, without the offset where there is one."""
    return pc.replace_substring_regex(strings(values), _OFFSET, "").cast(_LOCAL)


def _printed_offsets(values: Sequence[Any]) -> pa.Array:
    """Minutes; null for a time without an offset."""
    found: list[int | None] = []
    for value in values:
        match = re.search(_OFFSET, value) if isinstance(value, str) else None
        if match is None:
            found.append(None)
        else:
            digits = match[0].replace(":", "").replace("Z", "+0000")
            found.append((60 * int(digits[1:3]) + int(digits[3:])) * (-1 if digits[0] == "-" else 1))
    offsets = pa.array(found, _SHORT)
    limits = pc.min_max(offsets)
    if limits["min"].is_valid and not -1440 < limits["min"].as_py() <= limits["max"].as_py() < 1440:
        raise ValueError("not an offset")
    return offsets


_STEPS = pa.struct(
    [
        pa.field("clock_seconds", _INT, nullable=False),
        pa.field("offset_milliseconds", _LONG, nullable=False),
        pa.field("length_milliseconds", _LONG, nullable=False),
        pa.field("steps", _LONG, nullable=False),
    ]
)
_STEP_SERIES = pa.list_(_STEPS)


def _step_series(values: Sequence[Any]) -> pa.Array:
    """The intervals with steps of each device's day: when its series began, and how long after that.

    A day with series and no step in it is an empty list, one without series null.
    """
    parts: list[pa.Array] = []
    lengths: list[int | None] = []
    for value in values:
        series = None if value is None else _series_of_day(value)
        parts += series or []
        lengths.append(None if series is None else sum(map(len, series)))
    ends = np.cumsum([0, *(length or 0 for length in lengths)], dtype=np.int64)
    offsets = pa.array(ends, _INT, mask=np.array([*(length is None for length in lengths), False]))
    flat = pa.concat_arrays(parts) if parts else pa.array([], _STEPS)
    return pa.ListArray.from_arrays(offsets, flat).cast(_STEP_SERIES)


def _series_of_day(recordings: Any) -> list[pa.Array] | None:
    if not isinstance(recordings, list):
        raise TypeError("not arrays")
    found = []
    for recording in recordings:
        series = dict.get(recording, "stepSamples")
        if series is None:
            continue
        steps = _whole(0, 1_000_000)(dict.get(series, "steps") or []).to_numpy(zero_copy_only=False)
        if not steps.size:
            continue
        start = series.get("startTime")
        clock = _CLOCK.fullmatch(start) if isinstance(start, str) else None
        if clock is None:
            raise ValueError("a series without its start")
        length = _milliseconds(series.get("interval"))
        started = 3600 * int(clock[1]) + 60 * int(clock[2]) + int(clock[3] or 0)
        (some,) = np.nonzero(np.nan_to_num(steps.astype(float)) > 0)
        if length * int(some[-1] if some.size else 0) > 2 * _DAY_MILLISECONDS:
            raise ValueError("a series of many days")
        columns = [
            pa.array(np.full(some.size, started), _INT),
            pa.array(some * length, _LONG),
            pa.array(np.full(some.size, length), _LONG),
            pa.array(steps[some].astype(np.int64), _LONG),
        ]
        found.append(pa.StructArray.from_arrays(columns, fields=list(_STEPS)))
    return found or None


def _hypnograms(values: Sequence[Any]) -> pa.Array:
    """State changes as JSON text, [seconds since the start, stage] each, in order of time."""
    texts: list[str | None] = []
    for value in values:
        if value is not None and not isinstance(value, list):
            raise TypeError("not arrays")
        points: list[tuple[float, str]] = []
        for change in value or []:
            # What is zero may be absent.
            at = _seconds(dict.get(change, "offsetFromStart")) or 0.0
            state = change.get("newState")
            if not isinstance(state, str):
                raise TypeError("a change without its state")
            points.append((at, _STAGES.get(state, "asleep")))
        points.sort(key=lambda point: point[0])
        texts.append(orjson.dumps(points).decode() if points else None)
    return pa.array(texts, _TEXT)


_SAMPLE_RUNS = pa.list_(
    pa.struct(
        [
            pa.field("started_at_local", _LOCAL, nullable=False),
            pa.field("utc_offset_minutes", _SHORT),
            pa.field("offset_milliseconds", _LONG, nullable=False),
            pa.field("value", _FLOAT, nullable=False),
        ]
    )
)


def _sample_runs(values_name: str) -> Callable[[Sequence[Any]], pa.Array]:
    """Runs of samples: when each began, how far apart they are, and their values."""

    def convert(values: Sequence[Any]) -> pa.Array:
        nights: list[list[dict[str, Any]] | None] = []
        for value in values:
            if value is not None and not isinstance(value, list):
                raise TypeError("not arrays")
            samples: list[dict[str, Any]] = []
            for run in value or []:
                started = _local_times([dict.get(run, "startTime")])[0].as_py()
                offset = _printed_offsets([run.get("startTime")])[0].as_py()
                length = _milliseconds(run.get("sampleInterval"))
                read = numbers(run.get(values_name) or [], _FLOAT).to_pylist()
                if started is None or len(read) * length > 2 * _DAY_MILLISECONDS:
                    raise ValueError("not a run of a night")
                samples += [
                    {
                        "started_at_local": started,
                        "utc_offset_minutes": offset,
                        "offset_milliseconds": length * place,
                        "value": one,
                    }
                    for place, one in enumerate(read)
                    if one is not None
                ]
            nights.append(samples)
        return pa.array(nights, _SAMPLE_RUNS)

    return convert


def _phases(*names: str) -> Iterator[Column]:
    for name in names:
        yield Column(f"sleepEvaluation.phaseDurations.{name}", _FLOAT, f"{name}_seconds", convert=_durations)


_COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "activity": (
        Column("date", _DATE, required=True),
        Column("deviceReference", _TEXT, "device", convert=_devices),
    ),
    "sleep": (
        Column("sleepDate", _DATE, "date", required=True),
        Column(
            *("sleepResult.hypnogram.sleepStart", UTC_TIMESTAMP, "started_at"),
            offset="utc_offset_minutes",
            always=True,
        ),
        Column(
            *("sleepResult.hypnogram.sleepEnd", UTC_TIMESTAMP, "ended_at"),
            offset="end_utc_offset_minutes",
            always=True,
        ),
        Column("sleepResult.hypnogram.deviceReference", _TEXT, "device", convert=_devices),
        Column("sleepResult.hypnogram.sleepStateChanges", _TEXT, "stages", convert=_hypnograms),
        Column("sleepEvaluation.asleepDuration", _FLOAT, "asleep_seconds", convert=_durations),
        Column("sleepEvaluation.sleepSpan", _FLOAT, "span_seconds", convert=_durations),
        *_phases("wake", "rem", "light", "deep", "unknown"),
        Column("sleepEvaluation.interruptions.totalCount", _FLOAT, "interruptions"),
        Column("sleepEvaluation.analysis.efficiencyPercent", _FLOAT, "efficiency_percent"),
        Column("sleepEvaluation.analysis.continuityIndex", _FLOAT, "continuity"),
        Column("sleepScore.sleepScore", _FLOAT, "sleep_score"),
    ),
    "nightly_recharge": (
        Column("sleepResultDate", _DATE, "date", required=True),
        Column("meanNightlyRecoveryRmssd", _FLOAT, "rmssd_ms"),
        Column("meanNightlyRecoveryRri", _FLOAT, "beat_to_beat_ms"),
        Column("meanNightlyRecoveryRespirationInterval", _FLOAT, "respiration_interval_ms"),
        Column("ansStatus", _FLOAT, "ans_charge"),
        Column("ansRate", _FLOAT, "ans_charge_status"),
        Column("recoveryIndicator", _FLOAT, "nightly_recharge_status"),
        Column("recoveryIndicatorSubLevel", _FLOAT, "nightly_recharge_sub_level"),
    ),
    "continuous_heart_rate": (
        Column("date", _DATE, required=True),
        Column("device", _TEXT, convert=_devices),
        Column("offsetMillis", _LONG, "offset_milliseconds", required=True, convert=_whole(0, 90_000_000)),
        Column("heartRate", _FLOAT, "heart_rate_bpm", required=True),
        Column("triggerType", _TEXT, "trigger"),
    ),
    "training_session": (
        Column("identifier", _TEXT, "id", required=True, convert=_references),
        Column("startTime", _LOCAL, "started_at_local", required=True, convert=_local_times),
        Column("timezoneOffsetMinutes", _SHORT, "utc_offset_minutes"),
        Column("durationMillis", _LONG, "duration_milliseconds", required=True, convert=_whole(0, 10**9)),
        Column("sport", _TEXT, "sport_id", convert=_references),
        Column("deviceId", _TEXT, "device"),
        Column("calories", _FLOAT, "calories_kcal"),
        Column("distanceMeters", _FLOAT, "distance_m"),
        Column("hrAvg", _FLOAT, "average_heart_rate_bpm"),
        Column("hrMax", _FLOAT, "max_heart_rate_bpm"),
        Column("trainingBenefit", _TEXT, "training_benefit"),
    ),
}
#: Of some records, what becomes rows of another table.
_SERIES: Mapping[str, tuple[Column, ...]] = {
    "activity": (Column("activitySamples", _STEP_SERIES, "series", convert=_step_series),),
    "nightly_recharge": (
        Column("hrvSamples", _SAMPLE_RUNS, "hrv", convert=_sample_runs("hrvValues")),
        Column(
            "breathingRateSamples", _SAMPLE_RUNS, "breathing", convert=_sample_runs("breathingRateValues")
        ),
    ),
    "training_session": (
        Column("startTime", _SHORT, "printed_utc_offset_minutes", convert=_printed_offsets),
    ),
}
_ACTIVITY_SCHEMA = pa.schema([*schema_of(_COLUMNS["activity"]), pa.field("total_steps", _LONG)])
_STEP_SCHEMA = pa.schema(
    [
        pa.field("date", _DATE, nullable=False),
        pa.field("device", _TEXT),
        pa.field("started_at_local", _LOCAL, nullable=False),
        pa.field("offset_milliseconds", _LONG, nullable=False),
        pa.field("length_milliseconds", _LONG, nullable=False),
        pa.field("steps", _LONG, nullable=False),
    ]
)
_RECHARGE_SAMPLE_SCHEMA = pa.schema(
    [
        pa.field("date", _DATE, nullable=False),
        pa.field("kind", _TEXT, nullable=False),
        *(pa.field(field.name, field.type, field.nullable) for field in _SAMPLE_RUNS.value_type),
    ]
)
_SESSION_SCHEMA = pa.schema(
    [
        *schema_of(_COLUMNS["training_session"]),
        pa.field("printed_utc_offset_minutes", _SHORT),
        pa.field("sport", _TEXT),
    ]
)
SCHEMAS: Mapping[str, pa.Schema] = {
    **{entity: schema_of(columns) for entity, columns in _COLUMNS.items()},
    "activity": _ACTIVITY_SCHEMA,
    "training_session": _SESSION_SCHEMA,
    "step_sample": _STEP_SCHEMA,
    "recharge_sample": _RECHARGE_SAMPLE_SCHEMA,
}
#: Fields we know and leave in raw.
_LEFT_IN_RAW: Mapping[str, tuple[str, ...]] = {
    "activity": ("physicalInformation", "activityTarget", "activitiesPerDevice"),
    "sleep": (
        "originalSleepResult",
        *(f"sleepResult.{name}" for name in ("sleepCycles", "sleepDate", "lastModified")),
        *(
            f"sleepResult.hypnogram.{name}"
            for name in ("deviceId", "sleepGoal", "sleepRating", "alarmSnoozeTimes", "batteryRanOut")
        ),
        *(f"sleepEvaluation.{name}" for name in ("sleepType", "lastModified")),
        *(f"sleepEvaluation.phaseDurations.{name}Percentage" for name in ("rem", "deep")),
        "sleepEvaluation.analysis.continuityClass",
        *(
            f"sleepEvaluation.interruptions.{name}"
            for name in ("totalDuration", "longDuration", "shortDuration", "longCount", "shortCount")
        ),
        *(
            f"sleepScore.{name}"
            for name in (
                *("sleepTimeOwnTargetScore", "sleepTimeRecommendationScore", "continuityScore", "n3Score"),
                *("efficiencyScore", "remScore", "longInterruptionsTimeScore", "groupDurationScore"),
                *("groupSolidityScore", "groupRefreshScore", "scoreRate"),
            )
        ),
    ),
    "nightly_recharge": (
        *(f"{kind}Baseline{of}" for kind in ("mean", "sd") for of in ("Rmssd", "Rri", "RespirationInterval")),
        *("sleepTip", "vitalityTip", "exerciseTip", "created", "modified"),
    ),
    "continuous_heart_rate": (),
    "training_session": (
        *("created", "modified", "stopTime", "name", "note", "feeling", "startTrigger", "product"),
        *("recoveryTimeMillis", "trainingLoad", "exercises", "latitude", "longitude", "application"),
        *("physicalInformation", "tests", "comments", "benefit"),
    ),
}
#: Where the records are: names within each other, of which the outer ones may be left out.
_ENVELOPES: Mapping[str, tuple[str, ...]] = {
    "activity": ("activities", "activityDays"),
    "sleep": ("nightSleeps",),
    "nightly_recharge": ("nightlyRechargeResults", "nightlyRechargeResults"),
    "continuous_heart_rate": ("continuousSamples", "heartRateSamplesPerDay"),
    "training_session": ("trainingSessions",),
}


def parse(document: RawDocument) -> Parsed:
    """A page of one entity as staging rows.

    A record is a device's day of steps, a night, a sample of continuous heart rate, a session; one with a wrong
    type or without a required field goes to quarantine, alone. Skipped are dates without data (`no_data`) and
    what a body has of one device and day before the last of it (`repeated_day`). Raises KeyError for an entity
    without pages.
    """
    entity = document.entity
    columns, series = _COLUMNS[entity], _SERIES.get(entity, ())
    found = _list(entity, document.content)
    if found is None:
        refused = [("malformed_body", None, "$", original_text(document.content))]
        return Parsed({}, quarantine_table(entity, refused), records_in=1, records_loaded=0)
    name = _ENVELOPES[entity][-1]
    records, places, empty = _records(entity, found, name)
    read = read_records(records, (*columns, *series))
    skipped = {"no_data": empty} if empty else {}
    tables = {entity: read.table}
    if entity == "activity":
        tables, repeated = _days_of_steps(read.table)
        skipped |= {"repeated_day": repeated} if repeated else {}
    elif entity == "nightly_recharge":
        tables = {
            entity: read.table.select(schema_of(columns).names),
            "recharge_sample": _recharge_samples(read.table),
        }
    elif entity == "sleep":
        tables = {entity: _with_stages(read.table)}
    elif entity == "training_session":
        tables = {entity: _with_sports(read.table, document.context)}
    known = [*(column.path for column in (*columns, *series)), *_LEFT_IN_RAW[entity]]
    bad = (
        (one.reason, one.field, places[one.index], original_json(records[one.index])) for one in read.refused
    )
    return Parsed(
        tables=tables,
        quarantine=quarantine_table(entity, bad),
        records_in=len(records) + empty,
        records_loaded=tables[entity].num_rows,
        skipped=skipped,
        notes=tuple(f"{entity}: new field {path}" for path in unknown_fields(records, known)),
    )


def _list(entity: str, content: bytes) -> list[Any] | None:
    """The list in a body. Empty where the body has nothing in it, None where it is not what it should be."""
    try:
        found: Any = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(found, dict):
        return None
    for name in _ENVELOPES[entity]:
        if isinstance(found, dict) and name in found:
            found = found[name]
    if isinstance(found, dict):
        return None if found else []
    return [] if found is None else found if isinstance(found, list) else None


def _records(entity: str, found: list[Any], name: str) -> tuple[list[Any], list[str], int]:
    """The records of a list, where each is, and how many dates there are without any."""
    below = {"activity": "activitiesPerDevice", "continuous_heart_rate": "samples"}.get(entity)
    records: list[Any] = []
    places: list[str] = []
    empty = 0
    for number, one in enumerate(found):
        place = f"{name}[{number}]"
        if _says_a_date_alone(entity, one):
            empty += 1
        elif below is None or not isinstance(one, dict) or not isinstance(one.get(below), list):
            records.append(one)
            places.append(place)
        else:
            shared: dict[str, Any] = {"date": one.get("date")}
            if entity == "continuous_heart_rate":
                shared["device"] = one.get("deviceRef") or one.get("deviceReference")
            for index, part in enumerate(one[below]):
                records.append({**part, **shared} if isinstance(part, dict) else part)
                places.append(f"{place}.{below}[{index}]")
    return records, places, empty


def _says_a_date_alone(entity: str, one: Any) -> bool:
    if not isinstance(one, dict):
        return False
    if entity == "sleep":
        return isinstance(one.get("sleepDate"), str) and not one.get("sleepResult")
    below = {"activity": "activitiesPerDevice", "continuous_heart_rate": "samples"}.get(entity)
    if below is not None:
        return isinstance(one.get("date"), str) and one.get(below) in (None, [])
    return entity == "nightly_recharge" and set(one) == {"sleepResultDate"}


def _days_of_steps(read: pa.Table) -> tuple[dict[str, pa.Table], int]:
    """Each device's days, the last of each, with their sum, and the intervals with steps; how many went."""
    keys = zip(read["date"].to_pylist(), read["device"].to_pylist(), strict=True)
    last = {key: place for place, key in enumerate(keys)}
    days = read.take(pa.array(sorted(last.values()), _LONG))
    series = days["series"].combine_chunks()
    counts = pc.fill_null(pc.list_value_length(series), 0).to_numpy()
    of_day = np.repeat(np.arange(len(counts)), counts)
    clock, offsets, lengths, steps = series.flatten().flatten()
    sums = np.bincount(of_day, weights=steps.to_numpy(), minlength=len(counts)).astype(np.int64)
    totals = pa.array(sums, _LONG, mask=pc.is_null(series).to_numpy(zero_copy_only=False))
    dates = days["date"].combine_chunks().take(pa.array(of_day, _LONG))
    midnight = dates.cast(_LOCAL).cast(_LONG)
    started = pc.add(midnight, pc.multiply(clock.cast(_LONG), 1_000_000)).cast(_LOCAL)
    devices = days["device"].combine_chunks().take(pa.array(of_day, _LONG))
    tables = {
        "activity": pa.table([days["date"], days["device"], totals], schema=_ACTIVITY_SCHEMA),
        "step_sample": pa.table([dates, devices, started, offsets, lengths, steps], schema=_STEP_SCHEMA),
    }
    return tables, read.num_rows - days.num_rows


def _with_stages(nights: pa.Table) -> pa.Table:
    """The stages as JSON text (`stage`, `start` in seconds since the start, `seconds`), the last to the end."""
    texts: list[str | None] = []
    for night in nights.select(["started_at", "ended_at", "stages"]).to_pylist():
        if night["stages"] is None:
            texts.append(None)
            continue
        points = orjson.loads(night["stages"])
        length = int((night["ended_at"] - night["started_at"]).total_seconds())
        ends = [point[0] for point in points[1:]] + [length]
        runs = [
            {"stage": stage, "start": round(begin), "seconds": round(min(end, length) - begin)}
            for (begin, stage), end in zip(points, ends, strict=True)
            if min(end, length) > begin
        ]
        texts.append(orjson.dumps(runs).decode())
    return nights.set_column(nights.schema.get_field_index("stages"), "stages", pa.array(texts, _TEXT))


def _recharge_samples(nights: pa.Table) -> pa.Table:
    rows = [
        {"date": night["date"], "kind": kind, **sample}
        for night in nights.select(["date", "hrv", "breathing"]).to_pylist()
        for kind in ("hrv", "breathing")
        for sample in night[kind] or ()
    ]
    return pa.Table.from_pylist(rows, schema=_RECHARGE_SAMPLE_SCHEMA)


def _with_sports(sessions: pa.Table, context: Mapping[str, str]) -> pa.Table:
    named = load_object(context["sports"].encode()) if "sports" in context else {}
    sports = [named.get(number) for number in sessions["sport_id"].to_pylist()]
    return sessions.append_column("sport", pa.array(sports, _TEXT))
