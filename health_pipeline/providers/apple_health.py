"""Apple Health's export.zip, or the export.xml in it: a snapshot of everything a phone knows of its owner.

Instants are right; the offset printed with them is the phone's at the time of export, not that of the place.
A record's own is that of its `HKTimeZone`, else that of the zone given with the upload, else the printed one.
Units follow the phone's settings and are read record by record. Records have no id, and the address in
`device` is another in every export: a device is its source's name and its hardware.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from health_pipeline.providers._apple_health_time import (
    WHEN_FIELDS,
    ZONES_SCHEMA,
    Ints,
    When,
    time_zones,
)
from health_pipeline.providers._apple_health_xml import Batch, Element, Records, is_export, read_batches
from health_pipeline.providers._arrow import flag_column, number_column, numbers, text_column
from health_pipeline.providers._glucose import read_numbers
from health_pipeline.providers._json import original_json, quarantine_table
from health_pipeline.providers._local_time import load_zone
from health_pipeline.providers._parts import whole
from health_pipeline.providers._zip_stream import is_zip, member_names, open_member
from health_pipeline.providers.base import Entity, Parsed, Provider, RawDocument, RawFile, UnreadableFileError

_QUANTITY, _CATEGORY = "HKQuantityTypeIdentifier", "HKCategoryTypeIdentifier"
#: Quantity types, and what they are in the catalogue. A ride's or a swim's distance is its workout's.
QUANTITIES = {
    "StepCount": "steps",
    "DistanceWalkingRunning": "distance",
    "FlightsClimbed": "floors",
    "ActiveEnergyBurned": "calories_burned",
    "BasalEnergyBurned": "basal_calories",
    "AppleExerciseTime": "active_minutes",
    "VO2Max": "vo2_max",
    "HeartRate": "heart_rate",
    "RestingHeartRate": "resting_heart_rate",
    "HeartRateVariabilitySDNN": "heart_rate_variability_sdnn",
    "OxygenSaturation": "spo2",
    "RespiratoryRate": "respiratory_rate",
    "BloodPressureSystolic": "blood_pressure_systolic",
    "BloodPressureDiastolic": "blood_pressure_diastolic",
    "BodyMass": "weight",
    "LeanBodyMass": "lean_mass",
    "BodyFatPercentage": "body_fat",
    "BodyMassIndex": "bmi",
    "Height": "height",
    "BodyTemperature": "body_temperature",
    "AppleSleepingWristTemperature": "skin_temperature",
    "DietaryWater": "hydration",
    "DietaryCarbohydrates": "carbohydrates",
    "BloodGlucose": "blood_glucose",
}
_STAND, _SLEEP = f"{_CATEGORY}AppleStandHour", f"{_CATEGORY}SleepAnalysis"
_METRIC_OF = {**{_QUANTITY + name: metric for name, metric in QUANTITIES.items()}, _STAND: "stand_hours"}
_WANTED = frozenset([*_METRIC_OF, _SLEEP])
_STOOD = {"HKCategoryValueAppleStandHourStood": "1", "HKCategoryValueAppleStandHourIdle": "0"}
_STAGES = {
    "InBed": "in_bed",
    "Asleep": "asleep",
    "AsleepUnspecified": "asleep",
    "AsleepCore": "light",
    "AsleepDeep": "deep",
    "AsleepREM": "rem",
    "Awake": "awake",
}
#: Units as HealthKit spells them, and UCUM. One with a molar mass in it is a mole's.
_UCUM = {
    "count/min": "/min",
    "mmHg": "mm[Hg]",
    "degC": "Cel",
    "degF": "[degF]",
    "lb": "[lb_av]",
    "st": "[stone_av]",
    "mi": "[mi_i]",
    "ft": "[ft_i]",
    "in": "[in_i]",
    "yd": "[yd_i]",
    "Cal": "kcal",
    "hr": "h",
    "fl_oz_us": "[foz_us]",
    "mL/min·kg": "mL/(kg.min)",
    "mL/kg·min": "mL/(kg.min)",
    "mL/(kg*min)": "mL/(kg.min)",
}
_COUNTED = {"steps": "{steps}", "floors": "{floors}", "bmi": "kg/m2", "stand_hours": "{hours}"}
_FRACTIONS = {"spo2", "body_fat"}
_SENSORS = re.compile(
    r"dexcom|libre|stelo|lingo|eversense|carelink|minimed|guardian|medtronic|xdrip|nightscout|sugarmate|"
    r"loop\b|\btrio\b|gluroo|clarity|cgm",
    re.IGNORECASE,
)
_BATCH_RECORDS = 3_000
_LONGEST_ORIGINAL = 200

Flags = npt.NDArray[np.bool_]

#: `value` is as written, `unit` UCUM, as written where that is none. `is_sensor`: a glucose value of a sensor.
RECORDS_SCHEMA = pa.schema(
    [
        pa.field("metric_type", pa.string(), nullable=False),
        pa.field("value", pa.float64(), nullable=False),
        pa.field("unit", pa.string()),
        *WHEN_FIELDS,
        pa.field("is_user_entered", pa.bool_(), nullable=False),
        pa.field("is_sensor", pa.bool_(), nullable=False),
    ]
)
SEGMENTS_SCHEMA = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),
        *WHEN_FIELDS,
        pa.field("end_utc_offset_minutes", pa.int16(), nullable=False),
    ]
)
WORKOUTS_SCHEMA = pa.schema(
    [
        pa.field("activity", pa.string(), nullable=False),
        *WHEN_FIELDS,
        pa.field("duration_seconds", pa.float64()),
        pa.field("active_energy_kcal", pa.float64()),
        pa.field("distance_m", pa.float64()),
        pa.field("average_heart_rate_bpm", pa.float64()),
        pa.field("max_heart_rate_bpm", pa.float64()),
        pa.field("elevation_gain_m", pa.float64()),
    ]
)


#: `is_home`: clocks there show what those of the upload's zone do.
def parse_stream(file: RawFile) -> Iterator[Parsed]:
    """Records, segments of sleep and workouts of an export, in parts of some thousand.

    A bad value, time or stage goes to quarantine with its line; types that the catalogue has no metric for are
    counted by their name. What is in a correlation is there twice, with the same values: both are staged, and
    are one row later. A file that was cut off gives what it holds, a row in quarantine, and a note.

    UnreadableFileError: neither a zip with an export in it nor an export; encrypted; an unknown zone.
    """
    zone = None if file.time_zone is None else load_zone(file.time_zone)
    buffered = io.BufferedReader(file.content) if isinstance(file.content, io.RawIOBase) else file.content
    head = buffered.read(4096)
    stream: Any = _Joined(head, buffered)
    member = None
    if is_zip(head):
        member = open_member(stream, lambda name, start: name.lower().endswith(".xml") and is_export(start))
        if member is None:
            raise UnreadableFileError(
                "there is no Apple Health export in the archive, or it is cut off before"
            )
        stream = member
    for batch in read_batches(stream, _WANTED, _BATCH_RECORDS):
        cut = batch.cut_at is not None or (member is not None and member.cut)
        yield _read(batch, zone, file.time_zone, cut=cut)


class _Joined(io.RawIOBase):
    """A stream whose first bytes have been read already."""

    def __init__(self, head: bytes, rest: Any) -> None:
        self._head = head
        self._rest = rest

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        content: bytes = self._rest.read(size)
        return content


def parse(document: RawDocument) -> Parsed:
    """`parse_stream` of a file that is in memory."""
    return whole(parse_stream, document)


def sniff(head: bytes) -> float:
    """Certain of Apple's root element, and of a zip that begins with the names of an export."""
    if is_zip(head):
        names = [name.casefold() for name in member_names(head)]
        return 0.95 if any(name.startswith("apple_health_export/") for name in names) else 0.0
    return 0.95 if is_export(head[:4096]) else 0.0


