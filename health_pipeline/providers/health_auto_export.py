"""Health Auto Export, the iOS app: JSON of Apple Health's metrics, sleep and workouts, units with each metric.

Times say their offset. What a value is of (a day, an hour, a minute, or a single measurement) is not said: it is
what all times of a metric are the beginnings of. Source of the contract: the app's help, and open receivers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from health_pipeline.providers._export_records import (
    ENTITIES,
    Collector,
    Fields,
    Found,
    Kept,
    Refused,
    Row,
    Skipped,
    iso_time,
    seconds_of,
)
from health_pipeline.providers._json import original_text
from health_pipeline.providers._stage_sessions import Segment, mark_main, session_row, sessions_of
from health_pipeline.providers.base import Parsed, Provider, RawDocument

#: The app's names, and the catalogue's.
_METRICS: Mapping[str, str] = {
    "step_count": "steps",
    "walking_running_distance": "distance",
    "flights_climbed": "floors",
    "active_energy": "calories_burned",
    "basal_energy_burned": "basal_calories",
    "apple_exercise_time": "active_minutes",
    "apple_stand_hour": "stand_hours",
    "vo2_max": "vo2_max",
    "vo2max": "vo2_max",
    "heart_rate": "heart_rate",
    "resting_heart_rate": "resting_heart_rate",
    "heart_rate_variability": "heart_rate_variability_sdnn",
    "blood_oxygen_saturation": "spo2",
    "respiratory_rate": "respiratory_rate",
    "weight_body_mass": "weight",
    "lean_body_mass": "lean_mass",
    "body_fat_percentage": "body_fat",
    "body_mass_index": "bmi",
    "height": "height",
    "body_temperature": "body_temperature",
    "apple_sleeping_wrist_temperature": "skin_temperature",
    "dietary_water": "hydration",
    "carbohydrates": "carbohydrates",
    "blood_glucose": "blood_glucose",
    "blood_pressure_systolic": "blood_pressure_systolic",
    "blood_pressure_diastolic": "blood_pressure_diastolic",
}
#: Those that add up over the time they are of.
_SUMS = {
    *("steps", "distance", "floors", "calories_burned", "basal_calories"),
    *("active_minutes", "stand_hours", "hydration", "carbohydrates"),
}
_COUNTED = {"steps": "{steps}", "floors": "{floors}", "stand_hours": "{hours}", "bmi": "kg/m2"}
_UCUM = {
    "bpm": "/min",
    "count/min": "/min",
    "breaths/min": "/min",
    "mmhg": "mm[Hg]",
    "degc": "Cel",
    "°c": "Cel",
    "degf": "[degF]",
    "°f": "[degF]",
    "lb": "[lb_av]",
    "lbs": "[lb_av]",
    "st": "[stone_av]",
    "mi": "[mi_i]",
    "ft": "[ft_i]",
    "in": "[in_i]",
    "yd": "[yd_i]",
    "cal": "kcal",
    "hr": "h",
    "ml": "mL",
    "l": "L",
    "kj": "kJ",
    "mg/dl": "mg/dL",
    "fl_oz_us": "[foz_us]",
    "ml/(kg·min)": "mL/(kg.min)",
    "ml/(kg*min)": "mL/(kg.min)",
    "ml/min·kg": "mL/(kg.min)",
    "ml/kg·min": "mL/(kg.min)",
}
_FRACTIONS = {"spo2", "body_fat"}
_STAGES = {
    "awake": "awake",
    "asleep": "asleep",
    "unspecified": "asleep",
    "in bed": "in_bed",
    "inbed": "in_bed",
    "core": "light",
    "deep": "deep",
    "rem": "rem",
}
_HOURS = {"hr": 3600.0, "h": 3600.0, "min": 60.0, "s": 1.0}
_METRES = {"m": 1.0, "km": 1000.0, "mi": 1609.344, "yd": 0.9144, "ft": 0.3048}
_KILOCALORIES = {"kcal": 1.0, "kj": 1 / 4.184}
_MINUTE = 60_000_000
#: What all times of a metric begin: microseconds, and what it is called.
_PERIODS = ((86_400_000_000, "day"), (3_600_000_000, "hour"), (_MINUTE, "minute"))
_TWELVE_HOURS = re.compile(
    r"(\d{4}-\d\d-\d\d) (\d{1,2}):(\d\d):(\d\d)[\s\u202f]?([AaPp])\.?[Mm]\.? ([+-]\d{4})", re.ASCII
)
_MARKS = re.compile(
    r'"metrics"\s*:\s*\[|"units"\s*:\s*"[^"]*"\s*,\s*"(?:name|data)"|"workouts"\s*:\s*\[\s*(?:\{\s*"|\])'
)
_OWN = re.compile(
    r'"qty"\s*:|"Avg"\s*:|"sleepStart"\s*:|"sleep_analysis"|"activeEnergyBurned"\s*:|"heartRateData"\s*:'
)


def parse(document: RawDocument) -> Parsed:
    """Every value, stretch of sleep and workout of an export. Each that does not fit is refused alone, with its place.

    Metrics that the catalogue does not have are counted by their names; stretches of sleep come to nights.
    """
    collector = Collector(document.entity, document.time_zone)
    try:
        body: Any = orjson.loads(document.content.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        body = None
    known = False
    for place, payload in _payloads(body):
        for name, read in (("metrics", _metric), ("workouts", _workouts)):
            said = payload.get(name)
            if isinstance(said, list):
                known = True
                read(collector, said, f"{place}.{name}")
    if not known:
        collector.refuse("malformed_body", "$", original_text(document.content))
    return collector.parsed()


def _payloads(body: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Large exports come as a list of several."""
    several = body if isinstance(body, list) else [body]
    for index, each in enumerate(several):
        place = f"$[{index}]" if isinstance(body, list) else "$"
        if isinstance(each, dict) and isinstance(each.get("data"), dict):
            yield f"{place}.data", each["data"]
        elif isinstance(each, dict):
            yield place, each


