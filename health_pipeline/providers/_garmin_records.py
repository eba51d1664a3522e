"""Summaries of the Garmin Health API as typed tables: what a record of each kind holds, and how it is written.

Instants are epoch seconds in UTC with the device's offset beside them in seconds; a `calendarDate` is the
device's local date. Series are objects whose keys are seconds, as text, from the summary's start. A series
value below what its kind can measure is a state code (off the wrist, too much motion), never a number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from health_pipeline.providers._json import UTC_TIMESTAMP, Column, numbers, schema_of, strings

SHORT = pa.int16()
INT = pa.int32()
FLOAT = pa.float64()
TEXT = pa.string()

#: Last second of year 9999: larger numbers are milliseconds, or nonsense.
_LAST_SECOND = 253_402_300_799
_LONGEST_OFFSET = 18 * 3600
_LONGEST_SERIES = 7 * 86_400

_SERIES = pa.list_(pa.struct([pa.field("offset", pa.int64()), pa.field("value", FLOAT)]))
_RANGES = pa.list_(pa.struct([pa.field("startTimeInSeconds", FLOAT), pa.field("endTimeInSeconds", FLOAT)]))
LEVELS = pa.list_(pa.struct([pa.field("level", TEXT), pa.field("start", FLOAT), pa.field("end", FLOAT)]))
NAPS = pa.list_(
    pa.struct(
        [
            pa.field("napStartTimeInSeconds", FLOAT),
            pa.field("napOffsetInSeconds", FLOAT),
            pa.field("napDurationInSeconds", FLOAT),
            pa.field("napValidation", TEXT),
        ]
    )
)
#: Of a Health Snapshot: each measure's extremes and mean, and its series.
MEASURES = pa.list_(
    pa.struct(
        [
            pa.field("kind", TEXT),
            pa.field("minimum", FLOAT),
            pa.field("maximum", FLOAT),
            pa.field("average", FLOAT),
            pa.field("series", _SERIES),
        ]
    )
)
#: Fields of an activity's samples and the columns they become. Where somebody was stays in raw.
TRACK_COLUMNS: Mapping[str, str] = {
    "startTimeInSeconds": "recorded_at",
    "heartRate": "heart_rate_bpm",
    "speedMetersPerSecond": "speed_m_per_s",
    "stepsPerMinute": "steps_per_minute",
    "totalDistanceInMeters": "total_distance_m",
    "elevationInMeters": "elevation_m",
    "powerInWatts": "power_w",
    "bikeCadenceInRPM": "bike_cadence_per_minute",
    "swimCadenceInStrokesPerMinute": "swim_cadence_per_minute",
    "airTemperatureCelcius": "air_temperature_celsius",
    "timerDurationInSeconds": "timer_duration_seconds",
    "movingDurationInSeconds": "moving_duration_seconds",
}
TRACK = pa.list_(pa.struct([pa.field(name, FLOAT) for name in TRACK_COLUMNS]))


def instants_of(seconds: pa.Array) -> pa.Array:
    """Epoch seconds (float64) as UTC microseconds. ValueError where one is no such time."""
    limits = pc.min_max(seconds)
    if pc.count(seconds).as_py() and not 0 <= limits["min"].as_py() <= limits["max"].as_py() <= _LAST_SECOND:
        raise ValueError("not epoch seconds")
    micros = pc.round(pc.multiply(seconds, 1e6))
    return micros.cast(pa.int64()).cast(pa.timestamp("us")).cast(UTC_TIMESTAMP)


def minutes_of(seconds: pa.Array) -> pa.Array:
    """UTC offsets in seconds (float64) as whole minutes. ValueError where one is no offset on earth."""
    limits = pc.min_max(pc.abs(seconds))
    if pc.count(seconds).as_py() and limits["max"].as_py() > _LONGEST_OFFSET:
        raise ValueError("not a UTC offset")
    return pc.round(pc.divide(seconds, 60.0)).cast(SHORT)


def _instants(values: Sequence[Any]) -> pa.Array:
    return instants_of(numbers(values, FLOAT))


def _offsets(values: Sequence[Any]) -> pa.Array:
    return minutes_of(numbers(values, FLOAT))


def _ids(values: Sequence[Any]) -> pa.Array:
    """Ids, which come as numbers or as text."""
    return strings([str(value) if type(value) is int else value for value in values])


def _series(values: Sequence[Any]) -> pa.Array:
    """Objects of {offset in seconds, as text: number}, in the order they were written."""
    if set(map(type, values)) - {dict, type(None)}:
        raise TypeError("not an object of offsets")
    maps = [value or {} for value in values]
    keys = pa.array(list(chain.from_iterable(maps)), TEXT).cast(pa.int64())
    if pc.any(pc.greater(pc.abs(keys), _LONGEST_SERIES)).as_py():
        raise ValueError("not an offset within a summary")
    items = numbers(list(chain.from_iterable(one.values() for one in maps)), FLOAT)
    ends = np.cumsum([0, *map(len, maps)])
    pairs = pa.StructArray.from_arrays([keys, items], names=["offset", "value"])
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pairs)


def _levels(values: Sequence[Any]) -> pa.Array:
    """Sleep levels: objects of {level: [{start, end}]}."""
    if set(map(type, values)) - {dict, type(None)}:
        raise TypeError("not an object of levels")
    rows = []
    for value in values:
        row = []
        for level, ranges in (value or {}).items():
            read = pa.array([ranges], _RANGES).flatten()
            instants_of(read.field("startTimeInSeconds"))
            instants_of(read.field("endTimeInSeconds"))
            for span in read.to_pylist():
                if span is None or None in span.values():
                    raise ValueError("a level without a start or an end")
                row.append(
                    {
                        "level": level,
                        "start": span["startTimeInSeconds"],
                        "end": span["endTimeInSeconds"],
                    }
                )
        rows.append(row)
    return pa.array(rows, LEVELS)


def _naps(values: Sequence[Any]) -> pa.Array:
    naps = pa.array(values, NAPS)
    flat = naps.flatten()
    for name, check in (
        ("napStartTimeInSeconds", instants_of),
        ("napDurationInSeconds", instants_of),
        ("napOffsetInSeconds", minutes_of),
    ):
        check(flat.field(name))
    if flat.null_count or any(
        flat.field(n).null_count for n in ("napStartTimeInSeconds", "napDurationInSeconds")
    ):
        raise ValueError("a nap without a start or a duration")
    return naps


def _measures(values: Sequence[Any]) -> pa.Array:
    """Measures of a Health Snapshot. TypeError where one is no object, ValueError where it has no kind."""
    rows = []
    for value in values:
        if value is not None and not isinstance(value, list):
            raise TypeError("not an array of measures")
        row = []
        for measure in value or ():
            kind = dict.get(measure, "summaryType")
            if not isinstance(kind, str):
                raise ValueError("a measure without a kind")
            row.append(
                {
                    "kind": kind,
                    "minimum": measure.get("minValue"),
                    "maximum": measure.get("maxValue"),
                    "average": measure.get("avgValue"),
                    "series": _series([measure.get("epochSummaries")]).to_pylist()[0],
                }
            )
        rows.append(row)
    return pa.array(rows, MEASURES)


def _track(values: Sequence[Any]) -> pa.Array:
    track = pa.array(values, TRACK)
    times = track.flatten().field("startTimeInSeconds")
    if times.null_count:
        raise ValueError("a sample without a time")
    instants_of(times)
    return track


ID = Column("summaryId", TEXT, "summary_id", required=True)
START = Column("startTimeInSeconds", UTC_TIMESTAMP, "recorded_at", required=True, convert=_instants)
OFFSET = Column("startTimeOffsetInSeconds", SHORT, "utc_offset_minutes", convert=_offsets)
DAY = Column("calendarDate", pa.date32(), "day")
DURATION = Column("durationInSeconds", INT, "duration_seconds")
_MEASURED = (
    replace(START, path="measurementTimeInSeconds"),
    replace(OFFSET, path="measurementTimeOffsetInSeconds"),
)
_ACTIVITY_ID = Column("activityId", TEXT, "activity_id", convert=_ids)


def _values(**columns: str) -> tuple[Column, ...]:
    """Columns of float64, by name: the field each is read from."""
    return tuple(Column(path, FLOAT, name) for name, path in columns.items())


def _counts(**columns: str) -> tuple[Column, ...]:
    """Columns of int32, by name: the field each is read from."""
    return tuple(Column(path, INT, name) for name, path in columns.items())


def _series_of(**columns: str) -> tuple[Column, ...]:
    return tuple(Column(path, _SERIES, name, convert=_series) for name, path in columns.items())


def _activity(prefix: str = "") -> tuple[Column, ...]:
    columns = (
        START,
        OFFSET,
        replace(DURATION, required=True),
        Column("activityType", TEXT, "activity_type"),
        Column("activityName", TEXT, "activity_name"),
        Column("deviceName", TEXT, "device_name"),
        *_values(
            active_energy_kcal="activeKilocalories",
            distance_m="distanceInMeters",
            average_heart_rate_bpm="averageHeartRateInBeatsPerMinute",
            max_heart_rate_bpm="maxHeartRateInBeatsPerMinute",
            average_speed_m_per_s="averageSpeedInMetersPerSecond",
            max_speed_m_per_s="maxSpeedInMetersPerSecond",
            elevation_gain_m="totalElevationGainInMeters",
            elevation_loss_m="totalElevationLossInMeters",
        ),
        *_counts(steps="steps"),
        *(Column(name, pa.bool_(), column) for name, column in _FLAGS.items()),
        Column("parentSummaryId", TEXT, "parent_summary_id", convert=_ids),
    )
    return tuple(replace(column, path=f"{prefix}{column.path}", name=column.column) for column in columns)


_FLAGS = {"manual": "is_manual", "isWebUpload": "is_web_upload", "isParent": "is_parent"}


@dataclass(frozen=True, slots=True)
class Summary:
    """One kind of summary. `keys` are what it is called in bodies, `path` in addresses.

    `series` maps a column of a series to its kind and the least value that is a measurement. `aliases` are
    other spellings of a field, by column. `left_in_raw` are fields we know and do not stage.
    """

    keys: tuple[str, ...]
    path: str
    columns: tuple[Column, ...]
    series: Mapping[str, tuple[str, float]] | None = None
    aliases: Mapping[str, str] | None = None
    left_in_raw: tuple[str, ...] = ()
    permission: str = "HEALTH_EXPORT"
    #: Columns that hold the mean of a series, by the series' column.
    means: Mapping[str, str] | None = None

    def read_columns(self) -> tuple[Column, ...]:
        """All columns to read, other spellings (`alias_…`, not required) included."""
        by_name = {column.column: column for column in self.columns}
        return self.columns + tuple(
            replace(by_name[name], path=path, name=f"alias_{name}", required=False)
            for name, path in (self.aliases or {}).items()
        )

    def staged_columns(self) -> tuple[Column, ...]:
        """The columns of the staging table: no series, no lists."""
        return tuple(column for column in self.columns if not pa.types.is_list(column.type))

    @property
    def schema(self) -> pa.Schema:
        schema = schema_of(self.staged_columns())
        for name in (self.means or {}).values():
            schema = schema.append(pa.field(name, FLOAT))
        return schema


_ANYTHING_ABOVE_0 = 0.01

SUMMARIES: Mapping[str, Summary] = {
    "dailies": Summary(
        ("dailies",),
        "dailies",
        (
            ID,
            START,
            OFFSET,
            DAY,
            DURATION,
            Column("activityType", TEXT, "activity_type"),
            Column("source", TEXT, "third_party_source"),
            *_counts(
                steps="steps",
                wheelchair_pushes="pushes",
                floors_climbed="floorsClimbed",
                active_time_seconds="activeTimeInSeconds",
                moderate_intensity_seconds="moderateIntensityDurationInSeconds",
                vigorous_intensity_seconds="vigorousIntensityDurationInSeconds",
                stress_seconds="stressDurationInSeconds",
                rest_stress_seconds="restStressDurationInSeconds",
                activity_stress_seconds="activityStressDurationInSeconds",
                low_stress_seconds="lowStressDurationInSeconds",
                medium_stress_seconds="mediumStressDurationInSeconds",
                high_stress_seconds="highStressDurationInSeconds",
                steps_goal="stepsGoal",
                floors_climbed_goal="floorsClimbedGoal",
                intensity_goal_seconds="intensityDurationGoalInSeconds",
            ),
            *_values(
                distance_m="distanceInMeters",
                wheelchair_distance_m="pushDistanceInMeters",
                active_energy_kcal="activeKilocalories",
                basal_energy_kcal="bmrKilocalories",
                consumed_energy_kcal="consumedCalories",
                net_energy_goal_kcal="netKilocaloriesGoal",
                min_heart_rate_bpm="minHeartRateInBeatsPerMinute",
                max_heart_rate_bpm="maxHeartRateInBeatsPerMinute",
                resting_heart_rate_bpm="restingHeartRateInBeatsPerMinute",
                # Called an average, and the mean of the last seven days: not of this day.
                seven_day_heart_rate_bpm="averageHeartRateInBeatsPerMinute",
                average_stress_level="averageStressLevel",
                max_stress_level="maxStressLevel",
                body_battery_charged="bodyBatteryChargedValue",
                body_battery_drained="bodyBatteryDrainedValue",
            ),
            Column("stressQualifier", TEXT, "stress_qualifier"),
            *_series_of(heart_rate_series="timeOffsetHeartRateSamples"),
        ),
        series={"heart_rate_series": ("heart_rate", _ANYTHING_ABOVE_0)},
        aliases={"average_stress_level": "averageStresslevel"},
        left_in_raw=("pushesGoal",),
    ),
    "epochs": Summary(
        ("epochs",),
        "epochs",
        (
            ID,
            START,
            OFFSET,
            replace(DURATION, required=True),
            Column("activityType", TEXT, "activity_type"),
            *_counts(steps="steps", active_time_seconds="activeTimeInSeconds", wheelchair_pushes="pushes"),
            *_values(
                distance_m="distanceInMeters",
                wheelchair_distance_m="pushDistanceInMeters",
                active_energy_kcal="activeKilocalories",
                met="met",
                mean_motion_intensity="meanMotionIntensity",
                max_motion_intensity="maxMotionIntensity",
            ),
            Column("intensity", TEXT),
        ),
    ),
    "sleeps": Summary(
        ("sleeps",),
        "sleeps",
        (
            ID,
            START,
            OFFSET,
            DAY,
            replace(DURATION, required=True),
            *_counts(
                deep_sleep_seconds="deepSleepDurationInSeconds",
                light_sleep_seconds="lightSleepDurationInSeconds",
                rem_sleep_seconds="remSleepInSeconds",
                awake_seconds="awakeDurationInSeconds",
                unmeasurable_seconds="unmeasurableSleepDurationInSeconds",
                total_nap_seconds="totalNapDurationInSeconds",
            ),
            Column("validation", TEXT),
            Column("overallSleepScore.value", FLOAT, "sleep_score"),
            Column("overallSleepScore.qualifierKey", TEXT, "sleep_score_qualifier"),
            Column("sleepLevelsMap", LEVELS, "levels", convert=_levels),
            Column("naps", NAPS, "naps", convert=_naps),
            *_series_of(spo2_series="timeOffsetSleepSpo2", respiration_series="timeOffsetSleepRespiration"),
        ),
        series={
            "spo2_series": ("sleep_spo2", _ANYTHING_ABOVE_0),
            "respiration_series": ("sleep_respiration", _ANYTHING_ABOVE_0),
        },
        aliases={"unmeasurable_seconds": "unmeasurableSleepInSeconds"},
        means={
            "respiration_series": "average_breath_per_minute",
            "spo2_series": "average_spo2_percent",
        },
        left_in_raw=("sleepScores",),
    ),
    "body_comps": Summary(
        ("bodyComps",),
        "bodyComps",
        (
            ID,
            *_MEASURED,
            *_values(
                weight_g="weightInGrams",
                muscle_mass_g="muscleMassInGrams",
                bone_mass_g="boneMassInGrams",
                body_water_percent="bodyWaterInPercent",
                body_fat_percent="bodyFatInPercent",
                body_mass_index_kg_per_m2="bodyMassIndex",
            ),
        ),
    ),
    "stress_details": Summary(
        ("stressDetails",),
        "stressDetails",
        (
            ID,
            START,
            OFFSET,
            DAY,
            DURATION,
            *_series_of(
                stress_series="timeOffsetStressLevelValues",
                body_battery_series="timeOffsetBodyBatteryValues",
            ),
        ),
        series={"stress_series": ("stress", 0.0), "body_battery_series": ("body_battery", 0.0)},
        left_in_raw=("bodyBatteryDynamicFeedbackEvent", "bodyBatteryActivityEvents"),
    ),
    "user_metrics": Summary(
        ("userMetrics",),
        "userMetrics",
        (
            ID,
            replace(DAY, required=True),
            *_values(
                vo2_max_ml_per_kg_min="vo2Max",
                vo2_max_cycling_ml_per_kg_min="vo2MaxCycling",
                fitness_age_years="fitnessAge",
            ),
            Column("enhanced", pa.bool_(), "is_enhanced"),
        ),
    ),
    "pulse_ox": Summary(
        ("pulseox", "pulseOx"),
        "pulseOx",
        (
            ID,
            START,
            OFFSET,
            DAY,
            DURATION,
            Column("onDemand", pa.bool_(), "is_on_demand"),
            *_series_of(spo2_series="timeOffsetSpo2Values"),
        ),
        series={"spo2_series": ("spo2", _ANYTHING_ABOVE_0)},
    ),
    "respiration": Summary(
        ("allDayRespiration", "respiration"),
        "respiration",
        (ID, START, OFFSET, DURATION, *_series_of(respiration_series="timeOffsetEpochToBreaths")),
        series={
            "respiration_series": ("respiration", _ANYTHING_ABOVE_0),
            "alias_respiration_series": ("respiration", _ANYTHING_ABOVE_0),
        },
        aliases={"respiration_series": "timeOffsetRespirationValues"},
    ),
    "hrv": Summary(
        ("hrv",),
        "hrv",
        (
            ID,
            START,
            OFFSET,
            DAY,
            DURATION,
            *_values(last_night_average_ms="lastNightAvg", last_night_5_minute_high_ms="lastNight5MinHigh"),
            *_series_of(hrv_series="hrvValues"),
        ),
        series={"hrv_series": ("hrv", _ANYTHING_ABOVE_0)},
    ),
    "blood_pressures": Summary(
        ("bloodPressures",),
        "bloodPressures",
        (
            ID,
            *_MEASURED,
            *_values(systolic_mmhg="systolic", diastolic_mmhg="diastolic", pulse_bpm="pulse"),
            Column("sourceType", TEXT, "source_type"),
        ),
    ),
    "skin_temp": Summary(
        ("skinTemp",),
        "skinTemp",
        (ID, START, OFFSET, DAY, DURATION, *_values(average_deviation_celsius="avgDeviationCelsius")),
    ),
    "health_snapshots": Summary(
        ("healthSnapshot",),
        "healthSnapshot",
        (
            ID,
            START,
            OFFSET,
            DAY,
            DURATION,
            Column("summaries", MEASURES, "measures", convert=_measures),
        ),
        aliases={"utc_offset_minutes": "offsetStartTimeInSeconds"},
    ),
    "activities": Summary(
        ("activities", "manuallyUpdatedActivities"),
        "activities",
        (ID, _ACTIVITY_ID, *_activity()),
        left_in_raw=(
            "averagePaceInMinutesPerKilometer",
            "maxPaceInMinutesPerKilometer",
            "averageBikeCadenceInRoundsPerMinute",
            "maxBikeCadenceInRoundsPerMinute",
            "averageRunCadenceInStepsPerMinute",
            "maxRunCadenceInStepsPerMinute",
            "averageSwimCadenceInStrokesPerMinute",
            "numberOfActiveLengths",
            "startingLatitudeInDegree",
            "startingLongitudeInDegree",
        ),
        permission="ACTIVITY_EXPORT",
    ),
    "activity_details": Summary(
        ("activityDetails",),
        "activityDetails",
        (
            ID,
            _ACTIVITY_ID,
            *_activity("summary."),
            Column("samples", TRACK, "track", convert=_track),
        ),
        left_in_raw=("summary", "laps"),
        permission="ACTIVITY_EXPORT",
    ),
}