def _read(batch: Batch, zone: ZoneInfo | None, zone_name: str | None, *, cut: bool) -> Parsed:
    records, segments = batch.records, Records()
    if _SLEEP in (kinds := batch.records.kind):
        records = batch.records.of([row for row, kind in enumerate(kinds) if kind != _SLEEP])
        segments = batch.records.of([row for row, kind in enumerate(kinds) if kind == _SLEEP])
    refused: list[_Refusal] = []
    when = {
        "records": When.of_records(records, zone),
        "sleep_segments": When.of_records(segments, zone),
        "workouts": When.of_workouts(batch.workouts, zone),
    }
    tables = {
        "records": _records(records, when["records"], refused),
        "sleep_segments": _segments(segments, when["sleep_segments"], refused),
        "workouts": _workouts(batch.workouts, when["workouts"], refused),
    }
    loaded = sum(table.num_rows for table in tables.values())
    tables["time_zones"] = time_zones([*when.values()], zone, zone_name)
    rows: list[tuple[str, str, str | None, str, str]] = [
        (entity, reason, name, f"line {element['line']}", original_json(_original(element)))
        for entity, reason, name, element in refused
    ]
    rows += [("records", "malformed_xml", None, f"line {line}", "{}") for line in batch.broken]
    notes: list[str] = []
    if cut:
        place = f"line {batch.cut_at}" if batch.cut_at is not None else "the end"
        rows.append(("records", "truncated_file", None, place, "{}"))
        notes.append(f"the file is cut off at {place}: what it holds is loaded; export it again for the rest")
    quarantine = pa.concat_tables(
        [
            quarantine_table(
                entity, ((reason, name, place, text) for e, reason, name, place, text in rows if e == entity)
            )
            for entity in ("records", "sleep_segments", "workouts")
        ]
    )
    skipped = Counter({_word(name): count for name, count in batch.skipped.items()})
    return Parsed(
        tables={name: table for name, table in tables.items() if table.num_rows},
        quarantine=quarantine,
        records_in=loaded + len(rows) + skipped.total(),
        records_loaded=loaded,
        skipped=dict(skipped),
        notes=tuple(notes),
    )