def _metric(collector: Collector, metrics: list[Any], place: str) -> None:
    for index, metric in enumerate(metrics):
        where = f"{place}[{index}]"
        points = metric.get("data") if isinstance(metric, dict) else None
        name = metric.get("name") if isinstance(metric, dict) else None
        units = metric.get("units") if isinstance(metric, dict) else None
        if not isinstance(points, list) or not isinstance(name, str) or not isinstance(units, str | None):
            collector.take_one(metric, where, _wrong)
        elif name == "sleep_analysis":
            _sleep(collector, points, (units or "").lower(), f"{where}.data")
        elif name == "blood_pressure":
            collector.take(points, f"{where}.data", _pressure)
        elif name in _METRICS:
            _points(collector, points, _METRICS[name], units or "", f"{where}.data")
        else:
            collector.skip(_word(name), len(points))


def _wrong(_: Any) -> Found:
    raise Refused("wrong_type")


def _word(name: str) -> str:
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:60].strip("_")
    return word if re.match(r"[a-z]", word) else "unnamed_metric"


def _time(said: Fields, name: str) -> tuple[int, int]:
    """The instant, and the minutes of its offset."""
    text = said.text(name, required=True)
    found = _TWELVE_HOURS.fullmatch(text or "")
    if found is not None:
        date, hour, minute, second, half, zone = found.groups()
        text = f"{date} {int(hour) % 12 + 12 * (half in 'Pp'):02}:{minute}:{second} {zone}"
    local, offset = iso_time(text, said.prefix + name)
    if offset is None:
        raise Refused("missing_offset", said.prefix + name)
    return local - offset * _MINUTE, offset


