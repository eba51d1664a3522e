"""What each Google Health data type says, column by column, and the wire's own spellings of values.

The wire is proto3 JSON: int64 are strings, durations are `"7200s"`, dates are objects of year, month and day,
timestamps have up to nine digits of a second, and a number that is 0 may be left out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._json import UTC_TIMESTAMP, Column, instants, numbers, strings

_SHORT = pa.int16()
_INT = pa.int32()
_FLOAT = pa.float64()
_TEXT = pa.string()
_FLAG = pa.bool_()

STAGE_TYPE = pa.struct(
    [
        pa.field("started_at", UTC_TIMESTAMP, nullable=False),
        pa.field("ended_at", UTC_TIMESTAMP, nullable=False),
        pa.field("stage", _TEXT, nullable=False),
    ]
)

_FINER_THAN_MICROSECONDS = r"(\.\d{6})\d+"
_DURATION = r"^-?\d+(\.\d{1,9})?s$"
_WHOLE = r"^-?\d+$"

# How values are written -------------------------------------------------------------------------------------


def _timestamps(values: Sequence[Any]) -> pa.Array:
    return instants(
        pc.replace_substring_regex(pa.array(values, _TEXT), _FINER_THAN_MICROSECONDS, r"\1").to_pylist()
        if any(type(value) is str and len(value) > len("2026-11-21T12:00:00.123456Z") for value in values)
        else values
    )


def _whole_numbers(number_type: pa.DataType, values: Sequence[Any]) -> pa.Array:
    """int64 as strings; plain numbers, as some clients have seen them, too."""
    kinds = set(map(type, values)) - {type(None)}
    if str not in kinds:
        return numbers(values, number_type)
    texts = values
    if kinds != {str}:
        texts = [value if type(value) is str else None for value in values]
    written = _matching(texts, _WHOLE).cast(number_type)
    if kinds == {str}:
        return written
    # Each is judged for itself, whatever stands beside it.
    plain = numbers([None if type(value) is str else value for value in values], number_type)
    return pc.coalesce(written, plain)


def _seconds(values: Sequence[Any]) -> pa.Array:
    """`"1830.5s"` as seconds."""
    return pc.utf8_rtrim(_matching(values, _DURATION), "s").cast(_FLOAT)


def _offset_minutes(values: Sequence[Any]) -> pa.Array:
    """`"-14400s"` as minutes; UTC offsets go from -18 to +18 hours."""
    seconds = _seconds(values)
    if pc.any(pc.greater(pc.abs(seconds), 64_800)).as_py():
        raise ValueError("not a UTC offset")
    return pc.divide(seconds, 60.0).cast(_SHORT, safe=False)


def _matching(values: Sequence[Any], pattern: str) -> pa.Array:
    texts = strings(values)
    if pc.all(pc.match_substring_regex(texts, pattern)).as_py() is False:
        raise ValueError("not as it is written")
    return texts


def _civil_dates(values: Sequence[Any]) -> pa.Array:
    """`{"year": 2026, "month": 11, "day": 21}` as a date; one without a year, say, is refused."""
    found: list[dt.date | None] = []
    for value in values:
        if value is None:
            found.append(None)
            continue
        parts = [dict.get(value, name, 0) for name in ("year", "month", "day")]
        if set(map(type, parts)) != {int}:
            raise TypeError("not a date")
        found.append(dt.date(*parts))
    return pa.array(found, pa.date32())


def _resource_ids(values: Sequence[Any]) -> pa.Array:
    """`users/me/dataTypes/sleep/dataPoints/x` as `x`: `me` may as well be the user's number."""
    return pc.replace_substring_regex(strings(values), "^.*/", "")


def _of_kind(
    kind: str, kind_name: str, value_name: str, number_type: pa.DataType, values: Sequence[Any]
) -> pa.Array:
    """From lists of objects that each speak of one kind, the number of `kind`.

    None where the list is absent, 0 where it is there and does not speak of the kind, or says null of it: on this
    wire null is what is left out.
    """
    found: list[Any] = []
    for value in values:
        if value is None:
            found.append(None)
            continue
        if type(value) is not list:
            raise TypeError("not an array")
        of_kind = (item for item in value if dict.get(item, kind_name) == kind)
        number = dict.get(next(of_kind, {}), value_name)
        found.append("0" if number is None else number)
    return _whole_numbers(number_type, found)


