"""CSV files of a Fitbit account's export, recognised by their headers: UTC, or days of the calendar."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._export_csv import Columns, Flags, read_csv
from health_pipeline.providers._export_records import (
    Collector,
    Found,
    Ints,
    Refused,
    samples,
    seconds_by_stage,
    seconds_of,
)
from health_pipeline.providers._json import original_json, original_text
from health_pipeline.providers._local_time import offsets_at

_SECOND = 1_000_000
_DAY = 86_400 * _SECOND
_SHORTEST_NIGHT = 3 * 3_600 * _SECOND
_STAGES = {
    "AWAKE": "awake",
    "LIGHT": "light",
    "DEEP": "deep",
    "REM": "rem",
    "ASLEEP": "asleep",
    "RESTLESS": "awake",
}

#: Stages of each sleep by its id: (stage, first instant, last instant).
Stages = dict[str, list[tuple[str, int, int]]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A table: the column of its value, what that is, and in which unit.

    `covers` is the JSON that has the same days; `span` how long a sample lasts, microseconds; `of_day` marks days
    of the calendar.
    """

    value: str
    metric: str
    unit: str
    covers: str | None = None
    span: int | None = None
    of_day: bool = False


KINDS: Mapping[str, Kind] = {
    "steps": Kind("steps", "steps", "{steps}", "steps", 60 * _SECOND),
    "distance": Kind("distance", "distance", "m", None, 60 * _SECOND),
    "heart_rate": Kind("beats per minute", "heart_rate", "/min", "heart_rate"),
    "weight": Kind("weight grams", "weight", "g", "weight"),
    "hrv_of_day": Kind(
        "average heart rate variability milliseconds", "heart_rate_variability", "ms", of_day=True
    ),
    "rmssd_of_day": Kind("rmssd", "heart_rate_variability", "ms", of_day=True),
    "spo2_of_day": Kind("average_value", "spo2", "%", of_day=True),
    "sleep_score": Kind("overall_score", "sleep_score", "{score}", of_day=True),
    "sleeps": Kind("minutes_asleep", "sleep_duration", "min", "sleep"),
    "stages": Kind("sleep_stage_type", "", ""),
}
#: Columns that tell a table, beside that of its value.
_NEEDED: Mapping[str, tuple[str, ...]] = {
    "rmssd_of_day": ("timestamp", "nremhr"),
    "spo2_of_day": ("timestamp", "lower_bound"),
    "sleep_score": ("timestamp", "sleep_log_entry_id"),
    "sleeps": ("sleep_id", "sleep_start", "sleep_end"),
    "stages": ("sleep_id", "sleep_stage_start", "sleep_stage_end"),
}


def kind_of(header: Sequence[str]) -> str | None:
    """Which table a header is of."""
    for name, kind in KINDS.items():
        needed = (kind.value, *_NEEDED.get(name, ("timestamp",)))
        if all(column in header for column in needed) and (
            name in _NEEDED or header[:2] == ["timestamp", kind.value]
        ):
            return name
    return None


def read_table(collector: Collector, kind: str, content: bytes, place: str, stages: Stages) -> Ints:
    """All rows of a table; the days (UTC, sleeps: of waking) that it has samples of, since 1970."""
    names = [
        cell.strip().strip('"').lower()
        for cell in content.split(b"\n", 1)[0].decode("utf-8-sig", "replace").split(",")
    ]
    try:
        table = read_csv(content, names)
    except ValueError:
        collector.refuse("malformed_body", place, original_text(content))
        return np.zeros(0, dtype=np.int64)
    for line in table.broken:
        collector.refuse("wrong_number_of_cells", f"{place} line {line}", "{}")
    if kind == "stages":
        _stages(collector, table, place, stages)
        return np.zeros(0, dtype=np.int64)
    if kind == "sleeps":
        return _sleeps(collector, table, place, stages)
    return _values(collector, KINDS[kind], table, place)