def _points(collector: Collector, points: list[Any], metric: str, units: str, place: str) -> None:
    length, name = _period(points)
    unit = _COUNTED.get(metric, "") if units == "count" else _UCUM.get(units.lower(), units)

    def read(record: Any) -> Found:
        said = Fields.of(record)
        at, offset = _time(said, "date")
        value = next(
            (found for key in ("qty", "Avg", "avg") if (found := said.number(key)) is not None), None
        )
        if value is None:
            raise Refused("missing_field", "qty")
        source = said.text("source") or "unnamed source"
        is_sum = metric in _SUMS and length is not None
        yield (
            "records",
            {
                "metric_type": metric,
                "value": value,
                # HealthKit's percent is a fraction; the app's mostly is not.
                "unit": "1" if unit == "%" and metric in _FRACTIONS and value <= 1 else unit,
                "recorded_at": at,
                "ended_at": at + length if is_sum and length is not None else None,
                # A day's sum and its hours' are the same steps: the election of devices takes one of them.
                "device": f"{source} by the {name}" if is_sum else source,
                "utc_offset_minutes": offset,
                "utc_offset_source": "record",
            },
        )

    collector.take(points, place, read)


def _period(points: Sequence[Any]) -> tuple[int | None, str]:
    """Of what all points are the beginnings, by the clock on the wall."""
    clocks = []
    for point in points:
        try:
            at, offset = _time(Fields.of(point), "date")
        except Refused:
            continue
        clocks.append(at + offset * _MINUTE)
    for length, name in _PERIODS:
        if clocks and all(clock % length == 0 for clock in clocks):
            return length, name
    return None, ""


def _pressure(record: Any) -> Found:
    said = Fields.of(record)
    at, offset = _time(said, "date")
    for name in ("systolic", "diastolic"):
        yield (
            "records",
            {
                "metric_type": f"blood_pressure_{name}",
                "value": said.needed(name),
                "unit": "mm[Hg]",
                "recorded_at": at,
                "device": said.text("source"),
                "utc_offset_minutes": offset,
                "utc_offset_source": "record",
            },
        )


def _sleep(collector: Collector, points: list[Any], units: str, place: str) -> None:
    """Nights where the app has summed them up, else stretches of stages, which come to nights."""
    factor = _HOURS.get(units, 3600.0)
    segments: dict[str, list[Segment]] = {}
    for index, point in enumerate(points):
        where = f"{place}[{index}]"
        if isinstance(point, dict) and "startDate" in point and "value" in point:
            found: list[tuple[str, Segment]] = []
            collector.take_one(point, where, _kept(found))
            for source, segment in found:
                segments.setdefault(source, []).append(segment)
        else:
            collector.take_one(point, where, lambda record: _night(record, factor))
    rows: list[Row] = []
    for source, stretches in segments.items():
        for session in sessions_of(stretches):
            row = session_row(session)
            row |= {"sleep_id": f"{source} {row['started_at'] // 1_000_000}", "device": source}
            rows.append(row)
    mark_main(rows)
    for row in rows:
        collector.put("sleep_sessions", row, f"{place}: sleep {row['sleep_id']}")


def _kept(found: list[tuple[str, Segment]]) -> Callable[[Any], Found]:
    """A reader that keeps a good stretch; its row is the night's."""

    def read(record: Any) -> Found:
        said = Fields.of(record)
        stage = _STAGES.get((said.text("value") or "").lower())
        start, offset = _time(said, "startDate")
        end, end_offset = _time(said, "endDate")
        if stage is None:
            raise Refused("unknown_sleep_stage", "value")
        if end <= start:
            raise Refused("ends_before_start", "endDate")
        seconds_of((end - start) / 1_000_000, "endDate")
        found.append(
            (said.text("source") or "unnamed source", Segment(stage, start, end, offset, end_offset))
        )
        raise Kept

    return read


