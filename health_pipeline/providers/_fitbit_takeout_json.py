"""JSON of a Fitbit account's "Global Export Data": month first, two digits of the year, no zone.

Whether the clock of the series is UTC or the wall's, no file says, and readers of it disagree: see `clock_of`.
Sleeps and weighings are by the clock on the wall.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Sequence
from typing import Any, Literal, TypeGuard
from zoneinfo import ZoneInfo

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers import _fitbit_parse
from health_pipeline.providers._export_records import (
    Collector,
    Fields,
    Found,
    Ints,
    Refused,
    Skipped,
    are_plausible,
    measured,
    samples,
    seconds_of,
)
from health_pipeline.providers._json import original_json
from health_pipeline.providers._local_time import localise, offsets_at
from health_pipeline.providers.base import RawDocument

Clock = Literal["utc", "wall"]

_SECOND = 1_000_000
_HOUR = 3_600 * _SECOND
_DAY = 24 * _HOUR
_FORMAT = "%m/%d/%y %H:%M:%S"
_KG = {"kg": 1.0, "lb": 0.45359237, "st": 6.35029318}
#: Heights (m) that grown people have: what a weight and the body mass index beside it have to come to.
_HEIGHTS = (1.3, 2.2)
_METRES = {"kilometer": 1000.0, "kilometers": 1000.0, "mile": 1609.344, "miles": 1609.344}
#: Steps in the dead of night that tell a wrong clock, to those of the right one.
_TELLING = 3.0
_FEWEST_STEPS = 500


def times_of(entries: Sequence[Any], name: str = "dateTime") -> pa.Array:
    """`02/28/24 00:00:00` as microseconds of its own clock; null where it is none."""
    texts = [entry.get(name) if isinstance(entry, dict) else None for entry in entries]
    array = pa.array([text if isinstance(text, str) else None for text in texts], pa.string())
    seconds = pc.strptime(array, format=_FORMAT, unit="s", error_is_null=True).cast(pa.int64())
    return pc.multiply(seconds, _SECOND)


def clock_of(
    zone: ZoneInfo, days: Sequence[Ints], steps: tuple[Ints, np.ndarray[Any, np.dtype[np.float64]]]
) -> tuple[Clock, str]:
    """By which clock the series are, and what tells it.

    `days` are the first and last times of files that each hold one local day of heart rate; `steps` are times and
    counts. As UTC, or as the wall's clock, one puts each file into one day, and hardly a step into the night.
    """
    fits = {
        "utc": sum(_is_one_day(_wall(edges, zone)) for edges in days),
        "wall": sum(_is_one_day(edges) for edges in days),
    }
    if fits["utc"] != fits["wall"]:
        clock: Clock = "utc" if fits["utc"] > fits["wall"] else "wall"
        return clock, f"{fits[clock]} of {len(days)} files of heart rate are then of one local day"
    at, counts = steps
    if counts.sum() >= _FEWEST_STEPS:
        by_night = {
            "utc": _by_night(_wall(at, zone), counts),
            "wall": _by_night(at, counts),
        }
        if by_night["wall"] > _TELLING * (by_night["utc"] + 1):
            return "utc", "the nights are then almost without a step"
        if by_night["utc"] > _TELLING * (by_night["wall"] + 1):
            return "wall", "the nights are then almost without a step"
    return "wall", "nothing in the file tells"


def _wall(us: Ints, zone: ZoneInfo) -> Ints:
    """What the clocks of a zone showed at instants."""
    return us + offsets_at(us, zone).astype(np.int64) * 60 * _SECOND


def _is_one_day(local: Ints) -> bool:
    return bool(len(local) and (local // _DAY == local[0] // _DAY).all())


def _by_night(local: Ints, counts: Any) -> float:
    hour = local % _DAY // _HOUR
    return float(counts[(hour >= 1) & (hour < 5)].sum())


def series(
    collector: Collector, entries: list[Any], place: str, metric: str, clock: Clock, covered: Ints
) -> None:
    """Heart rate, or steps by the minute. Days (UTC) that are `covered` by the same export's CSV are left to it."""
    times = times_of(entries)
    numbers, good = _values(entries, metric)
    known = np.array(times.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)
    us = np.array(times.fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
    if clock == "wall":
        us[known] = localise(us[known], collector.zone).us
    known &= are_plausible(us)
    for index in np.flatnonzero(~(known & good)).tolist():
        reason = "unparsable_value" if known[index] else "unparsable_time"
        name = "value" if known[index] else "dateTime"
        collector.refuse(reason, f"{place}[{index}]", original_json(entries[index]), name)
    repeated = known & good & np.isin(us // _DAY, covered)
    nothing = known & good & ~repeated & (numbers <= 0)
    for reason, rows in (("also_as_csv", repeated), ("nothing_measured", nothing)):
        if rows.any():
            collector.skip(reason, int(rows.sum()))
    kept = np.flatnonzero(known & good & ~repeated & ~nothing)
    collector.add(
        samples(
            metric,
            "/min" if metric == "heart_rate" else "{steps}",
            us[kept],
            numbers[kept],
            place,
            lines=kept,
            offset=offsets_at(us[kept], collector.zone),
            offset_source="upload_zone",
            ended=us[kept] + 60 * _SECOND if metric == "steps" else None,
            device="Fitbit",
        )
    )


def _values(entries: list[Any], metric: str) -> tuple[Any, Any]:
    found = np.full(len(entries), np.nan)
    for index, entry in enumerate(entries):
        value = entry.get("value") if isinstance(entry, dict) else None
        if metric == "heart_rate":
            value = value.get("bpm") if isinstance(value, dict) else None
        elif isinstance(value, str):
            value = int(value) if value.isascii() and value.isdigit() and len(value) < 10 else None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            found[index] = value
    return found, ~np.isnan(found)


def resting(collector: Collector, record: Any) -> Found:
    """The pulse at rest of a day; 0 without a date where there is none."""
    said = Fields.of(record).object("value")
    value = said.number("value")
    if not value or said.values.get("date") is None:
        raise Skipped("nothing_measured")
    yield from collector.of_day(
        "resting_heart_rate", us_date(said.values["date"], "value.date"), value, "/min"
    )


def us_date(value: Any, name: str) -> dt.date:
    """`02/28/24` or `02/28/2024`."""
    if isinstance(value, str):
        for form in ("%m/%d/%y", "%m/%d/%Y"):
            try:
                found = dt.datetime.strptime(value, form).date()
            except ValueError:
                continue
            if found.year >= 1900:
                return found
    raise Refused("unparsable_time", name)


def weight_unit(entries: Sequence[Any]) -> str | None:
    """The unit of weighings, by the heights that they and the body mass indexes beside them come to."""
    found: dict[str, int] = {}
    for entry in entries:
        weight, index = (entry.get("weight"), entry.get("bmi")) if isinstance(entry, dict) else (None, None)
        if not _positive(weight) or not _positive(index):
            continue
        fits = [
            unit for unit, kg in _KG.items() if _HEIGHTS[0] <= math.sqrt(kg * weight / index) <= _HEIGHTS[1]
        ]
        if len(fits) == 1:
            found[fits[0]] = found.get(fits[0], 0) + 1
    return max(found, key=lambda unit: found[unit]) if found else None


def _positive(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e6


def weighing(collector: Collector, record: Any, unit: str | None) -> Found:
    said = Fields.of(record)
    weight = said.needed("weight")
    if unit is None:
        raise Refused("unknown_unit", "weight")
    clock = said.text("time") or "00:00:00"
    date = us_date(said.values.get("date"), "date")
    try:
        time = dt.time.fromisoformat(clock)
    except ValueError:
        raise Refused("unparsable_time", "time") from None
    local = dt.datetime.combine(date, time.replace(tzinfo=None))
    at, offset = collector.local(round((local - dt.datetime(1970, 1, 1)).total_seconds()) * _SECOND)
    ucum = {"kg": "kg", "lb": "[lb_av]", "st": "[stone_av]"}[unit]
    for metric, value, name in (
        ("weight", weight, ucum),
        ("bmi", said.number("bmi"), "kg/m2"),
        ("body_fat", said.number("fat"), "%"),
    ):
        yield from measured(
            metric, value, name, at, offset=offset, offset_source="upload_zone", device=said.text("source")
        )


def exercise(collector: Collector, record: Any, clock: Clock) -> Found:
    """A logged activity; its start is by the clock of the series."""
    said = Fields.of(record)
    start = times_of([record], "startTime")[0].as_py()
    if start is None:
        raise Refused("unparsable_time", "startTime")
    if clock == "wall":
        start, _ = collector.local(start)
    if not are_plausible(np.array([start]))[0]:
        raise Refused("implausible_time", "startTime")
    duration = said.number("duration", required=True)
    active = said.number("activeDuration")
    length = seconds_of(duration, "duration", 0.001)
    assert length is not None
    seconds = seconds_of(active if active is not None else duration, "activeDuration", 0.001)
    distance = said.number("distance")
    factor = _METRES.get((said.text("distanceUnit") or "").lower())
    yield (
        "workouts",
        {
            "workout_id": f"log {said.name_of('logId')}",
            "started_at": start,
            "ended_at": start + length * _SECOND,
            "utc_offset_minutes": collector.offset_at(start),
            "activity": (said.text("activityName") or "other").strip().lower().replace(" ", "_") or "other",
            "duration_seconds": float(seconds or 0),
            "calories_kcal": said.number("calories"),
            "distance_m": None if distance is None or factor is None else distance * factor,
            "average_heart_rate_bpm": said.number("averageHeartRate"),
        },
    )


def sleeps(collector: Collector, entries: list[Any], place: str) -> None:
    """Sleeps with their stages, as the old Web API answers them but for the name of one field."""
    renamed = [
        {**entry, "isMainSleep": entry.get("isMainSleep", entry.get("mainSleep"))}
        if isinstance(entry, dict)
        else entry
        for entry in entries
    ]
    try:
        body = orjson.dumps({"sleep": renamed})
    except orjson.JSONEncodeError:
        collector.refuse("malformed_body", place, "{}")
        return
    document = RawDocument("sleep", body, dt.datetime(2000, 1, 1, tzinfo=dt.UTC), collector.time_zone)
    parsed = _fitbit_parse.parse(document)
    for row in parsed.quarantine.to_pylist():
        where = row["location"].removeprefix("sleep")
        collector.refuse(row["reason"], f"{place}{where}", row["original"], row["field"])
    table = parsed.tables.get("sleep")
    for row in table.to_pylist() if table is not None else ():
        collector.take_one(row, f"{place}: log {row['log_id']}", _sleep)


def _sleep(row: dict[str, Any]) -> Found:
    def seconds(name: str) -> int | None:
        return seconds_of(row[f"{name}_minutes"], name, 60)

    yield (
        "sleep_sessions",
        {
            # The CSV of the same night has another id.
            "sleep_id": f"started {round(row['started_at'].timestamp())}",
            "started_at": round(row["started_at"].timestamp() * _SECOND),
            "ended_at": round(row["ended_at"].timestamp() * _SECOND),
            "utc_offset_minutes": row["utc_offset_minutes"],
            "end_utc_offset_minutes": row["end_utc_offset_minutes"],
            "local_date": row["date"],
            "sleep_type": row["type"] if row["is_main_sleep"] is not False else "nap",
            "is_main_sleep": row["is_main_sleep"] is True,
            "time_in_bed_seconds": seconds("in_bed"),
            "sleep_seconds": seconds("asleep"),
            "deep_sleep_seconds": seconds("deep"),
            "light_sleep_seconds": seconds("light"),
            "rem_sleep_seconds": seconds("rem"),
            "awake_seconds": seconds("awake"),
            "latency_seconds": seconds("to_fall_asleep"),
            "efficiency_percent": row["efficiency_percent"],
            "device": "Fitbit",
            "stages": row["stages"],
        },
    )