def _stage_lists(values: Sequence[Any]) -> pa.Array:
    """The stages of sleeps as lists of STAGE_TYPE. One that ends before it begins is refused."""
    if set(map(type, values)) - {list, type(None)}:
        raise TypeError("not arrays")
    items = [item for value in values if value for item in value]
    started, ended = (
        _timestamps([dict.get(item, name) for item in items]) for name in ("startTime", "endTime")
    )
    stage = strings([dict.get(item, "type") for item in items])
    if started.null_count or ended.null_count or stage.null_count:
        raise ValueError("a stage without time or type")
    if pc.any(pc.less(ended, started)).as_py():
        raise ValueError("a stage that ends before it begins")
    # An absent list and an empty one are the same on this wire.
    lengths = [0, *(len(value) if value else 0 for value in values)]
    offsets = pc.cumulative_sum(pa.array(lengths, _INT))
    return pa.ListArray.from_arrays(
        offsets, pa.StructArray.from_arrays([started, ended, stage], fields=list(STAGE_TYPE))
    )


# Columns ----------------------------------------------------------------------------------------------------


def _moment(path: str, name: str) -> Column:
    return Column(path, UTC_TIMESTAMP, name, always=True, convert=_timestamps)


def _offset(path: str, name: str) -> Column:
    return Column(path, _SHORT, name, convert=_offset_minutes)


def _whole(path: str, name: str, number_type: pa.DataType = _INT, *, always: bool = False) -> Column:
    return Column(path, number_type, name, always=always, convert=partial(_whole_numbers, number_type))


def _number(path: str, name: str, *, always: bool = False) -> Column:
    return Column(path, _FLOAT, name, always=always)


_SOURCE = (
    Column("dataSource.device.displayName", _TEXT, "device"),
    Column("dataSource.platform", _TEXT, "platform"),
    Column("dataSource.recordingMethod", _TEXT, "recording_method"),
)


def _sample(message: str, *columns: Column) -> tuple[Column, ...]:
    return (
        _moment(f"{message}.sampleTime.physicalTime", "recorded_at"),
        _offset(f"{message}.sampleTime.utcOffset", "utc_offset_minutes"),
        *columns,
        *_SOURCE,
    )


def _interval(message: str, *columns: Column) -> tuple[Column, ...]:
    return (
        _moment(f"{message}.interval.startTime", "recorded_at"),
        _offset(f"{message}.interval.startUtcOffset", "utc_offset_minutes"),
        _moment(f"{message}.interval.endTime", "ended_at"),
        _offset(f"{message}.interval.endUtcOffset", "end_utc_offset_minutes"),
        *columns,
    )


def _session(message: str, *columns: Column) -> tuple[Column, ...]:
    return (
        Column("dataPointName", _TEXT, "id", always=True, convert=_resource_ids),
        *_interval(message, *columns),
        Column(f"{message}.createTime", UTC_TIMESTAMP, "created_at", convert=_timestamps),
        Column(f"{message}.updateTime", UTC_TIMESTAMP, "updated_at", convert=_timestamps),
    )


def _daily(message: str, *columns: Column) -> tuple[Column, ...]:
    date = Column(f"{message}.date", pa.date32(), "day", always=True, convert=_civil_dates)
    return (date, *columns, *_SOURCE)


def _roll_up(*columns: Column) -> tuple[Column, ...]:
    date = Column("civilStartTime.date", pa.date32(), "day", always=True, convert=_civil_dates)
    return (date, *columns)


def _levels(*levels: str) -> tuple[Column, ...]:
    path = "activeMinutes.activeMinutesRollupByActivityLevel"
    return tuple(
        Column(
            path,
            _INT,
            f"{level.lower()}_minutes",
            convert=partial(_of_kind, level, "activityLevel", "activeMinutesSum", _INT),
            always=True,
        )
        for level in levels
    )


def _stage_minutes(*stages: str) -> tuple[Column, ...]:
    path = "sleep.summary.stagesSummary"
    return tuple(
        Column(
            path, _INT, f"{stage.lower()}_minutes", convert=partial(_of_kind, stage, "type", "minutes", _INT)
        )
        for stage in stages
    )


def _summary_minutes(**names: str) -> tuple[Column, ...]:
    return tuple(_whole(f"sleep.summary.{path}", name) for path, name in names.items())


#: The stages of a sleep, which become a table of their own.
STAGES = Column("sleep.stages", pa.list_(STAGE_TYPE), "stages", convert=_stage_lists)