def _word(name: str) -> str:
    """`HKQuantityTypeIdentifierWalkingSpeed` as `walking_speed`."""
    for prefix in (_QUANTITY, _CATEGORY, "HKDataType", "HKWorkoutActivityType"):
        name = name.removeprefix(prefix)
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name)
    word = re.sub(r"[^a-z0-9]+", "_", parted.lower()).strip("_")[:60].strip("_")
    return word if re.match(r"[a-z]", word) else "unnamed_type"


def _original(element: Element) -> Mapping[str, object]:
    kept = ("type", "workoutActivityType", "value", "unit", "startDate", "endDate", "duration")
    return {name: str(element[name])[:_LONGEST_ORIGINAL] for name in kept if name in element}


#: Entity, reason, field, and what was refused.
_Refusal = tuple[str, str, str | None, Element]


@lru_cache(maxsize=1024)
def _unit(metric: str, unit: str | None) -> str | None:
    """UCUM for HealthKit's spelling; what is not known stays as written, for the catalogue to refuse."""
    if unit is None:
        return _COUNTED.get(metric) if metric == "stand_hours" else None
    text = re.sub(r"<[^>]*>", "", unit).strip()
    if text == "count":
        return _COUNTED.get(metric, text)
    return _UCUM.get(text, text)


def _records(records: Records, when: When, refused: list[_Refusal]) -> pa.Table:
    metrics = [_METRIC_OF.get(kind or "") for kind in records.kind]
    texts = records.value
    if "stand_hours" in metrics:
        texts = [
            _STOOD.get(text or "", text) if metric == "stand_hours" else text
            for metric, text in zip(metrics, texts, strict=True)
        ]
    filled = ["" if text is None else text.strip() for text in texts]
    values, numeric = _numbers(filled)
    reason = when.reason.copy()
    if None in metrics:
        _note(reason, np.array([metric is None for metric in metrics], dtype=np.bool_), "missing_type")
    if "" in filled:
        _note(reason, np.array([not text for text in filled], dtype=np.bool_), "missing_value")
    _note(reason, ~numeric, "unparsable_value")
    kept = _keep("records", reason, refused, records.element)
    rows = kept.tolist()
    units = [_unit(metrics[row] or "", records.unit[row]) for row in rows]
    if "%" in units:
        for place, row in enumerate(rows):
            # HealthKit's percent is a fraction, and some apps did not know.
            if units[place] == "%" and metrics[row] in _FRACTIONS and values[row] <= 1:
                units[place] = "1"
    typed_in, is_sensor = np.zeros(len(records), dtype=np.bool_), np.zeros(len(records), dtype=np.bool_)
    typed_in[[row for row, said in records.metadata.items() if said.get("HKWasUserEntered") == "1"]] = True
    if "blood_glucose" in metrics:
        for row, metric in enumerate(metrics):
            said = records.metadata.get(row, {})
            is_sensor[row] = metric == "blood_glucose" and _is_sensor(said, when.device[row])
    columns = {
        "metric_type": text_column([metrics[row] for row in rows]),
        "value": number_column(values[kept], pa.float64()),
        "unit": text_column(units),
        **when.columns(kept),
        "is_user_entered": flag_column(typed_in[kept]),
        "is_sensor": flag_column(is_sensor[kept]),
    }
    return pa.table(columns, schema=RECORDS_SCHEMA)