def _night(record: Any, factor: float) -> Found:
    said = Fields.of(record)
    if not any(said.values.get(name) for name in ("asleep", "totalSleep", "inBed", "core", "deep", "rem")):
        raise Skipped("night_without_sleep")

    def seconds(name: str) -> int | None:
        return seconds_of(said.number(name), name, factor)

    start, offset = _time(said, "sleepStart")
    end, end_offset = _time(said, "sleepEnd")
    for edge in ("inBedStart", "inBedEnd"):
        if said.values.get(edge):
            at, of_bed = _time(said, edge)
            if edge == "inBedStart" and at < start:
                start, offset = at, of_bed
            if edge == "inBedEnd" and at > end:
                end, end_offset = at, of_bed
    if end <= start:
        raise Refused("ends_before_start", "sleepEnd")
    length = seconds_of((end - start) / 1_000_000, "sleepEnd")
    staged = [seconds(name) for name in ("core", "deep", "rem")]
    asleep = seconds("totalSleep") or seconds("asleep") or sum(part or 0 for part in staged)
    in_bed = seconds("inBed") or length
    source = said.text("source") or "unnamed source"
    yield (
        "sleep_sessions",
        {
            "sleep_id": f"{source} {start // 1_000_000}",
            "started_at": start,
            "ended_at": end,
            "utc_offset_minutes": offset,
            "end_utc_offset_minutes": end_offset,
            "sleep_type": None,
            "is_main_sleep": True,
            "time_in_bed_seconds": in_bed,
            "sleep_seconds": asleep or None,
            "light_sleep_seconds": staged[0],
            "deep_sleep_seconds": staged[1],
            "rem_sleep_seconds": staged[2],
            "awake_seconds": seconds("awake"),
            "efficiency_percent": min(100.0 * asleep / in_bed, 100.0) if asleep and in_bed else None,
            "device": source,
        },
    )


def _workouts(collector: Collector, workouts: list[Any], place: str) -> None:
    collector.take(workouts, place, _workout)


def _workout(record: Any) -> Found:
    said = Fields.of(record)
    start, offset = _time(said, "start")
    end, _ = _time(said, "end")
    length = seconds_of((end - start) / 1_000_000, "end")
    assert length is not None
    duration = said.number("duration")
    pulse = said.object("heartRate")
    name = said.text("name") or "other"
    yield (
        "workouts",
        {
            "workout_id": said.name_of("id") if said.has("id") else f"{name} {start // 1_000_000}",
            "started_at": start,
            "ended_at": end,
            "utc_offset_minutes": offset,
            "activity": _word(name) if _word(name) != "unnamed_metric" else "other",
            "duration_seconds": duration
            if duration is not None and 0 <= duration <= length + 1
            else float(length),
            "calories_kcal": _quantity(said.object("activeEnergyBurned"), _KILOCALORIES),
            "distance_m": _quantity(said.object("distance"), _METRES),
            "average_heart_rate_bpm": _first(
                said.object("avgHeartRate").number("qty"), pulse.object("avg").number("qty")
            ),
            "max_heart_rate_bpm": _first(
                said.object("maxHeartRate").number("qty"), pulse.object("max").number("qty")
            ),
            "elevation_gain_m": _quantity(said.object("elevationUp"), _METRES),
        },
    )


def _quantity(said: Fields, factors: Mapping[str, float]) -> float | None:
    value, factor = said.number("qty"), factors.get((said.text("units") or "").lower())
    return None if value is None or factor is None else value * factor


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def sniff(head: bytes) -> float:
    """Sure of a list of metrics or workouts with the app's names for what is in them."""
    text = head.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace").lstrip()
    return 0.9 if text.startswith(("{", "[")) and _MARKS.search(text) and _OWN.search(text) else 0.0


PROVIDER = Provider(
    name="health_auto_export",
    title="Health Auto Export",
    door="upload",
    entities=ENTITIES,
    parse=parse,
    sniff=sniff,
    parser_version=2,
)