COLUMNS: Mapping[str, tuple[Column, ...]] = {
    "heart_rate": _sample(
        "heartRate",
        _whole("heartRate.beatsPerMinute", "bpm", _SHORT, always=True),
        Column("heartRate.metadata.motionContext", _TEXT, "motion_context"),
    ),
    "heart_rate_variability": _sample(
        "heartRateVariability",
        _number("heartRateVariability.rootMeanSquareOfSuccessiveDifferencesMilliseconds", "rmssd_ms"),
        _number("heartRateVariability.standardDeviationMilliseconds", "standard_deviation_ms"),
    ),
    "oxygen_saturation": _sample(
        "oxygenSaturation", _number("oxygenSaturation.percentage", "percent", always=True)
    ),
    "core_body_temperature": _sample(
        "coreBodyTemperature",
        _number("coreBodyTemperature.temperatureCelsius", "temperature_celsius", always=True),
        Column("coreBodyTemperature.measurementLocation", _TEXT, "measurement_location"),
    ),
    "weight": _sample("weight", _number("weight.weightGrams", "weight_g", always=True)),
    "body_fat": _sample("bodyFat", _number("bodyFat.percentage", "percent", always=True)),
    "height": _sample("height", _whole("height.heightMillimeters", "height_mm", always=True)),
    "daily_resting_heart_rate": _daily(
        "dailyRestingHeartRate",
        _whole("dailyRestingHeartRate.beatsPerMinute", "bpm", _SHORT, always=True),
        Column(
            "dailyRestingHeartRate.dailyRestingHeartRateMetadata.calculationMethod",
            _TEXT,
            "calculation_method",
        ),
    ),
    "daily_heart_rate_variability": _daily(
        "dailyHeartRateVariability",
        _number("dailyHeartRateVariability.averageHeartRateVariabilityMilliseconds", "rmssd_ms"),
        _number(
            "dailyHeartRateVariability.deepSleepRootMeanSquareOfSuccessiveDifferencesMilliseconds",
            "deep_sleep_rmssd_ms",
        ),
        _number("dailyHeartRateVariability.entropy", "entropy"),
        _whole("dailyHeartRateVariability.nonRemHeartRateBeatsPerMinute", "non_rem_heart_rate_bpm", _SHORT),
    ),
    "daily_oxygen_saturation": _daily(
        "dailyOxygenSaturation",
        _number("dailyOxygenSaturation.averagePercentage", "average_percent", always=True),
        _number("dailyOxygenSaturation.lowerBoundPercentage", "lower_bound_percent"),
        _number("dailyOxygenSaturation.upperBoundPercentage", "upper_bound_percent"),
        _number("dailyOxygenSaturation.standardDeviationPercentage", "standard_deviation_percent"),
    ),
    "daily_respiratory_rate": _daily(
        "dailyRespiratoryRate",
        _number("dailyRespiratoryRate.breathsPerMinute", "breaths_per_minute", always=True),
    ),
    "daily_sleep_temperature_derivations": _daily(
        "dailySleepTemperatureDerivations",
        _number(
            "dailySleepTemperatureDerivations.nightlyTemperatureCelsius",
            "nightly_temperature_celsius",
            always=True,
        ),
        _number(
            "dailySleepTemperatureDerivations.baselineTemperatureCelsius", "baseline_temperature_celsius"
        ),
        _number(
            "dailySleepTemperatureDerivations.relativeNightlyStddev30dCelsius",
            "relative_standard_deviation_30_days_celsius",
        ),
    ),
    "daily_vo2_max": _daily(
        "dailyVo2Max",
        _number("dailyVo2Max.vo2Max", "vo2_max_ml_per_kg_min", always=True),
        _number("dailyVo2Max.vo2MaxCovariance", "vo2_max_covariance"),
        Column("dailyVo2Max.estimated", _FLAG, "estimated"),
        Column("dailyVo2Max.cardioFitnessLevel", _TEXT, "cardio_fitness_level"),
    ),
    "steps": _interval("steps", _whole("steps.count", "steps", always=True)),
    "distance": _interval("distance", _whole("distance.millimeters", "distance_mm", pa.int64(), always=True)),
    "active_energy_burned": _interval(
        "activeEnergyBurned", _number("activeEnergyBurned.kcal", "energy_kcal", always=True)
    ),
    "floors": _roll_up(_whole("floors.countSum", "floors", always=True)),
    "total_calories": _roll_up(_number("totalCalories.kcalSum", "energy_kcal", always=True)),
    "active_minutes": _roll_up(*_levels("LIGHT", "MODERATE", "VIGOROUS")),
    "active_zone_minutes": _roll_up(
        _whole("activeZoneMinutes.sumInFatBurnHeartZone", "fat_burn_minutes", always=True),
        _whole("activeZoneMinutes.sumInCardioHeartZone", "cardio_minutes", always=True),
        _whole("activeZoneMinutes.sumInPeakHeartZone", "peak_minutes", always=True),
    ),
    "sleep": _session(
        "sleep",
        Column("sleep.type", _TEXT, "type"),
        Column("sleep.metadata.mainSleep", _FLAG, "main_sleep"),
        Column("sleep.metadata.nap", _FLAG, "nap"),
        Column("sleep.metadata.processed", _FLAG, "processed"),
        Column("sleep.metadata.manuallyEdited", _FLAG, "manually_edited"),
        Column("sleep.metadata.stagesStatus", _TEXT, "stages_status"),
        *_summary_minutes(
            minutesInSleepPeriod="sleep_period_minutes",
            minutesAsleep="asleep_minutes",
            minutesAwake="awake_minutes",
            minutesToFallAsleep="to_fall_asleep_minutes",
            minutesAfterWakeUp="after_wake_up_minutes",
        ),
        *_stage_minutes("DEEP", "LIGHT", "REM"),
    ),
    "exercise": _session(
        "exercise",
        Column("exercise.exerciseType", _TEXT, "exercise_type", always=True),
        Column("exercise.displayName", _TEXT, "display_name"),
        Column("exercise.activeDuration", _FLOAT, "active_duration_seconds", convert=_seconds),
        _number("exercise.metricsSummary.caloriesKcal", "calories_kcal"),
        _number("exercise.metricsSummary.distanceMillimeters", "distance_mm"),
        _whole("exercise.metricsSummary.steps", "steps"),
        _whole("exercise.metricsSummary.averageHeartRateBeatsPerMinute", "average_heart_rate_bpm", _SHORT),
        _number("exercise.metricsSummary.averageSpeedMillimetersPerSecond", "average_speed_mm_per_s"),
        _number("exercise.metricsSummary.elevationGainMillimeters", "elevation_gain_mm"),
        _whole("exercise.metricsSummary.activeZoneMinutes", "active_zone_minutes"),
    ),
}