def _numbers(written: list[str]) -> tuple[npt.NDArray[np.float64], Flags]:
    """Numbers, and where there is one."""
    array = text_column(written)
    try:
        values = numbers(array.cast(pa.float64()), np.float64)
    except (pa.ArrowInvalid, ValueError):
        return read_numbers(array)
    return values, np.isfinite(values)


def _is_sensor(metadata: Mapping[str, str], device: str) -> bool:
    """Whether a glucose value is a sensor's: nobody typed it in, or told the meal, and its app is one of theirs."""
    typed = metadata.get("HKWasUserEntered") == "1" or "HKBloodGlucoseMealTime" in metadata
    return not typed and _SENSORS.search(device) is not None


def _segments(records: Records, when: When, refused: list[_Refusal]) -> pa.Table:
    stages = [
        _STAGES.get((value or "").removeprefix("HKCategoryValueSleepAnalysis")) for value in records.value
    ]
    reason = when.reason.copy()
    _note(reason, np.array([stage is None for stage in stages], dtype=np.bool_), "unknown_sleep_stage")
    kept = _keep("sleep_segments", reason, refused, records.element)
    columns = {
        "stage": text_column([stages[row] for row in kept.tolist()]),
        **when.columns(kept),
        "end_utc_offset_minutes": number_column(when.end_offset[kept].astype(np.int16), pa.int16()),
    }
    return pa.table(columns, schema=SEGMENTS_SCHEMA)


_METERS = {"m": 1.0, "km": 1000.0, "mi": 1609.344, "ft": 0.3048, "yd": 0.9144, "cm": 0.01}
_KILOCALORIES = {"kcal": 1.0, "Cal": 1.0, "kJ": 1 / 4.184, "cal": 0.001}
_SECONDS = {"s": 1.0, "min": 60.0, "hr": 3600.0}