def _values(collector: Collector, kind: Kind, table: Columns, place: str) -> Ints:
    us, good, civil = table.times("timestamp")
    values = table.numbers(kind.value)
    # A pulse at rest of a day has the header of the samples, and the midnight of its day for a time.
    daily = kind.of_day or (kind.metric == "heart_rate" and "resting" in place.lower())
    metric = "resting_heart_rate" if daily and kind.metric == "heart_rate" else kind.metric
    good &= ~civil | daily
    _refuse(collector, table, place, ~good, "unparsable_time", "timestamp")
    _refuse(collector, table, place, good & np.isnan(values), "unparsable_value", kind.value)
    good &= ~np.isnan(values)
    if daily:
        for row in np.flatnonzero(good).tolist():
            date = dt.date(1970, 1, 1) + dt.timedelta(days=int(us[row] // _DAY))
            collector.take_one(
                {"timestamp": str(date), kind.value: float(values[row])},
                f"{place} line {table.line[row]}",
                lambda _, date=date, value=float(values[row]): collector.of_day(  # type: ignore[misc]
                    metric, date, value, kind.unit
                ),
            )
        return np.zeros(0, dtype=np.int64)
    empty = good & (values <= 0)
    if empty.any():
        collector.skip("nothing_measured", int(empty.sum()))
    kept = np.flatnonzero(good & ~empty)
    collector.add(
        samples(
            metric,
            kind.unit,
            us[kept],
            values[kept],
            place,
            lines=table.line[kept],
            offset=offsets_at(us[kept], collector.zone),
            offset_source="upload_zone",
            ended=None if kind.span is None else us[kept] + kind.span,
            device=_devices(table, kept),
        )
    )
    return np.unique(us[kept] // _DAY)


def _devices(table: Columns, rows: Ints) -> pa.Array:
    named = table.texts("data source").take(pa.array(rows))
    return pc.if_else(pc.equal(named, ""), pa.scalar("Fitbit"), named)


def _refuse(collector: Collector, table: Columns, place: str, rows: Flags, reason: str, name: str) -> None:
    for row in np.flatnonzero(rows).tolist():
        original = {column: texts[row].as_py() for column, texts in table.columns.items()}
        collector.refuse(reason, f"{place} line {table.line[row]}", original_json(original), name)


def _stages(collector: Collector, table: Columns, place: str, stages: Stages) -> None:
    """Remembered for the sleeps; a record of its own for none."""
    start, begun, _ = table.times("sleep_stage_start")
    end, ended, _ = table.times("sleep_stage_end")
    names = table.texts("sleep_stage_type").to_pylist()
    known = np.array([name.upper() in _STAGES for name in names], dtype=np.bool_)
    good = begun & ended & (end > start) & known
    _refuse(collector, table, place, ~(begun & ended & (end > start)), "unparsable_time", "sleep_stage_start")
    _refuse(
        collector,
        table,
        place,
        begun & ended & (end > start) & ~known,
        "unknown_sleep_stage",
        "sleep_stage_type",
    )
    ids = table.texts("sleep_id").to_pylist()
    for row in np.flatnonzero(good).tolist():
        stages.setdefault(ids[row], []).append((_STAGES[names[row].upper()], int(start[row]), int(end[row])))
    if good.any():
        collector.skip("told_with_its_sleep", int(good.sum()))


def _sleeps(collector: Collector, table: Columns, place: str, stages: Stages) -> Ints:
    start, begun, _ = table.times("sleep_start")
    end, ended, _ = table.times("sleep_end")
    columns = {
        name: table.numbers(name).tolist()
        for name in ("minutes_asleep", "minutes_awake", "minutes_to_fall_asleep", "minutes_in_sleep_period")
    }
    texts = {
        name: table.texts(name).to_pylist()
        for name in ("sleep_id", "sleep_type", "start_utc_offset", "end_utc_offset", "data_source")
    }
    days: list[int] = []
    longest: dict[int, int] = {}
    for row in np.flatnonzero(begun & ended).tolist():
        day = int((end[row] + 60 * _SECOND * (_offset(texts["end_utc_offset"][row]) or 0)) // _DAY)
        longest[day] = max(longest.get(day, 0), int(end[row] - start[row]))
    for row in range(len(table)):
        said = {name: values[row] for name, values in texts.items()}
        numbers = {name: None if np.isnan(values[row]) else values[row] for name, values in columns.items()}

        def read(
            _: object, row: int = row, said: dict[str, str] = said, numbers: dict[str, float | None] = numbers
        ) -> Found:
            if not (begun[row] and ended[row]):
                raise Refused("unparsable_time", "sleep_start" if not begun[row] else "sleep_end")
            if end[row] <= start[row]:
                raise Refused("ends_before_start", "sleep_end")
            if not said["sleep_id"]:
                raise Refused("missing_field", "sleep_id")
            first, last = int(start[row]), int(end[row])
            offsets = [_offset(said[f"{edge}_utc_offset"]) for edge in ("start", "end")]
            offset, end_offset = (
                told if told is not None else collector.offset_at(at)
                for told, at in zip(offsets, (first, last), strict=True)
            )
            day = (last + 60 * _SECOND * end_offset) // _DAY
            # Nothing says which is the night's: the longest of the day, if it has three hours.
            is_main = last - first == longest.get(day, last - first) >= _SHORTEST_NIGHT
            days.append(day)
            runs = [
                (stage, (begin - first) // _SECOND, (until - begin) // _SECOND)
                for stage, begin, until in sorted(stages.get(said["sleep_id"], ()), key=lambda each: each[1])
                if first <= begin and until <= last
            ]
            total = seconds_by_stage(runs)
            asleep = seconds_of(numbers["minutes_asleep"], "minutes_asleep", 60)
            in_bed = seconds_of((last - first) / _SECOND, "sleep_end")
            yield (
                "sleep_sessions",
                {
                    "sleep_id": f"started {first // _SECOND}",
                    "started_at": first,
                    "ended_at": last,
                    "utc_offset_minutes": offset,
                    "end_utc_offset_minutes": end_offset,
                    "local_date": dt.date(1970, 1, 1) + dt.timedelta(days=day),
                    "sleep_type": said["sleep_type"].lower() if is_main else "nap",
                    "is_main_sleep": is_main,
                    "time_in_bed_seconds": in_bed,
                    "sleep_seconds": asleep,
                    "deep_sleep_seconds": total.get("deep") if runs else None,
                    "light_sleep_seconds": total.get("light") if runs else None,
                    "rem_sleep_seconds": total.get("rem") if runs else None,
                    "awake_seconds": seconds_of(numbers["minutes_awake"], "minutes_awake", 60),
                    "latency_seconds": seconds_of(
                        numbers["minutes_to_fall_asleep"], "minutes_to_fall_asleep", 60
                    ),
                    "efficiency_percent": None
                    if asleep is None or not in_bed
                    else min(100.0 * asleep / in_bed, 100.0),
                    "device": "Fitbit",
                    "stages": orjson.dumps(
                        [{"stage": stage, "start": after, "seconds": length} for stage, after, length in runs]
                    ).decode()
                    if runs
                    else None,
                },
            )

        collector.take_one({**said, **numbers}, f"{place} line {table.line[row]}", read)
    return np.unique(np.array(days, dtype=np.int64))


def _offset(text: str) -> int | None:
    """`+05:30` as minutes."""
    if len(text) == 6 and text[0] in "+-" and text[1:3].isdigit() and text[4:].isdigit():
        minutes = 60 * int(text[1:3]) + int(text[4:])
        return minutes * (-1 if text[0] == "-" else 1) if minutes <= 14 * 60 else None
    return None