#: Numbers that the wire leaves out where they are 0: the message and its fields. Anywhere else 0 has no meaning.
ZEROS: Mapping[str, tuple[str, tuple[str, ...], Any]] = {
    "steps": ("steps", ("count",), "0"),
    "distance": ("distance", ("millimeters",), "0"),
    "active_energy_burned": ("activeEnergyBurned", ("kcal",), 0.0),
    "floors": ("floors", ("countSum",), "0"),
    "total_calories": ("totalCalories", ("kcalSum",), 0.0),
    "active_minutes": ("activeMinutes", ("activeMinutesRollupByActivityLevel",), []),
    "active_zone_minutes": (
        "activeZoneMinutes",
        ("sumInFatBurnHeartZone", "sumInCardioHeartZone", "sumInPeakHeartZone"),
        "0",
    ),
}

_ROLL_UP_TIMES = ("civilStartTime.time", "civilEndTime")
_LEFT_IN_RAW: Mapping[str, Iterable[str]] = {
    "heart_rate": ("heartRate.metadata.sensorLocation",),
    "heart_rate_variability": ("heartRateVariability.metadata",),
    "core_body_temperature": ("coreBodyTemperature.id",),
    "weight": ("weight.notes",),
    "sleep": (
        "sleep.outOfBedSegments",
        "sleep.shortAwakenings",
        "sleep.metadata.externalId",
        STAGES.path,
    ),
    "exercise": (
        *(
            f"exercise.{name}"
            for name in ("exerciseEvents", "exerciseMetadata", "notes", "splitSummaries", "splits")
        ),
        *(
            f"exercise.metricsSummary.{name}"
            for name in (
                "averagePaceSecondsPerMeter",
                "heartRateZoneDurations",
                "mobilityMetrics",
                "runVo2Max",
                "totalSwimLengths",
            )
        ),
    ),
    **dict.fromkeys(("floors", "total_calories", "active_minutes", "active_zone_minutes"), _ROLL_UP_TIMES),
}


def known_fields(entity: str) -> list[str]:
    """Paths we read, and those we know and leave in raw: times of day once more, names, sources, details."""
    paths = [column.path for column in COLUMNS[entity]]
    message = next(
        path.split(".")[0] for path in paths if path.split(".")[0] not in ("dataPointName", "civilStartTime")
    )
    civil = [
        f"{message}.{time}"
        for time in ("sampleTime.civilTime", "interval.civilStartTime", "interval.civilEndTime")
        if any(path.startswith(f"{message}.{time.split('.')[0]}.") for path in paths)
    ]
    # A device's other facts, the application and the platform are left in raw as well.
    source = ["dataPointName", "name", "dataSource"]
    return [
        *(path for path in paths if not path.startswith("dataSource.")),
        *civil,
        *source,
        *_LEFT_IN_RAW.get(entity, ()),
    ]