def _workouts(elements: list[Element], when: When, refused: list[_Refusal]) -> pa.Table:
    kept = _keep("workouts", when.reason.copy(), refused, elements.__getitem__)
    rows: list[dict[str, float | None]] = []
    for each in (elements[row] for row in kept.tolist()):
        by_type = {said.get("type", "").removeprefix(_QUANTITY): said for said in each["statistics"]}
        distances = [said for name, said in by_type.items() if name.startswith("Distance")]
        distance = distances[0] if distances else {}
        energy, pulse = by_type.get("ActiveEnergyBurned", {}), by_type.get("HeartRate", {})
        climbed, _, climbed_unit = (each.get("HKElevationAscended") or "").partition(" ")
        rows.append(
            {
                "duration_seconds": _measure(each.get("duration"), each.get("durationUnit"), _SECONDS),
                "active_energy_kcal": _first(
                    _measure(energy.get("sum"), energy.get("unit"), _KILOCALORIES),
                    _measure(each.get("totalEnergyBurned"), each.get("totalEnergyBurnedUnit"), _KILOCALORIES),
                ),
                "distance_m": _first(
                    _measure(distance.get("sum"), distance.get("unit"), _METERS),
                    _measure(each.get("totalDistance"), each.get("totalDistanceUnit"), _METERS),
                ),
                "average_heart_rate_bpm": _measure(
                    pulse.get("average"), pulse.get("unit"), {"count/min": 1.0}
                ),
                "max_heart_rate_bpm": _measure(pulse.get("maximum"), pulse.get("unit"), {"count/min": 1.0}),
                "elevation_gain_m": _measure(climbed, climbed_unit, _METERS),
            }
        )
    columns = when.columns(kept)
    columns["activity"] = text_column(
        [_word(elements[row].get("workoutActivityType") or "other") for row in kept.tolist()]
    )
    for name in WORKOUTS_SCHEMA.names:
        if name not in columns:
            values = np.array([row[name] for row in rows], dtype=np.float64)  # None is NaN
            columns[name] = number_column(values, pa.float64(), ~np.isnan(values))
    return pa.table({name: columns[name] for name in WORKOUTS_SCHEMA.names}, schema=WORKOUTS_SCHEMA)


def _measure(value: str | None, unit: str | None, factors: Mapping[str, float]) -> float | None:
    factor = factors.get(unit or "")
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number * factor if factor is not None and np.isfinite(number) else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _note(reason: npt.NDArray[np.object_], rows: Flags, word: str) -> None:
    reason[rows & (reason == "")] = word


_FIELDS = {"time": "startDate", "start": "endDate", "value": "value", "stage": "value", "type": "type"}


def _keep(
    entity: str,
    reason: npt.NDArray[np.object_],
    refused: list[_Refusal],
    element: Callable[[int], Element],
) -> Ints:
    """The rows without a reason against them; the others are refused."""
    for row in np.flatnonzero(reason != "").tolist():
        word = str(reason[row])
        refused.append((entity, word, _FIELDS.get(word.rsplit("_", 1)[-1]), element(row)))
    return np.flatnonzero(reason == "")


PROVIDER = Provider(
    name="apple_health",
    title="Apple Health export",
    door="upload",
    entities=(
        Entity(
            name="records",
            schema=RECORDS_SCHEMA,
            key=("metric_type", "recorded_at", "device", "value"),
            description="One row a quantity or hour stood, of an instant or a span of time.",
        ),
        Entity(
            name="sleep_segments",
            schema=SEGMENTS_SCHEMA,
            key=("recorded_at", "device", "stage"),
            description="One row a stretch of one stage of sleep, or in bed, as one device saw it.",
        ),
        Entity(
            name="workouts",
            schema=WORKOUTS_SCHEMA,
            key=("recorded_at", "device", "activity"),
            description="One row a workout.",
        ),
        Entity(
            name="time_zones",
            schema=ZONES_SCHEMA,
            key=("recorded_at", "time_zone"),
            description="One row an hour and zone in which records name that zone.",
        ),
    ),
    parse=parse,
    parse_stream=parse_stream,
    sniff=sniff,
    parser_version=2,
)
